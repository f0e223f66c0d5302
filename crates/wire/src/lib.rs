//! Sans-IO codecs for the live socket path: WebSocket frames, Engine.IO v4 packets and Socket.IO v5 packets, each for
//! the server's side of the conversation. Bytes in, values out; values in, bytes out.
//!
//! # What it is not
//!
//! No sockets, no timers, no tasks, no sessions and no HTTP. The handshakes (the WebSocket `Sec-WebSocket-Accept` hash,
//! the Engine.IO query string) belong to whoever owns the HTTP request. Of WebSocket extensions there is only
//! `permessage-deflate`, where it was agreed; otherwise a frame with a reserved bit is an error. What a packet *means* (is this namespace known, may this client send a ping) is the
//! caller's to decide; this crate only says whether it is well formed.
//!
//! # Invariants
//!
//! - **Nothing a peer sends can panic.** Every decoder answers with a value or an [`Error`]; an error is final for the
//!   connection, which is then to be closed with [`Error::close_code`].
//! - **Nothing is buffered that a limit does not name.** Sizes are refused from the header, before the bytes arrive; an
//!   idle decoder owns no heap memory.
//! - **Input is borrowed.** A payload stays the text the client sent. JSON is checked, never turned into a tree.
//! - **An outgoing message is encoded and framed once.** Server frames carry no mask, so one [`bytes::Bytes`] serves
//!   every WebSocket recipient, and its payload (see [`websocket::payload`]) serves every polling one.
//!
//! # One message, in and out
//!
//! ```
//! use bytes::BytesMut;
//! use tidewire_wire::{engine, socket, websocket};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // The frame a browser sends for `socket.emit("hi", 1, callback)`, masked with a key of zeros for readability.
//! let mut received = BytesMut::from(&b"\x81\x8c\0\0\0\0427[\"hi\", 1]"[..]);
//! let mut decoder = websocket::Decoder::new(1_000_000);
//! let Some(websocket::Message::Text(text)) = decoder.feed(&mut received)? else { panic!("one whole text message") };
//! let packet = engine::Packet::parse(std::str::from_utf8(&text)?)?;
//! let engine::Packet::Text(engine::PacketType::Message, text) = packet else { panic!("a message packet") };
//! let socket::Packet::Event(event) = socket::Packet::decode(text)? else { panic!("an event") };
//! assert_eq!((event.name(), event.id(), event.args()[0].get()), ("hi", Some(7), "1"));
//! let reply = websocket::text(socket::ack(event.namespace(), 7, &[r#"{"ok":true}"#]).as_bytes());
//! assert_eq!(websocket::payload(&reply), br#"437[{"ok":true}]"#);
//! # Ok(())
//! # }
//! ```

pub mod websocket;

pub mod engine;

pub mod socket;

mod error;
mod json;

pub use error::Error;
