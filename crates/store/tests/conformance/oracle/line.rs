//! Who is next: the line of everything that became pending, the tenants' turns, and the rates.
//!
//! A job stands in the line at the place where it became pending. One that was taken back or changed meanwhile leaves its old place
//! behind, which uses a turn of its tenant like any other and gives no job.

use std::collections::BTreeMap;
use std::time::Duration;

use tidewire_core::Timestamp;
use tidewire_core::job::State;

use super::machine::Machine;
use super::program::TENANTS;
use crate::world::SECOND;

/// Any number that the weights 1, 2 and 3 divide.
const STRIDE: u64 = 6;

#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) priority: u8,
    pub(super) due: Timestamp,
    pub(super) job: usize,
}

#[derive(Default)]
pub(super) struct Line {
    places: Vec<Place>,
    /// How far each tenant has moved at each priority, and who came to stand there first.
    turns: BTreeMap<(u8, usize), (u64, u64)>,
    reached: BTreeMap<u8, u64>,
    number: u64,
    queue_rate: Pace,
    tenant_rates: [Pace; TENANTS],
    key_rates: BTreeMap<(usize, u8), Pace>,
}

/// What is still owed to a rate, each start being worth the time between two of them.
#[derive(Clone, Copy, Default)]
struct Pace {
    owed: Duration,
    at: Timestamp,
}

impl Pace {
    fn owed(&self, now: Timestamp) -> Duration {
        self.owed.saturating_sub(now.since(self.at))
    }

    fn allows(&self, (amount, seconds): (u32, u32), now: Timestamp) -> bool {
        self.owed(now) + SECOND * seconds / amount <= SECOND * seconds
    }

    fn start(&mut self, (amount, seconds): (u32, u32), now: Timestamp) {
        *self = Self { owed: self.owed(now) + SECOND * seconds / amount, at: now };
    }
}

impl Machine {
    /// A job has become pending.
    pub(super) fn line_up(&mut self, job: usize) {
        let (tenant, priority, due) = (self.jobs[job].tenant, self.jobs[job].priority, self.jobs[job].run_at);
        if !self.stands(tenant, priority) {
            let pass = self.reached(priority) + self.stride(tenant);
            self.line.number += 1;
            self.line.turns.insert((priority, tenant), (pass, self.line.number));
        }
        self.line.places.push(Place { priority, due, job });
    }

    fn stands(&self, tenant: usize, priority: u8) -> bool {
        self.line.places.iter().any(|place| place.priority == priority && self.jobs[place.job].tenant == tenant)
    }

    fn reached(&self, priority: u8) -> u64 {
        self.line.reached.get(&priority).copied().unwrap_or_default()
    }

    fn stride(&self, tenant: usize) -> u64 {
        STRIDE / u64::from(self.bounds.weights[tenant])
    }

    fn running(&self, is_meant: impl Fn(usize) -> bool) -> u32 {
        let running = |job: &usize| self.jobs[*job].state == State::Processing && is_meant(*job);
        (0..self.jobs.len()).filter(running).count() as u32
    }

    pub(super) fn running_of_key(&self, tenant: usize, key: u8) -> u32 {
        self.running(|job| self.jobs[job].tenant == tenant && self.jobs[job].key == Some(key))
    }

    fn may_start(&self, tenant: usize) -> bool {
        let limits = &self.bounds.limits;
        let running = self.running(|job| self.jobs[job].tenant == tenant);
        !limits.paused_tenants[tenant]
            && limits.per_tenant.is_none_or(|most| running < most)
            && self.bounds.rate_per_tenant.is_none_or(|rate| self.line.tenant_rates[tenant].allows(rate, self.now))
    }

    /// The place that is next, taken out of the line; nothing when there is none or the queue may start none.
    pub(super) fn next(&mut self, wanted: Option<usize>, kind: Option<usize>) -> Option<Place> {
        let limits = &self.bounds.limits;
        if limits.paused || limits.global.is_some_and(|most| self.running(|_| true) >= most) {
            return None;
        }
        let aging = self.bounds.aging_seconds.map(|seconds| SECOND * seconds);
        let mut best: Option<((u128, Timestamp), usize, u8)> = None;
        for priority in 1..=5 {
            let Some(at) = self.first_of(priority, wanted, kind) else { continue };
            let place = self.line.places[at];
            let gained = aging.map_or(0, |aging| self.now.since(place.due).as_micros() / aging.as_micros());
            let counts_as = u128::from(priority).saturating_sub(gained).max(1);
            // Without aging the first priority counts, however old the others are.
            let rank = (counts_as, if aging.is_some() { place.due } else { Timestamp::default() });
            if best.is_none_or(|(than, ..)| rank < than) {
                best = Some((rank, at, priority));
            }
        }
        let (_, at, priority) = best?;
        if self.bounds.rate.is_some_and(|rate| !self.line.queue_rate.allows(rate, self.now)) {
            return None;
        }
        if best.is_some_and(|((counts_as, _), ..)| counts_as < u128::from(priority)) {
            self.seen.insert("aged");
        }
        let tenant = self.jobs[self.line.places[at].job].tenant;
        if wanted.is_none() {
            let (pass, _) = self.turn(priority, tenant);
            self.line.number += 1;
            self.line.reached.insert(priority, pass);
            self.line.turns.insert((priority, tenant), (pass + self.stride(tenant), self.line.number));
        }
        Some(self.line.places.remove(at))
    }

    fn turn(&self, priority: u8, tenant: usize) -> (u64, u64) {
        let (pass, number) = self.line.turns[&(priority, tenant)];
        (pass.max(self.reached(priority)), number)
    }

    /// The next place of a priority: of the tenant whose turn it is the one that has been due for longest.
    fn first_of(&self, priority: u8, wanted: Option<usize>, kind: Option<usize>) -> Option<usize> {
        let is_wanted = |place: &Place, tenant: usize| {
            let job = &self.jobs[place.job];
            place.priority == priority && job.tenant == tenant && kind.is_none_or(|kind| kind == job.kind)
        };
        let has_work = |tenant: usize| self.line.places.iter().any(|place| is_wanted(place, tenant));
        let able = (0..TENANTS).filter(|tenant| {
            wanted.is_none_or(|wanted| wanted == *tenant) && has_work(*tenant) && self.may_start(*tenant)
        });
        let tenant = able.min_by_key(|tenant| self.turn(priority, *tenant))?;
        let own = (0..self.line.places.len()).filter(|at| is_wanted(&self.line.places[*at], tenant));
        own.min_by_key(|at| (self.line.places[*at].due, self.line.places[*at].job))
    }

    /// A job begins: what the rates of its queue and tenant count.
    pub(super) fn count_start(&mut self, tenant: usize) {
        if let Some(rate) = self.bounds.rate {
            self.line.queue_rate.start(rate, self.now);
        }
        if let Some(rate) = self.bounds.rate_per_tenant {
            self.line.tenant_rates[tenant].start(rate, self.now);
        }
    }

    /// When the rate of a key lets one more start, which is reserved by asking.
    pub(super) fn reserve(&mut self, tenant: usize, key: u8) -> Option<Timestamp> {
        let rate = self.bounds.rate_per_key?;
        let pace = self.line.key_rates.entry((tenant, key)).or_default();
        let wait = (pace.owed(self.now) + SECOND * rate.1 / rate.0).saturating_sub(SECOND * rate.1);
        pace.start(rate, self.now);
        (!wait.is_zero()).then_some(self.now + wait)
    }
}
