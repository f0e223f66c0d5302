//! The heads against a plain list that is scanned for each job.

use proptest::prelude::{
    ProptestConfig, Strategy, TestCaseError, prop, prop_assert, prop_assert_eq, prop_oneof, proptest,
};

use super::{
    Dispatch, Found, HashMap, LaneKey, NOW, NameId, Place, QueueLimits, Seq, TenantLimits, WINDOW, Wanted, any, lane,
};

/// Any number that 1, 2 and 3 divide.
const STRIDE: u64 = 720_720;
const TENANTS: NameId = 4;

#[derive(Clone, Debug)]
enum Step {
    Push { tenant: NameId, kind: NameId, priority: u8, due: i64, count: u8 },
    Take { tenant: Option<NameId>, count: u8, in_a_row: u32 },
    End(usize),
    Limit { global: Option<u32>, per_tenant: Option<u32>, paused: bool, tenants: [(u32, bool); TENANTS as usize] },
}

fn step() -> impl Strategy<Value = Step> {
    let push = (1..=TENANTS, 1..=2_u32, 2..=3_u8, 0..50_i64, 1..=2_u8);
    let take = (prop::option::weighted(0.2, 1..=TENANTS), 1..=60_u8, 1..=3_u32);
    let tenants = prop::array::uniform4((1..=3_u32, prop::bool::weighted(0.2)));
    let limits = (prop::option::of(0..9_u32), prop::option::of(1..4_u32), prop::bool::weighted(0.1), tenants);
    prop_oneof![
        6 => push.prop_map(|(tenant, kind, priority, due, count)| Step::Push { tenant, kind, priority, due, count }),
        5 => take.prop_map(|(tenant, count, in_a_row)| Step::Take { tenant, count, in_a_row }),
        8 => prop::num::usize::ANY.prop_map(Step::End),
        1 => limits.prop_map(|(global, per_tenant, paused, tenants)| Step::Limit { global, per_tenant, paused, tenants }),
    ]
}

#[derive(Default)]
struct Model {
    waiting: Vec<(LaneKey, Place)>,
    running: Vec<NameId>,
    limits: QueueLimits,
    tenants: HashMap<NameId, TenantLimits>,
    /// How far each tenant has moved at each priority, and since when.
    turns: HashMap<(u8, NameId), (u64, u64)>,
    reached: [u64; 6],
    number: u64,
    /// Whose turn was last, at which priority, and how many in a row.
    last: Option<(u8, NameId, u32)>,
    seq: Seq,
}

#[derive(Debug, PartialEq)]
enum Expected {
    Job(Place),
    Held,
    Nothing,
}

impl Model {
    fn stride(&self, tenant: NameId) -> u64 {
        STRIDE / u64::from(self.tenants.get(&tenant).and_then(|own| own.weight).unwrap_or(1))
    }

    fn has(&self, priority: u8, tenant: NameId) -> bool {
        self.waiting.iter().any(|(lane, _)| lane.priority == priority && lane.keys.tenant == tenant)
    }

    fn push(&mut self, lane: LaneKey, due: i64) -> Place {
        let (priority, tenant) = (lane.priority, lane.keys.tenant);
        if !self.has(priority, tenant) {
            self.number += 1;
            let pass = self.reached[usize::from(priority)] + self.stride(tenant);
            self.turns.insert((priority, tenant), (pass, self.number));
            self.last = self.last.filter(|(at, last, _)| (*at, *last) != (priority, tenant));
        }
        self.seq += 1;
        self.waiting.push((lane, (due, self.seq)));
        (due, self.seq)
    }

    fn may_start(&self, tenant: NameId) -> bool {
        let running = self.running.iter().filter(|running| **running == tenant).count();
        let is_paused = self.tenants.get(&tenant).is_some_and(|own| own.paused);
        !is_paused && self.limits.per_tenant.is_none_or(|most| running < most as usize)
    }

    fn next(&mut self, wanted: Option<NameId>, in_a_row: u32) -> Expected {
        let is_full = self.limits.global.is_some_and(|most| self.running.len() >= most as usize);
        if !self.waiting.is_empty() && (self.limits.paused || is_full) {
            return Expected::Held;
        }
        let is_wanted = |tenant: NameId| wanted.is_none_or(|wanted| wanted == tenant);
        for priority in 1..=5 {
            let reached = self.reached[usize::from(priority)];
            let able = (1..=TENANTS)
                .filter(|tenant| is_wanted(*tenant) && self.has(priority, *tenant) && self.may_start(*tenant));
            let turn = |tenant: &NameId| {
                let (pass, number) = self.turns[&(priority, *tenant)];
                (pass.max(reached), number)
            };
            let stays = |tenant: &NameId| {
                let last = self.last.filter(|_| wanted.is_none());
                last.is_some_and(|(at, last, count)| (at, last) == (priority, *tenant) && count < in_a_row)
            };
            let Some(tenant) = able.min_by_key(|tenant| (!stays(tenant), turn(tenant))) else { continue };
            let row = self.last.filter(|_| stays(&tenant)).map_or(0, |(_, _, count)| count);
            let pass = turn(&tenant).0;
            let own =
                |(_, (lane, _)): &(usize, &(LaneKey, Place))| (lane.priority, lane.keys.tenant) == (priority, tenant);
            let first = self.waiting.iter().enumerate().filter(own).min_by_key(|(_, (_, place))| *place);
            let (_, place) = self.waiting.remove(first.expect("it has work").0);
            if wanted.is_none() {
                self.number += 1;
                if row == 0 {
                    self.reached[usize::from(priority)] = pass;
                }
                self.last = Some((priority, tenant, row + 1));
                self.turns.insert((priority, tenant), (pass + self.stride(tenant), self.number));
            }
            self.running.push(tenant);
            return Expected::Job(place);
        }
        if self.waiting.iter().any(|(lane, _)| is_wanted(lane.keys.tenant)) {
            Expected::Held
        } else {
            Expected::Nothing
        }
    }

    /// The first places of a lane, as an engine reads them.
    fn read(&self, lane: LaneKey) -> Vec<Place> {
        let mut places: Vec<Place> =
            self.waiting.iter().filter(|(other, _)| *other == lane).map(|(_, place)| *place).collect();
        places.sort_unstable();
        places.truncate(WINDOW);
        places
    }
}

struct Both {
    dispatch: Dispatch,
    model: Model,
}

impl Both {
    fn push(&mut self, lane: LaneKey, due: i64, count: usize) {
        for _ in 0..count {
            let place = self.model.push(lane, due);
            self.dispatch.push(lane, place);
        }
    }

    /// Takes one job, and tells whether there was one.
    fn take(&mut self, tenant: Option<NameId>, in_a_row: u32) -> Result<bool, TestCaseError> {
        let wanted = Wanted { tenant, ..any() };
        let found = loop {
            match self.dispatch.next(1, &wanted, in_a_row, NOW) {
                Found::Refill(lane) => {
                    let places = self.model.read(lane);
                    self.dispatch.refill(lane, places);
                }
                Found::Job(place, _) => break Expected::Job(place),
                Found::Held(until) => {
                    prop_assert_eq!(until, None);
                    break Expected::Held;
                }
                Found::Nothing => break Expected::Nothing,
            }
        };
        prop_assert_eq!(&found, &self.model.next(tenant, in_a_row));
        let is_job = matches!(found, Expected::Job(_));
        if is_job {
            self.dispatch.started(1, *self.model.running.last().expect("it runs"), NOW);
        }
        Ok(is_job)
    }

    fn end(&mut self, at: usize) {
        if !self.model.running.is_empty() {
            let tenant = self.model.running.swap_remove(at % self.model.running.len());
            self.dispatch.ended(1, tenant);
        }
    }

    fn limit(&mut self, limits: QueueLimits, tenants: HashMap<NameId, TenantLimits>) {
        (self.model.limits, self.model.tenants) = (limits.clone(), tenants.clone());
        self.dispatch.limit(1, limits, tenants);
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Push { tenant, kind, priority, due, count } => {
                self.push(lane(tenant, kind, priority), due, usize::from(count));
            }
            Step::Take { tenant, count, in_a_row } => {
                for _ in 0..count {
                    if !self.take(tenant, in_a_row)? {
                        break;
                    }
                }
            }
            Step::End(at) => self.end(at),
            Step::Limit { global, per_tenant, paused, tenants } => {
                let own = |(weight, paused)| TenantLimits { weight: Some(weight), paused, ..TenantLimits::default() };
                let tenants = (1..).zip(tenants.map(own)).collect();
                self.limit(QueueLimits { global, per_tenant, paused, ..QueueLimits::default() }, tenants);
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// One lane begins longer than its window. None gets to twice the window, so a full read never hides that a lane is over, which
    /// the list knows at once and the heads only later.
    #[test]
    fn the_heads_give_what_a_scan_of_a_list_gives(
        long in (1..=TENANTS, 1..=2_u32, 2..=3_u8),
        steps in prop::collection::vec(step(), 1..100),
    ) {
        let mut both = Both { dispatch: Dispatch::default(), model: Model::default() };
        both.push(lane(long.0, long.1, long.2), 25, WINDOW + 50);
        for step in steps {
            both.step(step)?;
        }
        both.limit(QueueLimits::default(), HashMap::new());
        while both.take(None, 1)? {
            both.end(0);
        }
        prop_assert!(both.model.waiting.is_empty() && !both.dispatch.is_ready(1));
    }
}
