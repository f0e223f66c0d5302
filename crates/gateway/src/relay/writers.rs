//! Who writes events to the connections, in turns between tenants.
//!
//! The relay queues copies and puts their sessions on the list of the tenant whose event it is. A writer takes some sessions of the tenant
//! whose turn it is, makes one write for each, and lets other tasks run. So a quiet tenant waits for a part of another's fan-out and
//! not for all of it, and requests are read in between. There is a writer for each thread of the runtime.
//!
//! A session is on a list once, however many frames wait for it; that is what makes writes large under load. So that the relay does not run
//! ahead for ever, a tenant with [`FRAMES`] for each session on the way waits until its list is empty.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tidewire_core::TenantId;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::gateway::Shared;
use crate::outbox::Wrote;
use crate::session::{Closing, Session};

/// How many sessions of a tenant are written to in one turn.
const TURN: usize = 64;
/// How many frames may be on the way for each session of a tenant, so that a session gets many in one write.
const FRAMES: u64 = 16;
/// How many copies of a tenant may be on the way in any case.
const FEW_COPIES: u64 = 16_384;

/// Sessions that have something to be written.
#[derive(Default)]
pub(crate) struct Writers {
    lists: Mutex<Lists<Arc<Session>>>,
    filled: Notify,
}

impl Writers {
    /// Has sessions written to for which events of this tenant were queued, `copies` in all.
    pub(crate) fn add(&self, tenant: &TenantId, sessions: impl IntoIterator<Item = Arc<Session>>, copies: u64) {
        if self.lists.lock().add(tenant, sessions, copies) {
            self.filled.notify_one();
        }
    }

    /// Whether a tenant has as much on the way as it may. The relay is woken when it has not any more.
    pub(crate) fn is_full(&self, tenant: &TenantId) -> bool {
        self.lists.lock().tenants.get(tenant).is_some_and(List::is_full)
    }
}

/// A list for each tenant that has something on the way. `T` is a session.
struct Lists<T> {
    tenants: HashMap<TenantId, List<T>>,
    /// Every tenant that has a list, once; the first one's turn it is.
    order: VecDeque<TenantId>,
}

struct List<T> {
    sessions: VecDeque<T>,
    /// The most that were on it.
    most: usize,
    /// Copies that were queued since the list began.
    copies: u64,
}

/// Whose turn it is.
#[derive(Debug, PartialEq, Eq)]
struct Next {
    tenant: TenantId,
    /// The relay may go on with this tenant.
    is_free: bool,
    /// Somebody else's sessions wait, or more of this tenant's.
    more: bool,
}

impl<T> Default for Lists<T> {
    fn default() -> Self {
        Self { tenants: HashMap::new(), order: VecDeque::new() }
    }
}

impl<T> Lists<T> {
    /// Whether the tenant had nothing on its list and has now.
    fn add(&mut self, tenant: &TenantId, sessions: impl IntoIterator<Item = T>, copies: u64) -> bool {
        if let Some(list) = self.tenants.get_mut(tenant) {
            list.add(sessions, copies);
            return false;
        }
        let mut list = List { sessions: VecDeque::new(), most: 0, copies: 0 };
        list.add(sessions, copies);
        if list.sessions.is_empty() {
            return false;
        }
        self.tenants.insert(tenant.clone(), list);
        self.order.push_back(tenant.clone());
        true
    }

    /// Moves the sessions of the next turn into `turn`.
    fn next(&mut self, turn: &mut Vec<T>) -> Option<Next> {
        let tenant = self.order.pop_front()?;
        let list = self.tenants.get_mut(&tenant)?;
        let was_full = list.is_full();
        turn.extend(list.sessions.drain(..list.sessions.len().min(TURN)));
        let is_empty = list.sessions.is_empty();
        if is_empty {
            self.tenants.remove(&tenant);
        } else {
            self.order.push_back(tenant.clone());
        }
        Some(Next { tenant, is_free: is_empty && was_full, more: !self.order.is_empty() })
    }
}

impl<T> List<T> {
    fn add(&mut self, sessions: impl IntoIterator<Item = T>, copies: u64) {
        self.sessions.extend(sessions);
        self.most = self.most.max(self.sessions.len());
        self.copies += copies;
    }

    fn is_full(&self) -> bool {
        self.copies >= FEW_COPIES.max(self.most as u64 * FRAMES)
    }
}

/// Runs until `stop`, as one of several.
pub(crate) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let writers = &shared.writers;
    let mut turn = Vec::with_capacity(TURN);
    while !stop.is_cancelled() {
        let next = writers.lists.lock().next(&mut turn);
        let Some(Next { tenant, is_free, more }) = next else {
            tokio::select! {
                () = stop.cancelled() => {}
                () = writers.filled.notified() => {}
            }
            continue;
        };
        if more {
            // Another one may have nothing to do.
            writers.filled.notify_one();
        }
        let rest: Vec<_> = turn.drain(..).filter(write).collect();
        if !rest.is_empty() {
            writers.add(&tenant, rest, 0);
        }
        if is_free {
            shared.feeder.wake();
        }
        tokio::task::yield_now().await;
    }
}

/// Whether there is more to be written.
fn write(session: &Arc<Session>) -> bool {
    match session.outbox.write(&session.shared.stats.latency) {
        Wrote::Enough => session.drained(),
        Wrote::More => return true,
        Wrote::Broken => session.close(Closing::Lost),
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).expect("a name")
    }

    /// Whose the next turn is, and how many sessions it has.
    fn turn(lists: &mut Lists<usize>) -> (Option<Next>, usize) {
        let mut turn = Vec::new();
        (lists.next(&mut turn), turn.len())
    }

    #[test]
    fn a_quiet_tenant_waits_for_one_turn_of_a_large_fan_out() {
        let (noisy, quiet) = (tenant("noisy"), tenant("quiet"));
        let mut lists = Lists::default();
        assert!(lists.add(&noisy, 0..10 * TURN, 0));
        assert_eq!(turn(&mut lists).1, TURN);
        assert!(lists.add(&quiet, 0..3, 3));
        assert!(!lists.add(&noisy, 0..5, 5), "it is on the list");
        let mut found = Vec::new();
        while let (Some(next), sessions) = turn(&mut lists) {
            found.push((next.tenant, sessions));
        }
        assert_eq!(found[1], (quiet, 3));
        assert_eq!(found.iter().map(|(_, sessions)| sessions).sum::<usize>(), 9 * TURN + 5 + 3, "nobody is forgotten");
    }

    #[test]
    fn who_has_much_on_the_way_is_full_until_the_list_is_empty() {
        let noisy = tenant("noisy");
        let mut lists = Lists::default();
        let is_full = |lists: &Lists<usize>| lists.tenants.get(&noisy).is_some_and(List::is_full);
        lists.add(&noisy, 0..2 * TURN, FEW_COPIES - 1);
        assert!(!is_full(&lists));
        lists.add(&noisy, [], 1);
        assert!(is_full(&lists));
        let next = |is_free, more| Some(Next { tenant: noisy.clone(), is_free, more });
        assert_eq!(turn(&mut lists).0, next(false, true));
        assert!(is_full(&lists));
        assert_eq!(turn(&mut lists).0, next(true, false));
        assert!(!is_full(&lists));
        assert_eq!(turn(&mut lists), (None, 0));
        assert!(!lists.add(&noisy, [], 1), "nobody is to be written to");
    }

    #[test]
    fn each_session_of_a_large_room_may_have_several_frames() {
        let noisy = tenant("noisy");
        let mut lists = Lists::default();
        let sessions = 10_000;
        lists.add(&noisy, 0..sessions, sessions as u64 * (FRAMES - 1));
        assert!(!lists.tenants[&noisy].is_full());
        lists.add(&noisy, [], sessions as u64);
        assert!(lists.tenants[&noisy].is_full());
    }
}
