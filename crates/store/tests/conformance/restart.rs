//! What a restart finds: after a close, and after a kill.

use std::collections::{BTreeMap, HashSet};

use tidewire_core::TenantId;
use tidewire_core::catalog::Keep;
use tidewire_core::commit::{Append, Commit, Enqueue, Idempotency};
use tidewire_core::event::Position;
use tidewire_core::job::{State, Verdict};
use tidewire_core::schedule::Overlap;
use tidewire_core::store::{Claim, Control, Durability, Fire, Fired, QueueLimits};

use crate::disk::{Disk, Opened};
use crate::world::{HOUR, LEASE, MINUTE, SECOND, START, World, any, code, commit, done, id, retry, tenant, within};

fn local() -> Claim {
    Claim { local: true, ..any() }
}

async fn limit(world: &World, global: Option<u32>, keep_completed: Keep) {
    let limits = QueueLimits { global, keep_completed, keep_dead: Keep::Count(1_000), ..QueueLimits::default() };
    within(world.store.limit_queues(BTreeMap::from([("q".into(), limits)]))).await.expect("limits");
}

#[tokio::test]
async fn a_closed_store_opens_as_the_same_one() {
    let disk = Disk::new();
    let a = tenant("a");
    let first = disk.open();
    let (epoch, secret) = (first.world.store.epoch().clone(), *first.world.store.secret());
    let event =
        Append { id: id("e1"), given_id: true, stream: Some("s".into()), across: true, ..first.world.event("x") };
    first.world.append(&a, vec![event.clone(), first.world.event("y")]).await;
    first.world.enqueue(&a, vec![Enqueue { id: id("j1"), given_id: true, ..first.world.job("work") }]).await;
    first.close().await;

    let second = disk.open();
    let world = &second.world;
    assert_eq!((world.store.epoch(), world.store.secret()), (&epoch, &secret));
    assert_eq!(world.head(&a).await, 2);
    let again = world
        .commit(commit(&a, vec![event], vec![Enqueue { id: id("j1"), given_id: true, ..world.job("work") }]))
        .await;
    assert!(again.events[0].deduplicated && again.jobs[0].deduplicated);
    let next = Append { stream: Some("s".into()), expected_version: Some(1), across: true, ..world.event("z") };
    let next = world.commit(commit(&a, vec![next], Vec::new())).await.events.remove(0);
    assert_eq!((next.position, next.version), (Some(Position(3)), Some(2)));
    assert_eq!(world.head(&TenantId::across()).await, 2, "it goes on there, too");
    assert_eq!(world.claim_one().await.job.id, id("j1"));

    let other = Disk::new().open();
    assert_ne!(other.world.store.epoch(), &epoch);
    assert_ne!(other.world.store.secret(), &secret);
}

#[tokio::test]
async fn times_do_not_decrease_over_a_restart() {
    let disk = Disk::new();
    let first = disk.open();
    first.world.append(&tenant("a"), vec![first.world.event("x")]).await;
    first.world.clock.set(START - HOUR);
    first.close().await;
    let second = disk.open();
    second.world.append(&tenant("a"), vec![second.world.event("x")]).await;
    assert!(second.world.log(&tenant("a")).await.iter().all(|event| event.time == START));
}

#[tokio::test]
async fn a_kill_loses_nothing_that_was_acknowledged() {
    let disk = Disk::new();
    let killed = disk.open();
    let (a, b) = (tenant("a"), tenant("b"));
    let mut acknowledged = Vec::new();
    for round in 0..30_u64 {
        let tenant = if round % 3 == 0 { &b } else { &a };
        let events = vec![killed.world.event("x"), killed.world.event("y")];
        let committed = killed.world.commit(commit(tenant, events, vec![killed.world.job("work")])).await;
        acknowledged.push((tenant.clone(), committed));
    }
    let left = disk.killed();
    let image = left.open();
    for (tenant, committed) in acknowledged {
        for event in committed.events {
            let kept = within(image.world.store.event(&tenant, &event.id)).await.expect("read").expect("the event");
            assert_eq!((Some(kept.position), kept.time), (event.position, event.time));
        }
        assert_eq!(image.world.state(&tenant, &committed.jobs[0].id).await, State::Pending);
    }
    assert_eq!((image.world.head(&a).await, image.world.head(&b).await), (40, 20));
    assert_eq!(image.world.append(&a, vec![image.world.event("z")]).await, [Position(41)]);
    assert_eq!(image.world.claim(any()).await.len(), 30);
}

#[tokio::test]
async fn a_torn_write_ahead_log_loses_whole_commits_from_the_end_only() {
    let disk = Disk::new();
    let a = tenant("a");
    let killed = disk.open();
    for number in 1..=10 {
        let job = Enqueue { id: id(&format!("j{number}")), given_id: true, ..killed.world.job("work") };
        killed.world.commit(commit(&a, vec![killed.world.event("x"), killed.world.event("y")], vec![job])).await;
    }
    let wal = |disk: &Disk| disk.path().with_extension("db-wal");
    let length = std::fs::metadata(wal(&disk)).expect("wal").len();
    let mut heads = Vec::new();
    for cut in 0..12 {
        let image = disk.killed();
        let file = std::fs::OpenOptions::new().write(true).open(wal(&image)).expect("wal");
        // The schema alone fills the first part; the cuts are in what came after, most of them inside a page.
        file.set_len(length - length * cut / 24 - cut).expect("cut");
        let world = image.open().world;
        let head = world.head(&a).await;
        assert!(head.is_multiple_of(2), "half a commit is there");
        assert_eq!(world.log(&a).await.len() as u64, head);
        for number in 1..=10 {
            let is_kept = world.is_kept(&a, &id(&format!("j{number}"))).await;
            assert_eq!(is_kept, number * 2 <= head, "job {number} with head {head}");
        }
        heads.push(head);
    }
    assert_eq!(heads[0], 20);
    assert!(heads.iter().rev().is_sorted() && heads[11] < 20, "{heads:?}");
}

#[tokio::test]
async fn a_kill_gives_back_the_jobs_of_the_process_with_the_attempt_counted() {
    let disk = Disk::new();
    let a = tenant("a");
    let mut job = None;
    let mut killed = disk.open();
    let mut disks = vec![disk];
    for run in 1..=3_u16 {
        let job = match &job {
            Some(job) => job,
            None => job.insert(killed.world.enqueue_one(&a).await),
        };
        let leased = killed.world.claim(local()).await.remove(0);
        assert_eq!((&leased.job.id, leased.job.attempt), (job, run));
        disks.push(disks[disks.len() - 1].killed());
        killed = disks[disks.len() - 1].open();
        // The first call after the limits, or as here without any, gives back what was running.
        assert_eq!(code(killed.world.try_settle(&leased, done(), None).await), "job.lease_lost");
        let (stored, failed) = killed.world.stored(&a, job).await;
        assert_eq!(stored.state, if run < 3 { State::Pending } else { State::Dead });
        assert_eq!((stored.attempt, failed.len()), (run, usize::from(run)));
        assert_eq!(failed.last().map(|run| (run.attempt, &*run.worker)), Some((run, "worker-1")));
    }
    assert!(killed.world.claim(any()).await.is_empty());
}

#[tokio::test]
async fn a_kill_counts_as_a_lost_worker_by_the_limit_of_the_queue() {
    let a = tenant("a");
    for (poison, local) in [(1, true), (1, false), (2, true), (5, true), (5, false)] {
        let disk = Disk::new();
        let mut killed = disk.open();
        let job = Enqueue { attempts: 100, ..killed.world.job("work") };
        let id = job.id.clone();
        killed.world.enqueue(&a, vec![job]).await;
        let mut disks = vec![disk];
        for lost in 1..=poison {
            assert_eq!(killed.world.claim(Claim { local, ..any() }).await.len(), 1, "{poison}: run {lost}");
            let left = disks[disks.len() - 1].killed();
            killed.world.clock.advance(HOUR);
            killed = left.open();
            disks.push(left);
            let limits = QueueLimits { poison, ..QueueLimits::default() };
            within(killed.world.store.limit_queues(BTreeMap::from([("q".into(), limits)]))).await.expect("limits");
            let expected = if lost < poison { State::Pending } else { State::Dead };
            assert_eq!(killed.world.state(&a, &id).await, expected, "{poison}: {lost} were lost");
        }
    }
}

#[tokio::test]
async fn a_kill_leaves_the_jobs_of_other_machines_to_them() {
    let disk = Disk::new();
    let a = tenant("a");
    let killed = disk.open();
    killed.world.enqueue(&a, (0..3).map(|_| killed.world.job("work")).collect()).await;
    let leased = killed.world.claim(any()).await;
    killed.world.try_renew(&leased[0], HOUR).await.expect("renew");

    let image = disk.killed();
    let world = image.open().world;
    assert!(world.claim(any()).await.is_empty());
    let effects = commit(&a, vec![world.event("done")], Vec::new());
    let settled = world.try_settle(&leased[1], done(), Some(effects)).await.expect("settle");
    assert_eq!((settled.state, settled.effects.events.len()), (State::Completed, 1));
    // One has ended, the renewed one has not.
    world.advance(LEASE).await;
    assert_eq!(world.state(&a, &leased[2].job.id).await, State::Pending);
    assert_eq!(code(world.try_settle(&leased[2], done(), None).await), "job.lease_lost");
    assert_eq!(world.claim_one().await.job.attempt, 2);
    assert!(!world.try_renew(&leased[0], HOUR).await.expect("renew").cancelled);
    assert_eq!(world.settle(&leased[0], retry("boom")).await, State::Scheduled);
}

#[tokio::test]
async fn a_lease_that_ended_while_no_process_ran_is_lost() {
    let disk = Disk::new();
    let killed = disk.open();
    killed.world.enqueue_one(&tenant("a")).await;
    let leased = killed.world.claim_one().await;
    let image = disk.killed();
    killed.world.clock.advance(HOUR);
    let world = image.open().world;
    assert_eq!(code(world.try_settle(&leased, done(), None).await), "job.lease_lost");
    assert_eq!(world.stored(&tenant("a"), &leased.job.id).await.1.len(), 1);
    assert_eq!(world.claim_one().await.job.attempt, 2);
}

#[tokio::test]
async fn a_kill_does_not_forget_that_a_running_job_was_cancelled() {
    let disk = Disk::new();
    let a = tenant("a");
    let killed = disk.open();
    killed.world.enqueue(&a, vec![killed.world.job("work"), killed.world.job("work")]).await;
    let here = killed.world.claim(Claim { max: 1, ..local() }).await.remove(0);
    let there = killed.world.claim_one().await;
    for leased in [&here, &there] {
        killed.world.control(&a, &leased.job.id, Control::Cancel).await.expect("cancel");
    }
    let image = disk.killed();
    let world = image.open().world;
    assert!(world.try_renew(&there, HOUR).await.expect("renew").cancelled);
    assert_eq!(world.state(&a, &here.job.id).await, State::Cancelled);
    assert_eq!(world.settle(&there, Verdict::Release).await, State::Cancelled);
}

#[tokio::test]
async fn a_job_that_was_leased_twice_is_counted_once_after_a_kill() {
    let disk = Disk::new();
    let killed = disk.open();
    killed.world.enqueue(&tenant("a"), (0..2).map(|_| killed.world.job("work")).collect()).await;
    let leased = killed.world.claim(any()).await;
    killed.world.settle(&leased[0], Verdict::Release).await;
    let again = killed.world.claim_one().await;
    assert_eq!(again.job.id, leased[0].job.id);

    let image = disk.killed();
    let world = image.open().world;
    limit(&world, Some(2), Keep::Count(1_000)).await;
    let running = within(world.store.counts(None)).await.expect("counts")["q"][&State::Processing];
    assert_eq!(running, 2);
    for leased in [&again, &leased[1]] {
        assert_eq!(world.settle(leased, done()).await, State::Completed);
    }
    world.enqueue(&tenant("a"), (0..3).map(|_| world.job("work")).collect()).await;
    assert_eq!(world.claim(any()).await.len(), 2, "both places are free");
}

/// What finds the leases after a kill does not grow with what was leased before.
#[tokio::test]
async fn ended_leases_leave_nothing_behind() {
    let disk = Disk::new();
    let opened = disk.open();
    let world = &opened.world;
    world.enqueue(&tenant("a"), (0..60).map(|_| world.job("work")).collect()).await;
    for end in [done(), retry("boom"), Verdict::Release].into_iter().cycle().take(15) {
        for leased in world.claim(Claim { max: 2, ..any() }).await {
            world.settle(&leased, end.clone()).await;
        }
    }
    world.claim(Claim { max: 7, ..any() }).await;
    world.advance(LEASE).await;
    // What a dropped claim had been given is there again when somebody waits for it.
    let job = Enqueue { queue: "dropped".into(), ..world.job("work") };
    world.enqueue(&tenant("a"), vec![job]).await;
    let dropped = Claim { queues: vec!["dropped".into()], ..any() };
    drop(world.store.claim(dropped.clone()));
    let again = within(world.waiting(Claim { wait: HOUR, ..dropped }).await).await.expect("claim");
    world.settle(&again[0], done()).await;
    let people = rusqlite::Connection::open(disk.path()).expect("open");
    let records: i64 = people.query_row("SELECT count(*) FROM claims", [], |row| row.get(0)).expect("claims");
    assert_eq!(records, 0);
}

#[tokio::test]
async fn a_backlog_is_found_again_complete_and_in_order() {
    let disk = Disk::new();
    let killed = disk.open();
    let (mut total, mut seen) = (0, HashSet::new());
    for name in ["a", "b"] {
        for kind in ["x", "y"] {
            let job = |number: u32| Enqueue {
                priority: number as u8 % 3 + 1,
                run_at: number.is_multiple_of(4).then(|| START + SECOND * (number % 50)),
                ..killed.world.job(kind)
            };
            total += killed.world.enqueue(&tenant(name), (0..400).map(job).collect()).await.len();
        }
    }
    for leased in killed.world.claim(Claim { max: 333, ..local() }).await {
        seen.insert(leased.job.id.clone());
        killed.world.settle(&leased, done()).await;
    }
    let lost = killed.world.claim(Claim { max: 50, ..local() }).await;
    assert_eq!((seen.len(), lost.len()), (333, 50));

    let image = disk.killed();
    let world = image.open().world;
    world.advance(MINUTE).await;
    let mut last: BTreeMap<_, (u8, tidewire_core::Timestamp)> = BTreeMap::new();
    loop {
        let leased = world.claim(Claim { max: 90, ..local() }).await;
        if leased.is_empty() {
            break;
        }
        for leased in leased {
            let place = (leased.job.priority, leased.job.run_at);
            let before = last.insert(leased.job.tenant.clone(), place).unwrap_or_default();
            assert!(before <= place, "{before:?} came before {place:?}");
            assert!(seen.insert(leased.job.id.clone()), "{} came twice", leased.job.id);
        }
    }
    assert_eq!(seen.len(), total);
}

#[tokio::test]
async fn keys_slots_and_sessions_survive_a_kill() {
    let disk = Disk::new();
    let a = tenant("a");
    let fire = |world: &World, slot| Fire {
        tenant: tenant("a"),
        key: "poll".into(),
        slot: START + HOUR * slot,
        overlap: Overlap::Skip,
        job: Some(Enqueue { id: id(&format!("run-{slot}")), given_id: true, ..world.job("poll") }),
        limit: None,
        stored: None,
    };
    let keyed = |world: &World| Commit {
        dedup: Some(("d1".to_owned(), HOUR)),
        idempotency: Some(Idempotency { key: "k1".to_owned(), digest: b"body".to_vec() }),
        ..commit(&a, vec![world.event("x")], Vec::new())
    };
    let killed = disk.open();
    let first = killed.world.commit(keyed(&killed.world)).await;
    within(killed.world.store.fire(fire(&killed.world, 1))).await.expect("fire");
    within(killed.world.store.put_session(&a, "s1", "joined".to_owned(), START + HOUR)).await.expect("kept");

    let image = disk.killed();
    let world = image.open().world;
    assert_eq!(world.commit(keyed(&world)).await.events[0].id, first.events[0].id);
    let other = Commit { idempotency: None, ..keyed(&world) };
    assert!(world.commit(other).await.deduplicated);
    assert_eq!(within(world.store.slots(&a)).await.expect("slots")["poll"].last, START + HOUR);
    assert_eq!(within(world.store.fire(fire(&world, 1))).await.expect("fire"), Fired::Stale);
    assert_eq!(within(world.store.fire(fire(&world, 2))).await.expect("fire"), Fired::Overlapped);
    assert_eq!(within(world.store.session(&a, "s1")).await.expect("session").as_deref(), Some("joined"));
}

#[tokio::test]
async fn completed_jobs_of_the_process_before_count_among_those_kept() {
    let disk = Disk::new();
    let a = tenant("a");
    let first = disk.open();
    limit(&first.world, None, Keep::Count(1_000)).await;
    let old = complete(&first, 80).await;
    first.close().await;
    let second = disk.open();
    limit(&second.world, None, Keep::Count(5)).await;
    complete(&second, 5).await;
    second.world.advance(MINUTE).await;
    // The newest of them may still be among the last, and deleting is not done for each.
    for job in &old[..75] {
        assert!(!second.world.is_kept(&a, job).await);
    }
}

async fn complete(opened: &Opened, count: usize) -> Vec<tidewire_core::Id> {
    let world = &opened.world;
    world.enqueue(&tenant("a"), (0..count).map(|_| world.job("work")).collect()).await;
    let mut jobs = Vec::new();
    for leased in world.claim(any()).await {
        world.settle(&leased, done()).await;
        world.clock.advance(SECOND / 1000);
        jobs.push(leased.job.id);
    }
    assert_eq!(jobs.len(), count);
    jobs
}

#[tokio::test]
async fn a_store_says_what_its_answers_survive() {
    let synced = Disk::new();
    assert_eq!(synced.open().world.store.durability(), Durability::Synced);
    let written = Disk::unsynced();
    assert_eq!(written.open().world.store.durability(), Durability::Written);
    assert_eq!(World::memory().store.durability(), Durability::Memory);
}

/// Without any sync an end of power can leave a write-ahead log in a file that it does not fit, and then all is lost.
#[tokio::test]
async fn a_store_that_does_not_sync_its_answers_still_syncs_its_checkpoints() {
    for (disk, expected) in [(Disk::new(), 2), (Disk::unsynced(), 1)] {
        let opened = disk.open();
        let asked = opened.sqlite.commit_with(move |connection| {
            let synchronous = connection.pragma_query_value(None, "synchronous", |row| row.get::<_, i64>(0));
            assert_eq!(synchronous, Ok(expected));
            Ok(commit(&tenant("a"), Vec::new(), Vec::new()))
        });
        within(asked).await.expect("asked");
    }
}
