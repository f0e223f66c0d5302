//! The Socket.IO server: Engine.IO v4 over polling and WebSocket, Socket.IO v5 on top, for the stock `socket.io-client` 4. And
//! server-sent events for those who only listen.
//!
//! A [`Gateway`] takes HTTP requests ([`Gateway::handle`], [`Gateway::follow`]), follows a store ([`Gateway::follower`]) and brings committed events to the
//! sockets that may see them. What there is to say, to whom, and who may ask for what, comes from the catalog; who a client is, from
//! an [`Authenticate`]; what clients publish goes through a [`Publish`].
//!
//! # What it is not
//!
//! Not a message broker: nothing is delivered that is not in a store's log, but for events which the catalog calls ephemeral. Not a framework of
//! handlers per socket: what a client may send is declared, and an app's handler of it is called for one message and answers once. No WebTransport.
//!
//! # Invariants
//!
//! - **Delivered implies committed.** The relay is fed by the store's follower and by the log.
//! - **No silent gap.** A socket gets its tenant's events in the order of the log. When it cannot keep up it is parked and read up from the log,
//!   or its transport is closed so that it comes back. A client that comes back gets exactly what it missed, once, by today's permissions, or is
//!   told: `socket.recovered` is false and `continuity:lost` follows.
//! - **A tenant is a type.** Rooms stand in a tenant's own table; the tenant comes from the credential. Only rooms with `scope = "app"` span tenants.
//! - **Encoded once, compressed once.** One event is one frame per namespace and view, shared by all who get it, over polling too; and one more,
//!   compressed, shared by all with whom that was agreed.
//! - **Bounded.** Every queue has its limit in [`Options`]; inbound messages are dealt with one at a time per connection.
//! - **A malformed packet ends its own transport**, and nobody else notices.
//! - **Socket ids are not secrets.** The id that authorises a transport is another one.
//!
//! # How an event gets out
//!
//! The store's writer tells the follower, which queues the event ([`relay`]). The relay takes the tenants in turn, looks up the rooms in the tenant's table ([`hub`]) and
//! offers the event to each socket ([`socket`]), which decides by subscription and visibility, takes the shared frame from the [`cast`]
//! and puts it into the session's [`outbox`]. The connection's task ([`websocket`]), a waiting poll ([`polling`]) or the body of a long answer ([`stream`]) writes what is there.
//!
//! ```
//! use std::sync::Arc;
//! use tidewire_core::{catalog::Catalog, store::Store, time::SystemClock};
//! use tidewire_gateway::{Authenticate, Gateway, Options, Publish};
//!
//! fn start(catalog: Arc<Catalog>, store: Arc<dyn Store>, auth: Arc<dyn Authenticate>, publish: Arc<dyn Publish>) -> Gateway {
//!     let gateway = Gateway::new(catalog, store.clone(), auth, publish, Arc::new(SystemClock), Options::default());
//!     store.follow(gateway.follower());
//!     gateway // and route every request under `/socket.io/` to `gateway.handle(request).await`
//! }
//! ```

#![allow(rustdoc::private_intra_doc_links)]

mod options;

mod gateway;

mod http;
mod polling;
mod stream;
mod websocket;

mod outbox;
mod session;

mod auth;
mod connect;
mod cursors;
mod policy;
mod positions;
mod presence;
mod recovery;
mod registry;
mod tenancy;

mod messages;
mod socket;

mod echo;
mod parser;

mod cast;
mod encode;
mod hub;
mod relay;

mod heartbeat;

mod latency;
mod metrics;
mod reasons;
mod refusals;
mod stats;
mod visitors;

pub use auth::{Authenticate, ClientAddress, Credential, Refusal};
pub use echo::Echo;
pub use gateway::{Gateway, Handled, Publish};
pub use metrics::{ByWord, Metrics, TenantMetrics};
pub use options::Options;
pub use parser::Parser;
pub use presence::{Member, Members};
pub use registry::{ConnectionInfo, RoomInfo, Whom};
pub use stats::Stats;
pub use stream::{EventStream, Hangup, Reader};
pub use websocket::tune;
