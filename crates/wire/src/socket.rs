//! Socket.IO v5 packets, as they travel in Engine.IO message packets.
//!
//! `<type>[<n>-][/namespace,][id][JSON]`, where `n` binary messages follow a packet that announces them. Source: the
//! `socket.io-protocol` document, revision 5. Where the reference server closes the connection over a packet, so does
//! an [`Error`](crate::Error) here; where it is lax, the stricter reading is taken and said.
//!
//! Reading starts at [`Packet::decode`] and, for packets with attachments, goes through an [`Assembler`]. Writing is
//! one function per packet kind; what it returns starts with the Engine.IO digit `4`, so that it is framed once as it
//! stands, or by [`frames`] where it may contain binary data. [`msgpack`] has the same packets in another encoding.

mod assembler;
mod attachments;
mod encode;
pub mod msgpack;
mod packet;

pub use assembler::Assembler;
pub use attachments::frames;
pub use encode::{ack, connect, connect_error, disconnect, event};
pub use packet::{Ack, Event, MAX_ATTACHMENTS, MAX_NAMESPACE_BYTES, Packet};

#[cfg(test)]
mod tests;
