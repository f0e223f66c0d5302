//! The per-tenant logs: positions, times, reads and followers.

use std::sync::Arc;

use tidewire_core::commit::Append;
use tidewire_core::event::{Event, Position};
use tidewire_core::store::{Follower, LogQuery};
use tidewire_core::{Json, TenantId};
use tokio::sync::mpsc;

use crate::world::{HOUR, SECOND, START, World, code, commit, id, job_ids, tenant, within};

every_engine![
    positions_have_no_gaps_in_each_tenant,
    commits_of_one_turn_have_no_gaps,
    an_event_reads_as_it_was_committed,
    times_never_decrease_when_the_clock_steps_back,
    a_read_can_be_narrowed,
    a_long_log_is_read_in_pages,
    a_follower_is_told_every_commit_in_order,
    a_follower_is_not_told_what_was_refused,
    a_closed_store_answers_unavailable,
    events_across_tenants_have_a_log,
];

async fn positions_have_no_gaps_in_each_tenant(world: World) {
    let (a, b) = (tenant("a"), tenant("b"));
    assert_eq!(world.head(&a).await, 0);
    assert_eq!(world.append(&a, vec![world.event("x"), world.event("y")]).await, [Position(1), Position(2)]);
    assert_eq!(world.append(&b, vec![world.event("x")]).await, [Position(1)]);
    let wrong = Append { stream: Some("s".into()), expected_version: Some(9), ..world.event("x") };
    assert_eq!(
        code(world.try_commit(commit(&a, vec![world.event("x"), wrong], Vec::new())).await),
        "event.version_conflict"
    );
    assert_eq!(world.append(&a, vec![world.event("z")]).await, [Position(3)]);
    assert_eq!((world.head(&a).await, world.head(&b).await), (3, 1));
    let positions: Vec<_> = world.log(&a).await.iter().map(|event| event.position.0).collect();
    assert_eq!(positions, [1, 2, 3]);
}

async fn commits_of_one_turn_have_no_gaps(world: World) {
    let tenants = ["a", "b", "c"].map(tenant);
    let hold = world.hold().await;
    let mut answers = Vec::new();
    for round in 0..30 {
        let mut events = vec![world.event("x"), world.event("y")];
        if round % 5 == 4 {
            events.push(Append { stream: Some("s".into()), expected_version: Some(7), ..world.event("refused") });
        }
        answers.push(world.store.commit(commit(&tenants[round % 3], events, Vec::new())));
    }
    drop(hold);
    let mut written = 0;
    for answer in answers {
        written += within(answer).await.map_or(0, |committed| committed.events.len());
    }
    assert_eq!(written, 24 * 2);
    let mut total = 0;
    for tenant in &tenants {
        let positions: Vec<_> = world.log(tenant).await.iter().map(|event| event.position.0).collect();
        assert_eq!(positions, (1..=positions.len() as u64).collect::<Vec<_>>());
        assert_eq!(world.head(tenant).await, positions.len() as u64);
        total += positions.len();
    }
    assert_eq!(total, written);
}

async fn an_event_reads_as_it_was_committed(world: World) {
    let a = tenant("a");
    let asked = Append {
        id: id("order:42"),
        given_id: true,
        data: Json::parse(r#"{"amount": 1.50, "text": "ä\u0000 ☃"}"#.to_owned()).expect("json"),
        rooms: ["port:1".into(), "user:ü".into()].into(),
        user_id: Some("u1".into()),
        correlation_id: Some("c1".into()),
        causation_id: Some("c0".into()),
        stream: Some("order-42".into()),
        ..world.event("order.placed")
    };
    let answer = world.commit(commit(&a, vec![asked.clone()], Vec::new())).await.events.remove(0);
    assert_eq!((answer.position, answer.version, answer.time), (Some(Position(1)), Some(1), START));
    assert_eq!((answer.id, &*answer.kind, answer.deduplicated), (id("order:42"), "order.placed", false));

    let by_id = within(world.store.event(&a, &id("order:42"))).await.expect("read").expect("the event");
    for event in [&by_id, &world.log(&a).await[0]] {
        assert_eq!((&event.tenant, event.position, &event.id, event.time), (&a, Position(1), &asked.id, START));
        assert_eq!((&event.kind, &event.data, &event.rooms), (&asked.kind, &asked.data, &asked.rooms));
        assert_eq!((&event.user_id, &event.correlation_id), (&asked.user_id, &asked.correlation_id));
        assert_eq!((&event.causation_id, &event.stream, event.version), (&asked.causation_id, &asked.stream, Some(1)));
    }
    assert!(within(world.store.event(&a, &id("order:43"))).await.expect("read").is_none());
}

async fn times_never_decrease_when_the_clock_steps_back(world: World) {
    let a = tenant("a");
    world.append(&a, vec![world.event("x")]).await;
    world.clock.set(START - HOUR);
    world.append(&a, vec![world.event("x")]).await;
    world.clock.set(START + SECOND);
    world.append(&a, vec![world.event("x")]).await;
    let times: Vec<_> = world.log(&a).await.iter().map(|event| event.time).collect();
    assert_eq!(times, [START, START, START + SECOND]);
}

async fn a_read_can_be_narrowed(world: World) {
    let a = tenant("a");
    for number in 0..12 {
        let event = Append {
            user_id: (number % 3 == 0).then(|| "u1".into()),
            stream: (number % 4 == 0).then(|| "s1".into()),
            ..world.event(if number % 2 == 0 { "even" } else { "odd" })
        };
        world.append(&a, vec![event]).await;
        world.clock.advance(SECOND);
    }
    // Position 1 is at START, 2 a second later, and so on.
    let at = |seconds: u32| START + SECOND * seconds;
    let all = LogQuery { limit: LogQuery::MAX, ..LogQuery::default() };
    let cases: [(&str, LogQuery, &[u64]); 9] = [
        ("type", LogQuery { kind: Some("odd".to_owned()), ..all.clone() }, &[2, 4, 6, 8, 10, 12]),
        ("unknown type", LogQuery { kind: Some("other".to_owned()), ..all.clone() }, &[]),
        ("stream", LogQuery { stream: Some("s1".to_owned()), ..all.clone() }, &[1, 5, 9]),
        ("user", LogQuery { user: Some("u1".to_owned()), ..all.clone() }, &[1, 4, 7, 10]),
        ("from, to", LogQuery { from: Some(at(2)), to: Some(at(5)), ..all.clone() }, &[3, 4, 5]),
        ("after, up to", LogQuery { after: Position(9), up_to: Some(Position(11)), ..all.clone() }, &[10, 11]),
        ("after the end", LogQuery { after: Position(u64::MAX), ..all.clone() }, &[]),
        ("up to before after", LogQuery { after: Position(9), up_to: Some(Position(3)), ..all.clone() }, &[]),
        (
            "together",
            LogQuery { kind: Some("even".to_owned()), user: Some("u1".to_owned()), after: Position(1), ..all.clone() },
            &[7],
        ),
    ];
    for (what, query, expected) in cases {
        let events = within(world.store.read(&a, query)).await.expect(what);
        let positions: Vec<_> = events.iter().map(|event| event.position.0).collect();
        assert_eq!(positions, expected, "{what}");
    }
    assert!(world.log(&tenant("unknown")).await.is_empty());
}

async fn a_long_log_is_read_in_pages(world: World) {
    let a = tenant("a");
    let total = u64::from(LogQuery::MAX) + 500;
    world.append(&a, (0..total).map(|_| world.event("x")).collect()).await;
    let too_many = LogQuery { limit: u32::MAX, ..LogQuery::default() };
    assert_eq!(within(world.store.read(&a, too_many)).await.expect("read").len(), LogQuery::MAX as usize);
    let (mut after, mut seen) = (Position(0), 0);
    loop {
        let page =
            within(world.store.read(&a, LogQuery { after, limit: 400, ..LogQuery::default() })).await.expect("read");
        let Some(last) = page.last() else { break };
        for event in &page {
            seen += 1;
            assert_eq!(event.position.0, seen);
        }
        after = last.position;
    }
    assert_eq!(seen, total);
}

struct Told(mpsc::UnboundedSender<Arc<Event>>);

impl Follower for Told {
    fn committed(&self, events: &[Arc<Event>]) {
        for event in events {
            // The test has read what it wants when it no longer listens.
            drop(self.0.send(event.clone()));
        }
    }
}

async fn a_follower_is_told_every_commit_in_order(world: World) {
    let (a, b) = (tenant("a"), tenant("b"));
    world.append(&a, vec![world.event("before")]).await;
    let (sender, mut told) = mpsc::unbounded_channel();
    world.store.follow(Arc::new(Told(sender)));
    for _ in 0..20 {
        world.append(&a, vec![world.event("x"), world.event("y")]).await;
        world.append(&b, vec![world.event("z")]).await;
    }
    let (mut next_a, mut next_b) = (2, 1);
    for _ in 0..60 {
        let event = within(told.recv()).await.expect("told");
        // What a follower hears of can be read.
        let logged =
            within(world.store.event(&event.tenant, &event.id)).await.expect("read").expect("it is in the log");
        assert_eq!((logged.position, &logged.kind, logged.time), (event.position, &event.kind, event.time));
        let next = if event.tenant == a { &mut next_a } else { &mut next_b };
        assert_eq!(event.position.0, *next);
        *next += 1;
    }
    assert_eq!((next_a, next_b), (42, 21));
}

async fn a_follower_is_not_told_what_was_refused(world: World) {
    let a = tenant("a");
    let (sender, mut told) = mpsc::unbounded_channel();
    world.store.follow(Arc::new(Told(sender)));
    let given = Append { id: id("e1"), given_id: true, ..world.event("once") };
    world.append(&a, vec![given.clone()]).await;
    world.append(&a, vec![given]).await;
    let wrong = Append { stream: Some("s".into()), expected_version: Some(1), ..world.event("refused") };
    assert_eq!(code(world.try_commit(commit(&a, vec![wrong], Vec::new())).await), "event.version_conflict");
    world.append(&a, vec![world.event("last")]).await;
    let mut kinds = Vec::new();
    while kinds.last() != Some(&"last".to_owned()) {
        kinds.push(within(told.recv()).await.expect("told").kind.to_string());
    }
    assert_eq!(kinds, ["once", "last"]);
}

async fn a_closed_store_answers_unavailable(world: World) {
    let a = tenant("a");
    let parked = world.store.claim(tidewire_core::store::Claim { wait: HOUR, ..crate::world::any() });
    within(world.store.close()).await.expect("close");
    assert_eq!(code(within(parked).await.map(|leased| job_ids(&leased))), "unavailable");
    let late = commit(&a, vec![world.event("x")], Vec::new());
    assert_eq!(code(world.try_commit(late).await), "unavailable");
    assert_eq!(code(within(world.store.close()).await), "unavailable");
}

/// What goes to rooms that span tenants is in a log of its own as well: of all tenants, in the order of the commits, without gaps.
async fn events_across_tenants_have_a_log(world: World) {
    let (a, b, across) = (tenant("a"), tenant("b"), TenantId::across());
    assert_eq!(within(world.store.head(&across)).await.expect("head"), Position(0));
    let of = |kind: &str, across: bool| Append { across, ..world.event(kind) };
    world.append(&a, vec![of("own", false), of("first", true), of("second", true)]).await;
    world.append(&b, vec![of("third", true), of("own", false)]).await;
    let repeated = || Append { id: id("e1"), given_id: true, ..of("fourth", true) };
    world.append(&b, vec![repeated()]).await;
    world.append(&b, vec![repeated()]).await;
    world.append(&a, vec![of("fifth", true)]).await;
    assert_eq!(within(world.store.head(&across)).await.expect("head"), Position(5));
    let read = async |query: LogQuery| {
        let events = within(world.store.read(&across, query)).await.expect("read");
        let shown = |event: &Arc<Event>| {
            let (tenant, position) = event.origin.clone().expect("whose it is");
            format!("{} {} {}.{}", event.position, event.kind, tenant, position)
        };
        events.iter().map(shown).collect::<Vec<_>>()
    };
    let all = ["1 first a.2", "2 second a.3", "3 third b.1", "4 fourth b.3", "5 fifth a.4"];
    assert_eq!(read(LogQuery { limit: 10, ..LogQuery::default() }).await, all);
    let page = LogQuery { after: Position(1), up_to: Some(Position(4)), limit: 2, ..LogQuery::default() };
    assert_eq!(read(page).await, all[1..3]);
    assert_eq!(read(LogQuery { after: Position(5), limit: 10, ..LogQuery::default() }).await, [""; 0]);
    let own = within(world.store.read(&a, LogQuery { limit: 10, ..LogQuery::default() })).await.expect("read");
    assert!(own.iter().all(|event| event.origin.is_none() && event.tenant == a), "the tenant's own log is as ever");
}
