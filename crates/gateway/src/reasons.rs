//! Counts that carry a reason. Every reason is a stable word, so that dashboards and alerts may rely on it.

use tidewire_core::measure::Reasons;

use crate::http::Refused;
use crate::session::Closing;
use tidewire_wire::engine::TransportError;

/// What was refused, dropped, closed or resumed, and why.
#[derive(Debug)]
pub(crate) struct ByReason {
    /// HTTP requests that did not become a transport or do not belong to one.
    pub(crate) transports: Reasons,
    /// CONNECT packets, by the code of the answer.
    pub(crate) connects: Reasons,
    /// Messages, by the code of the acknowledgement.
    pub(crate) messages: Reasons,
    /// Transports that were closed.
    pub(crate) closed: Reasons,
    /// Copies of events that may be dropped, and were.
    pub(crate) dropped: Reasons,
    /// Clients that came back.
    pub(crate) returned: Reasons,
}

impl Default for ByReason {
    fn default() -> Self {
        Self {
            transports: Reasons::new(&[
                "full",
                "draining",
                "origin",
                "unknown_sid",
                "unknown_transport",
                "unsupported_protocol",
                "bad_request",
                "too_large",
            ]),
            connects: Reasons::new(&[
                "namespace.unknown",
                "auth.required",
                "auth.invalid",
                "auth.unavailable",
                "limit.connects",
                "limit.connections",
                "limit.tenant",
                "limit.address",
                "limit.credentials",
                "limit.cursors",
            ]),
            messages: Reasons::new(&[
                "limit.messages",
                "limit.user_messages",
                "limit.tenant_messages",
                "limit.rooms",
                "limit.subscriptions",
                "auth.required",
                "room.forbidden",
                "message.unknown",
                "message.invalid_data",
                "message.refused",
                "message.unreadable",
                "message.timed_out",
                "job.invalid_data",
                "internal",
                "switch.forbidden",
                "store.busy",
                "unavailable",
            ]),
            closed: Reasons::new(&Closing::REASONS),
            dropped: Reasons::new(&["backlog", "behind", "relay"]),
            returned: Reasons::new(&["recovered", "expired", "trimmed", "epoch", "foreign", "ended"]),
        }
    }
}

impl Refused {
    /// The word under which a request is counted.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Busy => "full",
            Self::Draining => "draining",
            Self::Transport(TransportError::Forbidden) => "origin",
            Self::Transport(TransportError::UnknownSid) => "unknown_sid",
            Self::Transport(TransportError::UnknownTransport) => "unknown_transport",
            Self::Transport(TransportError::UnsupportedProtocol) => "unsupported_protocol",
            Self::Transport(TransportError::BadHandshakeMethod | TransportError::BadRequest) => "bad_request",
            Self::Status(http::StatusCode::PAYLOAD_TOO_LARGE) => "too_large",
            Self::Status(_) => tidewire_core::measure::OTHER,
        }
    }
}

impl Closing {
    /// The words of [`Closing::reason`].
    const REASONS: [&'static str; 13] = [
        "lost",
        "client",
        "malformed",
        "silent",
        "unused",
        "too_slow",
        "expired",
        "replaced",
        "draining",
        "disconnected",
        "revoked",
        "flooding",
        "unavailable",
    ];

    /// The word under which a closed transport is counted.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            // Leaving a namespace closes no transport; if it did, the client would have wished it.
            Self::Client | Self::Left => "client",
            Self::Malformed(..) => "malformed",
            Self::Silent => "silent",
            Self::Unused => "unused",
            Self::TooSlow => "too_slow",
            Self::Expired => "expired",
            Self::Replaced => "replaced",
            Self::Draining => "draining",
            Self::Disconnected => "disconnected",
            Self::Revoked => "revoked",
            Self::Flooding => "flooding",
            Self::Unavailable => "unavailable",
        }
    }
}
