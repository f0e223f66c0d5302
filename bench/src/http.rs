//! Durable publishes over HTTP keep-alive; server and client share the machine.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::load::http;
use crate::report::{Row, Runs, per_second};
use crate::server::{FSYNC, Server, event};

const PORT: u16 = 7461;
const CONNECTIONS: usize = 64;

pub(crate) async fn run(runs: &Runs, time: Duration) -> Result<()> {
    println!("\nover HTTP, 300-byte data, server and client on the same cores; CPU is the server's\n{}", Row::HEADING);
    let one = Arc::new(event("r", 0).to_string());
    let name = format!("publish, {CONNECTIONS} connections, one event each");
    runs.repeat(&name, "events/s", async |_| publish(time, CONNECTIONS, one.clone(), 1, &name).await).await?;
    let many = Arc::new(Value::Array((0..100).map(|n| event("r", n)).collect()).to_string());
    let name = "publish, 8 connections, 100 events each";
    runs.repeat(name, "events/s", async |_| publish(time, 8, many.clone(), 100, name).await).await?;
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
