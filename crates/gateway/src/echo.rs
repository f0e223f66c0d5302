//! What the protocols' own test suites expect behind the transports, in place of a catalog.
//!
//! Everything up to here is what a real client meets: handshakes, transports, heartbeats, codecs, limits, namespaces. Only what is
//! said, and to whom, is the suites' own.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use serde_json::value::RawValue;
use tidewire_wire::engine::PacketType;
use tidewire_wire::socket::Event;
use tidewire_wire::websocket;

use crate::outbox::Pushed;
use crate::session::Session;
use crate::socket::Socket;

/// A gateway that sends back what it gets, for a suite to test one layer of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Echo {
    /// Every WebSocket message comes back, and nothing else is sent: no Engine.IO. What the Autobahn suite expects.
    WebSocket,
    /// Every Engine.IO message comes back, text and binary. What the suite of engine.io-protocol expects.
    Engine,
    /// On connecting, the client is sent `auth` with its own payload. `message` comes back as `message-back`, and `message-with-ack` in its
    /// acknowledgement. What the suite of socket.io-protocol expects.
    Socket,
}

impl Echo {
    /// Takes a text packet, if this is its layer.
    pub(crate) fn text(self, session: &Session, text: &[u8]) -> Option<Pushed> {
        let is_message = || text.starts_with(PacketType::Message.as_str().as_bytes());
        match self {
            Self::WebSocket => Some(session.push_frame(websocket::text(text))),
            Self::Engine if is_message() => Some(session.push_frame(websocket::text(text))),
            Self::Engine | Self::Socket => None,
        }
    }

    /// Takes a binary packet, if this is its layer.
    pub(crate) fn binary(self, session: &Session, data: &[u8]) -> Option<Pushed> {
        match self {
            Self::WebSocket | Self::Engine => Some(session.push_frame(websocket::binary(data))),
            Self::Socket => None,
        }
    }
}

/// What a new socket is sent in place of `connected`.
pub(crate) fn greet(socket: &Socket, auth: &Value) -> Bytes {
    let auth = if auth.is_null() { "{}".to_owned() } else { auth.to_string() };
    socket.shared().options.parser.event(socket.namespace_name(), "auth", &[&auth], None)
}

/// Takes an event.
pub(crate) fn receive(socket: &Arc<Socket>, event: &Event<'_>) {
    let args = event.args();
    let args: Vec<&str> = args.iter().map(|arg: &&RawValue| arg.get()).collect();
    let (parser, namespace) = (socket.shared().options.parser, socket.namespace_name());
    let frame = match (event.name(), event.id()) {
        ("message", _) => parser.event(namespace, "message-back", &args, None),
        ("message-with-ack", Some(id)) => parser.ack(namespace, id, &args),
        _ => return,
    };
    let pushed = socket.session.push_frame(frame);
    socket.session.close_if_full(pushed);
}
