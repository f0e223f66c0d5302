//! The systems under load, so that each row can ask the same of all of them.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::load::http::{Connection, request};
use crate::load::peer::{Peer, node_socketio, socketioxide};
use crate::load::sockets::Fleet;
use crate::server::{FSYNC, Server, TENANT, data};

const PORT: u16 = 7462;
const PEER_PORT: u16 = 7463;
const PEER_EMIT_PORT: u16 = 7464;
/// How many clients connect at a time, where it is not said otherwise.
const CONNECTING: usize = 64;
/// How long a peer may take to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whom to measure.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum System {
    Tidewire,
    /// The same server with events that it does not store, which is all that the peers have.
    Ephemeral,
    NodeSocketio,
    Socketioxide,
}

impl System {
    /// What stands before the names of its rows.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Tidewire => "",
            Self::Ephemeral => "ephemeral: ",
            Self::NodeSocketio => "node socket.io: ",
            Self::Socketioxide => "socketioxide: ",
        }
    }

    pub(super) fn is_ours(self) -> bool {
        matches!(self, Self::Tidewire | Self::Ephemeral)
    }

    /// An error says what to do.
    pub(super) fn is_installed(self) -> Result<()> {
        self.command().map(drop)
    }

    /// How to start it, where it is a peer.
    fn command(self) -> Result<Option<(&'static str, Command)>> {
        Ok(match self {
            Self::Tidewire | Self::Ephemeral => None,
            Self::NodeSocketio => Some(("socketio", node_socketio(PEER_PORT, PEER_EMIT_PORT)?)),
            Self::Socketioxide => Some(("socketioxide", socketioxide(PEER_PORT, PEER_EMIT_PORT)?)),
        })
    }
}

/// Who is to get an event.
pub(super) enum To {
    /// Everybody in a room that tokens name.
    Room(String),
    /// One user.
    User(usize),
    /// Everybody of the tenant.
    Tenant,
}

/// A running system.
pub(super) enum Target {
    Tidewire { server: Box<Server>, ephemeral: bool },
    Peer(Peer),
}

impl Target {
    pub(super) async fn start(system: System) -> Result<Self> {
        let Some((name, command)) = system.command()? else {
            return Ok(Self::Tidewire { server: Box::new(tidewire().await?), ephemeral: system == System::Ephemeral });
        };
        let emit = SocketAddr::from(([127, 0, 0, 1], PEER_EMIT_PORT));
        Peer::start(name, "0", &command, emit, PATIENCE).await.map(Self::Peer)
    }

    pub(super) fn process(&self) -> &Peer {
        match self {
            Self::Tidewire { server, .. } => &server.peer,
            Self::Peer(peer) => peer,
        }
    }

    /// What a delivered event survives.
    pub(super) fn durability(&self) -> &'static str {
        match self {
            Self::Tidewire { ephemeral: false, .. } => FSYNC,
            Self::Tidewire { ephemeral: true, .. } | Self::Peer(_) => "none",
        }
    }

    /// Credentials of the users `0..n`, for the one connect that they are made for.
    pub(super) async fn tokens(&self, n: usize, room_of: impl Fn(usize) -> String) -> Result<Vec<String>> {
        match self {
            Self::Tidewire { server, .. } => server.tokens(TENANT, n, room_of).await,
            // The peers believe their clients.
            Self::Peer(_) => Ok((0..n).map(|index| format!("tenant,user:{index},{}", room_of(index))).collect()),
        }
    }

    /// Connects a client for each token.
    pub(super) async fn connect(&self, tokens: Vec<String>) -> Result<Fleet> {
        let addr = match self {
            Self::Tidewire { server, .. } => server.addr,
            Self::Peer(_) => SocketAddr::from(([127, 0, 0, 1], PEER_PORT)),
        };
        connect(addr, tokens).await
    }

    /// `n` connected clients; `room_of` says which room each is in.
    pub(super) async fn fleet(&self, n: usize, room_of: impl Fn(usize) -> String) -> Result<Fleet> {
        self.connect(self.tokens(n, room_of).await?).await
    }

    /// A connection that publishes.
    pub(super) async fn publisher(&self) -> Result<Publisher> {
        let (addr, speaks) = match self {
            &Self::Tidewire { ref server, ephemeral } => (server.addr, Speaks::Tidewire { tenant: TENANT, ephemeral }),
            Self::Peer(_) => (SocketAddr::from(([127, 0, 0, 1], PEER_EMIT_PORT)), Speaks::Emit),
        };
        Ok(Publisher { connection: Connection::open(addr).await?, speaks })
    }
}

/// Connected clients, one with each token.
pub(super) async fn connect(addr: SocketAddr, tokens: Vec<String>) -> Result<Fleet> {
    Fleet::connect(addr, "/socket.io/", "/", tokens.len(), |index| tokens[index].clone(), CONNECTING).await
}

/// Our own server, with everything on that the issue of speed and memory asks for.
pub(super) async fn tidewire() -> Result<Server> {
    Server::start("fanout", "0", PORT).await
}

enum Speaks {
    /// The HTTP API, for this tenant.
    Tidewire { tenant: &'static str, ephemeral: bool },
    /// The peers' own call.
    Emit,
}

/// A kept-alive connection with one request in flight.
pub(super) struct Publisher {
    connection: Connection,
    speaks: Speaks,
}

impl Publisher {
    /// One of our own server, for another tenant.
    pub(super) async fn of_tenant(server: SocketAddr, tenant: &'static str) -> Result<Self> {
        Ok(Self { connection: Connection::open(server).await?, speaks: Speaks::Tidewire { tenant, ephemeral: false } })
    }

    /// Publishes one event of 300 bytes to each of `to` with one request, and waits for the answer. `t` is when they were due.
    pub(super) async fn publish(&mut self, to: &[To], t: u64) -> Result<()> {
        self.publish_data(to, t, &data(t)).await
    }

    pub(super) async fn publish_data(&mut self, to: &[To], t: u64, data: &Value) -> Result<()> {
        let request = match self.speaks {
            Speaks::Tidewire { tenant, ephemeral } => {
                let events: Vec<Value> = to.iter().map(|to| event(tenant, ephemeral, to, data)).collect();
                Server::post("/v1/events", &Value::Array(events).to_string())
            }
            Speaks::Emit => {
                let room = |to: &To| match to {
                    To::Room(room) => room.clone(),
                    To::User(index) => format!("user:{index}"),
                    To::Tenant => "tenant".to_owned(),
                };
                let rooms: Vec<String> = to.iter().map(room).collect();
                request("POST", &format!("/emit?room={}&size=300&t={t}", rooms.join(",")), "", "")
            }
        };
        let answer = self.connection.exchange(&request).await?;
        let (status, body) = (answer.status, String::from_utf8_lossy(answer.body));
        ensure!(status == 201 || status == 200, "publishing was answered {status}: {body}");
        Ok(())
    }
}

fn event(tenant: &str, ephemeral: bool, to: &To, data: &Value) -> Value {
    let (kind, params) = match to {
        To::Room(room) => ("bench", json!({ "room": room })),
        To::User(index) => ("direct", json!({ "userId": format!("u{index}") })),
        To::Tenant => ("everybody", json!({})),
    };
    let kind = if ephemeral { format!("{kind}.ephemeral") } else { kind.to_owned() };
    json!({ "tenant": tenant, "type": kind, "params": params, "data": data })
}
