//! Whole lives over HTTP: producers that enqueue, workers that lease and settle, all of it [`BULK`] at a time over kept-alive
//! connections.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::BULK;
use crate::load::http::Connection;
use crate::load::sockets::now_micros;
use crate::report::{Cpu, Histogram, Row, Runs, per_second};
use crate::server::{FSYNC, Server, TENANT, data};

const PORT: u16 = 7466;
const PRODUCERS: usize = 4;
/// Connections that lease and settle.
pub(super) const WORKERS: usize = 4;
/// Producers wait when so many more are enqueued than settled.
const AHEAD: u64 = 4_000;

pub(super) async fn run(runs: &Runs, time: Duration) -> Result<()> {
    println!(
        "\njobs over HTTP, 300-byte data; CPU is that of server and clients together; latency is from asking to the answered settle\n{}",
        Row::HEADING
    );
    let name = format!("enqueue, lease, settle, {BULK} at a time");
    runs.repeat(&name, "jobs/s", async |_| lives(time, &name).await).await
}

/// The body of a call that enqueues `jobs` jobs.
pub(super) fn jobs(tenant: &str, jobs: usize) -> String {
    let job = json!({ "tenant": tenant, "type": "bench", "data": data(now_micros()) });
    Value::Array(vec![job; jobs]).to_string()
}

/// A call to `/v1/jobs` that must be accepted.
pub(super) async fn enqueue(connection: &mut Connection, body: &str) -> Result<()> {
    let answer = connection.exchange(&Server::post("/v1/jobs", body)).await?;
    let said = || String::from_utf8_lossy(answer.body).into_owned();
    ensure!(answer.status == 201, "enqueueing was answered {}: {}", answer.status, said());
    Ok(())
}

/// Leases up to [`BULK`] jobs and settles them all as done. Answers their `t`; nothing when none came within `wait`.
pub(super) async fn work(connection: &mut Connection, wait: &str) -> Result<Vec<u64>> {
    let lease = json!({ "queues": ["bench"], "max": BULK, "wait": wait, "lease": "60s" }).to_string();
    let answer = connection.exchange(&Server::post("/v1/leases", &lease)).await?;
    ensure!(answer.status == 200, "leasing was answered {}", answer.status);
    let leased: Value = serde_json::from_slice(answer.body)?;
    let jobs = leased["jobs"].as_array().context("no jobs in the answer")?;
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let done = |job: &Value| json!({ "id": job["id"], "lease": job["lease"], "verdict": "done" });
    let results: Vec<Value> = jobs.iter().map(done).collect();
    let settle = Server::post("/v1/leases/settle", &json!({ "results": results }).to_string());
    let answer = connection.exchange(&settle).await?;
    ensure!(answer.status == 200, "settling was answered {}", answer.status);
    let settled: Value = serde_json::from_slice(answer.body)?;
    let refused = settled["results"].as_array().and_then(|all| all.iter().find(|one| !one["error"].is_null()));
    ensure!(refused.is_none(), "a job was not settled: {refused:?}");
    Ok(jobs.iter().map(|job| job["data"]["t"].as_u64().unwrap_or(0)).collect())
}

async fn lives(time: Duration, name: &str) -> Result<f64> {
    let server = Server::start("jobs", "0-1", PORT).await?;
    let (cpu, own) = (server.peer.cpu()?, Cpu::own()?);
    let latency = Arc::new(Mutex::new(Histogram::new()));
    let (enqueued, settled) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let stopped = Arc::new(AtomicBool::new(false));
    let begin = Instant::now();
    let mut producers: JoinSet<Result<()>> = JoinSet::new();
    for _ in 0..PRODUCERS {
        let (addr, enqueued, settled) = (server.addr, enqueued.clone(), settled.clone());
        producers.spawn(async move {
            let mut connection = Connection::open(addr).await?;
            while begin.elapsed() < time {
                if enqueued.load(Ordering::Relaxed) > settled.load(Ordering::Relaxed) + AHEAD {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    continue;
                }
                enqueue(&mut connection, &jobs(TENANT, BULK)).await?;
                enqueued.fetch_add(BULK as u64, Ordering::Relaxed);
            }
            Ok(())
        });
    }
    let mut workers: JoinSet<Result<()>> = JoinSet::new();
    for _ in 0..WORKERS {
        let (addr, stopped, settled, latency) = (server.addr, stopped.clone(), settled.clone(), latency.clone());
        workers.spawn(async move {
            let mut connection = Connection::open(addr).await?;
            while !stopped.load(Ordering::Relaxed) {
                let times = work(&mut connection, "100ms").await?;
                settled.fetch_add(times.len() as u64, Ordering::Relaxed);
                let now = now_micros();
                let mut latency = latency.lock().unwrap_or_else(PoisonError::into_inner);
                times.iter().for_each(|asked| latency.record(Duration::from_micros(now.saturating_sub(*asked))));
            }
            Ok(())
        });
    }
    while let Some(producer) = producers.join_next().await {
        producer??;
    }
    while settled.load(Ordering::Relaxed) < enqueued.load(Ordering::Relaxed) {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(1)) => {}
            Some(worker) = workers.join_next() => {
                worker??;
                bail!("a worker ended before the work did");
            }
        }
    }
    let elapsed = begin.elapsed();
    let cpu = Some(cpu.spent()? + own.spent()?);
    stopped.store(true, Ordering::Relaxed);
    while let Some(worker) = workers.join_next().await {
        worker??;
    }
    let ops = settled.load(Ordering::Relaxed);
    let latency = std::mem::replace(&mut *latency.lock().unwrap_or_else(PoisonError::into_inner), Histogram::new());
    println!("{}", Row { name, durability: FSYNC, ops, elapsed, latency: Some(&latency), cpu });
    Ok(per_second(ops, elapsed))
}
