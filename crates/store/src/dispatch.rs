//! Which job is next: the dispatch heads.
//!
//! Pending jobs wait in lanes, one for each queue, type, priority and tenant. Memory holds the first [`WINDOW`] places of each lane;
//! the rest stays on disk and is read when the window has drained. Inside a priority the tenant that had its turn longest ago is next,
//! whatever the types of its jobs are, so that each gets its turn however long the line of another is.

use std::collections::{BTreeMap, HashMap, VecDeque};

use tidewire_core::Timestamp;
use tidewire_core::limit::RateState;
use tidewire_core::store::QueueLimits;

use crate::rows::{Keys, LaneKey, NameId, Place};

/// How many places of a lane are held in memory.
pub(crate) const WINDOW: usize = 1_024;

/// The heads of every queue.
#[derive(Default)]
pub(crate) struct Dispatch {
    queues: HashMap<NameId, QueueHeads>,
}

/// One queue: its lanes, what runs, and its limits.
#[derive(Default)]
pub(crate) struct QueueHeads {
    types: BTreeMap<NameId, [Ring; 5]>,
    limits: Option<QueueLimits>,
    rate: RateState,
    running: u32,
    /// Lanes that may have pending jobs.
    ready_lanes: usize,
    /// The number of the last turn that was given.
    turn: u64,
}

/// The tenants that have pending jobs of one type and priority.
#[derive(Default)]
struct Ring {
    /// Tenants by the number of their last turn: the first had it longest ago.
    turns: BTreeMap<u64, NameId>,
    lanes: HashMap<NameId, Lane>,
}

/// The first places of one lane.
struct Lane {
    /// The last turn of its tenant, the same in all the tenant's lanes of one priority.
    turn: u64,
    window: VecDeque<Place>,
    /// Whether the window holds every pending job of the lane.
    complete: bool,
}

/// What a look for the next job found.
pub(crate) enum Found {
    /// The job that became pending with this place is next. It may have moved on since; the row decides.
    Job(Place),
    /// The window of this lane has drained; read more.
    Refill(LaneKey),
    /// The queue is at a limit until then.
    Held(Option<Timestamp>),
    /// Nothing is pending.
    Nothing,
}

/// Which jobs a worker takes.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) tenant: Option<NameId>,
    /// Empty means every queue.
    pub(crate) queues: Vec<NameId>,
    /// Empty means every type.
    pub(crate) kinds: Vec<NameId>,
}

impl Dispatch {
    /// Sets what is enforced for a queue.
    pub(crate) fn limit(&mut self, queue: NameId, limits: QueueLimits) {
        self.queues.entry(queue).or_default().limits = Some(limits);
    }

    /// What is enforced for a queue.
    pub(crate) fn limits(&self, queue: NameId) -> Option<&QueueLimits> {
        self.queues.get(&queue)?.limits.as_ref()
    }

    /// Every queue that may have pending jobs.
    pub(crate) fn ready(&self) -> impl Iterator<Item = NameId> + '_ {
        self.queues.iter().filter(|(_, heads)| heads.ready_lanes > 0).map(|(queue, _)| *queue)
    }

    /// Whether a queue may have pending jobs.
    pub(crate) fn is_ready(&self, queue: NameId) -> bool {
        self.queues.get(&queue).is_some_and(|heads| heads.ready_lanes > 0)
    }

    /// A job became pending.
    pub(crate) fn push(&mut self, lane: LaneKey, place: Place) {
        self.queues.entry(lane.keys.queue).or_default().lane(lane, true).push(place);
    }

    /// A lane has pending jobs on disk, how many is not known.
    pub(crate) fn push_unread(&mut self, lane: LaneKey) {
        self.queues.entry(lane.keys.queue).or_default().lane(lane, false);
    }

    /// What was read from disk for a lane: its first places, at most [`WINDOW`].
    pub(crate) fn refill(&mut self, lane: LaneKey, places: Vec<Place>) {
        let Some(heads) = self.queues.get_mut(&lane.keys.queue) else { return };
        let Some(rings) = heads.types.get_mut(&lane.keys.kind) else { return };
        let ring = &mut rings[usize::from(lane.priority - 1)];
        if places.is_empty() {
            ring.remove(lane.keys.tenant);
            heads.ready_lanes -= 1;
        } else if let Some(known) = ring.lanes.get_mut(&lane.keys.tenant) {
            known.complete = places.len() < WINDOW;
            known.window = places.into();
        }
    }

    /// The next job of `queue` for a worker, by priority, then by the tenants' turns, then first in first out.
    pub(crate) fn next(&mut self, queue: NameId, wanted: &Wanted, now: Timestamp) -> Found {
        let Some(heads) = self.queues.get_mut(&queue) else { return Found::Nothing };
        if heads.ready_lanes == 0 {
            return Found::Nothing;
        }
        let limits = heads.limits.as_ref();
        if limits.and_then(|limits| limits.global).is_some_and(|global| heads.running >= global) {
            return Found::Held(None);
        }
        for priority in 1..=5_u8 {
            let Some((kind, tenant)) = heads.first(priority, wanted) else { continue };
            let lane = LaneKey { keys: Keys { tenant, queue, kind }, priority };
            let rings = heads.types.get_mut(&kind).map(|rings| &mut rings[usize::from(priority - 1)]);
            let Some(ring) = rings else { continue };
            let Some(window) = ring.lanes.get_mut(&tenant) else { continue };
            if window.window.is_empty() {
                return Found::Refill(lane);
            }
            let mut looked_at = heads.rate;
            if let Some(rate) = limits.and_then(|limits| limits.rate)
                && let Err(at) = rate.take(&mut looked_at, now)
            {
                // It took nothing, but it knows when the clock was set back.
                heads.rate = looked_at;
                return Found::Held(Some(at));
            }
            let Some(place) = window.window.pop_front() else { continue };
            if window.window.is_empty() && window.complete {
                ring.remove(tenant);
                heads.ready_lanes -= 1;
            }
            if wanted.tenant.is_none() {
                heads.pass_turn(priority, tenant);
            }
            return Found::Job(place);
        }
        Found::Nothing
    }

    /// A job of the queue was leased: it counts for the global limit, and only now for the rate.
    pub(crate) fn started(&mut self, queue: NameId, now: Timestamp) {
        let heads = self.queues.entry(queue).or_default();
        heads.running += 1;
        if let Some(rate) = heads.limits.as_ref().and_then(|limits| limits.rate) {
            // It was looked at before; one that a restart finds running takes what is there.
            let _ = rate.take(&mut heads.rate, now);
        }
    }

    /// A leased job of the queue ended or went back.
    pub(crate) fn ended(&mut self, queue: NameId) {
        if let Some(heads) = self.queues.get_mut(&queue) {
            heads.running = heads.running.saturating_sub(1);
        }
    }
}

impl QueueHeads {
    /// The lane of this name. A new one is empty; `complete` says whether that is all of it. A tenant that had no lane of this
    /// priority stands behind all others.
    fn lane(&mut self, name: LaneKey, complete: bool) -> &mut Lane {
        let (index, tenant) = (usize::from(name.priority - 1), name.keys.tenant);
        let known = self.types.values().find_map(|rings| Some(rings[index].lanes.get(&tenant)?.turn));
        let ring = &mut self.types.entry(name.keys.kind).or_default()[index];
        ring.lanes.entry(tenant).or_insert_with(|| {
            let turn = known.unwrap_or(self.turn + 1);
            self.turn = self.turn.max(turn);
            self.ready_lanes += 1;
            ring.turns.insert(turn, tenant);
            Lane { turn, window: VecDeque::new(), complete }
        })
    }

    /// The type and tenant whose turn it is at a priority: of the tenants with jobs of the types wanted, the one that had its turn
    /// longest ago, and of its types the one whose head is oldest.
    fn first(&self, priority: u8, wanted: &Wanted) -> Option<(NameId, NameId)> {
        let wanted_kind = |kind: &NameId| wanted.kinds.is_empty() || wanted.kinds.contains(kind);
        let kinds = || self.types.iter().filter(|(kind, _)| wanted_kind(kind));
        let rings = || kinds().map(|(kind, rings)| (*kind, &rings[usize::from(priority - 1)]));
        let tenant = match wanted.tenant {
            Some(tenant) => tenant,
            None => *rings().filter_map(|(_, ring)| ring.turns.first_key_value()).min()?.1,
        };
        let heads = rings().filter_map(|(kind, ring)| {
            let lane = ring.lanes.get(&tenant)?;
            // A drained window is looked at first: only its rows know how old its head is.
            Some((lane.window.front().copied().unwrap_or((i64::MIN, 0)), kind))
        });
        heads.min().map(|(_, kind)| (kind, tenant))
    }

    /// A tenant has had its turn at a priority, in all its types.
    fn pass_turn(&mut self, priority: u8, tenant: NameId) {
        self.turn += 1;
        for rings in self.types.values_mut() {
            let ring = &mut rings[usize::from(priority - 1)];
            if let Some(lane) = ring.lanes.get_mut(&tenant) {
                ring.turns.remove(&lane.turn);
                lane.turn = self.turn;
                ring.turns.insert(self.turn, tenant);
            }
        }
    }
}

impl Ring {
    fn remove(&mut self, tenant: NameId) {
        if let Some(lane) = self.lanes.remove(&tenant) {
            self.turns.remove(&lane.turn);
        }
    }
}

impl Lane {
    /// Takes a place into the window, or leaves it to the disk when it belongs behind the window.
    fn push(&mut self, place: Place) {
        let belongs = self.complete || self.window.back().is_some_and(|last| place < *last);
        if !belongs {
            return;
        }
        match self.window.back() {
            Some(last) if place < *last => {
                let at = self.window.partition_point(|known| *known < place);
                self.window.insert(at, place);
            }
            _ => self.window.push_back(place),
        }
        if self.window.len() > WINDOW {
            self.window.pop_back();
            self.complete = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::Seq;

    const NOW: Timestamp = Timestamp::from_millis(1);

    fn lane(tenant: NameId, kind: NameId, priority: u8) -> LaneKey {
        LaneKey { keys: Keys { tenant, queue: 1, kind }, priority }
    }

    fn any() -> Wanted {
        Wanted { tenant: None, queues: vec![1], kinds: Vec::new() }
    }

    fn drain(dispatch: &mut Dispatch, wanted: &Wanted) -> Vec<Seq> {
        let mut seqs = Vec::new();
        while let Found::Job((_, seq)) = dispatch.next(1, wanted, NOW) {
            dispatch.started(1, NOW);
            seqs.push(seq);
        }
        seqs
    }

    #[test]
    fn priority_then_turns_then_first_in_first_out() {
        let mut dispatch = Dispatch::default();
        for (tenant, kind, priority, seq) in
            [(1, 1, 3, 10), (1, 1, 3, 11), (1, 2, 3, 12), (2, 1, 3, 13), (2, 1, 3, 14), (3, 1, 1, 15)]
        {
            dispatch.push(lane(tenant, kind, priority), (seq, seq));
        }
        assert_eq!(drain(&mut dispatch, &any()), [15, 10, 13, 11, 14, 12]);
    }

    #[test]
    fn a_worker_gets_only_its_types_and_its_tenant() {
        let mut dispatch = Dispatch::default();
        for (tenant, kind, seq) in [(1, 1, 10), (1, 2, 11), (2, 2, 12), (2, 1, 13)] {
            dispatch.push(lane(tenant, kind, 3), (seq, seq));
        }
        assert_eq!(drain(&mut dispatch, &Wanted { kinds: vec![2], tenant: Some(2), ..any() }), [12]);
        assert_eq!(drain(&mut dispatch, &Wanted { kinds: vec![2], ..any() }), [11]);
        assert_eq!(drain(&mut dispatch, &any()), [13, 10]);
    }

    #[test]
    fn a_long_lane_is_read_again_when_its_window_has_drained() {
        let mut dispatch = Dispatch::default();
        let total = WINDOW as i64 * 2;
        for seq in 0..total {
            dispatch.push(lane(1, 1, 3), (seq, seq));
        }
        assert_eq!(drain(&mut dispatch, &any()).len(), WINDOW);
        let Found::Refill(drained) = dispatch.next(1, &any(), NOW) else { panic!("more is on disk") };
        dispatch.refill(drained, (WINDOW as i64..total).map(|seq| (seq, seq)).collect());
        assert_eq!(drain(&mut dispatch, &any()).len(), WINDOW);
        let Found::Refill(drained) = dispatch.next(1, &any(), NOW) else { panic!("a full window may hide more") };
        dispatch.refill(drained, Vec::new());
        assert!(matches!(dispatch.next(1, &any(), NOW), Found::Nothing));
    }

    #[test]
    fn an_earlier_place_goes_into_an_incomplete_window_and_a_later_one_stays_on_disk() {
        let mut lane = Lane { turn: 1, window: (10..10 + WINDOW as i64).map(|n| (n, n)).collect(), complete: false };
        lane.push((5, 5));
        assert_eq!((lane.window.front(), lane.window.len()), (Some(&(5, 5)), WINDOW));
        lane.push((100_000, 1));
        assert_eq!(lane.window.len(), WINDOW);
    }

    #[test]
    fn the_global_limit_and_the_rate_hold_jobs_back() {
        let limits = |global, rate: Option<&str>| QueueLimits {
            global,
            rate: rate.map(|rate| rate.parse().expect("rate")),
            ..QueueLimits::default()
        };
        let mut dispatch = Dispatch::default();
        for seq in 0..4 {
            dispatch.push(lane(1, 1, 3), (seq, seq));
        }
        dispatch.limit(1, limits(Some(1), None));
        dispatch.started(1, NOW);
        assert!(matches!(dispatch.next(1, &any(), NOW), Found::Held(None)));
        dispatch.ended(1);
        dispatch.limit(1, limits(None, Some("2/s")));
        assert_eq!(drain(&mut dispatch, &any()), [0, 1]);
        assert!(matches!(dispatch.next(1, &any(), NOW), Found::Held(Some(at)) if at > NOW));
    }
}
