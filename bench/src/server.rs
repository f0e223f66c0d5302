//! The server under load: this same binary as a child process, with the bench catalog and a store in a fresh directory.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};
use tidewire::{App, Config};

use crate::load::http::{Connection, request};
use crate::load::peer::Peer;

/// The tenant of every bench.
pub(crate) const TENANT: &str = "bench";
/// The admin key of every bench server.
const KEY: &str = "bench-admin-key-0000";
/// How long a server may take to start.
const PATIENCE: Duration = Duration::from_secs(20);
/// Connections that may wait to be accepted; the system's own bound is 4,096.
const BACKLOG: u32 = 65_536;
/// What an acknowledged write survives.
pub(crate) const FSYNC: &str = "fsync";

/// The folder of the bench catalog.
pub(crate) fn catalog() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/catalog"))
}

/// The configuration of a bench server.
pub(crate) fn config(data: &std::path::Path) -> Config {
    let mut config = Config { data: Some(data.to_owned()), ..Config::default() };
    config.auth.admin_key = Some(KEY.to_owned());
    config.auth.jwt.secret = Some("bench-secret-of-at-least-32-bytes-00".to_owned());
    config.realtime.max_per_user = usize::MAX;
    config.realtime.max_per_tenant = usize::MAX;
    config
}

/// A fresh directory that is deleted with the value.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// On the disk of the working directory, because the temporary one may be in memory.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let dir = std::env::current_dir()?.join(format!(".bench-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).with_context(|| format!("{}", dir.display()))?;
        Ok(Self(dir))
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The hidden command that the child runs.
#[derive(Args)]
pub(crate) struct Serve {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    data: PathBuf,
}

impl Serve {
    pub(crate) fn run(self) -> Result<()> {
        tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
            let app = App::builder(catalog()).config(config(&self.data)).build().await?;
            let socket = tokio::net::TcpSocket::new_v4()?;
            socket.set_reuseaddr(true)?;
            socket.bind(self.listen)?;
            let listener = socket.listen(BACKLOG)?;
            app.serve(listener, app.router()).await;
            Ok(())
        })
    }
}

/// A running bench server.
pub(crate) struct Server {
    pub(crate) peer: Peer,
    pub(crate) addr: SocketAddr,
    command: Command,
    name: String,
    cpus: String,
    data: Scratch,
}

impl Server {
    /// Starts a server pinned to `cpus` with an empty store.
    pub(crate) async fn start(name: &str, cpus: &str, port: u16) -> Result<Self> {
        let data = Scratch::new(name)?;
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["serve", "--listen", &addr.to_string(), "--data"]).arg(data.path());
        let peer = Peer::start(name, cpus, &command, addr, PATIENCE).await?;
        Ok(Self { peer, addr, command, name: name.to_owned(), cpus: cpus.to_owned(), data })
    }

    /// Ends the process in the middle of whatever it does, as `kill -9` would.
    pub(crate) fn kill(&mut self) {
        self.peer.kill();
    }

    /// Starts it again on the same data after [`Server::kill`].
    pub(crate) async fn again(&mut self) -> Result<()> {
        self.peer = Peer::start(&self.name, &self.cpus, &self.command, self.addr, PATIENCE).await?;
        Ok(())
    }

    /// The folder of its store.
    pub(crate) fn data(&self) -> &std::path::Path {
        self.data.path()
    }

    /// A POST with the admin key.
    pub(crate) fn post(path: &str, body: &str) -> Vec<u8> {
        request("POST", path, &format!("Bearer {KEY}"), body)
    }

    /// Tokens of the users `u0`, `u1` … of a tenant, as members of it; `room_of` says which room each is in.
    pub(crate) async fn tokens(
        &self,
        tenant: &str,
        n: usize,
        room_of: impl Fn(usize) -> String,
    ) -> Result<Vec<String>> {
        let mut connection = Connection::open(self.addr).await?;
        let mut tokens = Vec::with_capacity(n);
        for index in 0..n {
            let (user, claims) = (format!("u{index}"), json!({ "room": room_of(index) }));
            let body = json!({ "tenant": tenant, "user": user, "roles": ["member"], "claims": claims });
            let answer = connection.exchange(&Self::post("/v1/tokens", &body.to_string())).await?;
            let body: Value = serde_json::from_slice(answer.body)?;
            tokens.push(body["token"].as_str().context("the server minted no token")?.to_owned());
        }
        Ok(tokens)
    }
}

/// An event of 300 bytes of data for a room.
pub(crate) fn event(room: &str, t: u64) -> Value {
    json!({ "tenant": TENANT, "type": "bench", "params": { "room": room }, "data": data(t) })
}

/// Data of 300 bytes as JSON.
pub(crate) fn data(t: u64) -> Value {
    let bare = json!({ "t": t, "pad": "" }).to_string().len();
    json!({ "t": t, "pad": "x".repeat(300 - bare) })
}
