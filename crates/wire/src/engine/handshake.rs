//! The first answer of a session, and the refusals.

use crate::json::Quoted;
use std::fmt;

/// The server's opening packet: what the client needs to know about the session it just got.
#[derive(Debug, Clone, Copy)]
pub struct Open<'a> {
    /// The session's id. It is a secret: whoever knows it can read and write the session.
    pub sid: &'a str,
    /// Transports the client may move to: `["websocket"]` over polling, none over WebSocket.
    pub upgrades: &'a [&'a str],
    /// How often the server pings, in milliseconds.
    pub ping_interval_ms: u64,
    /// How long the server waits for the pong, in milliseconds. A client gives up after interval and timeout together.
    pub ping_timeout_ms: u64,
    /// The largest polling body in bytes that the server accepts. Clients split their batches by it.
    pub max_payload: usize,
}

impl Open<'_> {
    /// The whole text packet: the digit `0` and a JSON object of exactly these five keys, as the official suite
    /// demands.
    pub fn encode(&self) -> String {
        let mut out = String::with_capacity(128 + self.sid.len());
        out.push_str("0{\"sid\":");
        Quoted::new(self.sid).push_to(&mut out);
        out.push_str(",\"upgrades\":[");
        for (index, upgrade) in self.upgrades.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            Quoted::new(upgrade).push_to(&mut out);
        }
        let (interval, timeout, max_payload) = (self.ping_interval_ms, self.ping_timeout_ms, self.max_payload);
        out.push_str(&format!(
            "],\"pingInterval\":{interval},\"pingTimeout\":{timeout},\"maxPayload\":{max_payload}}}"
        ));
        out
    }
}

/// Why an Engine.IO request was refused. Codes and messages are the reference server's, because clients show them to
/// people and some match on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TransportError {
    /// `transport` is missing or names none that is served.
    UnknownTransport = 0,
    /// `sid` names no live session.
    UnknownSid = 1,
    /// A session can only be opened with GET.
    BadHandshakeMethod = 2,
    /// Anything else that makes no sense, such as a poll on an upgraded session.
    BadRequest = 3,
    /// The server will not have this client.
    Forbidden = 4,
    /// `EIO` is missing or not 4.
    UnsupportedProtocol = 5,
}

impl TransportError {
    /// The number in the JSON answer.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The sentence in the JSON answer.
    pub fn message(self) -> &'static str {
        match self {
            Self::UnknownTransport => "Transport unknown",
            Self::UnknownSid => "Session ID unknown",
            Self::BadHandshakeMethod => "Bad handshake method",
            Self::BadRequest => "Bad request",
            Self::Forbidden => "Forbidden",
            Self::UnsupportedProtocol => "Unsupported protocol version",
        }
    }

    /// The HTTP status of the answer: 403 for [`TransportError::Forbidden`], 400 for the others.
    pub fn status(self) -> u16 {
        match self {
            Self::Forbidden => 403,
            Self::UnknownTransport
            | Self::UnknownSid
            | Self::BadHandshakeMethod
            | Self::BadRequest
            | Self::UnsupportedProtocol => 400,
        }
    }

    /// The body of the answer, `application/json`.
    pub fn json(self) -> String {
        format!("{{\"code\":{},\"message\":\"{}\"}}", self.code(), self.message())
    }
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())
    }
}

impl std::error::Error for TransportError {}
