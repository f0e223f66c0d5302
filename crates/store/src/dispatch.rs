//! Which job is next: the dispatch heads.
//!
//! Pending jobs wait in lanes, one for each queue, type, priority and tenant. Memory holds the first [`WINDOW`] places of each lane;
//! the rest stays on disk and is read when the window has drained. Inside a priority tenants take turns by their weights, whatever
//! the types of their jobs are, so that each gets its turn however long the line of another is.
//!
//! A tenant that may not start a job is taken out of the order when its turn comes, and put back when what held it is over. So it
//! costs one look for each time that it is held, however many are held and however long.

mod order;
mod tenant;

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tidewire_core::Timestamp;
use tidewire_core::limit::RateState;
use tidewire_core::store::{QueueLimits, TenantLimits};

use self::order::Order;
use self::tenant::{Bounds, Hold, Tenant};
use crate::rows::{Keys, LaneKey, NameId, Place};

/// How many places of a lane are held in memory: 4 KiB, so that 10,000 tenants with long lanes take 40 MiB.
pub(crate) const WINDOW: usize = 256;

/// How long a queue counts as one of several tenants after jobs of two of them began.
const SHARED_FOR: Duration = Duration::from_secs(60);

/// How many idle tenants a queue remembers beyond twice those that are not, before they are forgotten together.
const IDLE_SLACK: usize = 1_024;

/// The heads of every queue.
#[derive(Default)]
pub(crate) struct Dispatch {
    queues: HashMap<NameId, QueueHeads>,
}

/// One queue: its tenants with their lanes, what runs, and its limits.
#[derive(Default)]
struct QueueHeads {
    tenants: HashMap<NameId, Tenant>,
    /// The tenants with work that are not held.
    order: Order,
    /// Who had the last turn, at which priority, and how many in a row.
    last: Option<(NameId, u8, u32)>,
    limits: Option<QueueLimits>,
    tenant_limits: HashMap<NameId, TenantLimits>,
    rate: RateState,
    running: u32,
    /// Whose job began last, and when one began that was of another tenant than the one before.
    began: Option<NameId>,
    mixed: Option<Timestamp>,
    /// Lanes that may have pending jobs.
    ready_lanes: usize,
    /// How many tenants with work are held.
    held: usize,
    /// When the tenants that their rate holds may go on.
    releases: BTreeSet<(Timestamp, NameId)>,
    /// The time when somebody last asked.
    now: Timestamp,
    /// How many tenants there are when idle ones are forgotten.
    sweep_at: usize,
    /// How many tenants were looked at, for tests of what a look costs.
    #[cfg(test)]
    looks: usize,
}

/// What a look for the next job found.
pub(crate) enum Found {
    /// The job that became pending with this place and priority is next. It may have moved on since; the row decides.
    Job(Place, u8),
    /// The window of this lane has drained; read more.
    Refill(LaneKey),
    /// The queue is at a limit, or each tenant with work is: until then, or until a job ends or the limits change.
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
    /// Only of tenants of which none runs, in a queue that serves several.
    pub(crate) reserved: bool,
}

/// The lane whose job may be next, and its first place unless its window has drained.
struct Candidate {
    tenant: NameId,
    priority: u8,
    kind: NameId,
    head: Option<Place>,
}

impl Dispatch {
    /// Sets what is enforced for a queue, and for tenants in it. Holds for what starts from now on.
    pub(crate) fn limit(&mut self, queue: NameId, limits: QueueLimits, tenants: HashMap<NameId, TenantLimits>) {
        let heads = self.queues.entry(queue).or_default();
        heads.limits = Some(limits);
        heads.tenant_limits = tenants;
        heads.put_all_back(|_| true);
    }

    /// What is enforced for a queue.
    pub(crate) fn limits(&self, queue: NameId) -> Option<&QueueLimits> {
        self.queues.get(&queue)?.limits.as_ref()
    }

    /// Every queue that may have pending jobs.
    pub(crate) fn ready(&self) -> impl Iterator<Item = NameId> + '_ {
        self.queues.iter().filter(|(_, heads)| heads.ready_lanes > 0).map(|(queue, _)| *queue)
    }

    /// How many lanes of a queue may have pending jobs.
    pub(crate) fn lanes(&self, queue: NameId) -> usize {
        self.queues.get(&queue).map_or(0, |heads| heads.ready_lanes)
    }

    /// Whether a queue may have pending jobs.
    pub(crate) fn is_ready(&self, queue: NameId) -> bool {
        self.lanes(queue) > 0
    }

    /// When the oldest job, of a tenant or of all, became due whose place is known. Jobs that nobody has read since the start are not known.
    pub(crate) fn oldest(&self, queue: NameId, tenant: Option<NameId>) -> Option<i64> {
        let tenants =
            self.queues.get(&queue)?.tenants.iter().filter(|(id, _)| tenant.is_none_or(|tenant| tenant == **id));
        let lanes = tenants.flat_map(|(_, tenant)| tenant.lanes());
        lanes.filter_map(|lane| Some(lane.head()?.0)).min()
    }

    /// A job became pending.
    pub(crate) fn push(&mut self, lane: LaneKey, place: Place) {
        self.queues.entry(lane.keys.queue).or_default().add(lane, Some(place));
    }

    /// A lane has pending jobs on disk, how many is not known.
    pub(crate) fn push_unread(&mut self, lane: LaneKey) {
        self.queues.entry(lane.keys.queue).or_default().add(lane, None);
    }

    /// What was read from disk for a lane: its first places, at most [`WINDOW`].
    pub(crate) fn refill(&mut self, lane: LaneKey, places: Vec<Place>) {
        let (Keys { tenant, queue, kind }, priority) = (lane.keys, lane.priority);
        let Some(heads) = self.queues.get_mut(&queue) else { return };
        let Some(known) = heads.tenants.get_mut(&tenant).and_then(|tenant| tenant.known(priority, kind)) else {
            return;
        };
        known.refill(places);
        if known.is_over() {
            heads.drop_lane(tenant, priority, kind);
        }
    }

    /// The next job of `queue` for a worker, by priority, then by the tenants' turns, then first in first out. With `aging`, a
    /// priority's next job counts as of a better one the longer it has waited.
    ///
    /// A worker of one tenant gets that tenant's next job, within the same limits, and uses none of its turns. Others get up to
    /// `in_a_row` jobs of a tenant one after the other, which moves it on by as many turns.
    pub(crate) fn next(&mut self, queue: NameId, wanted: &Wanted, in_a_row: u32, now: Timestamp) -> Found {
        self.queues.get_mut(&queue).map_or(Found::Nothing, |heads| heads.next(queue, wanted, in_a_row, now))
    }

    /// A job of the queue was leased: it counts for the limits of what runs at once, and only now for the rates.
    pub(crate) fn started(&mut self, queue: NameId, tenant: NameId, now: Timestamp) {
        self.queues.entry(queue).or_default().started(tenant, now);
    }

    /// A leased job of the queue ended or went back.
    pub(crate) fn ended(&mut self, queue: NameId, tenant: NameId) {
        let Some(heads) = self.queues.get_mut(&queue) else { return };
        heads.running = heads.running.saturating_sub(1);
        let Some(known) = heads.tenants.get_mut(&tenant) else { return };
        known.running = known.running.saturating_sub(1);
        if known.held == Some(Hold::AtOnce) {
            heads.put_back(tenant);
        }
    }
}

impl QueueHeads {
    fn next(&mut self, queue: NameId, wanted: &Wanted, in_a_row: u32, now: Timestamp) -> Found {
        if self.ready_lanes == 0 {
            return Found::Nothing;
        }
        let limits = self.limits.as_ref();
        let is_full = limits.and_then(|limits| limits.global).is_some_and(|global| self.running >= global);
        if is_full || limits.is_some_and(|limits| limits.paused) {
            return Found::Held(None);
        }
        self.release(now);
        // What is kept for others is only kept while there are others.
        let shared_until = self.mixed.map(|mixed| mixed + SHARED_FOR).filter(|until| wanted.reserved && *until > now);
        let Some(Candidate { tenant, priority, kind, head }) =
            self.choose(wanted, shared_until.is_some(), in_a_row, now)
        else {
            return self.nothing(wanted, shared_until);
        };
        let Some(place) = head else {
            return Found::Refill(LaneKey { keys: Keys { tenant, queue, kind }, priority });
        };
        if let Some(rate) = self.limits.as_ref().and_then(|limits| limits.rate) {
            let mut looked_at = self.rate;
            if let Err(at) = rate.take(&mut looked_at, now) {
                // It took nothing, but it knows when the clock was set back.
                self.rate = looked_at;
                return Found::Held(Some(at));
            }
        }
        if wanted.tenant.is_none() {
            self.pass_turn(tenant, priority, in_a_row);
        }
        let lane = self.tenants.get_mut(&tenant).and_then(|tenant| tenant.known(priority, kind));
        if lane.is_some_and(|lane| {
            lane.pop();
            lane.is_over()
        }) {
            self.drop_lane(tenant, priority, kind);
        }
        Found::Job(place, priority)
    }

    /// Why there is no job for a worker: those that it wants may be held.
    fn nothing(&self, wanted: &Wanted, shared_until: Option<Timestamp>) -> Found {
        let Some(tenant) = wanted.tenant else {
            let until = self.releases.first().map(|(at, _)| *at).into_iter().chain(shared_until).min();
            return if self.held > 0 || shared_until.is_some() { Found::Held(until) } else { Found::Nothing };
        };
        match self.tenants.get(&tenant).and_then(|tenant| tenant.held) {
            Some(Hold::Rate(at)) => Found::Held(Some(at)),
            Some(Hold::Paused | Hold::AtOnce) => Found::Held(None),
            None => Found::Nothing,
        }
    }

    /// The job that is next: the first priority's, or with aging the one of the five that has come to the best priority, and of two
    /// the older. A lane that has to be read before its age is known comes before all.
    fn choose(&mut self, wanted: &Wanted, idle_only: bool, in_a_row: u32, now: Timestamp) -> Option<Candidate> {
        let aging = self.limits.as_ref().and_then(|limits| limits.aging).map_or(0, |aging| aging.as_micros());
        let mut best: Option<((u128, i64), Candidate)> = None;
        for priority in 1..=5 {
            let Some(candidate) = self.candidate(priority, wanted, idle_only, in_a_row, now) else { continue };
            let Some((due, _)) = candidate.head.filter(|_| aging > 0) else { return Some(candidate) };
            let gained = now.since(Timestamp::from_micros(due)).as_micros() / aging;
            let rank = (u128::from(priority).saturating_sub(gained).max(1), due);
            if best.as_ref().is_none_or(|(than, _)| rank < *than) {
                best = Some((rank, candidate));
            }
        }
        best.map(|(_, candidate)| candidate)
    }

    /// The lane whose turn it is at a priority: of the first tenant in the order that is not held back, the one whose head is oldest.
    fn candidate(
        &mut self,
        priority: u8,
        wanted: &Wanted,
        idle_only: bool,
        in_a_row: u32,
        now: Timestamp,
    ) -> Option<Candidate> {
        loop {
            let tenant = match wanted.tenant {
                Some(tenant) => tenant,
                // At most as many are passed over as jobs run.
                None if idle_only => {
                    let is_idle = |id: NameId| self.tenants.get(&id).is_some_and(|tenant| tenant.running == 0);
                    self.order.first(priority, &wanted.kinds, is_idle)?
                }
                None => self
                    .staying(priority, wanted, in_a_row)
                    .or_else(|| self.order.first(priority, &wanted.kinds, |_| true))?,
            };
            #[cfg(test)]
            {
                self.looks += 1;
            }
            let bounds = self.bounds(tenant);
            let known = self.tenants.get_mut(&tenant).filter(|known| known.held.is_none())?;
            let (head, kind) = known.oldest(priority, &wanted.kinds)?;
            match known.held_by(&bounds, now) {
                None => return Some(Candidate { tenant, priority, kind, head }),
                Some(hold) => self.hold(tenant, hold),
            }
        }
    }

    /// The tenant whose turn it was, while the worker takes more of its jobs.
    fn staying(&self, priority: u8, wanted: &Wanted, in_a_row: u32) -> Option<NameId> {
        let (tenant, _, _) = self.last.filter(|(_, at, count)| *at == priority && *count < in_a_row)?;
        let known = self.tenants.get(&tenant).filter(|known| known.held.is_none())?;
        known.oldest(priority, &wanted.kinds).map(|_| tenant)
    }

    fn bounds(&self, tenant: NameId) -> Bounds {
        let (queue, own) = (self.limits.as_ref(), self.tenant_limits.get(&tenant));
        let weight = own.and_then(|own| own.weight).unwrap_or(1);
        Bounds {
            weight: weight.clamp(1, TenantLimits::MAX_WEIGHT),
            at_once: own.and_then(|own| own.at_once).or_else(|| queue?.per_tenant),
            rate: own.and_then(|own| own.rate).or_else(|| queue?.rate_per_tenant),
            paused: own.is_some_and(|own| own.paused),
        }
    }

    /// Adds a place to a lane, or a lane of which nothing is known yet. A tenant that had no lane of this priority stands behind the
    /// others.
    fn add(&mut self, LaneKey { keys: Keys { tenant, kind, .. }, priority }: LaneKey, place: Option<Place>) {
        if self.tenants.len() >= self.sweep_at {
            self.tenants.retain(|_, tenant| !tenant.is_idle(self.now));
            self.sweep_at = 2 * self.tenants.len() + IDLE_SLACK;
        }
        let weight = self.bounds(tenant).weight;
        let known = self.tenants.entry(tenant).or_default();
        let is_first = known.lanes_of(priority).is_empty();
        let (lane, is_new) = known.lane(priority, kind, place.is_some());
        if let Some(place) = place {
            lane.push(place);
        }
        if !is_new {
            return;
        }
        self.ready_lanes += 1;
        let turn = &mut known.turns[usize::from(priority - 1)];
        if is_first {
            *turn = self.order.anew(priority, weight);
            self.last = self.last.filter(|(last, at, _)| (*last, *at) != (tenant, priority));
        }
        if known.held.is_none() {
            self.order.insert(kind, priority, *turn, tenant);
        }
    }

    /// Forgets a lane that has no more jobs.
    fn drop_lane(&mut self, tenant: NameId, priority: u8, kind: NameId) {
        let Some(known) = self.tenants.get_mut(&tenant) else { return };
        self.order.remove(kind, priority, known.turns[usize::from(priority - 1)]);
        known.remove(priority, kind);
        self.ready_lanes -= 1;
    }

    /// A tenant has had its turn at a priority, in all its types.
    fn pass_turn(&mut self, tenant: NameId, priority: u8, in_a_row: u32) {
        let row = self.last.filter(|(last, at, count)| (*last, *at) == (tenant, priority) && *count < in_a_row);
        self.last = Some((tenant, priority, row.map_or(0, |(_, _, count)| count) + 1));
        let weight = self.bounds(tenant).weight;
        let Some(known) = self.tenants.get_mut(&tenant) else { return };
        let before = known.turns[usize::from(priority - 1)];
        let after = match row {
            Some(_) => self.order.given_again(before, priority, weight),
            None => self.order.given(before, priority, weight),
        };
        known.turns[usize::from(priority - 1)] = after;
        for lane in known.lanes_of(priority) {
            self.order.remove(lane.kind, priority, before);
            self.order.insert(lane.kind, priority, after, tenant);
        }
    }

    /// Takes a tenant out of the order.
    fn hold(&mut self, tenant: NameId, hold: Hold) {
        let Some(known) = self.tenants.get_mut(&tenant) else { return };
        known.held = Some(hold);
        self.held += 1;
        for lane in known.lanes() {
            self.order.remove(lane.kind, lane.priority, known.turns[usize::from(lane.priority - 1)]);
        }
        if let Hold::Rate(at) = hold {
            self.releases.insert((at, tenant));
        }
    }

    /// Puts a tenant that was held where it stood, but not before those whose turn it has been meanwhile.
    fn put_back(&mut self, tenant: NameId) {
        let Some(known) = self.tenants.get_mut(&tenant) else { return };
        let Some(hold) = known.held.take() else { return };
        self.held -= 1;
        if let Hold::Rate(at) = hold {
            self.releases.remove(&(at, tenant));
        }
        for priority in 1..=5 {
            let turn = &mut known.turns[usize::from(priority - 1)];
            *turn = self.order.back(*turn, priority);
        }
        for lane in known.lanes() {
            self.order.insert(lane.kind, lane.priority, known.turns[usize::from(lane.priority - 1)], tenant);
        }
    }

    /// Puts back every tenant whose hold is meant. What still holds is found again when its turn comes.
    fn put_all_back(&mut self, is_meant: impl Fn(Hold) -> bool) {
        let held = self.tenants.iter().filter(|(_, tenant)| tenant.held.is_some_and(&is_meant));
        let held: Vec<NameId> = held.map(|(tenant, _)| *tenant).collect();
        held.into_iter().for_each(|tenant| self.put_back(tenant));
    }

    /// Puts back the tenants whose rate allows a start again.
    fn release(&mut self, now: Timestamp) {
        if now < self.now {
            // The clock was set back: the times of release are too late now.
            self.put_all_back(|hold| matches!(hold, Hold::Rate(_)));
        }
        self.now = now;
        while let Some((at, tenant)) = self.releases.first().copied() {
            if at > now {
                break;
            }
            self.put_back(tenant);
        }
    }

    fn started(&mut self, tenant: NameId, now: Timestamp) {
        let bounds = self.bounds(tenant);
        self.running += 1;
        if self.began.replace(tenant).is_some_and(|before| before != tenant) {
            self.mixed = Some(now);
        }
        let known = self.tenants.entry(tenant).or_default();
        known.running += 1;
        // Both were looked at before; a job that a restart finds running takes what is there.
        if let Some(rate) = bounds.rate {
            let _ = rate.take(&mut known.rate, now);
            known.fresh_from = now + rate.per;
        }
        if let Some(rate) = self.limits.as_ref().and_then(|limits| limits.rate) {
            let _ = rate.take(&mut self.rate, now);
        }
    }
}

#[cfg(test)]
mod tests;
