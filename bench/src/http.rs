//! Durable work over HTTP keep-alive; server and client share the machine.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::load::http::{self, Connection};
use crate::load::sockets::now_micros;
use crate::report::{Histogram, Row, Runs, per_second};
use crate::server::{FSYNC, Server, TENANT, data, event};

const PORT: u16 = 7461;
const CONNECTIONS: usize = 64;

pub(crate) async fn run(runs: &Runs, time: Duration) -> Result<()> {
    println!(
        "\nover HTTP, 300-byte data, server and client on the same cores; CPU is the server's; \
         the latency of a job is from asking to the answered settle\n{}",
        Row::HEADING
    );
    let one = Arc::new(event("r", 0).to_string());
    let name = format!("publish, {CONNECTIONS} connections, one event each");
    runs.repeat(&name, "events/s", async |_| publish(time, CONNECTIONS, one.clone(), 1, &name).await).await?;
    let many = Arc::new(Value::Array((0..100).map(|n| event("r", n)).collect()).to_string());
    let name = "publish, 8 connections, 100 events each";
    runs.repeat(name, "events/s", async |_| publish(time, 8, many.clone(), 100, name).await).await?;
    let name = "enqueue, lease, settle, 100 at a time";
    runs.repeat(name, "jobs/s", async |_| lives(time, name).await).await?;
    Ok(())
}

async fn publish(time: Duration, connections: usize, body: Arc<String>, per_request: u64, name: &str) -> Result<f64> {
    let server = Server::start("http", "0-1", PORT).await?;
    let cpu = server.peer.cpu()?;
    let request = Server::post("/v1/events", &body);
    let load = http::run(server.addr, connections, time, move |_| request.clone(), per_request).await?;
    let row = Row {
        name,
        durability: FSYNC,
        ops: load.ops,
        elapsed: load.elapsed,
        latency: Some(&load.latency),
        cpu: Some(cpu.spent()?),
    };
    println!("{row}");
    ensure!(load.errors == 0, "{} requests were lost", load.errors);
    Ok(per_second(load.ops, load.elapsed))
}

/// Producers enqueue arrays of 100; workers lease 100 and settle them.
async fn lives(time: Duration, name: &str) -> Result<f64> {
    let server = Server::start("http", "0-1", PORT).await?;
    let cpu = server.peer.cpu()?;
    let latency = Arc::new(Mutex::new(Histogram::new()));
    let (enqueued, settled) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let stopped = Arc::new(AtomicBool::new(false));
    let begin = Instant::now();
    let mut tasks: JoinSet<Result<()>> = JoinSet::new();
    for _ in 0..4 {
        let (addr, enqueued, settled) = (server.addr, enqueued.clone(), settled.clone());
        tasks.spawn(async move {
            let mut connection = Connection::open(addr).await?;
            while begin.elapsed() < time {
                if enqueued.load(Ordering::Relaxed) > settled.load(Ordering::Relaxed) + 4_000 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    continue;
                }
                let job = json!({ "tenant": TENANT, "type": "bench", "data": data(now_micros()) });
                let enqueue = Server::post("/v1/jobs", &Value::Array(vec![job; 100]).to_string());
                let answer = connection.exchange(&enqueue).await?;
                ensure!(answer.status == 201, "enqueueing was answered {}", answer.status);
                enqueued.fetch_add(100, Ordering::Relaxed);
            }
            Ok(())
        });
    }
    for _ in 0..4 {
        let (addr, stopped, settled, latency) = (server.addr, stopped.clone(), settled.clone(), latency.clone());
        tasks.spawn(async move {
            let mut connection = Connection::open(addr).await?;
            let lease =
                Server::post("/v1/leases", &json!({ "queues": ["bench"], "max": 100, "wait": "100ms" }).to_string());
            loop {
                let answer = connection.exchange(&lease).await?;
                let leased: Value = serde_json::from_slice(answer.body)?;
                let jobs = leased["jobs"].as_array().context("no jobs in the answer")?;
                if jobs.is_empty() {
                    if stopped.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                    continue;
                }
                let done = |job: &Value| json!({ "id": job["id"], "lease": job["lease"], "verdict": "done" });
                let results: Vec<Value> = jobs.iter().map(done).collect();
                let settle = Server::post("/v1/leases/settle", &json!({ "results": results }).to_string());
                let answer = connection.exchange(&settle).await?;
                ensure!(answer.status == 200, "settling was answered {}", answer.status);
                settled.fetch_add(results.len() as u64, Ordering::Relaxed);
                let now = now_micros();
                let mut latency = latency.lock().unwrap_or_else(PoisonError::into_inner);
                for job in jobs {
                    let asked = job["data"]["t"].as_u64().unwrap_or(now);
                    latency.record(Duration::from_micros(now.saturating_sub(asked)));
                }
            }
        });
    }
    for _ in 0..4 {
        tasks.join_next().await.context("no producer")???;
    }
    while settled.load(Ordering::Relaxed) < enqueued.load(Ordering::Relaxed) {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(1)) => {}
            Some(worker) = tasks.join_next() => {
                worker??;
                anyhow::bail!("a worker ended before the work did");
            }
        }
    }
    let elapsed = begin.elapsed();
    stopped.store(true, Ordering::Relaxed);
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    let ops = settled.load(Ordering::Relaxed);
    let cpu = Some(cpu.spent()?);
    let latency = std::mem::replace(&mut *latency.lock().unwrap_or_else(PoisonError::into_inner), Histogram::new());
    println!("{}", Row { name, durability: FSYNC, ops, elapsed, latency: Some(&latency), cpu });
    Ok(per_second(ops, elapsed))
}
