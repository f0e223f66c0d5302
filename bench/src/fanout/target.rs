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
    NodeSocketio,
    Socketioxide,
}

impl System {
    /// What stands before the names of its rows.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Tidewire => "",
            Self::NodeSocketio => "node socket.io: ",
            Self::Socketioxide => "socketioxide: ",
        }
    }

    /// An error says what to do.
    pub(super) fn is_installed(self) -> Result<()> {
        self.command().map(drop)
    }

    /// How to start it, where it is a peer.
    fn command(self) -> Result<Option<(&'static str, Command)>> {
        Ok(match self {
            Self::Tidewire => None,
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
    Tidewire(Box<Server>),
    Peer(Peer),
}

impl Target {
    pub(super) async fn start(system: System) -> Result<Self> {
        let Some((name, command)) = system.command()? else { return Ok(Self::Tidewire(Box::new(tidewire().await?))) };
        let emit = SocketAddr::from(([127, 0, 0, 1], PEER_EMIT_PORT));
        Peer::start(name, "0", &command, emit, PATIENCE).await.map(Self::Peer)
    }

    pub(super) fn process(&self) -> &Peer {
        match self {
            Self::Tidewire(server) => &server.peer,
            Self::Peer(peer) => peer,
        }
    }

    /// What a delivered event survives.
    pub(super) fn durability(&self) -> &'static str {
        match self {
            Self::Tidewire(_) => FSYNC,
            Self::Peer(_) => "none",
        }
    }

    /// Credentials of the users `0..n`, for the one connect that they are made for.
    pub(super) async fn tokens(&self, n: usize, room_of: impl Fn(usize) -> String) -> Result<Vec<String>> {
        match self {
            Self::Tidewire(server) => server.tokens(TENANT, n, room_of).await,
            // The peers believe their clients.
            Self::Peer(_) => Ok((0..n).map(|index| format!("tenant,user:{index},{}", room_of(index))).collect()),
        }
    }

    /// Connects a client for each token.
    pub(super) async fn connect(&self, tokens: Vec<String>) -> Result<Fleet> {
        let addr = match self {
            Self::Tidewire(server) => server.addr,
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
            Self::Tidewire(server) => (server.addr, Speaks::Tidewire(TENANT)),
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
    Tidewire(&'static str),
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
        Ok(Self { connection: Connection::open(server).await?, speaks: Speaks::Tidewire(tenant) })
    }

    /// Publishes one event of 300 bytes to each of `to` with one request, and waits for the answer. `t` is when they were due.
    pub(super) async fn publish(&mut self, to: &[To], t: u64) -> Result<()> {
        self.publish_data(to, t, &data(t)).await
    }

    pub(super) async fn publish_data(&mut self, to: &[To], t: u64, data: &Value) -> Result<()> {
        let request = match self.speaks {
            Speaks::Tidewire(tenant) => {
                let events: Vec<Value> = to.iter().map(|to| event(tenant, to, data)).collect();
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

fn event(tenant: &str, to: &To, data: &Value) -> Value {
    match to {
        To::Room(room) => json!({ "tenant": tenant, "type": "bench", "params": { "room": room }, "data": data }),
        To::User(index) => {
            let user = format!("u{index}");
            json!({ "tenant": tenant, "type": "direct", "params": { "userId": user }, "data": data })
        }
        To::Tenant => json!({ "tenant": tenant, "type": "everybody", "data": data }),
    }
}
