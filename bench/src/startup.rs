//! Cold start with an empty store, and what a server uses while nothing happens.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::load::http::{Connection, request};
use crate::report::Runs;
use crate::server::Server;

const PORT: u16 = 7465;
const IDLE: Duration = Duration::from_secs(10);

pub(crate) async fn run(runs: &Runs) -> Result<()> {
    println!("\nstart and idle (fsync)");
    runs.repeat("cold start to ready", "ms", async |_| {
        let begin = Instant::now();
        let server = Server::start("startup", "0-1", PORT).await?;
        let answer =
            Connection::open(server.addr).await?.exchange(&request("GET", "/health/ready", "", "")).await?.status;
        anyhow::ensure!(answer == 200, "not ready: {answer}");
        Ok(begin.elapsed().as_secs_f64() * 1e3)
    })
    .await?;
    let server = Server::start("startup", "0-1", PORT).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let cpu = server.peer.cpu()?;
    tokio::time::sleep(IDLE).await;
    let percent = cpu.spent()?.as_secs_f64() / IDLE.as_secs_f64() * 100.0;
    println!("idle: {:.1} MB RSS, {percent:.2} % of a core", server.peer.rss()? as f64 / 1e6);
    Ok(())
}
