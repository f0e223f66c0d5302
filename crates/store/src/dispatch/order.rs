//! The order of the tenants: stride scheduling (Waldspurger and Weihl, 1995).
//!
//! Each turn moves a tenant on by a stride, and the tenant that has moved least is next. A tenant of weight 3 has a third of the
//! stride, so it gets three times the turns. Only tenants that may start a job stand here.

use std::collections::BTreeMap;

use crate::rows::NameId;

/// The stride of weight 1. Every weight up to 16 divides it, so their shares are exact; those of larger ones are within 0.2 %.
/// A queue that gives 100,000 turns a second for years does not come to the end of the numbers.
const STRIDE: u64 = 720_720;

/// How far a tenant has moved at a priority. Of two that have moved as far, the one that came to stand there first is next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    pass: u64,
    number: u64,
}

/// The tenants that wait for their turn, by priority and type.
#[derive(Default)]
pub(super) struct Order {
    rings: BTreeMap<NameId, [BTreeMap<Turn, NameId>; 5]>,
    /// How many entries each priority has in all types.
    entries: [usize; 5],
    /// How far the tenant whose turn was last had moved: nobody who comes to a priority stands before it.
    reached: [u64; 5],
    /// The number of the last turn that was made.
    number: u64,
}

impl Order {
    /// The turn of a tenant that comes anew: one stride ahead of what has been reached, so behind those who wait.
    pub(super) fn anew(&mut self, priority: u8, weight: u32) -> Turn {
        self.moved(Turn::default(), priority, weight)
    }

    /// The turn of a tenant that was held: where it stood, but not before what has been reached meanwhile.
    pub(super) fn back(&self, turn: Turn, priority: u8) -> Turn {
        Turn { pass: turn.pass.max(self.reached[index(priority)]), ..turn }
    }

    /// The turn that follows `turn`, which was given.
    pub(super) fn given(&mut self, turn: Turn, priority: u8, weight: u32) -> Turn {
        let reached = &mut self.reached[index(priority)];
        *reached = turn.pass.max(*reached);
        self.moved(turn, priority, weight)
    }

    /// The turn that follows `turn`, which was given in a row with the one before it: others still stand where that one was.
    pub(super) fn given_again(&mut self, turn: Turn, priority: u8, weight: u32) -> Turn {
        self.moved(turn, priority, weight)
    }

    fn moved(&mut self, turn: Turn, priority: u8, weight: u32) -> Turn {
        self.number += 1;
        // A tenant whose types nobody took for a while does not make up for it: it has not waited for its turn but for a worker.
        let pass = turn.pass.max(self.reached[index(priority)]) + STRIDE / u64::from(weight);
        Turn { pass, number: self.number }
    }

    /// Puts a tenant in.
    pub(super) fn insert(&mut self, kind: NameId, priority: u8, turn: Turn, tenant: NameId) {
        if self.rings.entry(kind).or_default()[index(priority)].insert(turn, tenant).is_none() {
            self.entries[index(priority)] += 1;
        }
    }

    /// Takes a tenant out.
    pub(super) fn remove(&mut self, kind: NameId, priority: u8, turn: Turn) {
        if let Some(rings) = self.rings.get_mut(&kind)
            && rings[index(priority)].remove(&turn).is_some()
        {
            self.entries[index(priority)] -= 1;
        }
    }

    /// The tenant whose turn it is among those that will do and have jobs of the types wanted; no types means all.
    pub(super) fn first(&self, priority: u8, kinds: &[NameId], will_do: impl Fn(NameId) -> bool) -> Option<NameId> {
        if self.entries[index(priority)] == 0 {
            return None;
        }
        let wanted = self.rings.iter().filter(|(kind, _)| kinds.is_empty() || kinds.contains(kind));
        let first = wanted
            .filter_map(|(_, rings)| rings[index(priority)].iter().find(|(_, tenant)| will_do(**tenant)))
            .min()?;
        Some(*first.1)
    }
}

fn index(priority: u8) -> usize {
    usize::from(priority - 1)
}
