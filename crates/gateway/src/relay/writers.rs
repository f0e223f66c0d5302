//! Who writes events to the connections, in turns between tenants.
//!
//! The relay queues copies and puts their sessions on the list of the tenant whose event it is. A writer takes some sessions of the tenant
//! whose turn it is, makes one write for each, and lets other tasks run. So a quiet tenant waits for a part of another's fan-out and
//! not for all of it, and requests are read in between. There is a writer for each thread of the runtime.
//!
//! A session is on a list once, however many frames wait for it; that is what makes writes large under load. So that the relay does not run
//! ahead for ever, a tenant with [`MOST_COPIES`] on the way waits until its list is empty.

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
/// How many copies of a tenant may be on the way. Large, so that a session gets many frames in one write.
const MOST_COPIES: u64 = 16_384;

/// Sessions that have something to be written.
#[derive(Default)]
pub(crate) struct Writers {
    lists: Mutex<Lists>,
    filled: Notify,
}

#[derive(Default)]
struct Lists {
    tenants: HashMap<TenantId, List>,
    /// Every tenant that has a list, once; the first one's turn it is.
    order: VecDeque<TenantId>,
}

#[derive(Default)]
struct List {
    sessions: VecDeque<Arc<Session>>,
    /// Copies that were queued since the list began.
    copies: u64,
}

impl Writers {
    /// Has sessions written to which an event of this tenant, `copies` in all, was queued for.
    pub(crate) fn add(&self, tenant: &TenantId, sessions: impl IntoIterator<Item = Arc<Session>>, copies: u64) {
        let mut lists = self.lists.lock();
        let Lists { tenants, order } = &mut *lists;
        if let Some(list) = tenants.get_mut(tenant) {
            list.sessions.extend(sessions);
            list.copies += copies;
            return;
        }
        let sessions: VecDeque<_> = sessions.into_iter().collect();
        if sessions.is_empty() {
            return;
        }
        tenants.insert(tenant.clone(), List { sessions, copies });
        order.push_back(tenant.clone());
        drop(lists);
        self.filled.notify_one();
    }

    /// Whether a tenant has as much on the way as it may. The relay is told when it has not any more.
    pub(crate) fn is_full(&self, tenant: &TenantId) -> bool {
        self.lists.lock().tenants.get(tenant).is_some_and(|list| list.copies >= MOST_COPIES)
    }

    /// Moves the sessions of the next turn into `turn`. `None` when there is no tenant; else whether there is more to do.
    fn next(&self, turn: &mut Vec<Arc<Session>>) -> Option<Next> {
        let mut lists = self.lists.lock();
        let Lists { tenants, order } = &mut *lists;
        let tenant = order.pop_front()?;
        let list = tenants.get_mut(&tenant)?;
        turn.extend(list.sessions.drain(..list.sessions.len().min(TURN)));
        let was_full = list.copies >= MOST_COPIES;
        let is_empty = list.sessions.is_empty();
        if is_empty {
            tenants.remove(&tenant);
        } else {
            order.push_back(tenant.clone());
        }
        Some(Next { tenant, is_free: is_empty && was_full, more: !order.is_empty() })
    }
}

struct Next {
    tenant: TenantId,
    /// The relay may go on with this tenant.
    is_free: bool,
    /// Somebody's sessions wait.
    more: bool,
}

/// Runs until `stop`, as one of several.
pub(crate) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let writers = &shared.writers;
    let mut turn = Vec::with_capacity(TURN);
    while !stop.is_cancelled() {
        let Some(Next { tenant, is_free, more }) = writers.next(&mut turn) else {
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
