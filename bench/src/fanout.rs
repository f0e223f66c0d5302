//! What the Socket.IO server does on one core: the server on core 0, the clients on core 1, the peers in the same run.
//!
//! Everything that a real app has is on: tokens that are verified, a tenant's room, a user's own and one more, visibility rules, offsets
//! and the durable log. The peers have none of these.

mod comeback;
mod disturbed;
mod idle;
mod paced;
mod room;
mod target;

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;

use self::target::System;
use crate::load::sockets::open_files;
use crate::report::{Row, Runs, thousands};

/// How long what was published may take to arrive.
const DEADLINE: Duration = Duration::from_secs(120);
/// Open files of a server beside its sockets: the store, its readers, connections that publish.
const SPARE_FILES: usize = 500;

/// What to measure.
#[derive(Args, Default)]
pub(crate) struct Fanout {
    /// A tenth of the sockets for a short time: to see that every row works, not to measure.
    #[arg(long)]
    quick: bool,
    /// Leave Node.js socket.io and socketioxide out.
    #[arg(long)]
    no_peer: bool,
    /// Sockets of the row that is only idle; 100,000, or as many as one process may have open.
    #[arg(long)]
    idle: Option<usize>,
    /// Sockets of the row that comes back at once; 20,000, or as many as one process may have open.
    #[arg(long)]
    at_once: Option<usize>,
}

/// How much to measure.
struct Scale {
    /// Sockets of the smaller rows.
    small: usize,
    /// Sockets of the larger ones.
    large: usize,
    at_once: usize,
    idle: usize,
    /// Deliveries of a full room with one event in flight; eight times as many with eight.
    deliveries: usize,
    /// How long a steady load takes.
    time: Duration,
    /// How long to look at idle connections, where it is not the usual time.
    heartbeats: Option<Duration>,
}

impl Scale {
    fn large_text(&self) -> String {
        thousands(self.large as f64)
    }
}

impl Fanout {
    /// `time` is that of each steady load.
    pub(crate) async fn run(&self, runs: &Runs, time: Duration) -> Result<()> {
        raise_open_files()?;
        pin_clients()?;
        let most = open_files()?.saturating_sub(SPARE_FILES);
        let scale = if self.quick {
            Scale {
                small: 200,
                large: 1_000,
                at_once: self.at_once.unwrap_or(2_000).min(most),
                idle: self.idle.unwrap_or(2_000).min(most),
                deliveries: 100_000,
                time: Duration::from_secs(2),
                heartbeats: Some(Duration::from_secs(2)),
            }
        } else {
            Scale {
                small: 1_000,
                large: 10_000,
                at_once: self.at_once.unwrap_or(20_000).min(most),
                idle: self.idle.unwrap_or(100_000).min(most),
                deliveries: 1_000_000,
                time,
                heartbeats: None,
            }
        };
        let mut systems = vec![System::Tidewire, System::Ephemeral];
        if !self.no_peer {
            for peer in [System::NodeSocketio, System::Socketioxide] {
                match peer.is_installed() {
                    Ok(()) => systems.push(peer),
                    Err(missing) => println!("left out: {missing}"),
                }
            }
        }
        println!(
            "\nSocket.IO over WebSocket, 300-byte data; server on core 0, clients on core 1; at most {} sockets (open files)\n{}",
            thousands(most as f64),
            Row::HEADING
        );
        room::run(runs, &systems, &scale).await?;
        paced::run(runs, &systems, &scale).await?;
        idle::run(runs, &systems, &scale).await?;
        disturbed::run(runs, &scale).await?;
        comeback::run(runs, &scale).await
    }
}

/// As many open files as the system lets this process have; the servers that it starts inherit that.
fn raise_open_files() -> Result<()> {
    let pid = std::process::id().to_string();
    // The soft limit up to the hard one, which needs no rights.
    let hard = Command::new("prlimit")
        .args(["--pid", &pid, "--nofile", "--raw", "--noheadings", "--output", "HARD"])
        .output()?;
    let hard = String::from_utf8_lossy(&hard.stdout).trim().to_owned();
    let limit = format!("--nofile={hard}:{hard}");
    let status = Command::new("prlimit").args(["--pid", &pid, &limit]).stderr(Stdio::null()).status()?;
    ensure!(status.success(), "prlimit (package util-linux) could not raise the limit of open files to {hard}");
    Ok(())
}

/// Keeps the load generator off the server's core.
fn pin_clients() -> Result<()> {
    let pid = std::process::id().to_string();
    let status = Command::new("taskset").args(["-acp", "1", &pid]).stdout(Stdio::null()).status()?;
    ensure!(status.success(), "taskset could not pin the clients");
    Ok(())
}
