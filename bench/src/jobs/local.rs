//! Jobs inside one process: the store, the runtime and nothing in front of them.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use tidewire::{App, Job, JobContext, NewJob, Request, TenantId, Timestamp, done};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{BULK, DELAYED, IN_FLIGHT, LOW_LOAD, PREPARED, SPREAD};
use crate::load::sockets::now_micros;
use crate::report::{Cpu, Histogram, Row, Runs, per_second};
use crate::server::{FSYNC, Scratch, TENANT, catalog, config, data};

/// Callers that enqueue in bulk.
const CALLERS: usize = 16;

pub(super) async fn run(runs: &Runs, time: Duration) -> Result<()> {
    println!(
        "\njobs in process, 300-byte data, no-op handler; latency is from asking to the begin of the run, of delayed jobs from their \
         due time\n{}",
        Row::HEADING
    );
    let name = format!("enqueue + run + complete, {IN_FLIGHT} in flight");
    runs.repeat(&name, "jobs/s", async |_| lives(time, &name).await).await?;
    let name = format!("enqueue, {BULK} at a time, {CALLERS} callers");
    runs.repeat(&name, "jobs/s", async |_| enqueue(time, &name).await).await?;
    let name = format!("drain {PREPARED} waiting jobs");
    runs.repeat(&name, "jobs/s", async |_| drain(&name).await).await?;
    let name = format!("{LOW_LOAD} jobs/s, from asking to the run, p99");
    runs.repeat(&name, "µs", async |_| low_load(time, &name).await).await?;
    let name = format!("{DELAYED} delayed jobs over {} s, late by, p99", SPREAD.as_secs());
    runs.repeat(&name, "µs", async |_| delayed(&name).await).await?;
    Ok(())
}

/// The job that the handler runs. `t` is when it was asked for or is due, in microseconds since 1970.
#[derive(Serialize, Deserialize)]
struct Bench {
    t: u64,
    pad: String,
}

impl Job for Bench {
    const TYPE: &'static str = "bench";
}

/// What the handler reports: that it ran, and how long after the time in its job.
struct Tally {
    /// Gets one permit for each job that has run.
    ran: Semaphore,
    latency: Mutex<Histogram>,
    /// Runs that began before the time in their job.
    early: AtomicU64,
}

impl Tally {
    fn new(permits: usize) -> Arc<Self> {
        let (ran, latency) = (Semaphore::new(permits), Mutex::new(Histogram::new()));
        Arc::new(Self { ran, latency, early: AtomicU64::new(0) })
    }

    fn ran(&self, time: u64) {
        match now_micros().checked_sub(time) {
            Some(waited) => {
                self.latency.lock().unwrap_or_else(PoisonError::into_inner).record(Duration::from_micros(waited));
            }
            None => {
                self.early.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.ran.add_permits(1);
    }

    /// Waits until as many jobs have run.
    async fn wait(&self, jobs: usize) -> Result<()> {
        self.ran.acquire_many(u32::try_from(jobs)?).await?.forget();
        Ok(())
    }

    fn take_latency(&self) -> Result<Histogram> {
        let early = self.early.load(Ordering::Relaxed);
        ensure!(early == 0, "{early} jobs ran before their time");
        Ok(std::mem::replace(&mut *self.latency.lock().unwrap_or_else(PoisonError::into_inner), Histogram::new()))
    }
}

/// An app on the store in `dir` that runs the jobs.
async fn working(dir: &Path, tally: Arc<Tally>) -> Result<App> {
    let run = move |job: Bench, _: JobContext| {
        tally.ran(job.t);
        async { done() }
    };
    Ok(App::builder(catalog()).config(config(dir)).job(run).build().await?)
}

/// An app on the store in `dir` that runs nothing, so that what is enqueued waits.
pub(super) async fn idle(dir: &Path) -> Result<App> {
    Ok(App::builder(catalog()).config(config(dir)).build().await?)
}

/// Waits until no job is unfinished: completed means settled and durable, not only run.
async fn settled(app: &App) -> Result<()> {
    while app
        .store()
        .counts(None)
        .await?
        .values()
        .any(|states| states.iter().any(|(state, count)| !state.is_final() && *count > 0))
    {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

fn request(jobs: Vec<NewJob>) -> Request {
    Request { jobs, ..Request::default() }
}

/// Whole lives: each run lets one more job in.
async fn lives(time: Duration, name: &str) -> Result<f64> {
    let (tally, scratch) = (Tally::new(IN_FLIGHT), Scratch::new("jobs")?);
    let app = working(scratch.path(), tally.clone()).await?;
    let tenant = TenantId::new(TENANT)?;
    let cpu = Cpu::own()?;
    let begin = Instant::now();
    let mut callers = JoinSet::new();
    for _ in 0..IN_FLIGHT {
        let (app, tenant, tally) = (app.clone(), tenant.clone(), tally.clone());
        callers.spawn(async move {
            let mut enqueued = 0_u64;
            while begin.elapsed() < time {
                tally.wait(1).await?;
                app.commit(&tenant, request(vec![NewJob::new("bench", data(now_micros()))])).await?;
                enqueued += 1;
            }
            anyhow::Ok(enqueued)
        });
    }
    let mut ops = 0;
    while let Some(caller) = callers.join_next().await {
        ops += caller??;
    }
    settled(&app).await?;
    let elapsed = begin.elapsed();
    let latency = tally.take_latency()?;
    let row = Row { name, durability: FSYNC, ops, elapsed, latency: Some(&latency), cpu: Some(cpu.spent()?) };
    println!("{row}");
    app.stop().await;
    Ok(per_second(ops, elapsed))
}

/// Enqueueing alone. The latency is that of a call.
async fn enqueue(time: Duration, name: &str) -> Result<f64> {
    let scratch = Scratch::new("jobs")?;
    let app = idle(scratch.path()).await?;
    let cpu = Cpu::own()?;
    let begin = Instant::now();
    let latency = in_bulk(&app, TENANT, "bench", move |_| begin.elapsed() < time).await?;
    let elapsed = begin.elapsed();
    let ops = latency.count() * BULK as u64;
    let row = Row { name, durability: FSYNC, ops, elapsed, latency: Some(&latency), cpu: Some(cpu.spent()?) };
    println!("{row}");
    app.stop().await;
    Ok(per_second(ops, elapsed))
}

/// Enqueues [`BULK`] jobs per call from several callers, for as long as `go_on` says so of the number of the next call.
pub(super) async fn in_bulk(
    app: &App,
    tenant: &str,
    kind: &'static str,
    go_on: impl Fn(u64) -> bool + Clone + Send + 'static,
) -> Result<Histogram> {
    let tenant = TenantId::new(tenant)?;
    let next = Arc::new(AtomicU64::new(0));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (app, tenant, next, go_on) = (app.clone(), tenant.clone(), next.clone(), go_on.clone());
        callers.spawn(async move {
            let mut latency = Histogram::new();
            while go_on(next.fetch_add(1, Ordering::Relaxed)) {
                let asked = Instant::now();
                let jobs = (0..BULK).map(|_| NewJob::new(kind, data(now_micros()))).collect();
                app.commit(&tenant, request(jobs)).await?;
                latency.record(asked.elapsed());
            }
            anyhow::Ok(latency)
        });
    }
    let mut latency = Histogram::new();
    while let Some(caller) = callers.join_next().await {
        latency.merge(&caller??);
    }
    Ok(latency)
}

/// A backlog, worked off by a process that has just started; its start is part of the time.
async fn drain(name: &str) -> Result<f64> {
    let (tally, scratch) = (Tally::new(0), Scratch::new("jobs")?);
    let app = idle(scratch.path()).await?;
    in_bulk(&app, TENANT, "bench", |call| call < (PREPARED / BULK) as u64).await?;
    app.stop().await;
    let cpu = Cpu::own()?;
    let begin = Instant::now();
    let app = working(scratch.path(), tally.clone()).await?;
    tally.wait(PREPARED).await?;
    settled(&app).await?;
    let (elapsed, ops) = (begin.elapsed(), PREPARED as u64);
    println!("{}", Row { name, durability: FSYNC, ops, elapsed, latency: None, cpu: Some(cpu.spent()?) });
    app.stop().await;
    Ok(per_second(ops, elapsed))
}

/// One job every 10 ms, each from a caller of its own, so that a slow answer does not hold the next one up.
async fn low_load(time: Duration, name: &str) -> Result<f64> {
    let (tally, scratch) = (Tally::new(0), Scratch::new("jobs")?);
    let app = working(scratch.path(), tally.clone()).await?;
    let tenant = TenantId::new(TENANT)?;
    let cpu = Cpu::own()?;
    let begin = Instant::now();
    let jobs = LOW_LOAD * time.as_secs();
    let mut tick = tokio::time::interval(Duration::from_secs(1) / u32::try_from(LOW_LOAD)?);
    let mut callers = JoinSet::new();
    for _ in 0..jobs {
        tick.tick().await;
        let (app, tenant) = (app.clone(), tenant.clone());
        callers
            .spawn(async move { app.commit(&tenant, request(vec![NewJob::new("bench", data(now_micros()))])).await });
    }
    while let Some(caller) = callers.join_next().await {
        caller??;
    }
    tally.wait(usize::try_from(jobs)?).await?;
    let (elapsed, latency) = (begin.elapsed(), tally.take_latency()?);
    let row = Row { name, durability: FSYNC, ops: jobs, elapsed, latency: Some(&latency), cpu: Some(cpu.spent()?) };
    println!("{row}");
    app.stop().await;
    Ok(latency.p99().as_secs_f64() * 1e6)
}

/// Jobs with a due time each. One that runs early fails the bench.
async fn delayed(name: &str) -> Result<f64> {
    let (tally, scratch) = (Tally::new(0), Scratch::new("jobs")?);
    let app = working(scratch.path(), tally.clone()).await?;
    let tenant = TenantId::new(TENANT)?;
    let cpu = Cpu::own()?;
    let begin = Instant::now();
    let first = now_micros() + 1_000_000;
    let step = u64::try_from(SPREAD.as_micros())? / DELAYED as u64;
    let jobs: Vec<NewJob> = (0..DELAYED as u64)
        .map(|n| {
            let due = first + n * step;
            let run_at = Some(Timestamp::from_micros(i64::try_from(due).unwrap_or(i64::MAX)));
            NewJob { run_at, ..NewJob::new("bench", data(due)) }
        })
        .collect();
    for some in jobs.chunks(BULK) {
        app.commit(&tenant, request(some.to_vec())).await?;
    }
    tally.wait(DELAYED).await?;
    let (elapsed, latency) = (begin.elapsed(), tally.take_latency()?);
    let ops = DELAYED as u64;
    let row = Row { name, durability: FSYNC, ops, elapsed, latency: Some(&latency), cpu: Some(cpu.spent()?) };
    println!("{row}");
    app.stop().await;
    Ok(latency.p99().as_secs_f64() * 1e6)
}
