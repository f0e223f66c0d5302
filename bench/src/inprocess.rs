//! Durable publishes inside one process: the store, the runtime and nothing in front of them.

use std::time::{Duration, Instant};

use anyhow::Result;
use tidewire::{App, NewEvent, Request, TenantId};
use tokio::task::JoinSet;

use crate::report::{Cpu, Histogram, Row, Runs, per_second};
use crate::server::{FSYNC, Scratch, TENANT, catalog, config, data};

/// Callers that each wait for their answer before they ask again.
const CALLERS: usize = 256;

pub(crate) async fn run(runs: &Runs, time: Duration) -> Result<()> {
    println!("\nin process, 300-byte data\n{}", Row::HEADING);
    let name = format!("publish, {CALLERS} callers, one event each");
    runs.repeat(&name, "events/s", async |_| publish(time, 1, &name).await).await?;
    let name = "publish, 16 callers, 100 events each";
    runs.repeat(name, "events/s", async |_| publish(time, 100, name).await).await?;
    Ok(())
}

async fn publish(time: Duration, per_call: usize, name: &str) -> Result<f64> {
    let scratch = Scratch::new("inprocess")?;
    let app = App::builder(catalog()).config(config(scratch.path())).build().await?;
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
