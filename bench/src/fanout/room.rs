//! One room with many sockets, and one or eight events on their way to it.

use std::time::Instant;

use anyhow::Result;

use super::target::{System, Target, To};
use super::{DEADLINE, Scale};
use crate::load::sockets::now_micros;
use crate::report::{Row, Runs, per_second, thousands};

pub(super) async fn run(runs: &Runs, systems: &[System], scale: &Scale) -> Result<()> {
    for in_flight in [1, 8] {
        for sockets in [scale.small, scale.large] {
            for &system in systems {
                let name = format!("{}room of {}, {in_flight} in flight", system.prefix(), thousands(sockets as f64));
                let units = ["deliveries/s", "µs CPU per delivery"];
                // Peers need a tenth to tell as much.
                let deliveries = if system.is_ours() { scale.deliveries } else { scale.deliveries / 8 };
                let events = (deliveries / sockets).max(4) * in_flight;
                let measure = async |_| window(system, sockets, events, in_flight, &name).await;
                runs.repeat_each(&name, units, measure).await?;
            }
        }
    }
    Ok(())
}

/// Publishes `in_flight` events, waits until they have arrived everywhere, and so on.
async fn window(system: System, sockets: usize, events: usize, in_flight: usize, name: &str) -> Result<[f64; 2]> {
    let target = Target::start(system).await?;
    let fleet = target.fleet(sockets, |_| "all".to_owned()).await?;
    fleet.measure_latency();
    let mut publisher = target.publisher().await?;
    let cpu = target.process().cpu()?;
    let begin = Instant::now();
    let mut sent = 0;
    while sent < events {
        let to: Vec<To> = (0..in_flight).map(|_| To::Tenant).collect();
        publisher.publish(&to, now_micros()).await?;
        sent += in_flight;
        fleet.wait_received((sent * sockets) as u64, DEADLINE).await?;
    }
    let (elapsed, ops, latency) = (begin.elapsed(), (sent * sockets) as u64, fleet.take_latency());
    let spent = cpu.spent()?;
    let durability = target.durability();
    println!("{}", Row { name, durability, ops, elapsed, latency: Some(&latency), cpu: Some(spent) });
    fleet.close().await;
    Ok([per_second(ops, elapsed), spent.as_secs_f64() * 1e6 / ops as f64])
}
