//! BullMQ on Redis: the programs in `bench/peers/bullmq`, each scenario with its own Redis, durable and not.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};

use super::{BULK, DELAYED, LOW_LOAD, PREPARED, SPREAD};
use crate::load::peer::Peer;
use crate::load::sockets::now_micros;
use crate::report::{Histogram, Row, Runs, per_second};
use crate::server::{FSYNC, Scratch};

const PORT: u16 = 7468;
const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/bullmq");
/// A program that has not said anything for so long is stuck.
const PATIENCE: Duration = Duration::from_secs(120);
/// Jobs added per second of a measurement of whole lives and of adding in bulk. It only sizes the work; the rate is measured.
const SIZE: u64 = 10_000;
/// Calls under way that add jobs: one each, or [`BULK`].
const ADDING: u64 = 64;
const ADDING_BULK: u64 = 8;
/// Jobs at once where a worker's concurrency is not what is compared.
const CONCURRENCY: u64 = 64;

/// Redis' ways to write: what the row says, and the settings.
const DURABILITIES: [(&str, &str); 2] = [(FSYNC, "yes"), ("none", "no")];

pub(super) async fn run(runs: &Runs, time: Duration) -> Result<()> {
    if let Some(missing) = missing() {
        println!("\nBullMQ was left out: {missing}");
        return Ok(());
    }
    println!(
        "\nBullMQ on Redis, the same jobs; CPU is that of Redis, producer and worker together; fsync is appendfsync always\n{}",
        Row::HEADING
    );
    for (durability, append_only) in DURABILITIES {
        let label = |what: &str| format!("bullmq ({durability}): {what}");
        for concurrency in [64, 128] {
            let name = label(&format!("add + run + complete, {concurrency}"));
            runs.repeat(&name, "jobs/s", async |_| lives(append_only, time, concurrency, &name, durability).await)
                .await?;
        }
        let name = label(&format!("add, {BULK} at a time"));
        runs.repeat(&name, "jobs/s", async |_| add(append_only, time, &name, durability).await).await?;
        for concurrency in [64, 128] {
            let name = label(&format!("drain {PREPARED}, {concurrency}"));
            runs.repeat(&name, "jobs/s", async |_| drain(append_only, concurrency, &name, durability).await).await?;
        }
        let name = label(&format!("{LOW_LOAD} jobs/s, p99"));
        let count = LOW_LOAD * time.as_secs();
        let paced = Load { mode: "paced", count, option: LOW_LOAD };
        runs.repeat(&name, "µs", async |_| timed(append_only, &paced, &name, durability).await).await?;
        let name = label(&format!("{DELAYED} delayed, late by, p99"));
        let delayed = Load { mode: "delayed", count: DELAYED as u64, option: u64::try_from(SPREAD.as_millis())? };
        runs.repeat(&name, "µs", async |_| timed(append_only, &delayed, &name, durability).await).await?;
    }
    Ok(())
}

/// What has to be installed first.
fn missing() -> Option<String> {
    let there = |program: &str| {
        Command::new(program)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|s| s.success())
    };
    if !there("redis-server") {
        return Some("there is no redis-server; install it with `apt-get install redis-server`".to_owned());
    }
    if !there("node") || !std::fs::exists(format!("{PROGRAMS}/node_modules/bullmq")).unwrap_or(false) {
        return Some(format!(
            "its packages are missing; install Node.js 20 or newer and run `npm install` in {PROGRAMS}"
        ));
    }
    None
}

/// What a producer adds; the fields are its arguments.
struct Load {
    mode: &'static str,
    count: u64,
    option: u64,
}

/// What a producer says at its end: times in microseconds since 1970, CPU time in microseconds.
#[derive(Deserialize)]
struct Produced {
    began: u64,
    finished: u64,
    cpu: u64,
}

/// What a worker says at its end; `waits` is how long each job had waited, in microseconds.
#[derive(Deserialize)]
struct Worked {
    finished: u64,
    cpu: u64,
    waits: Vec<f64>,
}

async fn lives(append_only: &str, time: Duration, concurrency: u64, name: &str, durability: &str) -> Result<f64> {
    let (redis, _data) = redis(append_only).await?;
    let count = SIZE * time.as_secs();
    let mut worker = worker(concurrency, count).await?;
    let cpu = redis.cpu()?;
    worker.go().await?;
    let produced = produce(&Load { mode: "single", count, option: ADDING }).await?;
    let worked: Worked = worker.result().await?;
    let elapsed = Duration::from_micros(worked.finished.saturating_sub(produced.began));
    let cpu = Some(cpu.spent()? + Duration::from_micros(produced.cpu + worked.cpu));
    println!("{}", Row { name, durability, ops: count, elapsed, latency: None, cpu });
    Ok(per_second(count, elapsed))
}

async fn add(append_only: &str, time: Duration, name: &str, durability: &str) -> Result<f64> {
    let (redis, _data) = redis(append_only).await?;
    let cpu = redis.cpu()?;
    let count = SIZE * time.as_secs() * 4;
    let produced = produce(&Load { mode: "bulk", count, option: ADDING_BULK }).await?;
    let elapsed = Duration::from_micros(produced.finished.saturating_sub(produced.began));
    let cpu = Some(cpu.spent()? + Duration::from_micros(produced.cpu));
    println!("{}", Row { name, durability, ops: count, elapsed, latency: None, cpu });
    Ok(per_second(count, elapsed))
}

async fn drain(append_only: &str, concurrency: u64, name: &str, durability: &str) -> Result<f64> {
    let (redis, _data) = redis(append_only).await?;
    let count = PREPARED as u64;
    produce(&Load { mode: "bulk", count, option: ADDING_BULK }).await?;
    let mut worker = worker(concurrency, count).await?;
    let cpu = redis.cpu()?;
    let began = now_micros();
    worker.go().await?;
    let worked: Worked = worker.result().await?;
    let elapsed = Duration::from_micros(worked.finished.saturating_sub(began));
    let cpu = Some(cpu.spent()? + Duration::from_micros(worked.cpu));
    println!("{}", Row { name, durability, ops: count, elapsed, latency: None, cpu });
    Ok(per_second(count, elapsed))
}

/// How long after they were added, or due, jobs begin. Answers the p99 in microseconds.
async fn timed(append_only: &str, load: &Load, name: &str, durability: &str) -> Result<f64> {
    let (redis, _data) = redis(append_only).await?;
    let mut worker = worker(CONCURRENCY, load.count).await?;
    let cpu = redis.cpu()?;
    worker.go().await?;
    let produced = produce(load).await?;
    let worked: Worked = worker.result().await?;
    let mut latency = Histogram::new();
    // A delayed job may be a fraction of a millisecond early, because its delay is a whole number of them.
    worked.waits.iter().for_each(|wait| latency.record(Duration::from_secs_f64(wait.max(0.0) / 1e6)));
    let elapsed = Duration::from_micros(worked.finished.saturating_sub(produced.began));
    let cpu = Some(cpu.spent()? + Duration::from_micros(produced.cpu + worked.cpu));
    println!("{}", Row { name, durability, ops: load.count, elapsed, latency: Some(&latency), cpu });
    Ok(latency.p99().as_secs_f64() * 1e6)
}

/// An empty Redis in a fresh folder. It is killed, by its pid, when it is dropped.
async fn redis(append_only: &str) -> Result<(Peer, Scratch)> {
    let data = Scratch::new("redis")?;
    let mut command = Command::new("redis-server");
    command.args(["--port", &PORT.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendfsync", "always"]);
    // Rewriting the log in the middle of a measurement would only cost it time.
    command.args(["--appendonly", append_only, "--auto-aof-rewrite-percentage", "0", "--dir"]).arg(data.path());
    let addr = SocketAddr::from(([127, 0, 0, 1], PORT));
    let peer = Peer::start("redis", "0-1", &command, addr, Duration::from_secs(20)).await?;
    Ok((peer, data))
}

/// A running program of the peer: it says a line, is told to go on by a line, and says its result in one.
struct Program {
    name: &'static str,
    _child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Program {
    /// Killed when it is dropped.
    fn start(name: &'static str, args: &[String]) -> Result<Self> {
        let mut command = tokio::process::Command::new("node");
        command.arg(name).args(args).current_dir(PROGRAMS).env("NODE_ENV", "production").kill_on_drop(true);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting node")?;
        let (input, output) = (child.stdin.take().context("no input")?, child.stdout.take().context("no output")?);
        Ok(Self { name, _child: child, input, output: BufReader::new(output).lines() })
    }

    async fn line(&mut self) -> Result<String> {
        let line = tokio::time::timeout(PATIENCE, self.output.next_line());
        line.await
            .with_context(|| format!("{} was silent for {PATIENCE:?}", self.name))??
            .with_context(|| format!("{} ended early; its errors are above", self.name))
    }

    async fn go(&mut self) -> Result<()> {
        Ok(self.input.write_all(b"\n").await?)
    }

    async fn result<T: DeserializeOwned>(&mut self) -> Result<T> {
        let line = self.line().await?;
        let begin = || line.chars().take(200).collect::<String>();
        serde_json::from_str(&line).with_context(|| format!("{} said {:?} …", self.name, begin()))
    }
}

async fn worker(concurrency: u64, count: u64) -> Result<Program> {
    let mut worker = Program::start("worker.mjs", &[PORT.to_string(), concurrency.to_string(), count.to_string()])?;
    let said = worker.line().await?;
    ensure!(said == "ready", "worker.mjs said {said:?}");
    Ok(worker)
}

async fn produce(load: &Load) -> Result<Produced> {
    let args = [PORT.to_string(), load.mode.to_owned(), load.count.to_string(), load.option.to_string()];
    Program::start("producer.mjs", &args)?.result().await
}
