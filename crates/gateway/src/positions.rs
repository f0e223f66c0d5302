//! Telling clients that few events are for how far the log has been read for them.
//!
//! A client comes back to the last offset that it was sent. If that lay still while the log moves on, it would be beyond what history
//! reaches back to one day, though the client missed nothing. Streams have their signs of life for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tidewire_core::event::Position;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::gateway::Shared;

/// How often tenants are looked at.
const EVERY: Duration = Duration::from_secs(1);

/// How many sockets are looked at before other tasks get their turn.
const BATCH: usize = 256;

/// Where a history that is shorter is over before a client is back, so that telling it would only cost.
const LEAST: Duration = Duration::from_secs(20);

/// When the sockets of a tenant were last told.
pub(crate) struct Told {
    at: Position,
    since: Instant,
    /// Where the log was when it was last looked at.
    seen: Position,
}

impl Default for Told {
    fn default() -> Self {
        Self { at: Position(0), since: Instant::now(), seen: Position(0) }
    }
}

impl Told {
    /// When it is time: how many events a client has to be behind to be told.
    fn due(&mut self, at: Position, now: Instant, count: u64, age: Duration) -> Option<u64> {
        let lately = at.0 - std::mem::replace(&mut self.seen, at).0;
        let moved = at.0 - self.at.0;
        let passing = lately.saturating_mul(LEAST.as_secs());
        if moved == 0 || passing > count {
            return None;
        }
        let is_long = now.saturating_duration_since(self.since) >= age / 4;
        if !is_long && moved.saturating_mul(4) < count {
            return None;
        }
        (self.at, self.since) = (at, now);
        Some(if is_long { 1 } else { margin(count) })
    }
}

/// So many events a client may be behind without being told.
pub(crate) fn margin(count: u64) -> u64 {
    (count / 8).max(1)
}

/// Runs until `stop`.
pub(crate) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => tell(&shared).await,
        }
    }
}

async fn tell(shared: &Shared) {
    let realtime = &shared.catalog.realtime;
    let (count, now) = (u64::from(realtime.history_count), Instant::now());
    let mut looked = 0;
    for tenant in shared.hub.all().iter().chain([&shared.hub.across]) {
        let due = tenant.told.lock().due(tenant.delivered(), now, count, realtime.history_age);
        let Some(least) = due else { continue };
        let mut frames = Vec::new();
        for socket in tenant.sockets() {
            looked += 1;
            if looked % BATCH == 0 {
                tokio::task::yield_now().await;
            }
            socket.tell_position(least, &mut frames);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGE: Duration = Duration::from_secs(3_600);

    #[test]
    fn clients_are_told_every_quarter_of_history_and_not_when_it_rushes_by() {
        let (mut told, begin) = (Told::default(), Instant::now());
        let mut due = |second: u64, at: u64| told.due(Position(at), begin + Duration::from_secs(second), 1_000, AGE);
        assert_eq!(due(0, 0), None);
        for second in 1..5 {
            assert_eq!(due(second, 50 * second), None);
        }
        assert_eq!(due(5, 250), Some(125));
        assert_eq!(due(6, 499), None, "a history of four seconds");
        assert_eq!(due(7, 499), None, "not a quarter of it since then");
        assert_eq!(due(8, 500), Some(125));
    }

    #[test]
    fn and_every_quarter_of_its_age_if_anything_came() {
        let (mut told, begin) = (Told::default(), Instant::now());
        let mut due =
            |minute: u64, at: u64| told.due(Position(at), begin + Duration::from_secs(60 * minute), 1_000, AGE);
        assert_eq!(due(14, 1), None);
        assert_eq!(due(16, 1), Some(1));
        assert_eq!(due(40, 1), None, "nothing came");
        assert_eq!(due(41, 2), Some(1));
    }
}
