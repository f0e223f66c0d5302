//! What the gateway counts.

use serde::Serialize;
use tidewire_core::measure::Counter;

use crate::latency::Latency;
use crate::reasons::ByReason;

/// A snapshot of the counters. What is not said to be current counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// Transports that are open now.
    pub connections: u64,
    /// Polls that wait now.
    pub polls: u64,
    /// Sockets (a transport in a namespace) that are joined now.
    pub sockets: u64,
    /// Rooms that have a member now.
    pub rooms: u64,
    /// Tenants that have, or lately had, a socket.
    pub tenants: u64,
    /// Sockets that are behind now and wait to catch up from the log.
    pub behind: u64,
    /// Transports that were opened.
    pub opened: u64,
    /// Transports that moved from polling to WebSocket.
    pub upgraded: u64,
    /// Connections refused because a limit was reached or the process is draining.
    pub refused: u64,
    /// Sockets whose credential was refused.
    pub unauthenticated: u64,
    /// Times that a user came into a room with presence or went.
    pub presence_changes: u64,
    /// Frames that a newer value of the same state took the place of.
    pub conflated: u64,
    /// Messages that clients sent.
    pub messages_in: u64,
    /// Messages refused by the rate.
    pub messages_limited: u64,
    /// Events from the log and ephemeral ones that were fanned out.
    pub events: u64,
    /// Copies of events that were queued for a socket.
    pub deliveries: u64,
    /// The bytes of those copies, frame headers included.
    pub delivery_bytes: u64,
    /// Events and answers that were compressed, each once for all who got it.
    pub compressed: u64,
    /// Copies without a log behind them that were dropped for a slow or returning client: ephemeral ones, and those of rooms that span
    /// tenants.
    pub dropped: u64,
    /// Times a slow client was parked on the log.
    pub parked: u64,
    /// Slow clients whose transport was closed.
    pub closed_slow: u64,
    /// Transports closed over a malformed packet or a broken rule of the protocol.
    pub closed_malformed: u64,
    /// Transports closed because a pong was missing.
    pub closed_silent: u64,
    /// Clients that came back and got everything.
    pub recovered: u64,
    /// Events that were read from the log for clients that came back or were behind.
    pub replayed: u64,
    /// Clients that came back to another incarnation of the log.
    pub lost_epoch: u64,
    /// Clients that came back later than the history reaches.
    pub lost_history: u64,
    /// Clients that came back with a `pid` that is not theirs, or is of a session that was ended.
    pub lost_identity: u64,
    /// Times the queue between store and sockets was full and the log had to be read instead.
    pub relay_lagged: u64,
    /// Answers to publishers that were held back while their tenant's sockets were far behind.
    pub publishers_held: u64,
}

macro_rules! counters {
    ($($name:ident),* $(,)?) => {
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)*
            pub(crate) by: ByReason,
            pub(crate) latency: Latency,
        }
        impl Counters {
            pub(crate) fn snapshot(&self) -> Stats {
                Stats { $($name: self.$name.get(),)* ..Stats::default() }
            }
        }
    };
}

counters!(
    connections,
    polls,
    sockets,
    behind,
    opened,
    upgraded,
    refused,
    unauthenticated,
    presence_changes,
    conflated,
    messages_in,
    messages_limited,
    events,
    deliveries,
    delivery_bytes,
    compressed,
    dropped,
    parked,
    closed_slow,
    closed_malformed,
    closed_silent,
    recovered,
    replayed,
    lost_epoch,
    lost_history,
    lost_identity,
    relay_lagged,
    publishers_held,
);

impl Counters {
    /// So many copies of events were dropped.
    pub(crate) fn drop_copies(&self, reason: &'static str, count: u64) {
        if count > 0 {
            self.dropped.add(count);
            self.by.dropped.add(reason, count);
        }
    }
}
