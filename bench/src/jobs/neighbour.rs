//! A noisy neighbour: what a tenant with one job a second notices of a tenant with a million waiting in the same queue.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use tidewire::{App, Job, JobContext, NewJob, Request, TenantId, done};
use tokio::sync::Semaphore;

use super::{BULK, local};
use crate::load::sockets::now_micros;
use crate::report::{Cpu, Histogram, Row, Runs};
use crate::server::{FSYNC, Scratch, catalog, config, data};

/// Jobs of the noisy tenant.
const BACKLOG: usize = 1_000_000;
const NOISY: &str = "noisy";
const QUIET: &str = "quiet";
/// How long a handler takes, at least.
const WORK: Duration = Duration::from_millis(1);

/// A job of the queue `shared`, which runs 8 at once.
#[derive(Serialize, Deserialize)]
struct Shared {
    t: u64,
    pad: String,
}

impl Job for Shared {
    const TYPE: &'static str = "shared";
}

pub(super) async fn run(runs: &Runs, time: Duration) -> Result<()> {
    println!(
        "\nnoisy neighbour in process: one job a second of one tenant, in a queue that runs 8 at once for 1 ms each; latency is from \
         asking to the run\n{}",
        Row::HEADING
    );
    for (name, backlog) in [("alone in the queue, p99", 0), ("behind 1,000,000 jobs of another tenant, p99", BACKLOG)] {
        runs.repeat(name, "µs", async |_| quiet(time, name, backlog).await).await?;
    }
    Ok(())
}

async fn quiet(time: Duration, name: &str, backlog: usize) -> Result<f64> {
    let scratch = Scratch::new("neighbour")?;
    if backlog > 0 {
        let app = local::idle(scratch.path()).await?;
        local::in_bulk(&app, NOISY, Shared::TYPE, move |call| call < (backlog / BULK) as u64).await?;
        app.stop().await;
    }
    let latency = Arc::new(Mutex::new(Histogram::new()));
    let (noisy, quiet) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let app =
        App::builder(catalog()).config(config(scratch.path())).job(handler(&latency, &noisy, &quiet)).build().await?;
    if backlog > 0 {
        // The first of them shows that the queue is at work.
        noisy.acquire().await?.forget();
    }
    let tenant = TenantId::new(QUIET)?;
    let cpu = Cpu::own()?;
    let begin = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let jobs = time.as_secs();
    for _ in 0..jobs {
        tick.tick().await;
        let job = NewJob::new(Shared::TYPE, data(now_micros()));
        app.commit(&tenant, Request { jobs: vec![job], ..Request::default() }).await?;
    }
    quiet.acquire_many(u32::try_from(jobs)?).await?.forget();
    let elapsed = begin.elapsed();
    let ran = noisy.available_permits();
    ensure!(ran < backlog || backlog == 0, "the backlog was gone before the end");
    let latency = std::mem::replace(&mut *latency.lock().unwrap_or_else(PoisonError::into_inner), Histogram::new());
    // Per job of both tenants.
    let row = Row {
        name,
        durability: FSYNC,
        ops: jobs + ran as u64,
        elapsed,
        latency: Some(&latency),
        cpu: Some(cpu.spent()?),
    };
    println!("{row}");
    app.stop().await;
    Ok(latency.p99().as_secs_f64() * 1e6)
}

/// Counts the runs of each tenant and keeps the latencies of the quiet one.
fn handler(
    latency: &Arc<Mutex<Histogram>>,
    noisy: &Arc<Semaphore>,
    quiet: &Arc<Semaphore>,
) -> impl Fn(Shared, JobContext) -> std::pin::Pin<Box<dyn Future<Output = tidewire::HandlerResult> + Send>> + use<> {
    let (latency, noisy, quiet) = (latency.clone(), noisy.clone(), quiet.clone());
    move |job, cx| {
        let ran = if cx.tenant().as_str() == QUIET {
            let waited = Duration::from_micros(now_micros().saturating_sub(job.t));
            latency.lock().unwrap_or_else(PoisonError::into_inner).record(waited);
            quiet.clone()
        } else {
            noisy.clone()
        };
        Box::pin(async move {
            tokio::time::sleep(WORK).await;
            ran.add_permits(1);
            done()
        })
    }
}
