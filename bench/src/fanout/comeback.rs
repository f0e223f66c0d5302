//! Everybody comes back at once after the server was killed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Scale;
use super::target::{Publisher, To, tidewire};
use crate::load::sockets::{Fleet, Memory, now_micros};
use crate::report::{Runs, thousands};
use crate::server::TENANT;

/// Everybody has to be back by then.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often to look whether all have everything.
const LOOK: Duration = Duration::from_millis(5);

pub(super) async fn run(runs: &Runs, scale: &Scale) -> Result<()> {
    let name = format!("{} come back after kill -9", thousands(scale.at_once as f64));
    let units = ["s until all have everything", "s until the server listens"];
    runs.repeat_each(&name, units, async |_| come_back(scale.at_once, &name).await).await
}

/// Every socket gets every event of the tenant, so its positions tell whether one was lost or came twice.
async fn come_back(sockets: usize, name: &str) -> Result<[f64; 2]> {
    let mut server = tidewire().await?;
    let tokens = server.tokens(TENANT, sockets, |index| format!("r{}", index / 10)).await?;
    let memories: Vec<Arc<Memory>> = (0..sockets).map(|_| Arc::default()).collect();
    let fleet = connect(server.addr, &tokens, 64, &memories).await?;
    let mut publisher = Publisher::of_tenant(server.addr, TENANT).await?;
    let mut published = 0;
    publish(&mut publisher, 10, &mut published).await?;
    all_have(&memories, published).await?;
    // These are durable, and on their way when the server dies.
    publish(&mut publisher, 10, &mut published).await?;
    let begin = Instant::now();
    server.kill();
    fleet.close().await;
    let behind = memories.iter().filter(|memory| memory.position() < published).count();
    let addr = server.addr;
    let again = async {
        server.again().await?;
        let listens = begin.elapsed();
        // And these while everybody comes back.
        publish(&mut Publisher::of_tenant(server.addr, TENANT).await?, 10, &mut published).await?;
        anyhow::Ok(listens)
    };
    let (listens, fleet) = tokio::join!(again, connect(addr, &tokens, sockets, &memories));
    let (listens, fleet) = (listens?, fleet?);
    all_have(&memories, published).await?;
    let elapsed = begin.elapsed();
    let faults: u64 = memories.iter().map(|memory| memory.faults()).sum();
    let recovered: u64 = memories.iter().map(|memory| memory.recovered()).sum();
    println!(
        "  {name}: {behind} had missed something; all back and whole after {:.2} s, the server listened after {:.2} s",
        elapsed.as_secs_f64(),
        listens.as_secs_f64()
    );
    ensure!(faults == 0, "{faults} events were missing or came twice");
    ensure!(recovered == sockets as u64, "only {recovered} of {sockets} sessions were recovered");
    fleet.close().await;
    Ok([elapsed.as_secs_f64(), listens.as_secs_f64()])
}

async fn connect(addr: SocketAddr, tokens: &[String], at_a_time: usize, memories: &[Arc<Memory>]) -> Result<Fleet> {
    let token = |index: usize| tokens[index].clone();
    Fleet::remembering(addr, "/socket.io/", "/", tokens.len(), token, at_a_time, Some(memories)).await
}

async fn publish(publisher: &mut Publisher, events: u64, published: &mut u64) -> Result<()> {
    for _ in 0..events {
        publisher.publish(&[To::Tenant], now_micros()).await?;
    }
    *published += events;
    Ok(())
}

async fn all_have(memories: &[Arc<Memory>], position: u64) -> Result<()> {
    let all = async {
        while memories.iter().any(|memory| memory.position() < position) {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.context("not everybody had everything within 60 s")
}
