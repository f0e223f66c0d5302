//! What clients that stop reading, and a tenant that floods, do to the others. Those who disturb have a thread of their own in this program,
//! because what the others wait for is to be the server and not this program.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use super::paced::{in_turn, micros, paced, small_room};
use super::target::{Publisher, Target, To, connect, tidewire};
use super::{DEADLINE, Scale};
use crate::load::sockets::now_micros;
use crate::report::{Runs, rss};
use crate::server::TENANT;

/// The rate of the events whose latency is measured.
const RATE: u64 = 1_000;
/// Sockets in each of the rooms that they go to.
const SMALL_ROOM: u64 = 10;
/// Bytes of an event for those who stop reading: it fills what the system keeps for a connection soon.
const LARGE: usize = 32 * 1024;
/// The room of those who stop reading.
const SLOW: &str = "slow";
/// The tenant that floods.
const NOISY: &str = "noisy";

pub(super) async fn run(runs: &Runs, scale: &Scale) -> Result<()> {
    let name = format!("1 % of {} stop reading", scale.large_text());
    let units = ["KB RSS each", "µs p99 of the others before", "µs p99 of the others after", "times"];
    runs.repeat_each(&name, units, async |_| stop_reading(scale, &name).await).await?;
    let name = "another tenant floods";
    let units = ["µs p99 alone", "µs p99 beside it", "times", "deliveries/s of the noisy one"];
    runs.repeat_each(name, units, async |_| flood(scale, name).await).await
}

/// The thread of those who disturb.
struct Aside(Option<Runtime>);

impl Aside {
    fn start() -> Result<Self> {
        Ok(Self(Some(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?)))
    }

    /// Runs there, with all that it spawns.
    async fn run<T: Send + 'static>(&self, work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
        let runtime = self.0.as_ref().context("it has ended")?;
        runtime.spawn(work).await.context("it panicked")?
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // The usual end would block, which is not allowed here.
        self.0.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

/// Publishes on until it is told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<u64>>,
}

impl Load {
    fn start(mut publisher: Publisher, to: Vec<To>, bytes: usize, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut events = 0;
            while !stopped.load(Ordering::Relaxed) {
                let data = json!({ "t": now_micros(), "pad": "x".repeat(bytes) });
                publisher.publish_data(&to, now_micros(), &data).await?;
                events += to.len() as u64;
                if !pause.is_zero() {
                    tokio::time::sleep(pause).await;
                }
            }
            Ok(events)
        });
        Self { stop, task }
    }

    /// Answers how many events there were.
    async fn end(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.context("a load panicked")?
    }
}

/// 99 % of the sockets get 1,000 events a second, in rooms of ten; the others get large events in a room of their own, first as good
/// readers, then without reading.
async fn stop_reading(scale: &Scale, name: &str) -> Result<[f64; 4]> {
    let server = tidewire().await?;
    let slow = (scale.large / 100).max(1);
    // In whole rooms.
    let others = scale.large * 99 / 1_000 * 10;
    let mut tokens = server.tokens(TENANT, others, small_room).await?;
    let slow_tokens = server.tokens(TENANT, others + slow, |_| SLOW.to_owned()).await?.split_off(others);
    let (addr, aside) = (server.addr, Aside::start()?);
    let target = Target::Tidewire { server: Box::new(server), ephemeral: false };
    let fleet = target.connect(std::mem::take(&mut tokens)).await?;
    let slow_fleet = aside.run(connect(addr, slow_tokens)).await?;
    fleet.measure_latency();
    let mut p99 = [0.0; 2];
    let mut grown = 0;
    // Until what the kernel keeps and the backlog are both full: about 100 events a second of 32 KiB.
    let pause = Duration::from_millis(10);
    for (index, p99) in p99.iter_mut().enumerate() {
        let before = rss(target.process().pid())?;
        if index == 1 {
            slow_fleet.stop_reading();
        }
        let publisher = Publisher::of_tenant(addr, TENANT);
        let load = aside
            .run(async move { Ok(Load::start(publisher.await?, vec![To::Room(SLOW.to_owned())], LARGE, pause)) })
            .await?;
        paced(&target, &fleet, RATE, scale.time, SMALL_ROOM, in_turn(others)).await?;
        let latency = fleet.take_latency();
        // Before the load ends: whoever has not taken anything for 30 s is closed, and then nothing can be seen of it.
        let after = rss(target.process().pid())?;
        let events = load.end().await?;
        grown = after.saturating_sub(before);
        *p99 = micros(latency.p99());
        println!(
            "  {name}: {} reading, {} events of 32 KiB to them, the others' p50 {:.0} µs, p99 {p99:.0} µs; RSS {} MB",
            if index == 0 { "all" } else { "99 %" },
            events,
            micros(latency.p50()),
            after / 1_000_000
        );
        anyhow::ensure!(fleet.lost() == 0, "{} of those that read were lost", fleet.lost());
    }
    let [before, after] = p99;
    slow_fleet.close().await;
    fleet.close().await;
    Ok([grown as f64 / slow as f64 / 1e3, before, after, after / before])
}

/// A tenant with 1,000 events a second to rooms of ten, alone and then beside a tenant that publishes to a room with as many sockets as
/// fast as its eight connections are answered.
async fn flood(scale: &Scale, name: &str) -> Result<[f64; 4]> {
    let server = tidewire().await?;
    let sockets = scale.small;
    let noisy_tokens = server.tokens(NOISY, sockets, |_| "all".to_owned()).await?;
    let (addr, aside) = (server.addr, Aside::start()?);
    let target = Target::Tidewire { server: Box::new(server), ephemeral: false };
    let fleet = target.fleet(sockets, small_room).await?;
    let noisy = aside.run(connect(addr, noisy_tokens)).await?;
    fleet.measure_latency();
    let quiet = async || -> Result<f64> {
        paced(&target, &fleet, RATE, scale.time, SMALL_ROOM, in_turn(sockets)).await?;
        Ok(micros(fleet.take_latency().p99()))
    };
    let alone = quiet().await?;
    let begin = std::time::Instant::now();
    let loads = aside.run(async move {
        let mut loads = Vec::new();
        for _ in 0..8 {
            let publisher = Publisher::of_tenant(addr, NOISY).await?;
            loads.push(Load::start(publisher, vec![To::Room("all".to_owned())], 270, Duration::ZERO));
        }
        Ok(loads)
    });
    let loads = loads.await?;
    let beside = quiet().await?;
    let (received, elapsed) = (noisy.received(), begin.elapsed());
    let mut events = 0;
    for load in loads {
        events += load.end().await?;
    }
    let rate = received as f64 / elapsed.as_secs_f64();
    println!("  {name}: p99 {alone:.0} µs alone, {beside:.0} µs beside {events} events, {rate:.0} deliveries/s");
    // What it was promised comes to the noisy one as well, late.
    noisy.wait_received(events * sockets as u64, DEADLINE).await?;
    noisy.close().await;
    fleet.close().await;
    Ok([alone, beside, beside / alone, rate])
}
