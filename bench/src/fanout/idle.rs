//! Connecting, and what a connection costs while nothing happens.

use std::time::Duration;

use anyhow::Result;

use super::Scale;
use super::paced::small_room;
use super::target::{System, Target};
use crate::report::{Row, Runs, per_second, thousands};

/// The allocator gives back what connecting needed for a moment.
const SETTLE: Duration = Duration::from_secs(3);
/// Longer than the interval between two heartbeats, so that each connection has its share of them.
const HEARTBEATS: Duration = Duration::from_secs(30);

pub(super) async fn run(runs: &Runs, systems: &[System], scale: &Scale) -> Result<()> {
    // What is published makes no difference here.
    for &system in systems.iter().filter(|&&system| system != System::Ephemeral) {
        let name = format!("{}connect {}, idle", system.prefix(), scale.large_text());
        let units = ["connects/s", "µs CPU per connect", "bytes RSS per connection"];
        let measure = async |_| connect(system, scale.large, None, &name).await.map(|[a, b, c, _]| [a, b, c]);
        runs.repeat_each(&name, units, measure).await?;
    }
    let name = format!("{} idle connections", thousands(scale.idle as f64));
    let units = ["connects/s", "µs CPU per connect", "bytes RSS per connection", "% of a core, heartbeats"];
    let watch = Some(scale.heartbeats.unwrap_or(HEARTBEATS));
    runs.repeat_each(&name, units, async |_| connect(System::Tidewire, scale.idle, watch, &name).await).await
}

async fn connect(system: System, sockets: usize, watch: Option<Duration>, name: &str) -> Result<[f64; 4]> {
    let target = Target::start(system).await?;
    let tokens = target.tokens(sockets, small_room).await?;
    let process = target.process();
    let (before, cpu) = (process.rss()?, process.cpu()?);
    let fleet = target.connect(tokens).await?;
    let (ops, elapsed, spent) = (fleet.size() as u64, fleet.connecting(), cpu.spent()?);
    let latency = Some(fleet.connect_latency());
    println!("{}", Row { name, durability: "-", ops, elapsed, latency, cpu: Some(spent) });
    tokio::time::sleep(SETTLE).await;
    let after = process.rss()?;
    let mut share = 0.0;
    if let Some(watch) = watch {
        let idle = process.cpu()?;
        tokio::time::sleep(watch).await;
        share = idle.spent()?.as_secs_f64() / watch.as_secs_f64() * 100.0;
        println!("  {} MB RSS, heartbeats {share:.2} % of a core", process.rss()? / 1_000_000);
    }
    anyhow::ensure!(fleet.lost() == 0, "{} connections were lost while idle", fleet.lost());
    fleet.close().await;
    let each = after.saturating_sub(before) as f64 / sockets as f64;
    Ok([per_second(ops, elapsed), spent.as_secs_f64() * 1e6 / ops as f64, each, share])
}
