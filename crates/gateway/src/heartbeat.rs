//! One timer wheel for all sessions: pings, missing pongs, ending credentials, stalled sockets.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::gateway::Shared;
use crate::presence;
use crate::session::Session;

/// Sessions by the tick at which to look at them. A session has one entry that counts; looking at it makes the next.
pub(crate) struct Wheel {
    tick: Duration,
    at: AtomicUsize,
    slots: Box<[Mutex<Vec<Entry>>]>,
}

struct Entry {
    session: Weak<Session>,
    /// The session's turn when this entry was made. An older entry than the session's last is passed over.
    turn: u32,
}

const SLOTS: usize = 512;

impl Wheel {
    /// A wheel that is exact to a twentieth of the shorter time, within 10 ms and 1 s.
    pub(crate) fn new(shortest: Duration) -> Self {
        Self {
            tick: (shortest / 20).clamp(Duration::from_millis(10), Duration::from_secs(1)),
            at: AtomicUsize::new(0),
            slots: (0..SLOTS).map(|_| Mutex::default()).collect(),
        }
    }

    /// Looks at the session when `due` has passed, or earlier, in place of what was planned before.
    pub(crate) fn plan(&self, session: &Arc<Session>, due: Duration) {
        let ticks = due.as_nanos().div_ceil(self.tick.as_nanos()).clamp(1, SLOTS as u128 - 1) as usize;
        let slot = (self.at.load(Ordering::SeqCst) + ticks) % SLOTS;
        let turn = session.turn.fetch_add(1, Ordering::SeqCst) + 1;
        self.slots[slot].lock().push(Entry { session: Arc::downgrade(session), turn });
    }

    fn advance(&self) -> Vec<Entry> {
        let slot = (self.at.fetch_add(1, Ordering::SeqCst) + 1) % SLOTS;
        std::mem::take(&mut self.slots[slot].lock())
    }
}

/// Runs until `stop`.
pub(crate) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let told = shared.catalog.rooms.iter().any(|room| room.presence);
    let mut ticks = tokio::time::interval(shared.wheel.tick);
    let mut chores = tokio::time::interval(Duration::from_secs(10));
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = chores.tick() => {
                shared.hub.tidy(shared.catalog.realtime.connect_rate, shared.clock.now());
                shared.refusals.tidy(shared.clock.now());
                shared.recent.tidy();
                shared.cursors.tidy();
                shared.partings.tidy();
            }
            _ = ticks.tick() => {
                if told {
                    sweep_presence(&shared);
                }
                for (index, entry) in shared.wheel.advance().into_iter().enumerate() {
                    if index % 256 == 255 {
                        tokio::task::yield_now().await;
                    }
                    let Some(session) = entry.session.upgrade() else { continue };
                    if session.turn.load(Ordering::SeqCst) == entry.turn
                        && let Some(due) = session.tend()
                    {
                        shared.wheel.plan(&session, due);
                    }
                }
            }
        }
    }
}

/// Lets users go whose connections did not come back, and tells the rooms.
fn sweep_presence(shared: &Shared) {
    let now = Instant::now();
    for tenant in shared.hub.all() {
        if tenant.presence.sweep(now) {
            presence::tell(shared, &tenant);
        }
    }
}
