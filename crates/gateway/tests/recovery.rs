//! Coming back: what was missed arrives, in order, once; or the client is told.

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use support::Server;
use support::client::Socket;
use support::store::Fake;
use tidewire_gateway::Options;
use tokio::sync::Semaphore;

#[tokio::test]
async fn what_was_missed_comes_before_connected_and_under_the_same_ids() {
    let server = Server::start().await;
    let (mut socket, _) = Socket::connect(server.address, "p1/ann/").await;
    server.lead(1).await;
    socket.expect("lead:created").await;
    let (sid, pid) = (socket.sid.clone(), socket.pid.clone());
    server.publish("p1", "lead:created", json!({ "agentId": "somebody else", "n": 9 })).await;
    server.lead(2).await;
    server.publish("p2", "lead:created", json!({ "agentId": "ann", "n": 8 })).await;
    server.lead(3).await;
    // The old half of the connection is still there: it is taken over.
    let (mut socket, connected) = socket.reconnect(server.address, "p1/ann/").await;
    assert_eq!(socket.missed(), [2, 3]);
    assert_eq!((&socket.sid, &socket.pid), (&sid, &pid));
    assert_eq!((&connected["recovered"], &connected["position"]), (&json!(true), &json!(4)));
    server.lead(4).await;
    assert_eq!(socket.expect("lead:created").await["n"], 4);
    assert_eq!(server.gateway.stats().sockets, 1);
    // Again, and again: not only once.
    for n in 5..8 {
        server.lead(n).await;
        let (again, connected) = socket.reconnect(server.address, "p1/ann/").await;
        assert_eq!((again.missed(), &connected["recovered"]), (vec![n], &json!(true)));
        socket = again;
    }
}

#[tokio::test]
async fn a_client_that_never_got_an_event_recovers_too() {
    let server = Server::start().await;
    server.lead(1).await;
    let (mut socket, _) = Socket::connect(server.address, "p1/ann/").await;
    socket.offset = None;
    server.lead(2).await;
    let (socket, connected) = socket.reconnect(server.address, "p1/ann/").await;
    assert_eq!((socket.missed(), &connected["recovered"]), (vec![2], &json!(true)));
}

#[tokio::test]
async fn rooms_and_types_that_were_asked_for_survive_a_crash() {
    let server = Server::start().await;
    let (mut socket, _) = Socket::connect(server.address, "p1/ann/admin").await;
    assert_eq!(server.store.session_writes.load(Ordering::SeqCst), 0, "a connect writes nothing");
    socket.ask("join", &[json!("berth:b1")]).await;
    socket.ask("join", &[json!("vault:b1")]).await;
    socket.ask("leave", &[json!("port:p1")]).await;
    socket.ask("subscribe", &[json!({ "eventTypes": ["berth:*", "vault:*", "lead:*"] })]).await;
    let server = server.crash_and_restart().await;
    server.lead(1).await;
    server.publish("p1", "berth:noted", json!({ "berthId": "b1", "text": "a", "n": 2 })).await;
    server.publish("p1", "vault:opened", json!({ "berthId": "b1", "n": 3 })).await;
    server.publish("p1", "said", json!({ "id": "i", "from": "f", "text": "t", "n": 4 })).await;
    // The role is gone by now, and with it the vault.
    let (mut socket, connected) = socket.reconnect(server.address, "p1/ann/sales").await;
    assert_eq!(socket.missed(), [2]);
    assert_eq!((&connected["recovered"], &connected["rooms"]), (&json!(true), &json!(["user:ann", "berth:b1"])));
    server.publish("p1", "berth:noted", json!({ "berthId": "b1", "text": "b" })).await;
    assert_eq!(socket.expect("berth:noted").await["text"], "b");
}

#[tokio::test]
async fn a_token_is_of_no_use_to_anybody_else() {
    let server = Server::start().await;
    let (mut socket, _) = Socket::connect(server.address, "p1/ann/").await;
    server.lead(1).await;
    socket.expect("lead:created").await;
    for thief in ["p1/bob/", "p2/ann/"] {
        let auth = json!({ "token": thief, "pid": socket.pid, "offset": "e1.0+0" });
        let (mut other, connected) = Socket::open(server.address).await.join("/", auth).await.expect("in");
        assert_eq!((&connected["recovered"], other.early.len()), (&json!(false), 0));
        assert_ne!(other.sid, socket.sid);
        other.expect("continuity:lost").await;
    }
    server.lead(2).await;
    socket.expect("lead:created").await;
}

#[tokio::test]
async fn who_cannot_get_everything_is_told() {
    let server = Server::start().await;
    let (socket, _) = Socket::connect(server.address, "p1/ann/").await;
    for n in 0..101 {
        server.lead(n).await;
    }
    let (mut socket, connected) = socket.reconnect(server.address, "p1/ann/").await;
    assert_eq!((&connected["recovered"], socket.missed()), (&json!(false), vec![]));
    assert_eq!(socket.expect("continuity:lost").await, json!({ "position": 101, "offset": "e1.0+0" }));
    // Another incarnation of the log: a position of the old one means nothing.
    let other = Server::over(Arc::new(server.store.restored("e2")), Options::default()).await;
    let (mut socket, connected) = socket.reconnect(other.address, "p1/ann/").await;
    assert_eq!(connected["recovered"], false);
    socket.expect("continuity:lost").await;
    assert_eq!(socket.offset.as_deref(), Some("e2.101+0"));
    assert_eq!(other.gateway.stats().lost_epoch, 1);
    // An offset from the future was never given out.
    socket.offset = Some("e2.500".to_owned());
    let (_, connected) = socket.reconnect(other.address, "p1/ann/").await;
    assert_eq!(connected["recovered"], false);
}

#[tokio::test]
async fn who_left_on_purpose_does_not_come_back_to_old_rooms() {
    let server = Server::start().await;
    let (mut socket, _) = Socket::connect(server.address, "p1/ann/").await;
    socket.ask("join", &[json!("berth:b1")]).await;
    socket.send("41").await;
    server.until_all_left().await;
    let (socket, connected) = socket.reconnect(server.address, "p1/ann/").await;
    assert_eq!((&connected["recovered"], &connected["rooms"]), (&json!(false), &json!(["port:p1", "user:ann"])));
    drop(socket);
}

#[tokio::test]
async fn who_left_on_purpose_does_not_come_back_with_nothing_asked_for_either() {
    let server = Server::start().await;
    let (mut socket, _) = Socket::connect(server.address, "p1/ann/").await;
    socket.send("41").await;
    server.until_all_left().await;
    let (mut socket, connected) = socket.reconnect(server.address, "p1/ann/").await;
    assert_eq!(connected["recovered"], false);
    socket.expect("continuity:lost").await;
    // What was kept of an earlier loss does not bring it back.
    socket.ask("join", &[json!("berth:b1")]).await;
    let (mut socket, connected) = socket.reconnect(server.address, "p1/ann/").await;
    assert_eq!(connected["recovered"], true);
    socket.send("41").await;
    server.until_all_left().await;
    let (_, connected) = socket.reconnect(server.address, "p1/ann/").await;
    assert_eq!((&connected["recovered"], &connected["rooms"]), (&json!(false), &json!(["port:p1", "user:ann"])));
}

#[tokio::test]
async fn what_was_undone_after_coming_back_stays_undone() {
    let server = Server::start().await;
    let (mut socket, _) = Socket::connect(server.address, "p1/ann/").await;
    socket.ask("join", &[json!("berth:b1")]).await;
    let (mut socket, connected) = socket.reconnect(server.address, "p1/ann/").await;
    assert_eq!(connected["rooms"], json!(["port:p1", "user:ann", "berth:b1"]));
    socket.ask("leave", &[json!("berth:b1")]).await;
    let (mut socket, connected) = socket.reconnect(server.address, "p1/ann/").await;
    assert_eq!(connected["rooms"], json!(["port:p1", "user:ann"]));
    // The other way round it would be a gap: a room of its own that it left, and wants back.
    socket.ask("leave", &[json!("port:p1")]).await;
    let (mut socket, connected) = socket.reconnect(server.address, "p1/ann/").await;
    assert_eq!(connected["rooms"], json!(["user:ann"]));
    socket.ask("join", &[json!("port:p1")]).await;
    let server = server.crash_and_restart().await;
    server.lead(1).await;
    let (socket, connected) = socket.reconnect(server.address, "p1/ann/").await;
    assert_eq!((&connected["recovered"], &connected["rooms"]), (&json!(true), &json!(["port:p1", "user:ann"])));
    assert_eq!(socket.missed(), [1]);
}

#[tokio::test]
async fn what_was_not_acknowledged_comes_again() {
    let server = Server::start().await;
    let (mut socket, _) = Socket::connect(server.address, "p1/ann/").await;
    for n in 1..=3 {
        server.lead(n).await;
        socket.expect("lead:created").await;
    }
    assert_eq!(socket.ask("ack", &[json!({ "position": 1 })]).await["ok"], true);
    let (socket, connected) = socket.reconnect(server.address, "p1/ann/").await;
    assert_eq!((socket.missed(), &connected["recovered"]), (vec![2, 3], &json!(true)));
}

#[tokio::test]
async fn what_was_not_acknowledged_comes_again_after_a_crash_too() {
    let options = Options { ping_interval: Duration::from_millis(100), ..Options::default() };
    let server = Server::with(options).await;
    let (mut socket, _) = Socket::connect(server.address, "p1/ann/").await;
    for n in 1..=4 {
        server.lead(n).await;
        socket.expect("lead:created").await;
    }
    assert_eq!(socket.ask("ack", &[json!({ "position": 1 })]).await["ok"], true);
    let server = server.crash_and_restart().await;
    let (mut socket, connected) = socket.reconnect(server.address, "p1/ann/").await;
    assert_eq!((socket.missed(), &connected["recovered"]), (vec![2, 3, 4], &json!(true)));
    assert_eq!(socket.ask("ack", &[json!({ "position": 3 })]).await["ok"], true);
    assert_eq!(socket.ask("ack", &[json!({ "position": 2 })]).await["ok"], true);
    // A change of something else takes it along.
    socket.ask("join", &[json!("berth:b1")]).await;
    let server = server.crash_and_restart().await;
    let (socket, _) = socket.reconnect(server.address, "p1/ann/").await;
    assert_eq!(socket.missed(), [4]);
}

#[tokio::test]
async fn later_acknowledgements_are_written_together_with_the_next_look_at_the_socket() {
    let options = Options { ping_interval: Duration::from_millis(100), ..Options::default() };
    let server = Server::with(options).await;
    let (mut socket, _) = Socket::connect(server.address, "p1/ann/").await;
    for n in 1..=20 {
        server.lead(n).await;
        socket.expect("lead:created").await;
    }
    socket.ask("ack", &[json!({ "position": 1 })]).await;
    let writes = || server.store.session_writes.load(Ordering::SeqCst);
    assert_eq!(writes(), 1, "the first at once");
    let begun = std::time::Instant::now();
    for position in 2..=19 {
        socket.ask("ack", &[json!({ "position": position })]).await;
    }
    let looks = begun.elapsed().as_millis() / 100 + 1;
    assert!(u128::from(writes()) <= 1 + looks, "{} writes in {looks} looks, not one for each", writes());
    while !server.store.kept("p1", &socket.sid).is_some_and(|kept| kept.contains("\"acked\":19")) {
        tokio::task::yield_now().await;
    }
    let server = server.crash_and_restart().await;
    let (socket, _) = socket.reconnect(server.address, "p1/ann/").await;
    assert_eq!(socket.missed(), [20]);
}

#[tokio::test]
async fn what_is_kept_is_written_anew_for_who_comes_back() {
    let options = Options { ping_interval: Duration::from_millis(100), ..Options::default() };
    let server = Server::with(options).await;
    let (mut socket, _) = Socket::connect(server.address, "p1/ann/").await;
    socket.ask("join", &[json!("berth:b1")]).await;
    let (_socket, connected) = socket.reconnect(server.address, "p1/ann/").await;
    assert_eq!(connected["recovered"], true);
    // Once for the join and once at the end of the old transport. What a killed process left may be about to expire.
    while server.store.session_writes.load(Ordering::SeqCst) < 3 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_change_is_acknowledged_when_it_is_durable() {
    let server = Server::start().await;
    let (mut socket, _) = Socket::connect(server.address, "p1/ann/admin").await;
    let changes = [
        ("join", json!("berth:b1")),
        ("leave", json!("user:ann")),
        ("unsubscribe", json!({ "rooms": ["berth:b1"] })),
        ("subscribe", json!({ "rooms": ["berth:b2"] })),
        ("watch", json!("b3")),
        ("enter", json!({ "berthId": "b4", "text": "here" })),
        ("ack", json!({ "position": 0 })),
        ("subscribe", json!({ "eventTypes": ["lead:*", "berth:*"] })),
        ("unsubscribe", json!({ "eventTypes": ["berth:*"] })),
    ];
    for ((name, argument), number) in changes.into_iter().zip(1..) {
        let syncing = server.store.syncs.acquire().await.expect("never closed");
        socket.send(&format!("42{number}{}", json!([name, argument]))).await;
        while server.store.session_writes.load(Ordering::SeqCst) < number {
            tokio::task::yield_now().await;
        }
        server.lead(number).await;
        let mut first = socket.packet().await.expect("a packet");
        while first.starts_with("42[\"said\"") {
            first = socket.packet().await.expect("a packet");
        }
        assert!(first.starts_with("42[\"lead:created\""), "{name}: {first}");
        drop(syncing);
        let acknowledgement = loop {
            let packet = socket.packet().await.expect("an acknowledgement");
            if packet.starts_with("43") {
                break packet;
            }
        };
        assert!(acknowledgement.starts_with(&format!("43{number}[")), "{acknowledgement}");
        assert!(acknowledgement.contains("\"ok\":true"), "{name}: {acknowledgement}");
    }
}

#[tokio::test]
async fn what_the_store_refuses_is_refused_and_changes_nothing() {
    let server = Server::start().await;
    let (mut socket, connected) = Socket::connect(server.address, "p1/ann/admin").await;
    let told = socket.offset.clone();
    assert_eq!(connected["eventTypes"], Value::Null);
    socket.ask("join", &[json!("berth:b1")]).await;
    server.store.is_full.store(true, Ordering::SeqCst);
    for (name, argument) in [
        ("join", json!("berth:b2")),
        ("leave", json!("berth:b1")),
        ("leave", json!("port:p1")),
        ("subscribe", json!({ "eventTypes": ["said"], "rooms": ["berth:b2"] })),
        ("unsubscribe", json!({ "eventTypes": ["said"], "rooms": ["port:p1"] })),
        ("watch", json!("b2")),
        ("enter", json!({ "berthId": "b2", "text": "here" })),
        ("ack", json!({ "position": 0 })),
    ] {
        let answer = socket.ask(name, &[argument]).await;
        assert_eq!(answer["error"]["code"], "store.busy", "{name}: {answer}");
    }
    assert_eq!(
        socket.ask("join", &[json!("berth:b1")]).await["error"]["code"],
        "store.busy",
        "what is kept is unknown"
    );
    server.publish("p1", "berth:noted", json!({ "berthId": "b2", "text": "not for ann" })).await;
    server.publish("p1", "berth:noted", json!({ "berthId": "b1", "text": "for ann" })).await;
    assert_eq!(socket.expect("berth:noted").await["text"], "for ann");
    server.lead(1).await;
    socket.expect("lead:created").await;
    assert_eq!(socket.offset.as_deref(), Some("e1.3+0"), "nothing was published; it began at {told:?}");
    server.store.is_full.store(false, Ordering::SeqCst);
    let answer = socket.ask("subscribe", &[json!({ "eventTypes": ["lead:*"] })]).await;
    assert_eq!(answer["rooms"], json!(["port:p1", "user:ann", "berth:b1"]));
    let server = server.crash_and_restart().await;
    let (_, connected) = socket.reconnect(server.address, "p1/ann/admin").await;
    assert_eq!(connected["rooms"], json!(["port:p1", "user:ann", "berth:b1"]));
    assert_eq!((&connected["recovered"], &connected["eventTypes"]), (&json!(true), &json!(["lead:*"])));
}

#[tokio::test]
async fn a_store_that_does_not_answer_makes_the_client_try_again() {
    let server = Server::start().await;
    let (socket, _) = Socket::connect(server.address, "p1/ann/").await;
    server.lead(1).await;
    server.store.broken.store(true, Ordering::SeqCst);
    let mut failed = Socket::open(server.address).await;
    let auth = json!({ "token": "p1/ann/", "pid": socket.pid, "offset": socket.offset });
    failed.send(&format!("40{auth}")).await;
    assert_eq!(failed.closed().await.expect("closed").0, 1011, "not a refusal, which the client would take for final");
    server.store.broken.store(false, Ordering::SeqCst);
    let (socket, connected) = socket.reconnect(server.address, "p1/ann/").await;
    assert_eq!((socket.missed(), &connected["recovered"]), (vec![1], &json!(true)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn coming_back_in_the_moment_of_the_loss_keeps_the_rooms() {
    let server = Server::start().await;
    let clients: Vec<_> = (0..4)
        .map(|client| {
            let (address, token) = (server.address, format!("p1/user{client}/"));
            tokio::spawn(async move {
                let (mut socket, _) = Socket::connect(address, &token).await;
                socket.ask("join", &[json!("berth:b1")]).await;
                for round in 0..100 {
                    let (sid, pid, offset) = (socket.sid.clone(), socket.pid.clone(), socket.offset.clone());
                    let next = Socket::open(address).await;
                    // The end of the one transport and the CONNECT on the other are dealt with at once.
                    drop(socket);
                    let auth = json!({ "token": token, "pid": pid, "offset": offset });
                    let (back, connected) = next.join("/", auth).await.expect("let in");
                    assert_eq!((&back.sid, &connected["recovered"]), (&sid, &json!(true)));
                    let rooms = connected["rooms"].as_array().expect("rooms");
                    assert!(rooms.contains(&json!("berth:b1")), "round {round}: {rooms:?}");
                    socket = back;
                }
            })
        })
        .collect();
    for client in clients {
        client.await.expect("every round");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_loss_is_told_before_anything_that_happens_after_it() {
    let server = Arc::new(Server::start().await);
    // In which the relay spends its time, so that it waits for the tables of rooms whenever somebody connects.
    let mut crowd = Vec::new();
    for client in 0..20 {
        crowd.push(Socket::connect(server.address, &format!("p1/crowd{client}/admin")).await);
    }
    let publisher = server.clone();
    let publishing = tokio::spawn(async move {
        for n in 0.. {
            publisher.lead(n).await;
            tokio::task::yield_now().await;
        }
    });
    for client in 0..200 {
        let auth = json!({ "token": format!("p1/user{client}/admin"), "offset": "another.1" });
        let (mut socket, connected) = Socket::open(server.address).await.join("/", auth).await.expect("in");
        let told = socket.event().await;
        let lost = json!({ "position": connected["position"], "offset": "another.1" });
        assert_eq!((&told[0], &told[1]), (&json!("continuity:lost"), &lost), "client {client}");
    }
    publishing.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn coming_back_amid_a_flood_neither_loses_nor_doubles() {
    let server = Arc::new(Server::start().await);
    let (mut socket, _) = Socket::connect(server.address, "p1/ann/").await;
    const TOTAL: u64 = 3_000;
    // The publisher is never more than this ahead of the client, so that the history always reaches.
    let ahead = Arc::new(Semaphore::new(60));
    let (publisher, permits) = (server.clone(), ahead.clone());
    let publishing = tokio::spawn(async move {
        for n in 0..TOTAL {
            permits.acquire().await.expect("open").forget();
            publisher.lead(n).await;
        }
    });
    let mut seen: Vec<u64> = Vec::new();
    let mut recoveries = 0;
    while seen.last() != Some(&(TOTAL - 1)) {
        let event = socket.event().await;
        seen.extend(event[1]["n"].as_u64());
        ahead.add_permits(usize::from(event[1]["n"].is_u64()));
        if seen.len() % 60 == 30 && seen.len() + 200 < TOTAL as usize {
            let (again, connected) = socket.reconnect(server.address, "p1/ann/").await;
            assert_eq!(connected["recovered"], true, "after {}", seen.len());
            seen.extend(again.missed());
            ahead.add_permits(again.missed().len());
            socket = again;
            recoveries += 1;
        }
    }
    publishing.await.expect("published");
    assert!(recoveries > 10, "{recoveries}");
    assert_eq!(seen, (0..TOTAL).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_client_is_parked_on_the_log_and_gets_everything() {
    let server = Server::with(Options { max_backlog: 20_000, ..Options::default() }).await;
    let (mut slow, _) = Socket::connect(server.address, "p1/ann/").await;
    let text = "x".repeat(20_000);
    const TOTAL: u64 = 1_500;
    for n in 0..TOTAL {
        server.publish("p1", "lead:created", json!({ "agentId": "ann", "n": n, "text": text })).await;
        if n % 10 == 0 {
            server.publish("p1", "user:typing", json!({ "n": n })).await;
        }
    }
    while server.gateway.stats().behind == 0 {
        tokio::task::yield_now().await;
    }
    let mut seen = Vec::new();
    while seen.len() < TOTAL as usize {
        let event = slow.event().await;
        if event[0] == "lead:created" {
            seen.extend(event[1]["n"].as_u64());
        }
    }
    assert_eq!(seen, (0..TOTAL).collect::<Vec<_>>());
    server.lead(TOTAL).await;
    while slow.event().await[1]["n"] != json!(TOTAL) {}
    let stats = server.gateway.stats();
    assert!(stats.parked > 0 && stats.behind == 0 && stats.replayed > 0, "{stats:?}");
}

#[tokio::test]
async fn history_reaches_back_as_far_as_the_catalog_says() {
    let server = Server::over(Arc::new(Fake::new("e1")), Options::default()).await;
    for n in 1..=120 {
        server.lead(n).await;
    }
    let (mut socket, _) = Socket::connect(server.address, "p1/ann/").await;
    let numbers = |answer: &Value| -> Vec<u64> {
        let events = answer["events"].as_array().expect("events");
        events.iter().filter_map(|event| event["data"]["n"].as_u64()).collect()
    };
    let latest = socket.ask("history", &[json!({ "limit": 3 })]).await;
    assert_eq!((numbers(&latest), &latest["complete"]), (vec![118, 119, 120], &json!(false)));
    let all = socket.ask("history", &[]).await;
    assert_eq!((numbers(&all), &all["complete"]), ((21..=120).collect(), &json!(true)));
    let too_far = socket.ask("history", &[json!({ "after": 5 })]).await;
    assert_eq!((numbers(&too_far).first(), &too_far["complete"]), (Some(&21), &json!(false)));
    let page = socket.ask("history", &[json!({ "after": "e1.30+0", "limit": 60 })]).await;
    assert_eq!(
        (numbers(&page), &page["complete"], &page["position"]),
        ((31..=90).collect(), &json!(false), &json!(90))
    );
    let rest = socket.ask("history", &[json!({ "after": page["position"] })]).await;
    assert_eq!((numbers(&rest), &rest["complete"]), ((91..=120).collect(), &json!(true)));
    let none = socket.ask("history", &[json!({ "types": ["berth:*"] })]).await;
    assert_eq!((numbers(&none), &none["complete"]), (vec![], &json!(true)));
    assert_eq!(rest["events"][0]["type"], "lead:created");
    let other = socket.ask("history", &[json!({ "after": "e9.30" })]).await;
    assert_eq!(other["error"]["code"], "history.other_epoch");
}
