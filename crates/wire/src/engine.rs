//! Engine.IO v4 packets: the layer that makes HTTP polling and WebSocket look alike to Socket.IO.
//!
//! A text packet is a type digit and its data. A binary packet has no digit: over WebSocket it is a binary message,
//! over polling `b` and base64. Source: the `engine.io-protocol` document, revision 4.

mod handshake;
mod polling;

pub use handshake::{Open, TransportError};
pub use polling::{PollPacket, SEPARATOR, parse_polling, polling_join};

use crate::Error;
use bytes::Bytes;

/// The data of the ping and pong that try out a WebSocket before an upgrade: `2probe`, answered by `3probe`.
pub const PROBE: &str = "probe";

/// What a text packet is for. The wire's digit is [`PacketType::as_str`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PacketType {
    /// `0`: the server's first packet, see [`Open`]. Never valid from a client of this revision's HTTP transports.
    Open,
    /// `1`: the transport is to be closed.
    Close,
    /// `2`: from the server, the heartbeat; from a client only as the upgrade's probe.
    Ping,
    /// `3`: the answer to a ping, with the same data.
    Pong,
    /// `4`: carries a Socket.IO packet.
    Message,
    /// `5`: the client moves to the WebSocket that it probed.
    Upgrade,
    /// `6`: nothing; it ends a waiting poll.
    Noop,
}

impl PacketType {
    /// The digit on the wire; for a packet without data this is the whole packet.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "0",
            Self::Close => "1",
            Self::Ping => "2",
            Self::Pong => "3",
            Self::Message => "4",
            Self::Upgrade => "5",
            Self::Noop => "6",
        }
    }

    fn from_digit(digit: u8) -> Option<Self> {
        Some(match digit {
            b'0' => Self::Open,
            b'1' => Self::Close,
            b'2' => Self::Ping,
            b'3' => Self::Pong,
            b'4' => Self::Message,
            b'5' => Self::Upgrade,
            b'6' => Self::Noop,
            _ => return None,
        })
    }
}

/// One packet. Which packets a client may send when is the session's to decide; this only says what they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet<'a> {
    /// A type and its data, which may be empty and has no length limit of its own.
    Text(PacketType, &'a str),
    /// A binary message. Over WebSocket it is made of [`Message::Binary`](crate::websocket::Message::Binary) as it
    /// stands.
    Binary(Bytes),
}

impl<'a> Packet<'a> {
    /// Reads one text packet, as a WebSocket text message carries it.
    ///
    /// # Errors
    /// If the text is empty or does not start with a type digit. Base64 (`b…`) belongs to polling and is refused here.
    pub fn parse(text: &'a str) -> Result<Self, Error> {
        let Some(&digit) = text.as_bytes().first() else { return Err(Error::engine("the packet is empty")) };
        let Some(kind) = PacketType::from_digit(digit) else {
            return Err(Error::engine("the packet does not start with a type digit 0 to 6"));
        };
        Ok(Self::Text(kind, &text[1..]))
    }
}

#[cfg(test)]
mod tests;
