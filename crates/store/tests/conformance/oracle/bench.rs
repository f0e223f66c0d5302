//! Runs a program on an engine beside the oracle, and compares after every step.

use std::collections::{BTreeMap, BTreeSet};

use tidewire_core::catalog::Keep;
use tidewire_core::commit::{After, Commit, Committed, Enqueue};
use tidewire_core::job::{Job, OnFailure, Rare, State, States, Unique, Verdict};
use tidewire_core::limit::Rate;
use tidewire_core::retry::{Backoff, Jitter};
use tidewire_core::store::{
    Change, Claim, Control, Fire, FlowQuery, FlowState, JobQuery, Leased, QueueLimits, TenantLimits,
};
use tidewire_core::{Id, TenantId, Timestamp};

use super::machine::{Machine, Modelled, Written};
use super::program::{Bounds, End, New, Program, Step, TENANTS, What};
use super::ties::{Asked, ONLY_WAITING, WINDOW_SECONDS};
use crate::world::{SECOND, START, World, any, code, commit, id, in_flow, tenant, within};

/// Where the engine and the oracle part, in words.
type Differs = String;

const KINDS: [&str; 3] = ["email", "import", "sync"];

struct Bench {
    oracle: Machine,
    world: World,
    tenants: [TenantId; TENANTS],
    leases: Vec<(usize, Leased)>,
    /// How many jobs and flows were asked for.
    names: usize,
}

pub(super) async fn run(world: World, program: &Program, seen: &mut BTreeSet<&'static str>) -> Result<(), Differs> {
    let oracle = Machine::new(START, program.bounds.clone());
    let mut bench = Bench { oracle, world, tenants: ["a", "b", "c"].map(tenant), leases: Vec::new(), names: 0 };
    bench.limit().await;
    for (number, step) in program.steps.iter().enumerate() {
        let outcome = match bench.step(step).await {
            Ok(()) => bench.compare().await,
            differs => differs,
        };
        outcome.map_err(|differs| format!("step {number}, {step:?}: {differs}"))?;
    }
    bench.compare_history().await?;
    seen.extend(&bench.oracle.seen);
    Ok(())
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: &T, expected: &T) -> Result<(), Differs> {
    if got == expected { Ok(()) } else { Err(format!("{what}: the oracle says {expected:?}, the engine {got:?}")) }
}

impl Bench {
    async fn step(&mut self, step: &Step) -> Result<(), Differs> {
        match step {
            Step::Commit { tenant, jobs, is_flow } => self.commit(*tenant, jobs, *is_flow).await?,
            Step::Claim { tenant, kind, max, seconds } => self.claim(*tenant, *kind, *max, *seconds).await?,
            Step::Settle { lease, end } => self.settle(*lease, end).await?,
            Step::Renew { lease, seconds } => self.renew(*lease, *seconds).await?,
            Step::Control { job, what } => self.control(*job, what).await?,
            Step::Flow { flow, control } => {
                if let Some(flow) = flow.checked_rem(self.oracle.flows.len()) {
                    let (tenant, name) = (self.oracle.flows[flow].tenant, id(&self.oracle.flows[flow].name));
                    let controlled =
                        within(self.world.store.control_flow(&self.tenants[tenant], &name, *control)).await;
                    let expected = self.oracle.control_flow(flow, *control);
                    same("the control of a flow", &controlled.map_err(|error| error.code()), &expected)?;
                }
            }
            Step::Fire { tenant, key, slot, overlap } => {
                let name = self.name();
                let new = plain();
                let slot = START + SECOND * *slot;
                let asked = Asked { name: name.clone(), new: &new, after: Vec::new(), compensates: None };
                let job = Some(self.enqueue(&asked));
                let of = self.tenants[*tenant].clone();
                let fire = Fire {
                    tenant: of,
                    key: format!("s{key}").into(),
                    slot,
                    overlap: *overlap,
                    job,
                    limit: None,
                    stored: None,
                };
                let fired = within(self.world.store.fire(fire)).await.expect("fire");
                same("what was fired", &fired, &self.oracle.fire(*tenant, *key, slot, *overlap, &name, &new))?;
            }
            Step::Limit(limits) => {
                self.oracle.limit(limits);
                self.limit().await;
            }
            Step::Advance { seconds } => {
                self.oracle.now = self.oracle.now + SECOND * *seconds;
                self.oracle.tick();
                self.world.advance(SECOND * *seconds).await;
            }
        }
        self.oracle.tick();
        Ok(())
    }

    fn name(&mut self) -> String {
        self.names += 1;
        format!("n{}", self.names)
    }

    async fn limit(&self) {
        let Bounds { limits, weights, .. } = &self.oracle.bounds;
        let rate = |rate: Option<(u32, u32)>| rate.map(|(amount, seconds)| Rate { amount, per: SECOND * seconds });
        let of_tenant = |at: usize| {
            let (weight, paused) = (Some(weights[at]), limits.paused_tenants[at]);
            (self.tenants[at].clone(), TenantLimits { weight, paused, ..TenantLimits::default() })
        };
        let limits = QueueLimits {
            global: limits.global,
            per_tenant: limits.per_tenant,
            per_key: limits.per_key,
            paused: limits.paused,
            rate: rate(self.oracle.bounds.rate),
            rate_per_tenant: rate(self.oracle.bounds.rate_per_tenant),
            rate_per_key: rate(self.oracle.bounds.rate_per_key),
            aging: self.oracle.bounds.aging_seconds.map(|seconds| SECOND * seconds),
            keep_completed: Keep::Count(100_000),
            keep_cancelled: Keep::Count(100_000),
            keep_dead: Keep::Count(100_000),
            tenants: (0..TENANTS).map(of_tenant).collect(),
            ..QueueLimits::default()
        };
        self.world.limit(limits).await;
    }

    async fn commit(&mut self, tenant: usize, jobs: &[New], is_flow: bool) -> Result<(), Differs> {
        // What is there to wait for: the kept jobs of the tenant, and those before it in the call.
        let is_own = |job: &&Modelled| job.tenant == tenant && !job.is_forgotten && job.compensates.is_none();
        let mut known: Vec<String> = self.oracle.jobs.iter().filter(is_own).map(|job| job.name.clone()).collect();
        let mut asked: Vec<Asked<'_>> = Vec::new();
        for new in jobs {
            let back =
                |(back, ignores): &(usize, bool)| Some((known.get(known.len().checked_sub(*back)?)?.clone(), *ignores));
            let after = new.after.iter().filter_map(back).collect();
            let name = self.name();
            known.push(name.clone());
            asked.push(Asked { name, new, after, compensates: None });
        }
        let count = asked.len();
        let undoing = New { kind: 0, ..plain() };
        let flow = is_flow.then(|| self.name());
        if is_flow {
            for at in (0..count).filter(|at| jobs[*at].is_undone) {
                let (name, compensates) = (self.name(), Some(asked[at].name.clone()));
                asked.push(Asked { name, new: &undoing, after: Vec::new(), compensates });
            }
        }
        let mut enqueues: Vec<Enqueue> = asked.iter().map(|asked| self.enqueue(asked)).collect();
        if asked.iter().any(|asked| !asked.after.is_empty()) {
            // As the expander does: whoever is waited for in a call has a name in it.
            for job in &mut enqueues {
                job.rare.get_or_insert_default().reference = Some(job.id.to_string().into());
            }
        }
        if let Some(flow) = &flow {
            for job in &mut enqueues {
                job.rare.get_or_insert_default().flow = Some(id(flow));
            }
        }
        let asked_for = commit(&self.tenants[tenant], Vec::new(), enqueues);
        let asked_for = Commit { asked_jobs: count, ..asked_for };
        let asked_for = match &flow {
            Some(flow) => in_flow(flow, asked_for),
            None => asked_for,
        };
        let expected = self.oracle.commit(tenant, &asked, flow.as_deref(), count);
        let committed = self.world.try_commit(asked_for).await;
        same("what was written", &written(&committed.map_err(|error| error.to_string())?), &expected)
    }

    fn enqueue(&self, asked: &Asked<'_>) -> Enqueue {
        let New { kind, priority, delay_seconds, attempts, backoff, timeout_seconds, key, .. } = *asked.new;
        let now = self.world.now();
        let run_at = now + SECOND * delay_seconds;
        let unique = |(key, on_conflict)| Unique {
            key: format!("u{key}").into(),
            states: if ONLY_WAITING[kind] { States::WAITING } else { States::UNFINISHED },
            window: WINDOW_SECONDS[kind].map(|seconds| SECOND * seconds),
            on_conflict,
        };
        let rare = Rare {
            key: key.map(|key| format!("k{key}").into()),
            unique: asked.new.unique.map(unique),
            expires_at: asked.new.ttl_seconds.map(|ttl| run_at + SECOND * ttl),
            retry_until: asked.new.retry_for_seconds.map(|time| now + SECOND * time),
            on_failure: asked.new.on_failure,
            compensates: asked.compensates.as_ref().map(|name| id(name)),
            ..Rare::default()
        };
        let jitter = Jitter::default();
        Enqueue {
            id: id(&asked.name),
            priority,
            run_at: (delay_seconds > 0).then_some(run_at),
            attempts,
            backoff: match backoff {
                0 => Backoff::Fixed { base: SECOND * 10, jitter },
                1 => Backoff::Exponential { base: SECOND * 2, factor: 2.0, cap: SECOND * 7, jitter },
                _ => Backoff::Delays { delays: [3, 1, 20].map(|seconds| SECOND * seconds).to_vec() },
            },
            timeout: SECOND * timeout_seconds,
            rare: (rare != Rare::default()).then(|| Box::new(rare)),
            after: asked
                .after
                .iter()
                .map(|(name, ignores_failure)| After { id: id(name), ignores_failure: *ignores_failure })
                .collect(),
            ..self.world.job(KINDS[kind])
        }
    }

    async fn claim(
        &mut self,
        wanted: Option<usize>,
        kind: Option<usize>,
        max: u32,
        seconds: u32,
    ) -> Result<(), Differs> {
        let claim = Claim {
            tenant: wanted.map(|tenant| self.tenants[tenant].clone()),
            queues: vec!["q".into()],
            kinds: kind.map(|kind| KINDS[kind].into()).into_iter().collect(),
            max,
            lease: SECOND * seconds,
            ..any()
        };
        let leased = self.world.claim(claim).await;
        let begun = self.oracle.claim(wanted, kind, max);
        let mut expected = Vec::new();
        for job in begun {
            let until = self.oracle.hold(job, self.leases.len() + expected.len(), SECOND * seconds);
            let modelled = &self.oracle.jobs[job];
            expected.push((modelled.name.clone(), modelled.tenant, modelled.attempt, until));
        }
        let got = leased.iter().map(|leased| {
            let tenant = self.tenants.iter().position(|tenant| *tenant == leased.job.tenant).expect("a tenant");
            (leased.job.id.to_string(), tenant, leased.job.attempt, leased.expires)
        });
        same("the jobs it leased", &got.collect(), &expected)?;
        for ((name, tenant, ..), leased) in expected.into_iter().zip(leased) {
            let job = self.oracle.index(tenant, &name).expect("it is kept");
            self.leases.push((job, leased));
        }
        Ok(())
    }

    async fn settle(&mut self, lease: usize, end: &End) -> Result<(), Differs> {
        let is_held = |at: &usize| self.oracle.holds(self.leases[*at].0, *at);
        let mut leases: Vec<usize> = (0..self.leases.len()).filter(is_held).collect();
        if leases.is_empty() || lease.is_multiple_of(8) {
            // Mostly one that is held, and now and then any that there ever was.
            leases = (0..self.leases.len()).collect();
        }
        let Some(at) = lease.checked_rem(leases.len()) else { return Ok(()) };
        let lease = leases[at];
        let (job, leased) = &self.leases[lease];
        let is_held = self.oracle.holds(*job, lease);
        let settled = self.world.try_settle(leased, verdict(end), None).await;
        let got = settled.map(|settled| settled.state).map_err(|error| error.code());
        if !is_held {
            self.oracle.seen.insert("lease lost");
        }
        let expected = if is_held { Ok(self.oracle.settle(*job, end)) } else { Err("job.lease_lost") };
        same("the end of the run", &got, &expected)
    }

    async fn renew(&mut self, lease: usize, seconds: u32) -> Result<(), Differs> {
        let Some(lease) = lease.checked_rem(self.leases.len()) else { return Ok(()) };
        let (job, leased) = &self.leases[lease];
        let renewed = self.world.try_renew(leased, SECOND * seconds).await;
        let got = renewed
            .map(|renewed| (renewed.expires, renewed.cancelled, renewed.timed_out))
            .map_err(|error| error.code());
        let is_held = self.oracle.holds(*job, lease);
        let expected = if is_held { Ok(self.oracle.renew(*job, SECOND * seconds)) } else { Err("job.lease_lost") };
        same("the renewal", &got, &expected)
    }

    async fn control(&mut self, job: usize, what: &What) -> Result<(), Differs> {
        let Some(job) = job.checked_rem(self.oracle.jobs.len()) else { return Ok(()) };
        let (of, name) = (self.tenants[self.oracle.jobs[job].tenant].clone(), id(&self.oracle.jobs[job].name));
        let change = |change| Control::Change(change);
        let control = match what {
            What::Redrive => Control::Redrive,
            What::Cancel => Control::Cancel,
            What::Promote => Control::Promote,
            What::Delete => Control::Delete,
            What::Priority(priority) => change(Change { priority: Some(*priority), ..Change::default() }),
            What::Delay(seconds) => {
                change(Change { run_at: Some(self.world.now() + SECOND * *seconds), ..Change::default() })
            }
        };
        let controlled = self.world.control(&of, &name, control).await;
        if self.oracle.jobs[job].is_forgotten {
            return same("the control of a deleted job", &code(controlled), &"job.not_found");
        }
        let expected = self.oracle.control(job, what);
        // A deleted job is answered as it was.
        let expected = expected.filter(|_| !matches!(what, What::Delete));
        let got = controlled.map(|job| job.state).ok().filter(|_| !matches!(what, What::Delete));
        same("the control", &got, &expected)
    }

    /// Compares all that can be seen: every job, how many are in each state, and every flow.
    async fn compare(&mut self) -> Result<(), Differs> {
        let mut got = Vec::new();
        let mut cursor = None;
        loop {
            let query = JobQuery { cursor, limit: JobQuery::MAX, ..JobQuery::default() };
            let page = within(self.world.store.jobs(query)).await.expect("jobs");
            got.extend(page.items.into_iter().map(see));
            cursor = page.next_cursor;
            if cursor.is_none() {
                break;
            }
        }
        got.reverse();
        let kept = || self.oracle.jobs.iter().filter(|job| !job.is_forgotten);
        let expected: Vec<Seen> = kept().map(|job| self.seen(job)).collect();
        if let Some(at) = (0..got.len().max(expected.len())).find(|at| got.get(*at) != expected.get(*at)) {
            same("a job", &got.get(at), &expected.get(at))?;
        }
        let mut states: BTreeMap<State, u64> = BTreeMap::new();
        for job in kept() {
            *states.entry(job.state).or_default() += 1;
        }
        let counts = within(self.world.store.counts(None)).await.expect("counts");
        same("the counters", &counts.get("q").cloned().unwrap_or_default(), &states)?;
        self.oracle.seen.extend(states.into_keys().map(State::as_str));
        for at in 0..self.oracle.flows.len() {
            let flow = &self.oracle.flows[at];
            let got = within(self.world.store.flow(&self.tenants[flow.tenant], &id(&flow.name))).await.expect("flow");
            let expected = self.oracle.flow_state(at);
            same(&format!("flow {}", flow.name), &got.map(|flow| flow.state), &Some(expected))?;
            self.oracle.seen.insert(match expected {
                FlowState::Completed => "flow completed",
                FlowState::Failed => "flow failed",
                FlowState::Undoing => "flow undoing",
                FlowState::Running => "flow running",
            });
        }
        for (index, tenant) in self.tenants.iter().enumerate() {
            let query =
                FlowQuery { tenant: tenant.clone(), state: None, name: None, cursor: None, limit: FlowQuery::MAX };
            let listed = within(self.world.store.flows(query)).await.expect("flows").items;
            let own = self.oracle.flows.iter().rev().filter(|flow| flow.tenant == index);
            let expected: Vec<&str> = own.map(|flow| &*flow.name).collect();
            let got: Vec<String> = listed.iter().map(|flow| flow.id.to_string()).collect();
            same("the list of flows", &got.iter().map(String::as_str).collect(), &expected)?;
        }
        self.no_key_is_idle()
    }

    /// A job that its key holds back is held back by somebody.
    fn no_key_is_idle(&self) -> Result<(), Differs> {
        for job in
            self.oracle.jobs.iter().filter(|job| job.state == State::Blocked && job.waits_for == 0 && !job.is_forgotten)
        {
            let is_it = |other: &&Modelled| {
                (other.tenant, other.key) == (job.tenant, job.key)
                    && !other.is_forgotten
                    && matches!(other.state, State::Pending | State::Processing)
            };
            if job.compensates.is_none() && !self.oracle.jobs.iter().any(|other| is_it(&other)) {
                return Err(format!("job {} is held back by a key of which no job runs or is due", job.name));
            }
        }
        Ok(())
    }

    fn seen(&self, job: &Modelled) -> Seen {
        let run_at = job.is_waiting().then_some(job.run_at);
        (self.tenants[job.tenant].clone(), id(&job.name), job.state, job.attempt, job.priority, run_at, job.finished_at)
    }

    async fn compare_history(&self) -> Result<(), Differs> {
        for job in self.oracle.jobs.iter().filter(|job| !job.is_forgotten) {
            let (_, failed) = self.world.stored(&self.tenants[job.tenant], &id(&job.name)).await;
            let failed: Vec<u16> = failed.iter().map(|run| run.attempt).collect();
            same(&format!("the failed runs of {}", job.name), &failed, &job.failed)?;
        }
        Ok(())
    }
}

/// A job as far as it is compared. When it is due counts while it waits.
type Seen = (TenantId, Id, State, u16, u8, Option<Timestamp>, Option<Timestamp>);

fn see(job: Job) -> Seen {
    let run_at = matches!(job.state, State::Scheduled | State::Pending | State::Blocked).then_some(job.run_at);
    (job.tenant, job.id, job.state, job.attempt, job.priority, run_at, job.finished_at)
}

/// A job of which nothing special is asked.
fn plain() -> New {
    New {
        kind: 0,
        priority: 3,
        delay_seconds: 0,
        attempts: 2,
        backoff: 0,
        timeout_seconds: 86_400,
        key: None,
        unique: None,
        ttl_seconds: None,
        retry_for_seconds: None,
        after: Vec::new(),
        on_failure: OnFailure::Fail,
        is_undone: false,
    }
}

fn verdict(end: &End) -> Verdict {
    let error = "boom".to_owned();
    match end {
        End::Done => Verdict::Done { result: None },
        End::Retry { delay_seconds } => Verdict::Retry { error, delay: delay_seconds.map(|seconds| SECOND * seconds) },
        End::Fail => Verdict::Fail { error },
        End::Snooze { delay_seconds } => Verdict::Snooze { delay: SECOND * *delay_seconds },
        End::Release => Verdict::Release,
        End::Cancel => Verdict::Cancel,
    }
}

fn written(committed: &Committed) -> Vec<Written> {
    let jobs = committed.jobs.iter();
    jobs.map(|job| Written {
        name: job.id.to_string(),
        state: job.state,
        is_known: job.deduplicated,
        conflict: job.conflict,
    })
    .collect()
}
