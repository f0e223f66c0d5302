//! WebSocket frames, the server's side of RFC 6455 and of the extension `permessage-deflate` (RFC 7692), without the
//! handshake.
//!
//! Outgoing frames are plain functions from a payload to [`Bytes`](bytes::Bytes): a server does not mask, so a frame
//! does not depend on who receives it and can be built once and shared. Incoming bytes go through a [`Decoder`].

mod decoder;
mod deflate;
mod frame;

pub use decoder::{Decoder, Message};
pub use deflate::{accept_deflate, compress};
pub use frame::{MAX_CONTROL_BYTES, binary, close, frames, header_len, payload, ping, pong, text};

pub(crate) use frame::is_binary;

/// The frame kinds of RFC 6455, section 5.2. The numbers are the wire's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opcode {
    Continuation = 0x0,
    Text = 0x1,
    Binary = 0x2,
    Close = 0x8,
    Ping = 0x9,
    Pong = 0xA,
}

impl Opcode {
    pub(crate) fn from_nibble(nibble: u8) -> Option<Self> {
        Some(match nibble {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xA => Self::Pong,
            _ => return None,
        })
    }

    pub(crate) fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// Whether a code may stand in a close frame: the ones RFC 6455 section 7.4 and the IANA registry define for the wire,
/// and the ranges for libraries (3000..) and applications (4000..). 1004 to 1006 and 1015 are never sent.
pub(crate) fn is_wire_close_code(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

#[cfg(test)]
mod tests;
