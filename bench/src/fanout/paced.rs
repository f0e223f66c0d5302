//! Events at a steady rate: rooms of ten, one user, half of what a core can do.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::target::{Publisher, System, Target, To};
use super::{DEADLINE, Scale};
use crate::load::sockets::{Fleet, now_micros};
use crate::report::{Row, Runs};

/// Connections that publish, so that one slow answer does not hold the others up.
const PUBLISHERS: u32 = 8;
/// Sockets of a small room.
const SMALL_ROOM: usize = 10;

pub(super) async fn run(runs: &Runs, systems: &[System], scale: &Scale) -> Result<()> {
    for &system in systems {
        let name = format!("{}rooms of 10, 5,000/s", system.prefix());
        let units = ["µs CPU per publish", "µs p99"];
        runs.repeat_each(&name, units, async |_| rooms_of_ten(system, scale, 5_000, &name).await).await?;
    }
    for (rate, text) in [(5_000, "5,000"), (20_000, "20,000")] {
        for &system in systems {
            // Neither peer gets through 20,000 a second.
            if rate == 20_000 && !system.is_ours() {
                continue;
            }
            let name = format!("{}one user of {}, {text}/s", system.prefix(), scale.large_text());
            let units = ["µs CPU per publish", "µs p50", "µs p99"];
            runs.repeat_each(&name, units, async |_| one_user(system, scale, rate, &name).await).await?;
        }
    }
    let name = "publish to socket at 50 % load, rooms of 10";
    let units = ["µs p99", "publishes/s", "% of a core"];
    runs.repeat_each(name, units, async |_| half_load(scale, name).await).await
}

/// What a steady load cost.
pub(super) struct Paced {
    pub(super) ops: u64,
    pub(super) elapsed: Duration,
    pub(super) cpu: Duration,
}

impl Paced {
    /// The share of one core, 1 for all of it.
    fn load(&self) -> f64 {
        self.cpu.as_secs_f64() / self.elapsed.as_secs_f64()
    }

    fn micros_each(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.ops as f64
    }
}

/// Publishes `rate` events a second for `time`, over eight connections in turn, and waits until each has come to `copies` sockets. From
/// 1,000 a second on, one request holds what falls due in a millisecond. The times in the events are those at which they were due:
/// a server that keeps a publisher waiting does not hide behind that.
pub(super) async fn paced(
    target: &Target,
    fleet: &Fleet,
    rate: u64,
    time: Duration,
    copies: u64,
    to: impl Fn(u64) -> To + Clone + Send + 'static,
) -> Result<Paced> {
    let mut publishers = Vec::new();
    for _ in 0..PUBLISHERS {
        publishers.push(target.publisher().await?);
    }
    let before = fleet.received();
    let cpu = target.process().cpu()?;
    let begin = Instant::now();
    let ops = publish_at(publishers, rate, time, to).await?;
    fleet.wait_received(before + ops * copies, DEADLINE).await?;
    Ok(Paced { ops, elapsed: begin.elapsed(), cpu: cpu.spent()? })
}

/// The publishing half of [`paced`]; answers how many events there were.
pub(super) async fn publish_at(
    publishers: Vec<Publisher>,
    rate: u64,
    time: Duration,
    to: impl Fn(u64) -> To + Clone + Send + 'static,
) -> Result<u64> {
    let batch = (rate / 1_000).max(1);
    let all = publishers.len() as u64;
    let step = Duration::from_secs_f64(batch as f64 / rate as f64);
    let requests = (time.as_secs_f64() / step.as_secs_f64()).ceil() as u64;
    let (start, start_micros) = (tokio::time::Instant::now() + Duration::from_millis(1), now_micros() + 1_000);
    let mut tasks = tokio::task::JoinSet::new();
    for (mut publisher, first) in publishers.into_iter().zip(0_u64..) {
        let to = to.clone();
        tasks.spawn(async move {
            for n in (first..requests).step_by(usize::try_from(all)?) {
                let after = step.mul_f64(n as f64);
                tokio::time::sleep_until(start + after).await;
                let batch: Vec<To> = (0..batch).map(|index| to(n * batch + index)).collect();
                publisher.publish(&batch, start_micros + after.as_micros() as u64).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.context("a publisher panicked")??;
    }
    Ok(requests * batch)
}

/// The room of client `index` where there are `SMALL_ROOM` in each.
pub(super) fn small_room(index: usize) -> String {
    format!("r{}", index / SMALL_ROOM)
}

/// The rooms in turn.
pub(super) fn in_turn(sockets: usize) -> impl Fn(u64) -> To + Clone + Send + 'static {
    let rooms = (sockets / SMALL_ROOM) as u64;
    // A prime step, so that rooms next to each other do not follow each other.
    move |n| To::Room(format!("r{}", n * 7_919 % rooms))
}

fn row(name: &str, target: &Target, paced: &Paced, latency: &crate::report::Histogram) {
    let &Paced { ops, elapsed, cpu } = paced;
    println!("{}", Row { name, durability: target.durability(), ops, elapsed, latency: Some(latency), cpu: Some(cpu) });
}

async fn rooms_of_ten(system: System, scale: &Scale, rate: u64, name: &str) -> Result<[f64; 2]> {
    let target = Target::start(system).await?;
    let fleet = target.fleet(scale.large, small_room).await?;
    fleet.measure_latency();
    let done = paced(&target, &fleet, rate, scale.time, SMALL_ROOM as u64, in_turn(scale.large)).await?;
    let latency = fleet.take_latency();
    row(name, &target, &done, &latency);
    fleet.close().await;
    Ok([done.micros_each(), micros(latency.p99())])
}

async fn one_user(system: System, scale: &Scale, rate: u64, name: &str) -> Result<[f64; 3]> {
    let target = Target::start(system).await?;
    let fleet = target.fleet(scale.large, small_room).await?;
    fleet.measure_latency();
    let users = scale.large as u64;
    let done = paced(&target, &fleet, rate, scale.time, 1, move |n| To::User((n * 7_919 % users) as usize)).await?;
    let latency = fleet.take_latency();
    row(name, &target, &done, &latency);
    fleet.close().await;
    Ok([done.micros_each(), micros(latency.p50()), micros(latency.p99())])
}

/// Finds the rate at which the server uses half of its core, then measures at that rate.
async fn half_load(scale: &Scale, name: &str) -> Result<[f64; 3]> {
    let target = Target::start(System::Tidewire).await?;
    let fleet = target.fleet(scale.large, small_room).await?;
    let mut rate = 1_000;
    // An event costs less when more of them come, so the second guess is better than the first, and the third good enough.
    for _ in 0..3 {
        let tried = paced(&target, &fleet, rate, scale.time / 4, SMALL_ROOM as u64, in_turn(scale.large)).await?;
        ensure!(tried.load() > 0.0, "the server used no CPU");
        rate = (rate as f64 * 0.5 / tried.load()).clamp(500.0, 50_000.0) as u64;
    }
    fleet.measure_latency();
    let done = paced(&target, &fleet, rate, scale.time, SMALL_ROOM as u64, in_turn(scale.large)).await?;
    let latency = fleet.take_latency();
    row(name, &target, &done, &latency);
    fleet.close().await;
    Ok([micros(latency.p99()), rate as f64, done.load() * 100.0])
}

pub(super) fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
