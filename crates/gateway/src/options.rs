//! What can be set about a gateway. Every bound on what a client can use up is here.

use std::time::Duration;

use tidewire_core::TenantId;
use tidewire_core::limit::Rate;

use crate::echo::Echo;
use crate::parser::Parser;

/// Settings of a [`Gateway`](crate::Gateway). The defaults are those of the reference server where it has one.
#[derive(Clone, Debug)]
pub struct Options {
    /// The path that clients open, with its slashes. Requests elsewhere are answered 404. Default `/socket.io/`.
    pub path: String,
    /// The time between a pong and the next ping. Default 25 s.
    pub ping_interval: Duration,
    /// How long a pong may take. Default 20 s.
    pub ping_timeout: Duration,
    /// The largest inbound message or polling body in bytes. Default 1,000,000.
    pub max_message: usize,
    /// The most bytes that wait for one client; then its live events are read from the log when it has caught up. Twice as many
    /// bytes of answers close it. Default 1 MiB.
    pub max_backlog: usize,
    /// How long a client may stay behind without taking anything before its transport is closed. Default 30 s.
    pub max_stall: Duration,
    /// How long a client may stay without joining a namespace. Default 45 s.
    pub connect_timeout: Duration,
    /// How long a WebSocket may probe before it takes over from polling. Default 10 s.
    pub upgrade_timeout: Duration,
    /// Connections of this process; more are answered 503. Default 200,000.
    pub max_connections: usize,
    /// Sockets of one user of a tenant in this process. Default 100.
    pub max_per_user: u32,
    /// Sockets of visitors without a login at one address in this process; an IPv6 network (/64) counts as one address. Default 1,000.
    pub max_per_address: u32,
    /// Refused credentials of clients at one address; over it none is looked at. Default 1,200/min, so 20/s after a burst of as many.
    pub refused_per_address: Rate,
    /// Messages of one user of a tenant over all its sockets in this process; `None` means ten times the catalog's rate of a connection.
    /// Default `None`.
    pub messages_per_user: Option<Rate>,
    /// Messages of all clients of one tenant in this process. Default 20,000/s.
    pub messages_per_tenant: Rate,
    /// Rooms of one socket, those joined by itself included. Default 1,000.
    pub max_rooms_per_socket: usize,
    /// Type patterns that one socket may be subscribed to. Default 100.
    pub max_subscriptions: usize,
    /// Events on their way from the store to the sockets, of all tenants. One tenant may have as many as it leaves free, so half of
    /// them when it is alone; what comes on top is read from the log later, and ephemeral events are dropped. Default 65,536.
    pub max_relay_events: usize,
    /// The bytes of data of those events, shared in the same way. Default 64 MiB.
    pub max_relay_bytes: usize,
    /// How long the answer to a publisher is held back at most, see [`Gateway::hold_publisher`](crate::Gateway::hold_publisher). Zero
    /// holds nobody back. Default 250 ms.
    pub max_publish_hold: Duration,
    /// Origins of other sites whose pages may connect, such as `https://app.example.com`. The server's own origin and clients that send
    /// none are always let in. `"*"` lets every page in, but without its cookies.
    pub allowed_origins: Vec<String>,
    /// The tenants that visitors without a login may name; `None` means any. Users are asked of [`Authenticate`](crate::Authenticate).
    pub tenants: Option<Vec<TenantId>>,
    /// How packets are encoded; all clients must have the same parser. Default JSON.
    pub parser: Parser,
    /// Whether WebSocket messages are compressed (`permessage-deflate`) for clients that offer it: those of at least
    /// [`Options::COMPRESSED_FROM`] bytes, each once for all who get it. Default false.
    pub compression: bool,
    /// Sends back what comes in, in place of serving the catalog. Only for the protocols' own test suites. Default none.
    pub echo: Option<Echo>,
    /// How long a user whose last connection broke still counts as present. Default 5 s.
    pub presence_grace: Duration,
    /// Sockets of one tenant in this process, visitors included. Default 100,000.
    pub max_per_tenant: usize,
    /// Whether clients get a `pid` by which they come back without losing anything. Off only for the protocol's own test suite,
    /// which wants none. Default true.
    pub recovery: bool,
}

impl Options {
    /// The least size of a message in bytes that is worth compressing.
    pub const COMPRESSED_FROM: usize = 1024;
}

impl Default for Options {
    fn default() -> Self {
        Self {
            path: "/socket.io/".to_owned(),
            ping_interval: Duration::from_secs(25),
            ping_timeout: Duration::from_secs(20),
            max_message: 1_000_000,
            max_backlog: 1024 * 1024,
            max_stall: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(45),
            upgrade_timeout: Duration::from_secs(10),
            max_connections: 200_000,
            max_per_user: 100,
            max_per_address: 1_000,
            refused_per_address: Rate { amount: 1_200, per: Duration::from_secs(60) },
            messages_per_user: None,
            messages_per_tenant: Rate { amount: 20_000, per: Duration::from_secs(1) },
            max_rooms_per_socket: 1_000,
            max_subscriptions: 100,
            max_relay_events: 65_536,
            max_relay_bytes: 64 * 1024 * 1024,
            max_publish_hold: Duration::from_millis(250),
            allowed_origins: Vec::new(),
            tenants: None,
            parser: Parser::default(),
            compression: false,
            echo: None,
            presence_grace: Duration::from_secs(5),
            max_per_tenant: 100_000,
            recovery: true,
        }
    }
}
