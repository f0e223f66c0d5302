//! The counters of jobs are what a recount of the jobs says, whatever has happened; and a file of the version before has them too.

use std::collections::BTreeSet;

use tidewire_core::TenantId;
use tidewire_core::catalog::Keep;
use tidewire_core::commit::{After, Enqueue};
use tidewire_core::job::{OnConflict, OnFailure, Rare, State, States, Unique, Verdict};
use tidewire_core::store::{Claim, Control, Counts, JobQuery, Leased, QueueLimits};

use crate::world::{SECOND, World, any, commit, done, in_flow, retry, tenant, within};

every_engine![any_life_of_jobs_is_counted_right, forgotten_jobs_are_no_longer_counted];

/// The next number below `below` of a program.
fn draw(state: &mut u64, below: u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % below
}

async fn recount(world: &World, tenant: Option<&TenantId>) -> Counts {
    let mut counts = Counts::new();
    let mut cursor = None;
    loop {
        let query = JobQuery { tenant: tenant.cloned(), cursor, limit: JobQuery::MAX, ..JobQuery::default() };
        let page = within(world.store.jobs(query)).await.expect("jobs");
        for job in page.items {
            *counts.entry(job.queue).or_default().entry(job.state).or_default() += 1;
        }
        match page.next_cursor {
            Some(next) => cursor = Some(next),
            None => return counts,
        }
    }
}

async fn compare(world: &World, when: &str) {
    let (a, b) = (tenant("a"), tenant("b"));
    for tenant in [None, Some(&a), Some(&b)] {
        let counted = within(world.store.counts(tenant)).await.expect("counts");
        assert_eq!(counted, recount(world, tenant).await, "{when}, of {tenant:?}");
    }
}

async fn limit(world: &World) {
    let keep_completed = Keep::Count(20);
    world.limit(QueueLimits { per_key: Some(1), poison: 2, keep_completed, ..QueueLimits::default() }).await;
}

fn any_job(world: &World, random: &mut u64) -> Enqueue {
    let policies =
        [OnConflict::Keep, OnConflict::Replace, OnConflict::Extend, OnConflict::Latest, OnConflict::Supersede];
    let on_conflict = policies[draw(random, 5) as usize];
    let unique = Unique { key: "u".into(), states: States::UNFINISHED, window: None, on_conflict };
    let rare = Rare {
        key: (draw(random, 3) == 0).then(|| "k".into()),
        unique: (draw(random, 3) == 0).then_some(unique),
        expires_at: (draw(random, 4) == 0).then(|| world.now() + SECOND * 20),
        ..Rare::default()
    };
    Enqueue {
        queue: ["q", "other"][draw(random, 2) as usize].into(),
        priority: 1 + draw(random, 5) as u8,
        run_at: (draw(random, 3) == 0).then(|| world.now() + SECOND * 15),
        rare: Some(Box::new(rare)),
        ..world.job("work")
    }
}

/// One step of a program.
async fn step(world: &World, leased: &mut Vec<Leased>, random: &mut u64) {
    let own = tenant(["a", "b"][draw(random, 2) as usize]);
    match draw(random, 10) {
        0..4 => {
            let count = 1 + draw(random, 4);
            let mut jobs: Vec<Enqueue> = (0..count).map(|_| any_job(world, random)).collect();
            for index in 1..jobs.len() {
                if draw(random, 2) == 0 {
                    let before = &jobs[draw(random, index as u64) as usize];
                    jobs[index].after = vec![After { id: before.id.clone(), ignores_failure: draw(random, 2) == 0 }];
                }
            }
            let mut asked = commit(&own, Vec::new(), jobs);
            if draw(random, 2) == 0 {
                let flow = tidewire_core::id::Ids::next(&*world.ids);
                let mut undo = any_job(world, random);
                let rare = undo.rare_mut();
                (rare.compensates, rare.unique, rare.expires_at) = (Some(asked.jobs[0].id.clone()), None, None);
                asked.jobs.push(undo);
                for job in &mut asked.jobs {
                    job.rare_mut().flow = Some(flow.clone());
                    job.rare_mut().on_failure = OnFailure::Compensate;
                }
                asked = in_flow(&flow.to_string(), asked);
            }
            world.commit(asked).await;
        }
        4..6 => {
            let max = 1 + draw(random, 3) as u32;
            leased.extend(world.claim(Claim { max, lease: SECOND * 25, ..any() }).await);
        }
        6..8 if !leased.is_empty() => {
            let leased = leased.swap_remove(draw(random, leased.len() as u64) as usize);
            let verdict = match draw(random, 6) {
                0 => retry("boom"),
                1 => Verdict::Fail { error: "no".to_owned() },
                2 => Verdict::Snooze { delay: SECOND },
                3 => Verdict::Release,
                _ => done(),
            };
            // Its lease may be lost.
            drop(world.try_settle(&leased, verdict, None).await);
        }
        8 => {
            let query = JobQuery { tenant: Some(own.clone()), limit: 20, ..JobQuery::default() };
            let jobs = within(world.store.jobs(query)).await.expect("jobs").items;
            if !jobs.is_empty() {
                let job = &jobs[draw(random, jobs.len() as u64) as usize];
                let control = [Control::Cancel, Control::Redrive, Control::Promote][draw(random, 3) as usize].clone();
                // It may be refused in this state.
                drop(world.control(&own, &job.id, control).await);
            }
        }
        _ => world.advance(SECOND * (1 + draw(random, 12) as u32)).await,
    }
}

trait RareMut {
    fn rare_mut(&mut self) -> &mut Rare;
}

impl RareMut for Enqueue {
    fn rare_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }
}

/// `TIDEWIRE_SEED` chooses another program.
async fn any_life_of_jobs_is_counted_right(world: World) {
    limit(&world).await;
    let seed = std::env::var("TIDEWIRE_SEED").map_or(29, |text| text.parse().expect("a number"));
    let (mut leased, mut random) = (Vec::new(), seed);
    for number in 0..400 {
        step(&world, &mut leased, &mut random).await;
        compare(&world, &format!("with TIDEWIRE_SEED={seed}, after step {number}")).await;
    }
    let counts = recount(&world, None).await;
    let seen: BTreeSet<State> = counts.into_values().flatten().map(|(state, _)| state).collect();
    assert!(seen.len() >= 6, "the program goes everywhere: {seen:?}");
    drain(&world, leased).await;
}

/// Ends every run, until there are no more. Then nothing is left that waits for something that will not come.
async fn drain(world: &World, leased: Vec<Leased>) {
    for leased in leased {
        drop(world.try_settle(&leased, done(), None).await);
    }
    let mut idle = 0;
    while idle < 4 {
        world.advance(SECOND * 30).await;
        let leased = world.claim(any()).await;
        idle = if leased.is_empty() { idle + 1 } else { 0 };
        for leased in leased {
            world.settle(&leased, done()).await;
        }
        compare(world, "while draining").await;
    }
    for (queue, counts) in recount(world, None).await {
        assert!(counts.keys().all(|state| state.is_final()), "left in {queue}: {counts:?}");
    }
}

async fn forgotten_jobs_are_no_longer_counted(world: World) {
    let a = tenant("a");
    let (keep_completed, keep_cancelled, keep_dead) = (Keep::Age(SECOND), Keep::Age(SECOND), Keep::Age(SECOND));
    world.limit(QueueLimits { keep_completed, keep_cancelled, keep_dead, ..QueueLimits::default() }).await;
    world.enqueue(&a, (0..10).map(|_| world.job("work")).collect()).await;
    let leased = world.claim(any()).await;
    world.settle_all(&leased[..5], &done()).await;
    world.settle_all(&leased[5..9], &Verdict::Fail { error: "no".to_owned() }).await;
    world.advance(SECOND * 120).await;
    compare(&world, "after the purge").await;
    assert_eq!(recount(&world, None).await["q"].values().sum::<u64>(), 1);
}

#[cfg(feature = "sqlite")]
mod on_disk {
    use rusqlite::Connection;
    use tidewire_core::commit::Enqueue;
    use tidewire_core::job::State;
    use tidewire_core::store::{Claim, Control};

    use super::{compare, limit, step};
    use crate::disk::Disk;
    use crate::world::{START, any, commit, done, id, job_ids, tenant, within};

    #[tokio::test]
    async fn counts_hold_over_every_restart() {
        let mut disk = Disk::unsynced();
        let mut random = 11;
        for round in 0..12 {
            let opened = disk.open();
            limit(&opened.world).await;
            compare(&opened.world, &format!("at the begin of round {round}")).await;
            let mut leased = Vec::new();
            for number in 0..30 {
                step(&opened.world, &mut leased, &mut random).await;
                compare(&opened.world, &format!("in round {round}, step {number}")).await;
            }
            disk = disk.killed();
        }
    }

    /// A file as version 1 wrote it: jobs in every state, a lease of another machine, a failed run, an event.
    fn write_version_1(disk: &Disk) {
        let now = START.as_micros();
        let file = Connection::open(disk.path()).expect("open");
        file.execute_batch(include_str!("fixtures/schema-1.sql")).expect("schema");
        file.execute_batch(&format!(
            "INSERT INTO meta VALUES ('epoch', '0123456789abcdef'), ('secret', zeroblob(32));
             INSERT INTO tenants VALUES (1, 'a', 1), (2, 'b', 0);
             INSERT INTO names VALUES (1, 'q'), (2, 'work'), (3, 'x');
             INSERT INTO events (tenant, position, id, type, time, rooms, data) VALUES (1, 1, 'e1', 3, {now}, '[]', '{{}}');
             PRAGMA user_version = 1;"
        ))
        .expect("heads");
        for (seq, tenant, state, attempt) in [
            (1, 1, 1, 0),
            (2, 1, 1, 0),
            (3, 1, 0, 1),
            (4, 1, 2, 1),
            (5, 1, 4, 1),
            (6, 2, 6, 3),
            (7, 2, 7, 0),
            (8, 2, 5, 1),
        ] {
            let finished = (state >= 4).then_some(now);
            let run_at = if state == 0 { now + 1_000_000 } else { now };
            let (nonce, until) = if state == 2 { (Some(5), Some(now + 30_000_000)) } else { (None, None) };
            file.execute(
                "INSERT INTO jobs (seq, tenant, id, type, queue, state, priority, run_at, attempt, attempts, created_at, started_at, \
                 finished_at, nonce, lease_until, local, cancelled, worker, timeout, depth, backoff, data) \
                 VALUES (?1, ?2, 'j' || ?1, 2, 1, ?3, 3, ?4, ?5, 3, ?6, NULL, ?7, ?8, ?9, 0, 0, 'w', 60000000, 0, \
                 '{\"kind\":\"fixed\",\"base\":\"10s\"}', '{\"n\":1}')",
                rusqlite::params![seq, tenant, state, run_at, attempt, now, finished, nonce, until],
            )
            .expect("job");
        }
        file.execute_batch(&format!(
            "INSERT INTO claims VALUES (1, x'0400000000000000');
             INSERT INTO attempts VALUES (3, {now}, 1, {now}, 'boom', 'w');"
        ))
        .expect("claims");
    }

    #[tokio::test]
    async fn a_file_of_version_1_opens_counted_and_runs() {
        let disk = Disk::new();
        write_version_1(&disk);
        let (a, b) = (tenant("a"), tenant("b"));
        let opened = disk.open();
        let world = &opened.world;
        limit(world).await;
        compare(world, "after the migration").await;
        let counts = within(world.store.counts(Some(&b))).await.expect("counts");
        assert_eq!(counts["q"], [(State::Failed, 1), (State::Dead, 1), (State::Cancelled, 1)].into());
        assert_eq!((world.head(&a).await, world.log(&a).await.len()), (1, 1));
        assert_eq!(world.stored(&a, &id("j3")).await.1.len(), 1);

        // The lease of the worker on another machine is held; what is due runs, in its order.
        let leased = world.claim(Claim { max: 10, ..any() }).await;
        assert_eq!(job_ids(&leased), ["j1", "j2"]);
        world.settle_all(&leased, &done()).await;
        world.advance(std::time::Duration::from_secs(30)).await;
        let mut leased = job_ids(&world.claim(Claim { max: 10, ..any() }).await);
        leased.sort_unstable();
        assert_eq!(leased, ["j3", "j4"]);
        world.control(&b, &id("j6"), Control::Redrive).await.expect("redrive");
        let keyed = super::any_job(world, &mut 3);
        world.commit(commit(&b, Vec::new(), vec![Enqueue { run_at: None, ..keyed }])).await;
        compare(world, "after a while").await;
        opened.close().await;

        let again = disk.open();
        compare(&again.world, "after a restart").await;
        again.close().await;
        let file = Connection::open(disk.path()).expect("open");
        let version: i64 = file.query_row("PRAGMA user_version", [], |row| row.get(0)).expect("version");
        assert_eq!(version, 5);
    }

    /// What `schema.sql` makes and what the migrations make of version 1 is the same.
    #[tokio::test]
    async fn a_migrated_file_has_the_schema_of_a_new_one() {
        let schema = |disk: &Disk| {
            let file = Connection::open(disk.path()).expect("open");
            let columns = "SELECT m.name, p.name, p.type, p.\"notnull\", p.pk FROM sqlite_schema m, pragma_table_info(m.name) p \
                 WHERE m.type = 'table' ORDER BY 1, 2";
            let indexes = "SELECT name, tbl_name, sql, 0, 0 FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL ORDER BY 1";
            let mut rows: Vec<(String, String, String, i64, i64)> = Vec::new();
            for sql in [columns, indexes] {
                let mut statement = file.prepare(sql).expect("prepare");
                let read = statement
                    .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)))
                    .expect("query");
                rows.extend(read.map(|row| row.expect("row")));
            }
            rows
        };
        let (old, new) = (Disk::new(), Disk::new());
        write_version_1(&old);
        old.open().close().await;
        new.open().close().await;
        assert_eq!(schema(&old), schema(&new));
    }
}
