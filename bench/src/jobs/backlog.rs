//! Long backlogs in the server process: what millions of waiting or scheduled jobs and thousands of tenants cost.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::BULK;
use super::remote::{WORKERS, enqueue, jobs, work};
use crate::load::http::Connection;
use crate::report::{Cpu, Histogram, Row, Runs, per_second, thousands};
use crate::server::{FSYNC, Server, TENANT, data};

const PORT: u16 = 7467;
/// Connections that enqueue.
const PRODUCERS: u64 = 8;
/// Jobs per call while a backlog is made; making it is not what is measured.
const FILL: usize = 1_000;
/// Jobs of the idle server, all due long after the bench.
const SCHEDULED: u64 = 1_000_000;
/// Schedules of users of the idle server, none of which is due while it is watched.
const SCHEDULES: u64 = 50_000;
/// How long the server with them is watched.
const IDLE: Duration = Duration::from_secs(20);
const TENANTS: u64 = 10_000;
const JOBS_PER_TENANT: u64 = 20;

/// Each part starts with an empty store and takes minutes, so it runs once whatever `--runs` says.
pub(super) async fn run(runs: &Runs, time: Duration, pending: u64) -> Result<()> {
    let once = Runs { count: 1, only: runs.only.clone() };
    println!(
        "\nlong backlogs over HTTP, 300-byte data, {BULK} jobs per call; CPU is that of server and clients together\n{}",
        Row::HEADING
    );
    let name = format!("restart with {} waiting jobs, to the first lease", thousands(pending as f64));
    once.repeat(&name, "ms", async |_| waiting(time, pending).await).await?;
    let (jobs, schedules) = (thousands(SCHEDULED as f64), thousands(SCHEDULES as f64));
    let name = format!("idle with {jobs} scheduled jobs and {schedules} schedules");
    once.repeat(&name, "% of a core", async |_| scheduled().await).await?;
    let name = format!("claims of {} tenants beside those of one", thousands(TENANTS as f64));
    once.repeat(&name, "of the rate", async |_| tenants().await).await?;
    Ok(())
}

/// The rates beside an empty queue and with the backlog, the memory, and the restart. Answers the time of the last in ms.
async fn waiting(time: Duration, pending: u64) -> Result<f64> {
    let mut server = Server::start("backlog", "0-1", PORT).await?;
    rates(&server, time, "empty queue").await?;
    // What the rates left over counts, too.
    let begin = Instant::now();
    fill(&server, pending).await?;
    let taken = begin.elapsed().as_secs_f64();
    println!(
        "  {} jobs enqueued in {taken:.0} s; server {} MB RSS, files {} MB",
        thousands(pending as f64),
        server.peer.rss()? / 1_000_000,
        size(server.data())? / 1_000_000
    );
    rates(&server, time, &format!("{} waiting", thousands(pending as f64))).await?;
    println!("  server {} MB RSS after that", server.peer.rss()? / 1_000_000);
    server.kill();
    let begin = Instant::now();
    server.again().await?;
    let mut connection = Connection::open(server.addr).await?;
    ensure!(!work(&mut connection, "60s").await?.is_empty(), "no job was leased after the restart");
    let taken = begin.elapsed().as_secs_f64() * 1e3;
    println!("  killed and started again: {} MB RSS", server.peer.rss()? / 1_000_000);
    Ok(taken)
}

/// Enqueues for `time`, then leases and settles for `time` or until there is nothing left.
async fn rates(server: &Server, time: Duration, with: &str) -> Result<()> {
    let (cpu, own, begin) = (server.peer.cpu()?, Cpu::own()?, Instant::now());
    let body: Arc<str> = jobs(TENANT, BULK).into();
    let (calls, latency) = produce(server, move |_| (begin.elapsed() < time).then(|| body.clone())).await?;
    let (elapsed, cpu) = (begin.elapsed(), Some(cpu.spent()? + own.spent()?));
    let ops = calls * BULK as u64;
    let name = format!("enqueue, {with}");
    println!("{}", Row { name: &name, durability: FSYNC, ops, elapsed, latency: Some(&latency), cpu });
    claims(server, time, &format!("lease and settle, {with}")).await?;
    Ok(())
}

/// Calls `/v1/jobs` with the bodies that `body` gives for the numbers 0, 1, … until it gives none. Answers how many.
async fn produce(
    server: &Server,
    body: impl Fn(u64) -> Option<Arc<str>> + Clone + Send + 'static,
) -> Result<(u64, Histogram)> {
    let next = Arc::new(AtomicU64::new(0));
    let mut producers = JoinSet::new();
    for _ in 0..PRODUCERS {
        let (addr, next, body) = (server.addr, next.clone(), body.clone());
        producers.spawn(async move {
            let mut connection = Connection::open(addr).await?;
            let mut latency = Histogram::new();
            while let Some(body) = body(next.fetch_add(1, Ordering::Relaxed)) {
                let asked = Instant::now();
                enqueue(&mut connection, &body).await?;
                latency.record(asked.elapsed());
            }
            anyhow::Ok(latency)
        });
    }
    let mut latency = Histogram::new();
    while let Some(producer) = producers.join_next().await {
        latency.merge(&producer??);
    }
    Ok((latency.count(), latency))
}

/// Adds `count` jobs of one tenant, rounded up to whole calls.
async fn fill(server: &Server, count: u64) -> Result<()> {
    let body: Arc<str> = jobs(TENANT, FILL).into();
    let calls = count.div_ceil(FILL as u64);
    produce(server, move |call| (call < calls).then(|| body.clone())).await?;
    Ok(())
}

/// Leases and settles until nothing is left or `time` has passed. Prints the row and answers the jobs per second.
async fn claims(server: &Server, time: Duration, name: &str) -> Result<f64> {
    let (cpu, own, begin) = (server.peer.cpu()?, Cpu::own()?, Instant::now());
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        let addr = server.addr;
        workers.spawn(async move {
            let mut connection = Connection::open(addr).await?;
            let (mut latency, mut settled) = (Histogram::new(), 0);
            while begin.elapsed() < time {
                let asked = Instant::now();
                let worked = work(&mut connection, "0s").await?.len() as u64;
                if worked == 0 {
                    break;
                }
                latency.record(asked.elapsed());
                settled += worked;
            }
            anyhow::Ok((latency, settled))
        });
    }
    let (mut latency, mut ops) = (Histogram::new(), 0);
    while let Some(worker) = workers.join_next().await {
        let (its_latency, settled) = worker??;
        latency.merge(&its_latency);
        ops += settled;
    }
    let (elapsed, cpu) = (begin.elapsed(), Some(cpu.spent()? + own.spent()?));
    println!("{}", Row { name, durability: FSYNC, ops, elapsed, latency: Some(&latency), cpu });
    Ok(per_second(ops, elapsed))
}

/// CPU of a server that has nothing to do for now, in percent of a core.
async fn scheduled() -> Result<f64> {
    let server = Server::start("backlog", "0-1", PORT).await?;
    let job = |n: u64| {
        // One due every 10 ms, from tomorrow on.
        json!({ "tenant": TENANT, "type": "bench", "data": data(n), "delay": 86_400_000 + n * 10 })
    };
    let body = move |call: u64| {
        let numbers = call * FILL as u64..(call + 1) * FILL as u64;
        (numbers.start < SCHEDULED).then(|| Value::Array(numbers.map(job).collect()).to_string().into())
    };
    produce(&server, body).await?;
    put_schedules(&server).await?;
    // What writing them has left to do is not what is measured.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let cpu = server.peer.cpu()?;
    tokio::time::sleep(IDLE).await;
    let percent = cpu.spent()?.as_secs_f64() / IDLE.as_secs_f64() * 100.0;
    println!("  server {} MB RSS, files {} MB", server.peer.rss()? / 1_000_000, size(server.data())? / 1_000_000);
    Ok(percent)
}

/// Puts the schedules, each of a user of its own and due once a year.
async fn put_schedules(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server.addr).await?;
    for call in 0..SCHEDULES / FILL as u64 {
        let schedule = |n: u64| {
            let cron = format!("{} {} 1 1 *", n % 60, n / 60 % 24);
            json!({ "key": "digest", "userId": format!("u{n}"), "job": "bench", "data": data(n), "cron": cron })
        };
        let schedules: Vec<Value> = (call * FILL as u64..(call + 1) * FILL as u64).map(schedule).collect();
        let body = json!({ "tenant": TENANT, "schedules": schedules }).to_string();
        let answer = connection.exchange(&Server::post("/v1/commit", &body)).await?;
        let said = || String::from_utf8_lossy(answer.body).into_owned();
        ensure!(answer.status == 201, "putting schedules was answered {}: {}", answer.status, said());
    }
    Ok(())
}

/// The rate of claims over many tenants as a share of that of one tenant with as many jobs.
async fn tenants() -> Result<f64> {
    const ALL: u64 = TENANTS * JOBS_PER_TENANT;
    const DEADLINE: Duration = Duration::from_secs(120);
    let server = Server::start("backlog", "0-1", PORT).await?;
    fill(&server, ALL).await?;
    let one = claims(&server, DEADLINE, "lease and settle, one tenant with 200,000 jobs").await?;
    drop(server);
    let server = Server::start("backlog", "0-1", PORT).await?;
    let body = |tenant: u64| (tenant < TENANTS).then(|| jobs(&format!("t{tenant}"), JOBS_PER_TENANT as usize).into());
    produce(&server, body).await?;
    let many = claims(&server, DEADLINE, "lease and settle, 10,000 tenants with 20 each").await?;
    Ok(many / one)
}

/// The size of the files in a folder, in bytes.
fn size(folder: &Path) -> Result<u64> {
    std::fs::read_dir(folder)?.try_fold(0, |sum, file| Ok(sum + file?.metadata()?.len()))
}
