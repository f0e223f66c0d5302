//! The programs: what callers, workers and operators do, and what bounds the queue.

use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::{Just, Strategy, any as arbitrary};
use proptest::prop_oneof;
use tidewire_core::job::{OnConflict, OnFailure};
use tidewire_core::schedule::Overlap;
use tidewire_core::store::FlowControl;

/// How many tenants there are.
pub(super) const TENANTS: usize = 3;

/// The limits of the queue and what is done in it.
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub(super) bounds: Bounds,
    pub(super) steps: Vec<Step>,
}

/// What holds for the queue. Rates are so many per so many seconds, and stay; the rest is changed by [`Step::Limit`].
#[derive(Clone, Debug)]
pub(super) struct Bounds {
    pub(super) rate: Option<(u32, u32)>,
    pub(super) rate_per_tenant: Option<(u32, u32)>,
    pub(super) rate_per_key: Option<(u32, u32)>,
    pub(super) aging_seconds: Option<u32>,
    pub(super) weights: [u32; TENANTS],
    pub(super) limits: Limits,
}

#[derive(Clone, Debug)]
pub(super) struct Limits {
    pub(super) global: Option<u32>,
    pub(super) per_tenant: Option<u32>,
    pub(super) per_key: Option<u32>,
    pub(super) paused: bool,
    pub(super) paused_tenants: [bool; TENANTS],
}

/// One step. Numbers that name a job or a lease are taken modulo what there is.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Commit { tenant: usize, jobs: Vec<New>, is_flow: bool },
    Claim { tenant: Option<usize>, kind: Option<usize>, max: u32, seconds: u32 },
    Settle { lease: usize, end: End },
    Renew { lease: usize, seconds: u32 },
    Control { job: usize, what: What },
    Flow { flow: usize, control: FlowControl },
    Fire { tenant: usize, key: u8, slot: u32, overlap: Overlap },
    Limit(Limits),
    Advance { seconds: u32 },
}

/// A job as it is asked for.
#[derive(Clone, Debug)]
pub(super) struct New {
    pub(super) kind: usize,
    pub(super) priority: u8,
    pub(super) delay_seconds: u32,
    pub(super) attempts: u16,
    pub(super) backoff: u8,
    pub(super) timeout_seconds: u32,
    pub(super) key: Option<u8>,
    pub(super) unique: Option<(u8, OnConflict)>,
    pub(super) ttl_seconds: Option<u32>,
    pub(super) retry_for_seconds: Option<u32>,
    /// How far back the jobs are that it waits for, and whether their failure is ignored.
    pub(super) after: Vec<(usize, bool)>,
    pub(super) on_failure: OnFailure,
    pub(super) is_undone: bool,
}

/// How a run ends.
#[derive(Clone, Debug)]
pub(super) enum End {
    Done,
    Retry { delay_seconds: Option<u32> },
    Fail,
    Snooze { delay_seconds: u32 },
    Release,
    Cancel,
}

/// What an operator does to a job.
#[derive(Clone, Debug)]
pub(super) enum What {
    Redrive,
    Cancel,
    Promote,
    Delete,
    Priority(u8),
    Delay(u32),
}

fn new() -> impl Strategy<Value = New> {
    let conflict = prop_oneof![
        Just(OnConflict::Keep),
        Just(OnConflict::Replace),
        Just(OnConflict::Extend),
        Just(OnConflict::Latest),
        Just(OnConflict::Supersede),
    ];
    let policy =
        prop_oneof![3 => Just(OnFailure::Fail), 1 => Just(OnFailure::Ignore), 2 => Just(OnFailure::Compensate)];
    let what = (0..3_usize, 2..=4_u8, prop_oneof![3 => Just(0), 1 => 1..40_u32], 1..=6_u16, 0..3_u8);
    let times =
        (prop_oneof![2 => Just(86_400_u32), 1 => 5..25_u32], weighted(0.15, 1..40_u32), weighted(0.4, 1..15_u32));
    let keys = (weighted(0.5, 0..2_u8), weighted(0.5, (0..2_u8, conflict)));
    let ties = (
        prop_oneof![2 => Just(Vec::new()), 1 => vec((1..5_usize, arbitrary::<bool>()), 1..3)],
        policy,
        arbitrary::<bool>(),
    );
    (what, times, keys, ties).prop_map(|(what, times, keys, ties)| New {
        kind: what.0,
        priority: what.1,
        delay_seconds: what.2,
        attempts: what.3,
        backoff: what.4,
        timeout_seconds: times.0,
        ttl_seconds: times.1,
        retry_for_seconds: times.2,
        key: keys.0,
        unique: keys.1,
        after: ties.0,
        on_failure: ties.1,
        is_undone: ties.2,
    })
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![
        5 => Just(End::Done),
        3 => weighted(0.4, 0..20_u32).prop_map(|delay_seconds| End::Retry { delay_seconds }),
        2 => Just(End::Fail),
        1 => (0..20_u32).prop_map(|delay_seconds| End::Snooze { delay_seconds }),
        1 => Just(End::Release),
        1 => Just(End::Cancel),
    ]
}

fn limits() -> impl Strategy<Value = Limits> {
    let paused = proptest::bool::weighted(0.1);
    let tenant = proptest::bool::weighted(0.15);
    (weighted(0.3, 1..6_u32), weighted(0.4, 1..4_u32), weighted(0.6, 1..3_u32), paused, [tenant, tenant, tenant])
        .prop_map(|(global, per_tenant, per_key, paused, paused_tenants)| Limits {
            global,
            per_tenant,
            per_key,
            paused,
            paused_tenants,
        })
}

fn step() -> impl Strategy<Value = Step> {
    let what = prop_oneof![
        4 => Just(What::Redrive),
        3 => Just(What::Cancel),
        2 => Just(What::Promote),
        1 => Just(What::Delete),
        1 => (1..=5_u8).prop_map(What::Priority),
        1 => (0..20_u32).prop_map(What::Delay),
    ];
    let overlap = prop_oneof![Just(Overlap::Skip), Just(Overlap::Allow), Just(Overlap::Queue)];
    prop_oneof![
        6 => (prop_oneof![3 => Just(0), 1 => 1..TENANTS], vec(new(), 1..5), proptest::bool::weighted(0.4))
            .prop_map(|(tenant, jobs, is_flow)| Step::Commit { tenant, jobs, is_flow }),
        6 => (weighted(0.2, 0..TENANTS), weighted(0.2, 0..3_usize), 1..6_u32, 3..40_u32)
            .prop_map(|(tenant, kind, max, seconds)| Step::Claim { tenant, kind: tenant.and(kind), max, seconds }),
        9 => (0..1000_usize, end()).prop_map(|(lease, end)| Step::Settle { lease, end }),
        1 => (0..1000_usize, 1..60_u32).prop_map(|(lease, seconds)| Step::Renew { lease, seconds }),
        3 => (0..1000_usize, what).prop_map(|(job, what)| Step::Control { job, what }),
        1 => (0..1000_usize, prop_oneof![Just(FlowControl::Cancel), Just(FlowControl::Retry)])
            .prop_map(|(flow, control)| Step::Flow { flow, control }),
        2 => (0..TENANTS, 0..2_u8, 0..100_u32, overlap)
            .prop_map(|(tenant, key, slot, overlap)| Step::Fire { tenant, key, slot, overlap }),
        1 => limits().prop_map(Step::Limit),
        4 => (1..25_u32).prop_map(|seconds| Step::Advance { seconds }),
    ]
}

pub(super) fn any() -> impl Strategy<Value = Program> {
    let rate = || prop_oneof![Just((1, 5)), Just((2, 20)), Just((3, 30))];
    let rates = (weighted(0.15, rate()), weighted(0.2, rate()), weighted(0.3, rate()));
    let bounds = (rates, weighted(0.2, 5..30_u32), [1..4_u32, 1..4_u32, 1..4_u32], limits()).prop_map(
        |((rate, rate_per_tenant, rate_per_key), aging_seconds, weights, limits)| Bounds {
            rate,
            rate_per_tenant,
            rate_per_key,
            aging_seconds,
            weights,
            limits,
        },
    );
    (bounds, vec(step(), 1..100)).prop_map(|(bounds, steps)| Program { bounds, steps })
}
