//! The gateway's numbers.

use tidewire_gateway::{Metrics, TenantMetrics};

use super::exposition::{Exposition, Kind};

pub(super) fn write(metrics: &Metrics, out: &mut Exposition) {
    write_now(metrics, out);
    write_connections(metrics, out);
    write_messages(metrics, out);
    write_deliveries(metrics, out);
    write_tenants(&metrics.tenants, out);
}

fn write_now(metrics: &Metrics, out: &mut Exposition) {
    let by_transport = "Connections now, by transport.";
    out.by_word("tidewire_socket_connections", Kind::Gauge, by_transport, "transport", &metrics.transports.0);
    let stats = &metrics.stats;
    for (name, help, value) in [
        ("tidewire_sockets", "Sockets now: a connection in a namespace.", stats.sockets),
        ("tidewire_socket_rooms", "Rooms that have a member now.", stats.rooms),
        ("tidewire_socket_tenants", "Tenants that have, or lately had, a socket.", stats.tenants),
        ("tidewire_socket_polls", "Polls that wait now.", stats.polls),
        ("tidewire_socket_behind", "Sockets now that are being caught up from the log.", stats.behind),
        ("tidewire_socket_queued_bytes", "Bytes that wait for slow clients now.", metrics.queued_bytes),
        ("tidewire_socket_queued_bytes_max", "The most bytes that wait for one client now.", metrics.queued_bytes_most),
    ] {
        out.single(name, Kind::Gauge, help, value);
    }
}

fn write_connections(metrics: &Metrics, out: &mut Exposition) {
    let stats = &metrics.stats;
    out.single("tidewire_socket_opened_total", Kind::Counter, "Connections that were opened.", stats.opened);
    let upgraded = "Connections that moved from polling to WebSocket.";
    out.single("tidewire_socket_upgraded_total", Kind::Counter, upgraded, stats.upgraded);
    for (name, help, label, words) in [
        ("tidewire_socket_closed_total", "Connections that were closed.", "reason", &metrics.closed),
        (
            "tidewire_socket_transports_refused_total",
            "HTTP requests that did not become a connection or do not belong to one.",
            "reason",
            &metrics.transports_refused,
        ),
        ("tidewire_socket_connects_refused_total", "Refused CONNECT packets.", "code", &metrics.connects_refused),
        ("tidewire_socket_recoveries_total", "Clients that came back.", "outcome", &metrics.recoveries),
    ] {
        out.by_word(name, Kind::Counter, help, label, &words.0);
    }
}

fn write_messages(metrics: &Metrics, out: &mut Exposition) {
    let stats = &metrics.stats;
    out.single("tidewire_socket_messages_total", Kind::Counter, "Messages from clients.", stats.messages_in);
    let refused = "Messages from clients that were refused.";
    let words = &metrics.messages_refused.0;
    out.by_word("tidewire_socket_messages_refused_total", Kind::Counter, refused, "code", words);
    let changes = "Times that a user came into a room with presence or went.";
    out.single("tidewire_socket_presence_changes_total", Kind::Counter, changes, stats.presence_changes);
}

fn write_deliveries(metrics: &Metrics, out: &mut Exposition) {
    let stats = &metrics.stats;
    for (name, help, value) in [
        ("tidewire_socket_events_total", "Events that were fanned out.", stats.events),
        ("tidewire_socket_deliveries_total", "Copies of events that were queued for a client.", stats.deliveries),
        ("tidewire_socket_delivered_bytes_total", "The bytes of those copies.", stats.delivery_bytes),
        ("tidewire_socket_replayed_total", "Of those copies, the ones that were read from the log.", stats.replayed),
        ("tidewire_socket_conflated_total", "Frames that a newer value of the same state replaced.", stats.conflated),
        ("tidewire_socket_compressed_total", "Events and answers that were compressed.", stats.compressed),
        ("tidewire_socket_parked_total", "Times that a slow client was parked on the log.", stats.parked),
        (
            "tidewire_socket_relay_lagged_total",
            "Times that the queue between store and sockets was full and the log was read instead.",
            stats.relay_lagged,
        ),
        (
            "tidewire_socket_publishers_held_total",
            "Answers to publishers that were held back while the sockets of their tenant were far behind.",
            stats.publishers_held,
        ),
    ] {
        out.single(name, Kind::Counter, help, value);
    }
    let dropped = "Copies of events that were dropped: ephemeral ones, and those of rooms that span tenants.";
    out.by_word("tidewire_socket_dropped_total", Kind::Counter, dropped, "reason", &metrics.drops.0);
    let delivery = "From the end of the commit until a copy of its event was handed to the system for a client.";
    out.family("tidewire_socket_delivery_seconds", Kind::Histogram, delivery).histogram(&[], &metrics.delivery);
}

fn write_tenants(tenants: &[TenantMetrics], out: &mut Exposition) {
    type Part = fn(&TenantMetrics) -> u64;
    let families: [(&'static str, Kind, &str, Part); 5] = [
        ("tidewire_tenant_sockets", Kind::Gauge, "Sockets now of the busiest tenants.", |tenant| tenant.sockets),
        (
            "tidewire_tenant_deliveries_total",
            Kind::Counter,
            "Copies of events that were queued for clients of the busiest tenants.",
            |tenant| tenant.deliveries,
        ),
        ("tidewire_tenant_delivered_bytes_total", Kind::Counter, "The bytes of those copies.", |tenant| {
            tenant.delivery_bytes
        }),
        ("tidewire_tenant_messages_total", Kind::Counter, "Messages from clients of the busiest tenants.", |tenant| {
            tenant.messages_in
        }),
        ("tidewire_tenant_messages_limited_total", Kind::Counter, "Those of them that were over a rate.", |tenant| {
            tenant.messages_limited
        }),
    ];
    for (name, kind, help, part) in families {
        let mut family = out.family(name, kind, help);
        tenants.iter().for_each(|tenant| family.sample(&[("tenant", tenant.tenant.as_str())], part(tenant)));
    }
}
