use std::time::Duration;

use super::*;
use crate::rows::Seq;

mod against_model;

const NOW: Timestamp = Timestamp::from_millis(1_000_000);

fn lane(tenant: NameId, kind: NameId, priority: u8) -> LaneKey {
    LaneKey { keys: Keys { tenant, queue: 1, kind }, priority }
}

fn any() -> Wanted {
    Wanted { tenant: None, queues: vec![1], kinds: Vec::new(), reserved: false }
}

fn only(tenant: NameId) -> Wanted {
    Wanted { tenant: Some(tenant), ..any() }
}

fn limit<const N: usize>(dispatch: &mut Dispatch, limits: QueueLimits, tenants: [(NameId, TenantLimits); N]) {
    dispatch.limit(1, limits, tenants.into());
}

fn weight(weight: u32) -> TenantLimits {
    TenantLimits { weight: Some(weight), ..TenantLimits::default() }
}

fn rate(text: &str) -> Option<tidewire_core::limit::Rate> {
    Some(text.parse().expect("rate"))
}

/// Pushes `count` jobs of a tenant, numbered from a multiple of 100,000 that is the tenant's own.
fn fill(dispatch: &mut Dispatch, tenant: NameId, count: i64) {
    for number in 0..count {
        let seq = i64::from(tenant) * 100_000 + number;
        dispatch.push(lane(tenant, 1, 3), (0, seq));
    }
}

fn of(seq: Seq) -> NameId {
    NameId::try_from(seq / 100_000).expect("tenant")
}

/// Starts the next job. Tells whose it is, by the numbers of [`fill`].
fn take(dispatch: &mut Dispatch, wanted: &Wanted, now: Timestamp) -> Option<NameId> {
    let Found::Job((_, seq), _) = dispatch.next(1, wanted, 1, now) else { return None };
    dispatch.started(1, of(seq), now);
    Some(of(seq))
}

fn take_all(dispatch: &mut Dispatch, now: Timestamp) -> Vec<NameId> {
    std::iter::from_fn(|| take(dispatch, &any(), now)).collect()
}

/// The numbers of the jobs of one tenant and of the rest, whose tenants do not matter.
fn drain(dispatch: &mut Dispatch, wanted: &Wanted) -> Vec<Seq> {
    let mut seqs = Vec::new();
    while let Found::Job((_, seq), _) = dispatch.next(1, wanted, 1, NOW) {
        dispatch.started(1, 1, NOW);
        seqs.push(seq);
    }
    seqs
}

fn is_held(found: &Found, until: Option<Timestamp>) -> bool {
    matches!(found, Found::Held(at) if *at == until)
}

#[test]
fn a_worker_of_many_jobs_takes_some_of_each_tenant_in_a_row_and_the_shares_stay() {
    let mut dispatch = Dispatch::default();
    limit(&mut dispatch, QueueLimits::default(), [(1, weight(3))]);
    (1..=3).for_each(|tenant| fill(&mut dispatch, tenant, 200));
    let row = |dispatch: &mut Dispatch| {
        let Found::Job((_, seq), _) = dispatch.next(1, &any(), 4, NOW) else { panic!("a job") };
        of(seq)
    };
    let taken: Vec<_> = (0..240).map(|_| row(&mut dispatch)).collect();
    let runs: Vec<_> = taken.chunk_by(|a, b| a == b).map(|run| run.len()).collect();
    assert!(runs.iter().all(|run| run % 4 == 0), "{runs:?}");
    let share = |tenant| taken.iter().filter(|taken| **taken == tenant).count();
    assert_eq!([share(1), share(2), share(3)], [144, 48, 48]);
    // One whose only job comes now has its turn after those who wait, however many of theirs were taken in a row.
    fill(&mut dispatch, 4, 1);
    let taken: Vec<_> = (0..24).map(|_| row(&mut dispatch)).collect();
    assert!(taken.contains(&4), "{taken:?}");
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
    assert_eq!(drain(&mut dispatch, &Wanted { kinds: vec![2], ..only(2) }), [12]);
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
    let Found::Refill(drained) = dispatch.next(1, &any(), 1, NOW) else { panic!("more is on disk") };
    dispatch.refill(drained, (WINDOW as i64..total).map(|seq| (seq, seq)).collect());
    assert_eq!(drain(&mut dispatch, &any()).len(), WINDOW);
    let Found::Refill(drained) = dispatch.next(1, &any(), 1, NOW) else { panic!("a full window may hide more") };
    dispatch.refill(drained, Vec::new());
    assert!(matches!(dispatch.next(1, &any(), 1, NOW), Found::Nothing));
    assert!(!dispatch.is_ready(1));
}

#[test]
fn the_global_limit_and_the_rate_hold_jobs_back() {
    let mut dispatch = Dispatch::default();
    fill(&mut dispatch, 1, 4);
    limit(&mut dispatch, QueueLimits { global: Some(1), ..QueueLimits::default() }, []);
    assert_eq!(take_all(&mut dispatch, NOW), [1]);
    assert!(is_held(&dispatch.next(1, &any(), 1, NOW), None));
    dispatch.ended(1, 1);
    limit(&mut dispatch, QueueLimits { rate: rate("2/s"), ..QueueLimits::default() }, []);
    assert_eq!(take_all(&mut dispatch, NOW), [1, 1]);
    assert!(is_held(&dispatch.next(1, &any(), 1, NOW), Some(NOW + Duration::from_millis(500))));
}

#[test]
fn a_tenant_of_weight_three_gets_exactly_three_turns_of_four() {
    let mut dispatch = Dispatch::default();
    limit(&mut dispatch, QueueLimits::default(), [(1, weight(3))]);
    fill(&mut dispatch, 1, 250);
    fill(&mut dispatch, 2, 250);
    let first: Vec<NameId> = (0..320).filter_map(|_| take(&mut dispatch, &any(), NOW)).collect();
    // Windows hold 250 each: the rest of the 400 comes after more has been pushed.
    fill(&mut dispatch, 1, 100);
    let second: Vec<NameId> = (0..80).filter_map(|_| take(&mut dispatch, &any(), NOW)).collect();
    let turns = [first, second].concat();
    assert_eq!(turns.len(), 400);
    assert_eq!(turns.iter().filter(|tenant| **tenant == 1).count(), 300);
    for four in turns.chunks(4) {
        assert_eq!(four.iter().filter(|tenant| **tenant == 1).count(), 3, "also in the short run: {four:?}");
    }
}

#[test]
fn who_leaves_and_comes_back_gains_nothing() {
    let mut dispatch = Dispatch::default();
    fill(&mut dispatch, 1, 200);
    fill(&mut dispatch, 2, 200);
    let (mut turns, mut is_there) = ([0_u32; 4], false);
    for _ in 0..300 {
        // The third has one job at a time: each time it comes anew.
        if !is_there {
            fill(&mut dispatch, 3, 1);
        }
        let tenant = take(&mut dispatch, &any(), NOW).expect("work");
        is_there = tenant != 3;
        turns[tenant as usize] += 1;
    }
    assert!(turns[3] <= 100, "{turns:?}");
    assert!(turns[1].abs_diff(turns[2]) <= 1, "{turns:?}");
}

#[test]
fn who_comes_late_stands_behind_those_who_wait_and_makes_up_for_nothing() {
    let mut dispatch = Dispatch::default();
    fill(&mut dispatch, 1, 200);
    fill(&mut dispatch, 2, 200);
    for _ in 0..101 {
        take(&mut dispatch, &any(), NOW);
    }
    fill(&mut dispatch, 3, 200);
    let turns: Vec<NameId> = (0..6).filter_map(|_| take(&mut dispatch, &any(), NOW)).collect();
    assert_eq!(turns, [2, 1, 3, 2, 1, 3]);
}

#[test]
fn a_tenant_at_its_limit_holds_back_only_itself() {
    let mut dispatch = Dispatch::default();
    let at_once = TenantLimits { at_once: Some(3), ..TenantLimits::default() };
    limit(&mut dispatch, QueueLimits { per_tenant: Some(1), ..QueueLimits::default() }, [(2, at_once)]);
    for tenant in 1..=3 {
        fill(&mut dispatch, tenant, 10);
    }
    assert_eq!(take_all(&mut dispatch, NOW), [1, 2, 3, 2, 2]);
    assert!(is_held(&dispatch.next(1, &any(), 1, NOW), None), "only held tenants have work");
    assert!(is_held(&dispatch.next(1, &only(1), 1, NOW), None), "a worker of one tenant is bound by the same");
    assert!(matches!(dispatch.next(1, &only(9), 1, NOW), Found::Nothing));
    dispatch.ended(1, 3);
    assert_eq!(take_all(&mut dispatch, NOW), [3]);
    dispatch.ended(1, 2);
    assert_eq!(take(&mut dispatch, &only(2), NOW), Some(2));
    assert_eq!(take(&mut dispatch, &only(2), NOW), None);
}

#[test]
fn a_lower_limit_of_a_tenant_holds_back_what_comes_next() {
    let mut dispatch = Dispatch::default();
    fill(&mut dispatch, 1, 10);
    for _ in 0..4 {
        take(&mut dispatch, &any(), NOW);
    }
    limit(&mut dispatch, QueueLimits { per_tenant: Some(3), ..QueueLimits::default() }, []);
    for _ in 0..2 {
        assert!(take_all(&mut dispatch, NOW).is_empty());
        dispatch.ended(1, 1);
    }
    assert_eq!(take_all(&mut dispatch, NOW), [1]);
    limit(&mut dispatch, QueueLimits::default(), []);
    assert_eq!(take_all(&mut dispatch, NOW).len(), 5);
}

#[test]
fn a_tenant_goes_on_when_its_rate_allows() {
    let mut dispatch = Dispatch::default();
    let own = TenantLimits { rate: rate("1/m"), ..TenantLimits::default() };
    limit(&mut dispatch, QueueLimits { rate_per_tenant: rate("2/s"), ..QueueLimits::default() }, [(2, own)]);
    fill(&mut dispatch, 1, 10);
    fill(&mut dispatch, 2, 10);
    assert_eq!(take_all(&mut dispatch, NOW), [1, 2, 1]);
    let (half, minute) = (NOW + Duration::from_millis(500), NOW + Duration::from_secs(60));
    assert!(is_held(&dispatch.next(1, &any(), 1, NOW), Some(half)), "the earliest of the two");
    assert!(is_held(&dispatch.next(1, &only(2), 1, NOW), Some(minute)));
    assert_eq!(take_all(&mut dispatch, half), [1]);
    // A job that ends frees nothing of a rate.
    dispatch.ended(1, 1);
    dispatch.ended(1, 2);
    assert!(take_all(&mut dispatch, half).is_empty());
    assert_eq!(take_all(&mut dispatch, minute), [2, 1, 1]);
}

#[test]
fn a_rate_is_not_forgotten_while_its_tenant_has_no_work() {
    let mut dispatch = Dispatch::default();
    limit(&mut dispatch, QueueLimits { rate_per_tenant: rate("1/m"), ..QueueLimits::default() }, []);
    fill(&mut dispatch, 1, 1);
    assert_eq!(take_all(&mut dispatch, NOW), [1]);
    dispatch.ended(1, 1);
    // So many others come and go that idle tenants are forgotten.
    for tenant in 2..5_000 {
        fill(&mut dispatch, tenant, 1);
        assert_eq!(take_all(&mut dispatch, NOW), [tenant]);
        dispatch.ended(1, tenant);
    }
    fill(&mut dispatch, 1, 1);
    assert!(take_all(&mut dispatch, NOW).is_empty());
    let minute = NOW + Duration::from_secs(60);
    assert_eq!(take_all(&mut dispatch, minute), [1]);
    for tenant in 5_000..20_000 {
        fill(&mut dispatch, tenant, 1);
        take(&mut dispatch, &any(), minute + Duration::from_secs(u64::from(tenant) * 60));
        dispatch.ended(1, tenant);
    }
    assert!(dispatch.queues[&1].tenants.len() < 6_000, "a rate that is whole again needs no memory");
}

#[test]
fn a_reserved_slot_is_for_tenants_of_which_none_runs_while_there_are_several() {
    let mut dispatch = Dispatch::default();
    let reserved = Wanted { reserved: true, ..any() };
    for tenant in 1..=2 {
        fill(&mut dispatch, tenant, 10);
    }
    assert_eq!(take(&mut dispatch, &reserved, NOW), Some(1));
    assert_eq!(take(&mut dispatch, &reserved, NOW), Some(2), "nobody else has begun, so nothing is kept for anybody");
    let until = NOW + SHARED_FOR;
    assert!(is_held(&dispatch.next(1, &reserved, 1, NOW), Some(until)), "both run");
    fill(&mut dispatch, 3, 2);
    assert_eq!(take(&mut dispatch, &reserved, NOW), Some(3));
    assert!(is_held(&dispatch.next(1, &reserved, 1, NOW), Some(until)));
    dispatch.ended(1, 2);
    assert_eq!(take(&mut dispatch, &reserved, NOW), Some(2));
    assert_eq!(take(&mut dispatch, &any(), NOW), Some(1), "other slots are anybody's");
    let later = NOW + SHARED_FOR + SHARED_FOR;
    assert!(take(&mut dispatch, &reserved, later).is_some(), "nobody else has come for a while");
}

#[test]
fn a_reserved_slot_is_found_behind_all_who_run() {
    let mut dispatch = Dispatch::default();
    (1..=100).for_each(|tenant| fill(&mut dispatch, tenant, 2));
    // Each of the hundred runs, and has more.
    assert_eq!((0..100).filter_map(|_| take(&mut dispatch, &any(), NOW)).count(), 100);
    fill(&mut dispatch, 101, 1);
    assert_eq!(take(&mut dispatch, &Wanted { reserved: true, ..any() }, NOW), Some(101));
}

#[test]
fn a_clock_that_was_set_back_does_not_hold_a_tenant_until_it_has_caught_up() {
    let mut dispatch = Dispatch::default();
    limit(&mut dispatch, QueueLimits { rate_per_tenant: rate("2/s"), ..QueueLimits::default() }, []);
    fill(&mut dispatch, 1, 10);
    assert_eq!(take_all(&mut dispatch, NOW).len(), 2);
    let back = NOW - Duration::from_secs(600);
    assert!(is_held(&dispatch.next(1, &any(), 1, back), Some(back + Duration::from_millis(500))));
    assert_eq!(take_all(&mut dispatch, back + Duration::from_secs(1)).len(), 2);
}

#[test]
fn a_paused_queue_and_a_paused_tenant_start_nothing_until_they_are_resumed() {
    let mut dispatch = Dispatch::default();
    fill(&mut dispatch, 1, 3);
    fill(&mut dispatch, 2, 3);
    limit(&mut dispatch, QueueLimits { paused: true, ..QueueLimits::default() }, []);
    assert!(is_held(&dispatch.next(1, &any(), 1, NOW), None));
    assert!(is_held(&dispatch.next(1, &only(1), 1, NOW), None));
    let paused = TenantLimits { paused: true, ..TenantLimits::default() };
    limit(&mut dispatch, QueueLimits::default(), [(1, paused)]);
    assert_eq!(take_all(&mut dispatch, NOW), [2, 2, 2]);
    fill(&mut dispatch, 1, 1);
    assert!(is_held(&dispatch.next(1, &any(), 1, NOW), None), "also what comes while it is paused");
    dispatch.ended(1, 2);
    assert!(is_held(&dispatch.next(1, &only(1), 1, NOW), None));
    limit(&mut dispatch, QueueLimits::default(), []);
    assert_eq!(take_all(&mut dispatch, NOW), [1; 4]);
    assert!(matches!(dispatch.next(1, &any(), 1, NOW), Found::Nothing));
}

#[test]
fn a_waiting_job_gains_a_priority_for_each_aging() {
    let minutes = |count: u64| NOW + Duration::from_secs(60 * count);
    let filled = |aging| {
        let mut dispatch = Dispatch::default();
        limit(&mut dispatch, QueueLimits { aging, ..QueueLimits::default() }, []);
        // Due 0, 1, 2 and 3 minutes after now.
        for (due, priority, seq) in [(0, 5, 10), (1, 3, 11), (2, 1, 12), (3, 2, 13)] {
            dispatch.push(lane(1, 1, priority), (minutes(due).as_micros(), seq));
        }
        dispatch
    };
    let drain_at = |dispatch: &mut Dispatch, now| {
        std::iter::from_fn(|| match dispatch.next(1, &any(), 1, now) {
            Found::Job((_, seq), _) => Some(seq),
            _ => None,
        })
        .collect::<Vec<_>>()
    };
    let aging = Some(Duration::from_secs(60));
    // At minute 2 they count as 3, 2, 1, 2: of the last two the third one's is older.
    assert_eq!(drain_at(&mut filled(aging), minutes(2)), [12, 11, 13, 10]);
    // At minute 3: 2, 1, 1, 2.
    assert_eq!(drain_at(&mut filled(aging), minutes(3)), [11, 12, 10, 13]);
    // Nothing gets further than the first priority.
    assert_eq!(drain_at(&mut filled(aging), minutes(100)), [10, 11, 12, 13]);
    assert_eq!(drain_at(&mut filled(None), minutes(100)), [12, 13, 11, 10]);
}

#[test]
fn with_aging_a_drained_window_is_read_before_its_age_is_compared() {
    let mut dispatch = Dispatch::default();
    limit(&mut dispatch, QueueLimits { aging: Some(Duration::from_millis(1)), ..QueueLimits::default() }, []);
    dispatch.push(lane(1, 1, 1), (NOW.as_micros(), 10));
    dispatch.push_unread(lane(2, 1, 5));
    let Found::Refill(unread) = dispatch.next(1, &any(), 1, NOW) else { panic!("its age is not known") };
    assert_eq!(unread, lane(2, 1, 5));
    dispatch.refill(unread, vec![(0, 9)]);
    assert_eq!(drain(&mut dispatch, &any()), [9, 10]);
}

#[test]
fn the_oldest_known_place_is_found_wherever_it_is() {
    let mut dispatch = Dispatch::default();
    assert_eq!(dispatch.oldest(1, None), None);
    let paused = TenantLimits { paused: true, ..TenantLimits::default() };
    limit(&mut dispatch, QueueLimits::default(), [(2, paused)]);
    dispatch.push(lane(1, 1, 1), (30, 1));
    dispatch.push(lane(2, 2, 5), (20, 2));
    dispatch.push_unread(lane(3, 1, 3));
    assert_eq!(dispatch.oldest(1, None), Some(20));
}

const MANY: NameId = 10_000;

/// How many tenants were looked at by `work`.
fn looks(dispatch: &mut Dispatch, work: impl FnOnce(&mut Dispatch)) -> usize {
    let of = |dispatch: &Dispatch| dispatch.queues[&1].looks;
    let before = of(dispatch);
    work(dispatch);
    of(dispatch) - before
}

#[test]
fn with_ten_thousand_tenants_a_pick_looks_at_one() {
    let mut dispatch = Dispatch::default();
    for tenant in 1..=MANY {
        fill(&mut dispatch, tenant, 2);
    }
    let looks = looks(&mut dispatch, |dispatch| {
        let turns: Vec<NameId> = (0..2 * MANY).filter_map(|_| take(dispatch, &any(), NOW)).collect();
        assert_eq!(turns, (1..=MANY).chain(1..=MANY).collect::<Vec<_>>());
    });
    assert_eq!(looks, 2 * MANY as usize);
}

#[test]
fn ten_thousand_held_tenants_are_looked_at_once() {
    let mut dispatch = Dispatch::default();
    for tenant in 1..=MANY {
        fill(&mut dispatch, tenant, 3);
    }
    limit(&mut dispatch, QueueLimits { per_tenant: Some(1), ..QueueLimits::default() }, []);
    // Each is looked at for its first job, and once more when it is found at its limit.
    let filling = looks(&mut dispatch, |dispatch| {
        assert_eq!(take_all(dispatch, NOW).len(), MANY as usize);
    });
    assert_eq!(filling, 2 * MANY as usize);
    let waiting = looks(&mut dispatch, |dispatch| {
        for _ in 0..1_000 {
            assert!(is_held(&dispatch.next(1, &any(), 1, NOW), None));
        }
    });
    assert_eq!(waiting, 0);
    let turning = looks(&mut dispatch, |dispatch| {
        for tenant in 1..=1_000 {
            dispatch.ended(1, tenant);
            assert_eq!(take_all(dispatch, NOW), [tenant]);
        }
    });
    assert_eq!(turning, 2_000);
}

#[test]
fn the_memory_of_a_long_lane_is_its_window() {
    let mut lane = Tenant::default();
    let (lane, _) = lane.lane(3, 1, true);
    for seq in (0..10 * WINDOW as i64).rev() {
        lane.push((seq, seq));
    }
    assert_eq!(lane.head(), Some((0, 0)));
    assert!(lane.window_capacity() <= WINDOW, "{}", lane.window_capacity());
    // What belongs behind an incomplete window is left to the disk.
    lane.push((i64::MAX, 1));
    assert_eq!(std::iter::from_fn(|| lane.pop()).count(), WINDOW);
}
