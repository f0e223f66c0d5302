//! One event to many Socket.IO sockets: the server on core 0, the clients on core 1, Node.js socket.io in the same run.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::Value;

use crate::load::http::{Connection, request};
use crate::load::peer::{Peer, node_socketio};
use crate::load::sockets::{Fleet, now_micros};
use crate::report::{Cpu, Row, Runs, per_second, rss};
use crate::server::{FSYNC, Server, event};

const PORT: u16 = 7462;
const NODE_PORT: u16 = 7463;
const NODE_EMIT_PORT: u16 = 7464;
const DEADLINE: Duration = Duration::from_secs(60);

/// What to measure.
#[derive(Args)]
pub(crate) struct Fanout {
    /// Sockets in the one big room.
    #[arg(long, default_value_t = 5_000)]
    sockets: usize,
    /// Events sent to it.
    #[arg(long, default_value_t = 400)]
    events: usize,
    /// Leave Node.js socket.io out.
    #[arg(long)]
    no_peer: bool,
}

impl Default for Fanout {
    fn default() -> Self {
        Self { sockets: 5_000, events: 400, no_peer: false }
    }
}

impl Fanout {
    pub(crate) async fn run(&self, runs: &Runs) -> Result<()> {
        pin_clients()?;
        println!(
            "\nfan-out over Socket.IO, WebSocket, 300-byte data; server on core 0, clients on core 1\n{}",
            Row::HEADING
        );
        let Self { sockets, events, .. } = *self;
        for in_flight in [1, 8] {
            let name = format!("room of {sockets}, {in_flight} in flight");
            runs.repeat(&name, "deliveries/s", async |_| big_room(sockets, events, in_flight, &name).await).await?;
            if !self.no_peer {
                let name = format!("node socket.io: {name}");
                let events = events / 4;
                runs.repeat(&name, "deliveries/s", async |_| node_room(sockets, events, in_flight, &name).await)
                    .await?;
            }
        }
        let name = "publish to browser, 1,000/s, rooms of 10, p99";
        runs.repeat(name, "µs", async |_| paced(name).await).await?;
        let name = format!("idle connection, {sockets} sockets");
        runs.repeat(&name, "bytes", async |_| idle(sockets).await).await?;
        Ok(())
    }
}

/// Keeps the load generator off the server's core.
fn pin_clients() -> Result<()> {
    let pid = std::process::id().to_string();
    let status = Command::new("taskset").args(["-acp", "1", &pid]).stdout(std::process::Stdio::null()).status()?;
    ensure!(status.success(), "taskset could not pin the clients");
    Ok(())
}

async fn big_room(sockets: usize, events: usize, in_flight: usize, name: &str) -> Result<f64> {
    let server = Server::start("fanout", "0", PORT).await?;
    let tokens = server.tokens(sockets, |_| "all".to_owned()).await?;
    let fleet = connect(&server, tokens).await?;
    fleet.measure_latency();
    let mut publisher = Connection::open(server.addr).await?;
    let cpu = server.peer.cpu()?;
    let begin = Instant::now();
    let mut sent = 0;
    while sent < events {
        let batch: Vec<Value> = (0..in_flight).map(|_| event("all", now_micros())).collect();
        let answer = publisher.exchange(&Server::post("/v1/events", &Value::Array(batch).to_string())).await?;
        ensure!(answer.status == 201, "publishing was answered {}", answer.status);
        sent += in_flight;
        // A window: the next ones leave when these have arrived everywhere.
        fleet.wait_received((sent * sockets) as u64, DEADLINE).await?;
    }
    let (elapsed, ops, latency) = (begin.elapsed(), (sent * sockets) as u64, fleet.take_latency());
    let row = Row { name, durability: FSYNC, ops, elapsed, latency: Some(&latency), cpu: Some(cpu.spent()?) };
    println!("{row}");
    fleet.close().await;
    Ok(per_second(ops, elapsed))
}

async fn node_room(sockets: usize, events: usize, in_flight: usize, name: &str) -> Result<f64> {
    let emit = SocketAddr::from(([127, 0, 0, 1], NODE_EMIT_PORT));
    let peer = Peer::start("socketio", "0", &node_socketio(NODE_PORT, NODE_EMIT_PORT)?, emit, DEADLINE).await?;
    let addr = SocketAddr::from(([127, 0, 0, 1], NODE_PORT));
    let fleet = Fleet::connect(addr, "/socket.io/", "/", sockets, |_| "all".to_owned(), 64).await?;
    fleet.measure_latency();
    let mut publisher = Connection::open(emit).await?;
    let cpu = peer.cpu()?;
    let begin = Instant::now();
    let mut sent = 0;
    while sent < events {
        let path = format!("/emit?room=all&count={in_flight}&size=300&t={}", now_micros());
        let answer = publisher.exchange(&request("POST", &path, "", "")).await?;
        ensure!(answer.status == 200, "emitting was answered {}", answer.status);
        sent += in_flight;
        fleet.wait_received((sent * sockets) as u64, DEADLINE).await?;
    }
    let (elapsed, ops, latency) = (begin.elapsed(), (sent * sockets) as u64, fleet.take_latency());
    let row = Row { name, durability: "none", ops, elapsed, latency: Some(&latency), cpu: Some(cpu.spent()?) };
    println!("{row}");
    fleet.close().await;
    Ok(per_second(ops, elapsed))
}

/// 1,000 publishes a second to 100 rooms of 10 sockets each. Answers the p99 from publish to browser in microseconds.
async fn paced(name: &str) -> Result<f64> {
    const SECONDS: u64 = 10;
    let server = Server::start("fanout", "0", PORT).await?;
    let tokens = server.tokens(1_000, |index| format!("r{}", index / 10)).await?;
    let fleet = connect(&server, tokens).await?;
    fleet.measure_latency();
    let cpu = server.peer.cpu()?;
    let begin = Instant::now();
    // Four publishers, each 250 a second, so that one slow answer does not hold the others up.
    let mut publishers = tokio::task::JoinSet::new();
    for publisher in 0..4_u64 {
        let addr = server.addr;
        publishers.spawn(async move {
            let mut connection = Connection::open(addr).await?;
            let mut tick = tokio::time::interval(Duration::from_millis(4));
            let first = now_micros();
            for n in 0..250 * SECONDS {
                tick.tick().await;
                let room = format!("r{}", (n * 4 + publisher) % 100);
                // The time at which it was due: a server that stalls the publisher must not hide behind that.
                let body = event(&room, first + n * 4_000).to_string();
                let answer = connection.exchange(&Server::post("/v1/events", &body)).await?;
                ensure!(answer.status == 201, "publishing was answered {}", answer.status);
            }
            anyhow::Ok(())
        });
    }
    while let Some(publisher) = publishers.join_next().await {
        publisher??;
    }
    fleet.wait_received(1_000 * SECONDS * 10, DEADLINE).await?;
    let (elapsed, latency) = (begin.elapsed(), fleet.take_latency());
    let ops = 1_000 * SECONDS;
    let row = Row { name, durability: FSYNC, ops, elapsed, latency: Some(&latency), cpu: Some(cpu.spent()?) };
    println!("{row}");
    fleet.close().await;
    Ok(latency.p99().as_secs_f64() * 1e6)
}

/// How much the server grows for each socket that is only connected.
async fn idle(sockets: usize) -> Result<f64> {
    let server = Server::start("fanout", "0", PORT).await?;
    let tokens = server.tokens(sockets, |index| format!("r{}", index / 10)).await?;
    let before = server.peer.rss()?;
    let cpu = server.peer.cpu()?;
    let fleet = connect(&server, tokens).await?;
    let name = format!("connect, authenticate, {sockets} sockets");
    let row = Row {
        name: &name,
        durability: "-",
        ops: fleet.size() as u64,
        elapsed: fleet.connecting(),
        latency: Some(fleet.connect_latency()),
        cpu: Some(cpu.spent()?),
    };
    println!("{row}");
    // The allocator gives back what connecting needed for a moment.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let after = server.peer.rss()?;
    let idle = Cpu::of(server.peer.pid())?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    println!(
        "  server with {sockets} idle sockets: {} MB RSS, {:.2} % of a core",
        rss(server.peer.pid())? / 1_000_000,
        idle.spent()?.as_secs_f64() * 20.0
    );
    fleet.close().await;
    Ok((after.saturating_sub(before)) as f64 / sockets as f64)
}

async fn connect(server: &Server, tokens: Vec<String>) -> Result<Fleet> {
    let n = tokens.len();
    Fleet::connect(server.addr, "/socket.io/", "/", n, move |index| tokens[index].clone(), 64).await
}
