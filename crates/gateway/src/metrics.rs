//! What an operator's monitoring asks the gateway.

use serde::{Serialize, Serializer};
use tidewire_core::TenantId;
use tidewire_core::measure::Distribution;

use crate::gateway::Gateway;
use crate::hub::Tenant;
use crate::stats::Stats;

/// Numbers by a word: reasons, outcomes, transports. The words are stable, and one that has not come up yet is there with 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ByWord(pub Vec<(&'static str, u64)>);

impl Serialize for ByWord {
    /// As an object.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().copied())
    }
}

/// Everything that the gateway counts. What is not said to be current counts since the start.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Metrics {
    /// The numbers without a reason.
    #[serde(flatten)]
    pub stats: Stats,
    /// Connections now, by transport.
    pub transports: ByWord,
    /// Bytes that wait for slow clients now, those being written included.
    pub queued_bytes: u64,
    /// The most of them that wait for one client.
    pub queued_bytes_most: u64,
    /// HTTP requests that did not become a transport or do not belong to one.
    pub transports_refused: ByWord,
    /// CONNECT packets that were refused, by code.
    pub connects_refused: ByWord,
    /// Messages that were refused, by code.
    pub messages_refused: ByWord,
    /// Transports that were closed, by reason.
    pub closed: ByWord,
    /// Copies of events that were dropped: the client's backlog was full, it was being caught up, or the relay's queue was full.
    pub drops: ByWord,
    /// Clients that came back with a `pid`, by what became of it.
    pub recoveries: ByWord,
    /// From the moment the store told of a commit, durable by then, until a copy of its event was handed to the system for a client, or to
    /// the answer of a poll. What is read from the log for clients that are behind or come back is not in it.
    pub delivery: Distribution,
    /// The tenants with the most deliveries.
    #[serde(rename = "busiest")]
    pub tenants: Vec<TenantMetrics>,
}

/// What a tenant's sockets do. The counters begin when its first socket comes, and anew after its last one has gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TenantMetrics {
    /// The tenant.
    pub tenant: TenantId,
    /// Its sockets now.
    pub sockets: u64,
    /// Its rooms with a member now.
    pub rooms: u64,
    /// Copies of its events that were queued for a socket.
    pub deliveries: u64,
    /// The bytes of those copies.
    pub delivery_bytes: u64,
    /// Messages of its clients.
    pub messages_in: u64,
    /// Those of them that were refused by a rate.
    pub messages_limited: u64,
}

impl Gateway {
    /// Everything that is counted, and the `most` tenants with the most deliveries.
    ///
    /// Looks at each connection, some tens of milliseconds with 100,000 of them: then it is best not called on an async thread.
    pub fn metrics(&self, most: usize) -> Metrics {
        let shared = self.shared();
        let stats = &shared.stats;
        let mut transports: Vec<(&'static str, u64)> = vec![("polling", 0), ("websocket", 0)];
        let (mut queued_bytes, mut queued_bytes_most) = (0, 0);
        for session in shared.all_sessions() {
            let name = session.transport_name();
            match transports.iter_mut().find(|(known, _)| *known == name) {
                Some((_, count)) => *count += 1,
                None => transports.push((name, 1)),
            }
            let queued = session.outbox.bytes() as u64;
            queued_bytes += queued;
            queued_bytes_most = queued_bytes_most.max(queued);
        }
        let mut tenants: Vec<TenantMetrics> = shared.hub.all().iter().map(|tenant| of(tenant)).collect();
        tenants.sort_unstable_by(|one, other| {
            let by = |tenant: &TenantMetrics| (tenant.deliveries, tenant.sockets);
            by(other).cmp(&by(one)).then_with(|| one.tenant.cmp(&other.tenant))
        });
        tenants.truncate(most);
        Metrics {
            stats: self.stats(),
            transports: ByWord(transports),
            queued_bytes,
            queued_bytes_most,
            transports_refused: ByWord(stats.by.transports.get()),
            connects_refused: ByWord(stats.by.connects.get()),
            messages_refused: ByWord(stats.by.messages.get()),
            closed: ByWord(stats.by.closed.get()),
            drops: ByWord(stats.by.dropped.get()),
            recoveries: ByWord(stats.by.returned.get()),
            delivery: stats.latency.histogram.get(),
            tenants,
        }
    }

    /// What one tenant's sockets do. All zero when it has none.
    pub fn tenant_metrics(&self, tenant: &TenantId) -> TenantMetrics {
        let found = self.shared().hub.find(tenant);
        found.map_or_else(|| of(&Tenant::new(tenant.clone())), |tenant| of(&tenant))
    }
}

fn of(tenant: &Tenant) -> TenantMetrics {
    TenantMetrics {
        tenant: tenant.id.clone(),
        sockets: tenant.directory.lock().sockets.len() as u64,
        rooms: tenant.rooms.read().len() as u64,
        deliveries: tenant.counts.deliveries.get(),
        delivery_bytes: tenant.counts.delivery_bytes.get(),
        messages_in: tenant.counts.messages_in.get(),
        messages_limited: tenant.counts.messages_limited.get(),
    }
}
