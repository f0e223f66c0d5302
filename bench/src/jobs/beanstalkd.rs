//! beanstalkd, over its own text protocol: <https://github.com/beanstalkd/beanstalkd/blob/master/doc/protocol.txt>.
//!
//! Commands are pipelined, the fastest way to talk to it. It is one thread that keeps all jobs in memory; durable, it also appends each
//! change to a log and syncs it.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

use super::{BULK, IN_FLIGHT, LOW_LOAD, PREPARED};
use crate::load::peer::Peer;
use crate::load::sockets::now_micros;
use crate::report::{Cpu, Histogram, Row, Runs, per_second};
use crate::server::{FSYNC, Scratch, data};

const ADDR: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7469);
const PRODUCERS: usize = 8;
/// Puts that one producer sends before it reads their answers, when whole lives are measured.
const PUTS: usize = 16;
const WORKERS: usize = 32;
/// Jobs that wait before a durable drain. Each is synced alone, so [`PREPARED`] would take minutes.
const PREPARED_SYNCED: usize = 20_000;

pub(super) async fn run(runs: &Runs, time: Duration) -> Result<()> {
    let there = Command::new("beanstalkd").arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !there.is_ok_and(|status| status.success()) {
        println!("\nbeanstalkd was left out: install it with `apt-get install beanstalkd`");
        return Ok(());
    }
    println!(
        "\nbeanstalkd, the same jobs; CPU is that of server and clients together; fsync is -b -f0\n{}",
        Row::HEADING
    );
    for durability in [FSYNC, "none"] {
        let label = |what: &str| format!("beanstalkd ({durability}): {what}");
        let name = label("put + reserve + delete");
        runs.repeat(&name, "jobs/s", async |_| lives(time, &name, durability).await).await?;
        let name = label(&format!("put, {BULK} at a time"));
        runs.repeat(&name, "jobs/s", async |_| put(time, &name, durability).await).await?;
        let prepared = if durability == FSYNC { PREPARED_SYNCED } else { PREPARED };
        let name = label(&format!("drain {prepared}"));
        runs.repeat(&name, "jobs/s", async |_| drain(prepared, &name, durability).await).await?;
        let name = label(&format!("{LOW_LOAD} jobs/s, p99"));
        runs.repeat(&name, "µs", async |_| low_load(time, &name, durability).await).await?;
    }
    Ok(())
}

/// An empty beanstalkd. It is killed, by its pid, when it is dropped.
async fn start(durability: &str) -> Result<(Peer, Scratch)> {
    let data = Scratch::new("beanstalkd")?;
    let mut command = Command::new("beanstalkd");
    command.args(["-l", "127.0.0.1", "-p", &ADDR.port().to_string()]);
    if durability == FSYNC {
        command.args(["-f0", "-b"]).arg(data.path());
    }
    let peer = Peer::start("beanstalkd", "0-1", &command, ADDR, Duration::from_secs(20)).await?;
    Ok((peer, data))
}

struct Connection {
    stream: BufReader<TcpStream>,
    line: String,
}

impl Connection {
    async fn open() -> Result<Self> {
        let stream = TcpStream::connect(ADDR).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::with_capacity(64 * 1024, stream), line: String::new() })
    }

    /// Reads a line that must begin with `word`, and answers what follows.
    async fn expect(&mut self, word: &str) -> Result<&str> {
        self.line.clear();
        self.stream.read_line(&mut self.line).await?;
        let said = self.line.trim_end();
        Ok(said.strip_prefix(word).with_context(|| format!("expected {word}, beanstalkd said {said:?}"))?.trim_start())
    }

    /// Puts `jobs` jobs and waits until all are acknowledged.
    async fn put(&mut self, jobs: usize) -> Result<()> {
        let mut commands = String::with_capacity(jobs * 340);
        for _ in 0..jobs {
            let data = data(now_micros()).to_string();
            commands.push_str(&format!("put 0 0 60 {}\r\n{data}\r\n", data.len()));
        }
        self.stream.write_all(commands.as_bytes()).await?;
        for _ in 0..jobs {
            self.expect("INSERTED").await?;
        }
        Ok(())
    }

    /// Reads the answer of a `reserve`: the job's id and its `t`.
    async fn reserved(&mut self) -> Result<(u64, u64)> {
        let job = self.expect("RESERVED").await?;
        let (id, length) = job.split_once(' ').context("RESERVED without a length")?;
        let (id, length): (u64, usize) = (id.parse()?, length.parse()?);
        let mut data = vec![0; length + 2];
        self.stream.read_exact(&mut data).await?;
        let data: serde_json::Value = serde_json::from_slice(&data[..length])?;
        Ok((id, data["t"].as_u64().context("a job without t")?))
    }
}

/// Connections that reserve and delete, until they have deleted `count` jobs together.
struct Crew {
    workers: JoinSet<Result<Histogram>>,
    all_deleted: Arc<Notify>,
}

impl Crew {
    /// Each deleted job adds a permit to `one_more`.
    fn start(count: u64, one_more: &Arc<Semaphore>) -> Self {
        let (mut workers, all_deleted, deleted) =
            (JoinSet::new(), Arc::new(Notify::new()), Arc::new(AtomicU64::new(0)));
        for _ in 0..WORKERS {
            workers.spawn(work(count, deleted.clone(), all_deleted.clone(), one_more.clone()));
        }
        Self { workers, all_deleted }
    }

    /// When the last job was deleted, and how long the jobs had waited.
    async fn finish(mut self) -> Result<(Instant, Histogram)> {
        let mut latency = Histogram::new();
        let end = loop {
            tokio::select! {
                () = self.all_deleted.notified() => break Instant::now(),
                Some(worker) = self.workers.join_next() => latency.merge(&worker??),
            }
        };
        while let Some(worker) = self.workers.join_next().await {
            latency.merge(&worker??);
        }
        Ok((end, latency))
    }
}

async fn work(
    count: u64,
    deleted: Arc<AtomicU64>,
    all_deleted: Arc<Notify>,
    one_more: Arc<Semaphore>,
) -> Result<Histogram> {
    // It must end although no more jobs come, so each reserve waits for a second at most.
    const RESERVE: &str = "reserve-with-timeout 1\r\n";
    let mut connection = Connection::open().await?;
    let mut latency = Histogram::new();
    connection.stream.write_all(RESERVE.as_bytes()).await?;
    while deleted.load(Ordering::Relaxed) < count {
        if connection.stream.fill_buf().await?.starts_with(b"T") {
            connection.expect("TIMED_OUT").await?;
            connection.stream.write_all(RESERVE.as_bytes()).await?;
            continue;
        }
        let (id, t) = connection.reserved().await?;
        latency.record(Duration::from_micros(now_micros().saturating_sub(t)));
        connection.stream.write_all(format!("delete {id}\r\n{RESERVE}").as_bytes()).await?;
        connection.expect("DELETED").await?;
        one_more.add_permits(1);
        if deleted.fetch_add(1, Ordering::Relaxed) + 1 == count {
            all_deleted.notify_one();
        }
    }
    Ok(latency)
}

/// Puts `count` jobs, `at_once` per write and producer; each needs a permit of `may`.
async fn produce(count: u64, at_once: usize, may: &Arc<Semaphore>) -> Result<()> {
    let mut producers = JoinSet::new();
    let share = usize::try_from(count)? / PRODUCERS;
    for _ in 0..PRODUCERS {
        let may = may.clone();
        producers.spawn(async move {
            let mut connection = Connection::open().await?;
            for _ in 0..share / at_once {
                may.acquire_many(u32::try_from(at_once)?).await?.forget();
                connection.put(at_once).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(producer) = producers.join_next().await {
        producer??;
    }
    Ok(())
}

/// Jobs for `time`, in whole batches of all producers. It only sizes the work; the rate is measured.
fn sized(durability: &str, time: Duration, at_once: usize) -> u64 {
    let rate = if durability == FSYNC { 3_000 } else { 30_000 };
    (rate * time.as_secs()).next_multiple_of((PRODUCERS * at_once) as u64)
}

async fn lives(time: Duration, name: &str, durability: &'static str) -> Result<f64> {
    let (server, _data) = start(durability).await?;
    let (cpu, own, begin) = (server.cpu()?, Cpu::own()?, Instant::now());
    let ops = sized(durability, time, PUTS);
    let may = Arc::new(Semaphore::new(IN_FLIGHT));
    let crew = Crew::start(ops, &may);
    produce(ops, PUTS, &may).await?;
    let (end, latency) = crew.finish().await?;
    let (elapsed, cpu) = (end - begin, Some(cpu.spent()? + own.spent()?));
    println!("{}", Row { name, durability, ops, elapsed, latency: Some(&latency), cpu });
    Ok(per_second(ops, elapsed))
}

/// Puts without anybody who reserves.
async fn put(time: Duration, name: &str, durability: &'static str) -> Result<f64> {
    let (server, _data) = start(durability).await?;
    let (cpu, own, begin) = (server.cpu()?, Cpu::own()?, Instant::now());
    let ops = sized(durability, time, BULK);
    produce(ops, BULK, &Arc::new(Semaphore::new(usize::try_from(ops)?))).await?;
    let (elapsed, cpu) = (begin.elapsed(), Some(cpu.spent()? + own.spent()?));
    println!("{}", Row { name, durability, ops, elapsed, latency: None, cpu });
    Ok(per_second(ops, elapsed))
}

async fn drain(prepared: usize, name: &str, durability: &'static str) -> Result<f64> {
    let (server, _data) = start(durability).await?;
    let ops = prepared as u64;
    let may = Arc::new(Semaphore::new(prepared));
    produce(ops, BULK, &may).await?;
    let (cpu, own, begin) = (server.cpu()?, Cpu::own()?, Instant::now());
    let (end, _) = Crew::start(ops, &may).finish().await?;
    let (elapsed, cpu) = (end - begin, Some(cpu.spent()? + own.spent()?));
    println!("{}", Row { name, durability, ops, elapsed, latency: None, cpu });
    Ok(per_second(ops, elapsed))
}

async fn low_load(time: Duration, name: &str, durability: &'static str) -> Result<f64> {
    let (server, _data) = start(durability).await?;
    let ops = LOW_LOAD * time.as_secs();
    let crew = Crew::start(ops, &Arc::new(Semaphore::new(0)));
    let (cpu, own, begin) = (server.cpu()?, Cpu::own()?, Instant::now());
    let mut connection = Connection::open().await?;
    let mut tick = tokio::time::interval(Duration::from_secs(1) / u32::try_from(LOW_LOAD)?);
    for _ in 0..ops {
        tick.tick().await;
        connection.put(1).await?;
    }
    let (end, latency) = crew.finish().await?;
    let (elapsed, cpu) = (end - begin, Some(cpu.spent()? + own.spent()?));
    println!("{}", Row { name, durability, ops, elapsed, latency: Some(&latency), cpu });
    Ok(latency.p99().as_secs_f64() * 1e6)
}
