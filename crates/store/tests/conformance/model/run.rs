//! Runs a program on the engines and the model, and compares.

use std::time::Duration;

use tidewire_core::catalog::Keep;
use tidewire_core::commit::{Append, Committed, Enqueue};
use tidewire_core::id::Ids;
use tidewire_core::job::{Job, State, Verdict};
use tidewire_core::store::{Claim, Control, JobQuery, Leased, QueueLimits, Settle};
use tidewire_core::{Id, TenantId, Timestamp};

use super::machine::{GLOBAL, Machine, Modelled, Written};
use super::{End, NewEvent, NewJob, Step};
use crate::disk::{Disk, Opened};
use crate::world::{SECOND, START, World, any, commit, id, tenant, within};

/// Where an engine and the model part, in words.
pub(super) type Differs = String;

/// A lease as each engine gave it; it may be lost since.
struct Given {
    job: usize,
    tokens: [Box<str>; 2],
}

struct Bench {
    model: Machine,
    tenants: [TenantId; 2],
    memory: World,
    disk: Disk,
    sqlite: Opened,
    given: Vec<Given>,
}

pub(super) async fn run(program: &[Step]) -> Result<(), Differs> {
    let disk = Disk::unsynced();
    let sqlite = disk.open();
    let model = Machine::new(START);
    let memory = World::memory();
    let mut bench = Bench { model, tenants: ["a", "b"].map(tenant), memory, disk, sqlite, given: Vec::new() };
    for world in bench.worlds() {
        limit(world).await;
    }
    for (number, step) in program.iter().enumerate() {
        let outcome = match bench.step(step).await {
            Ok(()) => bench.compare().await,
            differs => differs,
        };
        outcome.map_err(|differs| format!("step {number}, {step:?}: {differs}"))?;
    }
    bench.compare_history().await
}

async fn limit(world: &World) {
    let global = u32::try_from(GLOBAL).ok();
    let keep_completed = Keep::Count(10_000);
    let limits = QueueLimits { global, keep_completed, ..QueueLimits::default() };
    within(world.store.limit_queues([("q".into(), limits)].into())).await.expect("limits");
}

/// Answers with what differs unless the two are equal.
fn same<T: PartialEq + std::fmt::Debug>(what: &str, engine: &str, got: &T, expected: &T) -> Result<(), Differs> {
    if got == expected {
        Ok(())
    } else {
        Err(format!("{what} of {engine}: the model says {expected:?}, it says {got:?}"))
    }
}

const ENGINES: [&str; 2] = ["memory", "sqlite"];

impl Bench {
    fn worlds(&self) -> [&World; 2] {
        [&self.memory, &self.sqlite.world]
    }

    async fn step(&mut self, step: &Step) -> Result<(), Differs> {
        match step {
            Step::Commit { tenant, events, jobs } => self.commit(*tenant, events, jobs).await,
            Step::Claim { tenant, kind, max, seconds, local } => {
                self.claim(*tenant, *kind, Claim { max: *max, lease: SECOND * *seconds, local: *local, ..any() }).await
            }
            Step::Settle { lease, end } => self.settle(*lease, end).await,
            Step::Renew { lease, seconds } => self.renew(*lease, SECOND * *seconds).await,
            Step::Control { job, control } => self.control(*job, control.clone()).await,
            Step::Advance { seconds } => {
                self.advance(SECOND * *seconds).await;
                Ok(())
            }
            Step::Kill => self.kill().await,
        }
    }

    async fn advance(&mut self, by: Duration) {
        self.model.now = self.model.now + by;
        self.model.tick();
        for world in self.worlds() {
            world.advance(by).await;
        }
    }

    async fn commit(&mut self, tenant: usize, events: &[NewEvent], jobs: &[NewJob]) -> Result<(), Differs> {
        let allowed = self.model.allows(tenant, events);
        let appends = self.appends(tenant, events);
        let mut expected = Vec::new();
        let mut enqueues = Vec::new();
        if allowed {
            expected = self.model.append(tenant, events);
            for job in jobs {
                let written = self.model.enqueue(tenant, job);
                let Written::Job { name, .. } = &written else { continue };
                enqueues.push(enqueue(&self.memory, name, job));
                expected.push(written);
            }
        } else {
            enqueues = jobs.iter().map(|job| enqueue(&self.memory, "refused", job)).collect();
        }
        let asked = commit(&self.tenants[tenant], appends, enqueues);
        for (world, engine) in self.worlds().into_iter().zip(ENGINES) {
            let answer = world.try_commit(asked.clone()).await;
            same("whether it was taken", engine, &answer.is_ok(), &allowed)?;
            match answer {
                Ok(committed) => same("what was written", engine, &written(&committed), &expected)?,
                Err(error) => same("the refusal", engine, &error.code(), &"event.version_conflict")?,
            }
        }
        Ok(())
    }

    fn appends(&self, tenant: usize, events: &[NewEvent]) -> Vec<Append> {
        let append = |(index, event): (usize, &NewEvent)| Append {
            id: event.given.map_or_else(|| self.memory.ids.next(), |given| id(&format!("given-{given}"))),
            given_id: event.given.is_some(),
            stream: event.stream.map(|stream| format!("s{stream}").into()),
            expected_version: self.model.expected(tenant, &events[..index], event),
            ..self.memory.event("x")
        };
        events.iter().enumerate().map(append).collect()
    }

    async fn claim(&mut self, tenant: Option<usize>, kind: Option<usize>, claim: Claim) -> Result<(), Differs> {
        // Which tenant is next depends on whose turn it was before the kills. What a claim of everything gets does not; where the
        // limit of the queue would cut that, it is a claim for one tenant.
        let (everything, allowed) = self.model.claimable(None, kind, 1_000);
        let tenant = if everything.len() == allowed { tenant } else { tenant.or(Some(0)) };
        let claim = Claim {
            tenant: tenant.map(|tenant| self.tenants[tenant].clone()),
            kinds: kind.map(kind_name).into_iter().map(Into::into).collect(),
            max: if tenant.is_none() { 1_000 } else { claim.max },
            ..claim
        };
        let (jobs, count) = self.model.claimable(tenant, kind, claim.max);
        let mut chosen = jobs[..count].to_vec();
        let expected: Vec<u8> = chosen.iter().map(|job| self.model.jobs[*job].priority).collect();
        if tenant.is_none() {
            chosen.sort_unstable();
        }
        let mut leased = Vec::new();
        for (world, engine) in self.worlds().into_iter().zip(ENGINES) {
            let mut answer = world.claim(claim.clone()).await;
            same(
                "the priorities it leased",
                engine,
                &answer.iter().map(|leased| leased.job.priority).collect(),
                &expected,
            )?;
            if tenant.is_none() {
                answer.sort_by_key(|leased| self.index(leased));
            }
            same("the jobs it leased", engine, &answer.iter().map(|leased| self.index(leased)).collect(), &chosen)?;
            leased.push(answer);
        }
        let [memory, sqlite] = [leased.remove(0), leased.remove(0)];
        for ((job, memory), sqlite) in chosen.into_iter().zip(memory).zip(sqlite) {
            self.model.lease(job, self.given.len(), self.model.now + claim.lease, claim.local);
            same("the attempt", "both", &[memory.job.attempt, sqlite.job.attempt], &[self.model.jobs[job].attempt; 2])?;
            self.given.push(Given { job, tokens: [memory.lease, sqlite.lease] });
        }
        Ok(())
    }

    /// The number of a leased job in the model.
    fn index(&self, leased: &Leased) -> usize {
        let (name, tenant) = (leased.job.id.to_string(), &leased.job.tenant);
        let is_it = |job: &Modelled| job.name == name && self.tenants[job.tenant] == *tenant;
        self.model.jobs.iter().position(is_it).unwrap_or(usize::MAX)
    }

    async fn settle(&mut self, lease: usize, end: &End) -> Result<(), Differs> {
        if self.given.is_empty() {
            return Ok(());
        }
        let lease = lease % self.given.len();
        let job = self.given[lease].job;
        let tenant = self.model.jobs[job].tenant;
        let effects: &[NewEvent] = match end {
            End::Done { effects: Some(event) } => std::slice::from_ref(event),
            _ => &[],
        };
        let appends = self.appends(tenant, effects);
        let expected = if !self.model.holds(job, lease) {
            Err("job.lease_lost")
        } else if !self.model.allows(tenant, effects) {
            Err("event.version_conflict")
        } else {
            Ok((self.model.settle(job, end), self.model.append(tenant, effects)))
        };
        for ((world, engine), token) in self.worlds().into_iter().zip(ENGINES).zip(&self.given[lease].tokens) {
            let settle = Settle {
                tenant: None,
                id: id(&self.model.jobs[job].name),
                lease: token.clone(),
                verdict: verdict(end),
                effects: Some(commit(&self.tenants[tenant], appends.clone(), Vec::new())),
            };
            let settled = within(world.store.settle(settle)).await;
            let got = settled.map(|settled| (settled.state, written(&settled.effects))).map_err(|error| error.code());
            same("the end of the run", engine, &got, &expected)?;
        }
        Ok(())
    }

    async fn renew(&mut self, lease: usize, extend: Duration) -> Result<(), Differs> {
        if self.given.is_empty() {
            return Ok(());
        }
        let lease = lease % self.given.len();
        let job = self.given[lease].job;
        let until = self.model.now + extend;
        let is_held = self.model.holds(job, lease);
        let expected = if is_held { Ok((until, self.model.renew(job, until))) } else { Err("job.lease_lost") };
        for ((world, engine), token) in self.worlds().into_iter().zip(ENGINES).zip(&self.given[lease].tokens) {
            let renewed = within(world.store.renew(None, &id(&self.model.jobs[job].name), token, extend)).await;
            let got = renewed.map(|renewed| (renewed.expires, renewed.cancelled)).map_err(|error| error.code());
            same("the renewal", engine, &got, &expected)?;
        }
        Ok(())
    }

    async fn control(&mut self, job: usize, control: Control) -> Result<(), Differs> {
        if self.model.jobs.is_empty() {
            return Ok(());
        }
        let job = job % self.model.jobs.len();
        let expected = self.model.control(job, control.clone()).ok_or("job.wrong_state");
        let (tenant, name) = (&self.tenants[self.model.jobs[job].tenant], id(&self.model.jobs[job].name));
        for (world, engine) in self.worlds().into_iter().zip(ENGINES) {
            let got =
                world.control(tenant, &name, control.clone()).await.map(|job| job.state).map_err(|error| error.code());
            same("the control", engine, &got, &expected)?;
        }
        Ok(())
    }

    async fn kill(&mut self) -> Result<(), Differs> {
        let left = self.disk.killed();
        self.sqlite = left.open();
        self.disk = left;
        limit(&self.sqlite.world).await;
        for (job, lease) in self.model.local() {
            let settle = Settle {
                tenant: None,
                id: id(&self.model.jobs[job].name),
                lease: self.given[lease].tokens[0].clone(),
                verdict: Verdict::Retry { error: "the process ended".to_owned(), delay: Some(Duration::ZERO) },
                effects: None,
            };
            within(self.memory.store.settle(settle)).await.map_err(|error| format!("memory: {error}"))?;
        }
        self.model.kill();
        Ok(())
    }

    /// Compares all that can be seen of the jobs and the logs.
    async fn compare(&self) -> Result<(), Differs> {
        let mut expected: Vec<Seen> = self.model.jobs.iter().map(|job| self.seen(job)).collect();
        expected.reverse();
        let count = |state| self.model.jobs.iter().filter(|job| job.state == state).count();
        let counts = State::ALL.map(count);
        let [memory, sqlite] = self.worlds();
        let (memory, sqlite) = tokio::join!(self.look(memory), self.look(sqlite));
        for (look, engine) in [memory, sqlite].into_iter().zip(ENGINES) {
            let (jobs, counted, heads) = look.map_err(|error| format!("reading {engine}: {error}"))?;
            same("the number of jobs", engine, &jobs.len(), &expected.len())?;
            for (job, expected) in jobs.iter().zip(&expected) {
                same("a job", engine, job, expected)?;
            }
            same("the counts", engine, &counted, &counts)?;
            same("the heads", engine, &heads, &self.model.heads)?;
        }
        Ok(())
    }

    /// What can be seen of an engine: its jobs, how many are in each state, and the heads of the logs.
    async fn look(&self, world: &World) -> tidewire_core::Result<(Vec<Seen>, [usize; 8], [u64; 2])> {
        let query = JobQuery { limit: JobQuery::MAX, ..JobQuery::default() };
        let [a, b] = &self.tenants;
        let store = &world.store;
        let reads = async { tokio::try_join!(store.jobs(query), store.counts(None), store.head(a), store.head(b)) };
        let (jobs, counts, a, b) = within(reads).await?;
        let see = |job: Job| (job.tenant, job.id, job.state, job.attempt, is_waiting(job.state).then_some(job.run_at));
        let mut counted = [0; 8];
        for (state, count) in counts.into_values().flatten() {
            counted[state as usize] += count as usize;
        }
        Ok((jobs.items.into_iter().map(see).collect(), counted, [a.0, b.0]))
    }

    fn seen(&self, job: &Modelled) -> Seen {
        let run_at = is_waiting(job.state).then_some(job.run_at);
        (self.tenants[job.tenant].clone(), id(&job.name), job.state, job.attempt, run_at)
    }

    /// Compares every failed run and every position.
    async fn compare_history(&self) -> Result<(), Differs> {
        for (world, engine) in self.worlds().into_iter().zip(ENGINES) {
            for job in &self.model.jobs {
                let (_, failed) = world.stored(&self.tenants[job.tenant], &id(&job.name)).await;
                same("the failed runs", engine, &failed.iter().map(|run| run.attempt).collect(), &job.failed)?;
            }
            for (tenant, head) in self.tenants.iter().zip(self.model.heads) {
                let positions: Vec<_> = world.log(tenant).await.iter().map(|event| event.position.0).collect();
                same("the log", engine, &positions, &(1..=head).collect())?;
            }
        }
        Ok(())
    }
}

/// A job as far as it is compared; when it is due counts while it waits.
type Seen = (TenantId, Id, State, u16, Option<Timestamp>);

fn is_waiting(state: State) -> bool {
    matches!(state, State::Pending | State::Scheduled)
}

fn kind_name(kind: usize) -> &'static str {
    ["email", "import"][kind]
}

fn enqueue(world: &World, name: &str, job: &NewJob) -> Enqueue {
    Enqueue {
        id: id(name),
        given_id: job.given.is_some(),
        priority: job.priority,
        run_at: Some(world.now() + SECOND * job.delay_seconds),
        attempts: job.attempts,
        ..world.job(kind_name(job.kind))
    }
}

fn verdict(end: &End) -> Verdict {
    let error = "boom".to_owned();
    match end {
        End::Done { .. } => Verdict::Done { result: None },
        End::Retry { delay_seconds } => Verdict::Retry { error, delay: delay_seconds.map(|seconds| SECOND * seconds) },
        End::Fail => Verdict::Fail { error },
        End::Snooze { delay_seconds } => Verdict::Snooze { delay: SECOND * *delay_seconds },
        End::Release => Verdict::Release,
        End::Cancel => Verdict::Cancel,
    }
}

fn written(committed: &Committed) -> Vec<Written> {
    let events = committed.events.iter().map(|event| Written::Event {
        position: event.position.map_or(0, |position| position.0),
        deduplicated: event.deduplicated,
    });
    let jobs = committed.jobs.iter().map(|job| Written::Job {
        name: job.id.to_string(),
        state: job.state,
        deduplicated: job.deduplicated,
    });
    events.chain(jobs).collect()
}
