//! The one error of this crate.

use std::fmt;

/// Why a peer's bytes were refused. It is final: nothing more may be decoded from that connection.
///
/// The reason is at most 123 bytes of text, so that it fits a WebSocket close frame as it is. It never repeats what the
/// peer sent, and can be logged or sent back without care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Error {
    /// A stable name for logs, metrics and tests: `wire.protocol`, `wire.utf8`, `wire.too_big`, `wire.too_many`,
    /// `wire.deflate`, `wire.engine`, `wire.socket` or `wire.msgpack`.
    pub code: &'static str,
    /// The WebSocket close code to answer with (RFC 6455, section 7.4.1).
    pub close_code: u16,
    /// What was wrong, in words.
    pub reason: &'static str,
}

impl Error {
    /// Always false: the same bytes are refused again, and the connection they came on is to be closed.
    pub fn is_retryable(&self) -> bool {
        false
    }

    /// The WebSocket framing rules were broken (close code 1002).
    pub(crate) fn protocol(reason: &'static str) -> Self {
        Self::new("wire.protocol", 1002, reason)
    }

    /// Text that is not UTF-8 (close code 1007).
    pub(crate) fn utf8(reason: &'static str) -> Self {
        Self::new("wire.utf8", 1007, reason)
    }

    /// More bytes than the caller allows (close code 1009).
    pub(crate) fn too_big(reason: &'static str) -> Self {
        Self::new("wire.too_big", 1009, reason)
    }

    /// More items than a named bound allows (close code 1008).
    pub(crate) fn too_many(reason: &'static str) -> Self {
        Self::new("wire.too_many", 1008, reason)
    }

    /// A compressed message that does not inflate (close code 1007).
    pub(crate) fn deflate(reason: &'static str) -> Self {
        Self::new("wire.deflate", 1007, reason)
    }

    /// Not MessagePack, or not a packet in it (close code 1002).
    pub(crate) fn msgpack(reason: &'static str) -> Self {
        Self::new("wire.msgpack", 1002, reason)
    }

    /// Not an Engine.IO v4 packet or polling payload (close code 1002).
    pub(crate) fn engine(reason: &'static str) -> Self {
        Self::new("wire.engine", 1002, reason)
    }

    /// Not a Socket.IO v5 packet that a client may send (close code 1002).
    pub(crate) fn socket(reason: &'static str) -> Self {
        Self::new("wire.socket", 1002, reason)
    }

    fn new(code: &'static str, close_code: u16, reason: &'static str) -> Self {
        debug_assert!(reason.len() <= 123, "a reason must fit a close frame");
        Self { code, close_code, reason }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.reason, self.code)
    }
}

impl std::error::Error for Error {}
