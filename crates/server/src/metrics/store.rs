//! The store's numbers.

use tidewire_core::store::{Durability, Figures};

use super::exposition::{Exposition, Kind};

pub(super) fn write_up(up: bool, durability: Durability, out: &mut Exposition) {
    let word = match durability {
        Durability::Synced => "synced",
        Durability::Written => "written",
        Durability::Memory => "memory",
    };
    let help = "Whether the store answers, with what an answered write survives.";
    out.family("tidewire_store_up", Kind::Gauge, help).sample(&[("durability", word)], u8::from(up));
}

pub(super) fn write(figures: &Figures, out: &mut Exposition) {
    for (name, help, value) in [
        ("tidewire_store_commits_total", "Commits that were written.", figures.commits),
        ("tidewire_store_events_total", "Events that were written.", figures.events),
        ("tidewire_store_turns_total", "Transactions; each holds all calls that waited.", figures.turns),
        ("tidewire_store_calls_total", "Calls that those transactions took.", figures.calls),
        ("tidewire_store_refused_total", "Calls refused because too many waited.", figures.refused),
    ] {
        out.single(name, Kind::Counter, help, value);
    }
    let turn = "From the moment a transaction took its calls until it was committed.";
    out.family("tidewire_store_turn_seconds", Kind::Histogram, turn).histogram(&[], &figures.turn);
    let sync = "The end of a transaction: the write to the log file and the sync.";
    out.family("tidewire_store_sync_seconds", Kind::Histogram, sync).histogram(&[], &figures.sync);
    for (name, help, value) in [
        ("tidewire_store_inbox_calls", "Calls that wait now.", Some(figures.waiting)),
        ("tidewire_store_logs", "Tenants that have an event.", Some(figures.logs)),
        ("tidewire_store_log_events", "Events in all logs.", Some(figures.log_events)),
        ("tidewire_store_database_bytes", "The database and its write-ahead log on the disk.", figures.bytes),
    ] {
        if let Some(value) = value {
            out.single(name, Kind::Gauge, help, value);
        }
    }
}
