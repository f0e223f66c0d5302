//! How Socket.IO packets are written and read: by the parser that the clients have, too.

use bytes::Bytes;
use tidewire_wire::socket::{self, msgpack};
use tidewire_wire::websocket;

/// The encoding of Socket.IO packets. Server and clients must have the same one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Parser {
    /// The client library's own: JSON, and binary data as attachments.
    #[default]
    Json,
    /// The client's `parser` is `socket.io-msgpack-parser`: each packet is one binary message.
    MessagePack,
}

// Finished frames. A packet with attachments is more than one, one behind the other in the same bytes.
impl Parser {
    pub(crate) fn event(self, nsp: &str, name: &str, args: &[&str], offset: Option<&str>) -> Bytes {
        match self {
            Self::Json => socket::frames(&socket::event(nsp, name, args, offset)),
            Self::MessagePack => msgpack::event(nsp, name, args, offset),
        }
    }

    pub(crate) fn ack(self, nsp: &str, id: u64, args: &[&str]) -> Bytes {
        match self {
            Self::Json => socket::frames(&socket::ack(nsp, id, args)),
            Self::MessagePack => msgpack::ack(nsp, id, args),
        }
    }

    pub(crate) fn connect(self, nsp: &str, sid: &str, pid: Option<&str>) -> Bytes {
        match self {
            Self::Json => websocket::text(socket::connect(nsp, sid, pid).as_bytes()),
            Self::MessagePack => msgpack::connect(nsp, sid, pid),
        }
    }

    /// The namespace comes from the client and may be one that no frame of this side has named before.
    pub(crate) fn connect_error(self, nsp: &str, message: &str, data: Option<&str>) -> Bytes {
        match self {
            Self::Json => websocket::text(socket::connect_error(nsp, message, data).as_bytes()),
            Self::MessagePack => msgpack::connect_error(nsp, message, data),
        }
    }
}
