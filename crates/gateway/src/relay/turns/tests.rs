use super::*;

const WIDE: Room = Room { events: 100_000, bytes: 1_000_000 };

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).expect("tenant")
}

/// The tenants and items of the next turns, when each event costs `price`.
fn taken(turns: &mut Turns<u32>, price: u64, most: usize) -> Vec<(String, u32)> {
    let mut found = Vec::new();
    while let Some((tenant, Work::Item(item))) = turns.next(|_| false) {
        turns.spend(price);
        found.push((tenant.as_str().to_owned(), item));
        if found.len() == most {
            break;
        }
    }
    found
}

fn fill(turns: &mut Turns<u32>, name: &str, items: u32, room: Room) -> usize {
    let mut push = |item| turns.push(&tenant(name), item, 1, room).map_err(|_| turns.lag(&tenant(name))).is_ok();
    (0..items).filter(|item| push(*item)).count()
}

#[test]
fn one_event_comes_second_beside_a_thousand_of_another_tenant() {
    let mut turns = Turns::default();
    assert_eq!(fill(&mut turns, "noisy", 1_000, WIDE), 1_000);
    assert_eq!(fill(&mut turns, "quiet", 1, WIDE), 1);
    let found = taken(&mut turns, TURN, 3);
    assert_eq!(found, [("noisy".to_owned(), 0), ("quiet".to_owned(), 0), ("noisy".to_owned(), 1)]);
    let rest: Vec<u32> = taken(&mut turns, TURN, 1_000).into_iter().map(|(_, item)| item).collect();
    assert_eq!(rest, (2..1_000).collect::<Vec<u32>>(), "in their order");
    assert_eq!((turns.next(|_| false), turns.events, turns.bytes, turns.tenants.len()), (None, 0, 0, 0));
}

#[test]
fn tenants_get_as_much_by_cost_and_not_by_events() {
    let mut turns = Turns::default();
    fill(&mut turns, "dear", 5_000, WIDE);
    fill(&mut turns, "cheap", 50_000, WIDE);
    let (mut dear, mut cheap) = (0, 0);
    while dear + cheap < 100 * TURN {
        let (tenant, _) = turns.next(|_| false).expect("more");
        // An event that costs three and a half turns, beside some that cost a hundredth.
        let (spent, price) = if tenant.as_str() == "dear" { (&mut dear, TURN * 7 / 2) } else { (&mut cheap, 10) };
        *spent += price;
        turns.spend(price);
    }
    assert!(dear.abs_diff(cheap) <= 5 * TURN, "{dear} and {cheap}");
}

#[test]
fn who_is_over_its_share_falls_behind_and_leaves_room_for_others() {
    let room = Room { events: 100, bytes: 1_000_000 };
    let mut turns = Turns::default();
    assert_eq!(fill(&mut turns, "noisy", 1_000, room), 50);
    assert_eq!(fill(&mut turns, "quiet", 10, room), 10);
    assert!(!turns.lag(&tenant("noisy")), "it was behind already");
    assert_eq!(taken(&mut turns, 1, 10).len(), 10);
    // It has room again, but what comes now is later than what was refused.
    assert_eq!(fill(&mut turns, "noisy", 1, room), 0);
    assert_eq!(taken(&mut turns, 1, 40).len(), 40);
    assert_eq!(turns.next(|_| false), Some((tenant("noisy"), Work::Compare)));
    assert_eq!(fill(&mut turns, "noisy", 1, room), 1, "taken again, before the head of the log is asked for");
}

#[test]
fn bytes_are_shared_as_events_are() {
    let room = Room { events: 100, bytes: 1_000 };
    let mut turns = Turns::default();
    assert_eq!(turns.push(&tenant("noisy"), 0, 500, room), Ok(()));
    assert_eq!(turns.push(&tenant("noisy"), 1, 1, room), Err(1));
    assert_eq!(turns.push(&tenant("quiet"), 0, 501, room), Err(0));
    assert_eq!(turns.push(&tenant("third"), 0, 500, room), Ok(()));
}

#[test]
fn what_was_given_back_and_is_in_no_log_puts_nobody_behind() {
    let room = Room { events: 2, bytes: 1_000 };
    let mut turns = Turns::default();
    assert_eq!(turns.push(&tenant("a"), 0, 1, room), Ok(()));
    assert_eq!(turns.push(&tenant("a"), 1, 1, room), Err(1));
    assert_eq!(taken(&mut turns, 1, 1).len(), 1);
    assert_eq!(turns.next(|_| false), None, "nothing to compare");
}

#[test]
fn a_debt_is_what_waits_at_the_last_price_and_has_no_end_for_who_is_behind() {
    let room = Room { events: 20, bytes: 1_000 };
    let (mut turns, noisy) = (Turns::default(), tenant("noisy"));
    assert_eq!(turns.debt(&noisy), 0);
    assert_eq!(fill(&mut turns, "noisy", 10, room), 10);
    assert_eq!(turns.debt(&noisy), 10, "nothing is known of what they cost");
    taken(&mut turns, 1_000, 1);
    assert_eq!((turns.debt(&noisy), turns.debt(&tenant("quiet"))), (9_000, 0));
    fill(&mut turns, "noisy", 1, Room { events: 9, bytes: 1_000 });
    assert_eq!(turns.debt(&noisy), u64::MAX);
}

#[test]
fn the_log_is_read_in_turns_too_before_what_waits() {
    let mut turns = Turns::default();
    fill(&mut turns, "noisy", 2, WIDE);
    fill(&mut turns, "quiet", 1, WIDE);
    let noisy = tenant("noisy");
    turns.aim(&noisy, Position(7));
    turns.aim(&noisy, Position(5));
    let all = u32::try_from(TURN).expect("small");
    assert_eq!(turns.next(|_| false), Some((noisy.clone(), Work::Read(Position(7), all))));
    assert!(turns.spend(TURN / 4), "the turn goes on");
    assert_eq!(
        turns.next(|_| false),
        Some((noisy.clone(), Work::Read(Position(7), 3))),
        "what it can pay for at that price"
    );
    assert!(!turns.spend(TURN), "the turn is over");
    assert_eq!(turns.next(|_| false), Some((tenant("quiet"), Work::Item(0))));
    turns.spend(1);
    assert!(matches!(turns.next(|_| false), Some((_, Work::Read(Position(7), _)))));
    turns.reached(&noisy);
    assert_eq!(turns.next(|_| false), Some((noisy, Work::Item(0))));
}

#[test]
fn who_has_enough_on_the_way_is_passed_over() {
    let mut turns = Turns::default();
    let (full, other) = (tenant("full"), tenant("other"));
    fill(&mut turns, "full", 3, WIDE);
    fill(&mut turns, "other", 2, WIDE);
    let is_full = |tenant: &TenantId| *tenant == full;
    for _ in 0..2 {
        // So dear that it has to save up for many turns, and still nobody else has one.
        assert_eq!(turns.next(is_full).map(|(tenant, _)| tenant), Some(other.clone()));
        turns.spend(100 * TURN);
    }
    assert_eq!(turns.next(is_full), None);
    assert_eq!(turns.next(|_| false).map(|(tenant, _)| tenant), Some(full));
}
