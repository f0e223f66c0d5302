//! What waits for the relay, and whose turn it is: a queue per tenant, deficit round robin between them.
//!
//! A tenant that floods takes its turn like any other and then waits for all who came meanwhile. The room for what waits is shared: a
//! tenant may have as much waiting as it leaves free. So one alone gets half of it, nine get a tenth each, and somebody new always finds
//! some. Who is over its share falls behind: nothing more of it is taken until what it has waiting is gone, and the log has the rest.

use std::collections::{HashMap, VecDeque};

use tidewire_core::TenantId;
use tidewire_core::event::Position;

/// What a tenant may spend in one turn: a point for each event, and one for each socket that is looked at. An event is never cut in two;
/// what it costs over the turn is taken off the next ones.
pub(crate) const TURN: u64 = 1_024;

/// The most that may wait, of all tenants together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub(crate) events: usize,
    /// Of data.
    pub(crate) bytes: usize,
}

/// Queues of tenants that have something waiting. `T` is what waits.
#[derive(Debug)]
pub(crate) struct Turns<T> {
    tenants: HashMap<TenantId, Waiting<T>>,
    /// Every tenant that waits, once; the first one's turn it is.
    order: VecDeque<TenantId>,
    events: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Waiting<T> {
    /// Each with its bytes.
    items: VecDeque<(T, usize)>,
    bytes: usize,
    /// Something did not fit: nothing is taken until `items` is empty, then the tenant has to be compared with its log.
    lagged: bool,
    /// How far the log has to be read before anything else.
    goal: Option<Position>,
    credit: i64,
    /// What the last event cost.
    price: u64,
}

/// What comes next for a tenant.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Work<T> {
    Item(T),
    /// The log is to be read up to here, about so many events of it in this turn. Comes again until [`Turns::reached`].
    Read(Position, u32),
    /// Events were refused: the log has everything up to its head.
    Compare,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { tenants: HashMap::new(), order: VecDeque::new(), events: 0, bytes: 0 }
    }
}

impl<T> Turns<T> {
    /// Queues an item behind those of its tenant, or gives it back: there is no room for it, or its tenant is behind.
    pub(crate) fn push(&mut self, tenant: &TenantId, item: T, bytes: usize, room: Room) -> Result<(), T> {
        let (events, free) = (room.events.saturating_sub(self.events), room.bytes.saturating_sub(self.bytes));
        let waiting = self.tenants.get(tenant);
        if waiting.is_some_and(|waiting| waiting.lagged)
            || waiting.map_or(0, |waiting| waiting.items.len()) >= events
            || waiting.map_or(0, |waiting| waiting.bytes) + bytes > free
        {
            return Err(item);
        }
        let waiting = self.of(tenant);
        waiting.items.push_back((item, bytes));
        waiting.bytes += bytes;
        self.events += 1;
        self.bytes += bytes;
        Ok(())
    }

    /// The tenant falls behind: something of it that is in the log was given back. Whether it was not behind before.
    pub(crate) fn lag(&mut self, tenant: &TenantId) -> bool {
        !std::mem::replace(&mut self.of(tenant).lagged, true)
    }

    /// From now on the log is read before anything else of this tenant is handed out.
    pub(crate) fn aim(&mut self, tenant: &TenantId, goal: Position) {
        let waiting = self.of(tenant);
        waiting.goal = waiting.goal.max(Some(goal));
    }

    /// The log was read as far as it had to be, or cannot be read now.
    pub(crate) fn reached(&mut self, tenant: &TenantId) {
        if let Some(waiting) = self.tenants.get_mut(tenant) {
            waiting.goal = None;
        }
    }

    /// What is to be done next, and for whom; who is `full` is passed over. It is to be paid for with [`Turns::spend`].
    pub(crate) fn next(&mut self, full: impl Fn(&TenantId) -> bool) -> Option<(TenantId, Work<T>)> {
        let mut passed = 0;
        loop {
            let id = self.order.front().filter(|_| passed < self.order.len())?;
            let waiting = self.tenants.get_mut(id)?;
            if waiting.is_done() {
                self.tenants.remove(id);
                self.order.pop_front();
                continue;
            }
            if full(id) {
                passed += 1;
                self.order.rotate_left(1);
                continue;
            }
            if waiting.credit <= 0 {
                passed = 0;
                waiting.credit = waiting.credit.saturating_add_unsigned(TURN);
                self.order.rotate_left(1);
                continue;
            }
            if let Some(goal) = waiting.goal {
                // So many as it can pay for, or what was read for nothing would be read again.
                let events = waiting.credit.unsigned_abs() / waiting.price.max(1);
                return Some((id.clone(), Work::Read(goal, u32::try_from(events.max(1)).unwrap_or(u32::MAX))));
            }
            let Some((item, bytes)) = waiting.items.pop_front() else {
                waiting.lagged = false;
                return Some((id.clone(), Work::Compare));
            };
            waiting.bytes -= bytes;
            self.events -= 1;
            self.bytes -= bytes;
            return Some((id.clone(), Work::Item(item)));
        }
    }

    /// Takes what an event cost off the turn of the tenant that [`Turns::next`] answered. Whether the turn goes on.
    pub(crate) fn spend(&mut self, price: u64) -> bool {
        let current = self.order.front().and_then(|id| self.tenants.get_mut(id));
        current.is_some_and(|waiting| {
            waiting.price = price;
            waiting.credit = waiting.credit.saturating_sub_unsigned(price);
            waiting.credit > 0
        })
    }

    /// About what a tenant will spend until nothing of it waits, as far as that is known.
    pub(crate) fn debt(&self, tenant: &TenantId) -> u64 {
        let Some(waiting) = self.tenants.get(tenant) else { return 0 };
        if waiting.lagged || waiting.goal.is_some() {
            u64::MAX
        } else {
            waiting.price.saturating_mul(waiting.items.len() as u64)
        }
    }

    fn of(&mut self, tenant: &TenantId) -> &mut Waiting<T> {
        if !self.tenants.contains_key(tenant) {
            self.order.push_back(tenant.clone());
        }
        self.tenants.entry(tenant.clone()).or_default()
    }
}

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        let credit = TURN.cast_signed();
        Self { items: VecDeque::new(), bytes: 0, lagged: false, goal: None, credit, price: 1 }
    }
}

impl<T> Waiting<T> {
    fn is_done(&self) -> bool {
        self.items.is_empty() && !self.lagged && self.goal.is_none()
    }
}

#[cfg(test)]
mod tests;
