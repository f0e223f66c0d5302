//! The processes under load: our own server or a system to compare it with, on its own cores.

use crate::report::{self, Cpu};
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs::{self, File},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tokio::net::TcpStream;

/// How often a starting process is asked whether it listens yet.
const POLL: Duration = Duration::from_millis(10);

/// A running child process. Dropping it kills it (SIGKILL, by its pid) and waits until it is gone.
pub(crate) struct Peer {
    name: String,
    child: Child,
    log: PathBuf,
    started: Duration,
}

impl Peer {
    /// Starts `command` pinned to `cpus` (`"0"`, `"0,2-3"`, as `taskset -c` reads it) and waits until something listens at
    /// `addr`.
    ///
    /// Program, arguments, environment and working directory are taken from `command`; its output goes to
    /// [`Peer::log`], because a server that prints to the bench's terminal would be measured printing.
    ///
    /// # Errors
    /// If `addr` is taken already (a left-over server would be measured instead), if the process ends or does not listen
    /// within `patience`; then the end of its output is in the error.
    pub(crate) async fn start(
        name: &str,
        cpus: &str,
        command: &Command,
        addr: SocketAddr,
        patience: Duration,
    ) -> Result<Self> {
        ensure!(
            TcpStream::connect(addr).await.is_err(),
            "{name} should listen at {addr}, but another process does already"
        );
        let log = std::env::temp_dir().join(format!("tidewire-bench-{name}.log"));
        let output = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let mut pinned = Command::new("taskset");
        // taskset replaces itself by the program, so the child's pid is the program's.
        pinned.args(["-c", cpus]).arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => pinned.env(key, value),
                None => pinned.env_remove(key),
            };
        }
        if let Some(directory) = command.get_current_dir() {
            pinned.current_dir(directory);
        }
        pinned.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let begin = Instant::now();
        let child = pinned.spawn().context("starting `taskset` (package util-linux)")?;
        let mut peer = Self { name: name.to_owned(), child, log, started: Duration::ZERO };
        while TcpStream::connect(addr).await.is_err() {
            if let Some(status) = peer.child.try_wait()? {
                bail!("{name} ended with {status} before it listened at {addr}:\n{}", peer.log_tail());
            }
            if begin.elapsed() > patience {
                bail!("{name} did not listen at {addr} within {patience:?}:\n{}", peer.log_tail());
            }
            tokio::time::sleep(POLL).await;
        }
        peer.started = begin.elapsed();
        Ok(peer)
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A stop watch on the CPU time of the process, starting now.
    ///
    /// # Errors
    /// If the process has ended; the end of its output is in the error.
    pub(crate) fn cpu(&self) -> Result<Cpu> {
        Cpu::of(self.pid()).with_context(|| self.obituary())
    }

    /// Its resident memory in bytes.
    ///
    /// # Errors
    /// If the process has ended; the end of its output is in the error.
    pub(crate) fn rss(&self) -> Result<u64> {
        report::rss(self.pid()).with_context(|| self.obituary())
    }

    /// Kills it (SIGKILL, by its pid) and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        // Both fail only for a process that is gone already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn obituary(&self) -> String {
        format!("{} has ended; its last output:\n{}", self.name, self.log_tail())
    }

    fn log_tail(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(2000)..]).into_owned()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The command of the Node.js Socket.IO server in `bench/peers/socketio`: sockets on `port`, the emit call on
/// `emit_port`, both on 127.0.0.1.
///
/// # Errors
/// If its packages are not installed.
pub(crate) fn node_socketio(port: u16, emit_port: u16) -> Result<Command> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/socketio");
    ensure!(
        fs::exists(format!("{directory}/node_modules/socket.io"))?,
        "the Node.js peer is not installed: run `npm ci` in {directory}"
    );
    let mut command = Command::new("node");
    command.args(["server.mjs", &port.to_string(), &emit_port.to_string()]).current_dir(directory);
    command.env("NODE_ENV", "production");
    Ok(command)
}

/// The same for the socketioxide server in `bench/peers/socketioxide`.
///
/// # Errors
/// If it is not built.
pub(crate) fn socketioxide(port: u16, emit_port: u16) -> Result<Command> {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/socketioxide");
    let program = format!("{directory}/target/release/tidewire-bench-socketioxide");
    ensure!(
        fs::exists(&program)?,
        "the socketioxide peer is not built: run `cargo build --release --target-dir target` in {directory}"
    );
    let mut command = Command::new(program);
    command.args([port.to_string(), emit_port.to_string()]);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_that_ends_early_shows_its_last_words() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo no licence found >&2; exit 3"]);
        let addr = SocketAddr::from(([127, 0, 0, 1], 1));
        let error = Peer::start("early", "0", &command, addr, Duration::from_secs(30)).await.err().unwrap().to_string();
        assert!(error.contains("no licence found") && error.contains('3'), "{error}");
    }

    #[tokio::test]
    async fn an_address_in_use_is_refused() {
        let stranger = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = stranger.local_addr().unwrap();
        let error = Peer::start("late", "0", &Command::new("true"), addr, Duration::ZERO).await.err().unwrap();
        assert!(error.to_string().contains("another process"), "{error}");
    }
}
