//! A fleet of Socket.IO clients over WebSocket (Engine.IO v4, Socket.IO protocol v5) that count what they receive.

mod connection;
mod frame;
mod inbox;
mod memory;

pub(crate) use self::memory::Memory;

use crate::report::Histogram;
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{sync::Notify, task::JoinSet};

/// A source address has about 28,000 ports; a fleet larger than this takes 127.0.0.2, 127.0.0.3 and so on as well.
const SOCKETS_PER_SOURCE: usize = 25_000;
/// Files that the program needs beside the sockets of its fleet.
const SPARE_FILES: usize = 100;

/// Connected clients, each a task on the runtime that called [`Fleet::connect`].
///
/// A client answers heartbeats and counts EVENT packets; it keeps no buffer of its own between reads. The events named
/// `connected`, with which a server greets a new socket, are counted apart: nobody knows when the last of them has come.
/// Dropping the fleet, or better [`Fleet::close`], resets all connections, so that no ports stay in `TIME_WAIT`.
pub(crate) struct Fleet {
    clients: JoinSet<()>,
    tally: Arc<Tally>,
    size: usize,
    connecting: Duration,
    connect_latency: Histogram,
}

/// What the clients of one fleet count together.
struct Tally {
    packets: Packets,
    received: AtomicU64,
    /// `changed` is told when `received` reaches this, and when a connection is lost.
    wanted: AtomicU64,
    changed: Notify,
    lost: AtomicU64,
    first_loss: Mutex<Option<String>>,
    timed: AtomicBool,
    latency: Mutex<Histogram>,
    /// The clients take nothing more off their connections.
    stopped: AtomicBool,
}

/// How the packets of the fleet's namespace begin.
struct Packets {
    /// `/` or `/name`.
    namespace: String,
    /// Nothing for `/`, otherwise `/name,`.
    prefix: String,
    /// `42["connected"`, with the namespace.
    greeting: Vec<u8>,
    /// `41`, with the namespace.
    disconnect: Vec<u8>,
}

impl Packets {
    fn new(namespace: &str) -> Self {
        let prefix = if namespace == "/" { String::new() } else { format!("{namespace},") };
        Self {
            namespace: namespace.to_owned(),
            greeting: format!("42{prefix}[\"connected\"").into_bytes(),
            disconnect: format!("41{prefix}").into_bytes(),
            prefix,
        }
    }
}

impl Fleet {
    /// Connects `n` clients to `namespace` through `path` (usually `/socket.io/`), at most `connect_concurrency` at a time,
    /// and returns when the server has accepted the CONNECT packet of each.
    ///
    /// Client `i` sends `{"token": token_for(i)}` with its CONNECT packet, or nothing when the token is empty. With more
    /// than 25,000 clients and a server on 127.0.0.0/8 several source addresses are used.
    ///
    /// # Errors
    /// If any client is refused, with the server's reason, or needs more than 30 s; if the process may not open enough
    /// files.
    pub(crate) async fn connect(
        addr: SocketAddr,
        path: &str,
        namespace: &str,
        n: usize,
        token_for: impl Fn(usize) -> String,
        connect_concurrency: usize,
    ) -> Result<Self> {
        Self::remembering(addr, path, namespace, n, token_for, connect_concurrency, None).await
    }

    /// The same with clients that remember: client `i` comes back to the session that `memories[i]` tells of, if it tells of one, and
    /// notes there what it gets. Such a client also tries again, until its 30 s are over, when it is not let in.
    pub(crate) async fn remembering(
        addr: SocketAddr,
        path: &str,
        namespace: &str,
        n: usize,
        token_for: impl Fn(usize) -> String,
        connect_concurrency: usize,
        memories: Option<&[Arc<Memory>]>,
    ) -> Result<Self> {
        ensure!(connect_concurrency > 0, "no client can connect with a concurrency of 0");
        let limit = open_files()?;
        ensure!(
            n + SPARE_FILES <= limit,
            "{n} clients need {} open files, the limit is {limit}: raise it with `ulimit -n` (client and server)",
            n + SPARE_FILES
        );
        let tally = Arc::new(Tally {
            packets: Packets::new(namespace),
            received: AtomicU64::new(0),
            wanted: AtomicU64::new(u64::MAX),
            changed: Notify::new(),
            lost: AtomicU64::new(0),
            first_loss: Mutex::new(None),
            timed: AtomicBool::new(false),
            latency: Mutex::new(Histogram::new()),
            stopped: AtomicBool::new(false),
        });
        let path: Arc<str> = path.into();
        let mut clients = JoinSet::new();
        let mut connect_latency = Histogram::new();
        let mut opening = JoinSet::new();
        let start = Instant::now();
        for index in 0..n {
            if opening.len() >= connect_concurrency {
                settle(&mut opening, &mut clients, &mut connect_latency).await?;
            }
            let (token, path, tally) = (token_for(index), Arc::clone(&path), Arc::clone(&tally));
            let source = source_of(addr, index);
            let memory = memories.map(|memories| memories[index].clone());
            opening.spawn(async move {
                let begin = Instant::now();
                let client = connection::open(addr, source, &path, &token, memory, tally)
                    .await
                    .with_context(|| format!("client {index} of {n} connecting to {addr}"))?;
                Ok((client, begin.elapsed()))
            });
        }
        while !opening.is_empty() {
            settle(&mut opening, &mut clients, &mut connect_latency).await?;
        }
        Ok(Self { clients, tally, size: n, connecting: start.elapsed(), connect_latency })
    }

    /// How many clients there are, lost ones included.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// The time that connecting all clients took.
    pub(crate) fn connecting(&self) -> Duration {
        self.connecting
    }

    /// How long single clients needed from TCP connect to the accepted CONNECT packet.
    pub(crate) fn connect_latency(&self) -> &Histogram {
        &self.connect_latency
    }

    /// EVENT packets received by all clients since they connected, greetings not included.
    pub(crate) fn received(&self) -> u64 {
        self.tally.received.load(Ordering::SeqCst)
    }

    /// Connections that the server ended or broke.
    pub(crate) fn lost(&self) -> u64 {
        self.tally.lost.load(Ordering::SeqCst)
    }

    /// From now on, the time from sending to receiving is measured for each event that holds `"t":` and the microseconds
    /// since 1970 at which it was sent (see [`now_micros`]). Sender and fleet must read the same clock.
    pub(crate) fn measure_latency(&self) {
        self.tally.timed.store(true, Ordering::Relaxed);
    }

    /// The latencies measured since this was last called.
    pub(crate) fn take_latency(&self) -> Histogram {
        let mut latency = self.tally.latency.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut latency, Histogram::new())
    }

    /// From now on the clients read nothing, not even heartbeats, and stay connected.
    pub(crate) fn stop_reading(&self) {
        self.tally.stopped.store(true, Ordering::Relaxed);
    }

    /// Waits until [`Fleet::received`] is at least `total`. One caller at a time.
    ///
    /// # Errors
    /// If that takes longer than `deadline`, or if a connection is lost meanwhile, with the reason of the first loss.
    pub(crate) async fn wait_received(&self, total: u64, deadline: Duration) -> Result<()> {
        let lost_before = self.lost();
        self.tally.wanted.store(total, Ordering::SeqCst);
        let arrived = tokio::time::timeout(deadline, async {
            while self.received() < total {
                if self.lost() > lost_before {
                    return false;
                }
                self.tally.changed.notified().await;
            }
            true
        })
        .await;
        if arrived == Ok(true) {
            return Ok(());
        }
        let (received, lost, size) = (self.received(), self.lost(), self.size);
        let reason = self.tally.first_loss.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_default();
        let time = if arrived.is_err() { format!(" within {deadline:?}") } else { String::new() };
        bail!("expected {total} events{time}, received {received}; lost {lost} of {size} connections: {reason:?}");
    }

    /// Resets all connections and returns when that is done.
    pub(crate) async fn close(mut self) {
        self.clients.shutdown().await;
    }
}

type Opened = Result<(connection::Client, Duration)>;

/// Waits for one of the clients that are connecting and lets it run.
async fn settle(opening: &mut JoinSet<Opened>, clients: &mut JoinSet<()>, latency: &mut Histogram) -> Result<()> {
    if let Some(opened) = opening.join_next().await {
        let (client, took) = opened.context("a connecting client panicked")??;
        latency.record(took);
        clients.spawn(client.run());
    }
    Ok(())
}

/// The address that client `index` connects from; `None` leaves the choice to the kernel.
fn source_of(server: SocketAddr, index: usize) -> Option<Ipv4Addr> {
    let block = u8::try_from(index / SOCKETS_PER_SOURCE).ok()?;
    match server.ip() {
        IpAddr::V4(ip) if ip.is_loopback() && block > 0 => Some(Ipv4Addr::new(127, 0, 0, block.checked_add(1)?)),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

/// The soft limit of open files of this process.
pub(crate) fn open_files() -> Result<usize> {
    let limits = fs::read_to_string("/proc/self/limits").context("reading /proc/self/limits")?;
    let soft = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .and_then(|rest| rest.split_ascii_whitespace().next())
        .context("/proc/self/limits does not tell the limit of open files")?;
    if soft == "unlimited" { Ok(usize::MAX) } else { Ok(soft.parse()?) }
}

/// Microseconds since 1970, the value that a sender puts at `"t":` for [`Fleet::measure_latency`].
pub(crate) fn now_micros() -> u64 {
    let since_1970 = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    u64::try_from(since_1970.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
