//! Durable work inside one process: the store, the runtime and nothing in front of them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tidewire::{App, Job, JobContext, NewEvent, NewJob, Request, TenantId, done};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::load::sockets::now_micros;
use crate::report::{Cpu, Histogram, Row, Runs, per_second};
use crate::server::{FSYNC, Scratch, TENANT, catalog, config, data};

/// Callers that each wait for their answer before they ask again.
const CALLERS: usize = 256;
/// Jobs that are enqueued and not yet completed.
const IN_FLIGHT: usize = 512;

#[derive(Serialize, Deserialize)]
struct Bench {
    t: u64,
    pad: String,
}

impl Job for Bench {
    const TYPE: &'static str = "bench";
}

pub(crate) async fn run(runs: &Runs, time: Duration) -> Result<()> {
    println!("\nin process, 300-byte data; the latency of a job is from asking to its run\n{}", Row::HEADING);
    let name = format!("publish, {CALLERS} callers, one event each");
    runs.repeat(&name, "events/s", async |_| publish(time, 1, &name).await).await?;
    let name = "publish, 16 callers, 100 events each";
    runs.repeat(name, "events/s", async |_| publish(time, 100, name).await).await?;
    let name = format!("enqueue + run + complete, {IN_FLIGHT} in flight");
    runs.repeat(&name, "jobs/s", async |_| lives(time, &name).await).await?;
    Ok(())
}

/// What the handler reports: that it ran, and how long after its job was asked for.
struct Tally {
    /// Lets one more job in for each that has run.
    slots: Semaphore,
    latency: Mutex<Histogram>,
}

impl Tally {
    fn new(in_flight: usize) -> Arc<Self> {
        Arc::new(Self { slots: Semaphore::new(in_flight), latency: Mutex::new(Histogram::new()) })
    }

    fn ran(&self, asked: u64) {
        let waited = Duration::from_micros(now_micros().saturating_sub(asked));
        self.latency.lock().unwrap_or_else(PoisonError::into_inner).record(waited);
        self.slots.add_permits(1);
    }
}

async fn open(tally: Arc<Tally>) -> Result<(App, Scratch)> {
    let scratch = Scratch::new("inprocess")?;
    let app = App::builder(catalog())
        .config(config(scratch.path()))
        .job(move |job: Bench, _: JobContext| {
            tally.ran(job.t);
            async { done() }
        })
        .build()
        .await?;
    Ok((app, scratch))
}

async fn publish(time: Duration, per_call: usize, name: &str) -> Result<f64> {
    let (app, _scratch) = open(Tally::new(0)).await?;
    let tenant = TenantId::new(TENANT)?;
    let cpu = Cpu::own()?;
    let begin = Instant::now();
    let mut callers = JoinSet::new();
    for _ in 0..if per_call == 1 { CALLERS } else { 16 } {
        let (app, tenant) = (app.clone(), tenant.clone());
        callers.spawn(async move {
            let mut latency = Histogram::new();
            while begin.elapsed() < time {
                let asked = Instant::now();
                let mut request = Request::default();
                request.events.extend((0..per_call).map(|n| NewEvent::new("bench", data(n as u64)).param("room", "r")));
                app.commit(&tenant, request).await?;
                latency.record(asked.elapsed());
            }
            anyhow::Ok(latency)
        });
    }
    let mut latency = Histogram::new();
    while let Some(caller) = callers.join_next().await {
        latency.merge(&caller??);
    }
    let elapsed = begin.elapsed();
    let ops = latency.count() * per_call as u64;
    let row = Row { name, durability: FSYNC, ops, elapsed, latency: Some(&latency), cpu: Some(cpu.spent()?) };
    println!("{row}");
    app.stop().await;
    Ok(per_second(ops, elapsed))
}

/// Whole lives: each run lets one more job in.
async fn lives(time: Duration, name: &str) -> Result<f64> {
    let tally = Tally::new(IN_FLIGHT);
    let (app, _scratch) = open(tally.clone()).await?;
    let tenant = TenantId::new(TENANT)?;
    let cpu = Cpu::own()?;
    let begin = Instant::now();
    let mut callers = JoinSet::new();
    for _ in 0..IN_FLIGHT {
        let (app, tenant, tally) = (app.clone(), tenant.clone(), tally.clone());
        callers.spawn(async move {
            let mut enqueued = 0_u64;
            while begin.elapsed() < time {
                tally.slots.acquire().await?.forget();
                let job = NewJob::new("bench", data(now_micros()));
                app.commit(&tenant, Request { jobs: vec![job], ..Request::default() }).await?;
                enqueued += 1;
            }
            anyhow::Ok(enqueued)
        });
    }
    let mut total = 0;
    while let Some(caller) = callers.join_next().await {
        total += caller??;
    }
    // Completed means settled and durable, not only run.
    while app
        .store()
        .counts(None)
        .await?
        .values()
        .any(|states| states.iter().any(|(state, count)| !state.is_final() && *count > 0))
    {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let elapsed = begin.elapsed();
    let cpu = Some(cpu.spent()?);
    let latency =
        std::mem::replace(&mut *tally.latency.lock().unwrap_or_else(PoisonError::into_inner), Histogram::new());
    println!("{}", Row { name, durability: FSYNC, ops: total, elapsed, latency: Some(&latency), cpu });
    app.stop().await;
    Ok(per_second(total, elapsed))
}
