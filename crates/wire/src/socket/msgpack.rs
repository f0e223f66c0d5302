//! Packets as MessagePack, for clients that were given `socket.io-msgpack-parser`.
//!
//! A packet is one binary message: a map with `type` 0 to 4, `nsp`, and perhaps `data` and `id`. There are no attachments,
//! because binary data stands where it belongs. Sources: the MessagePack specification, and `notepack.io` 2.2 for what the
//! client writes of JavaScript's own: `undefined`, `Date` and `ArrayBuffer`, all three of extension type 0.
//!
//! Inside this server a payload is JSON text either way. So bytes become `{"$binary":"<base64>"}` as they do in an
//! [`Assembler`](super::Assembler), and such objects leave as bytes.

mod read;
mod write;

pub use read::{MAX_DEPTH, decode};
pub use write::{ack, connect, connect_error, event};

#[cfg(test)]
mod tests;
