//! Where a client left off: what it had asked for and when, what was read for it, what it has dealt with.

mod support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use support::Server;
use support::client::{Polling, Socket, http};
use tidewire_gateway::Options;

#[tokio::test]
async fn what_was_before_a_join_or_a_subscription_does_not_come_with_what_was_missed() {
    let server = Server::start().await;
    let (mut socket, _) = Socket::connect(server.address, "p1/ann/").await;
    let noted = async |server: &Server, n: u64| {
        server.publish("p1", "berth:noted", json!({ "berthId": "b1", "text": "a", "n": n })).await;
    };
    let said = async |server: &Server, n: u64| {
        server.publish("p1", "said", json!({ "id": "i", "from": "f", "text": "t", "n": n })).await;
    };
    noted(&server, 1).await;
    socket.ask("join", &[json!("berth:b1")]).await;
    // Its own room, which it leaves for a while.
    socket.ask("leave", &[json!("port:p1")]).await;
    said(&server, 2).await;
    socket.ask("join", &[json!("port:p1")]).await;
    // The first types are what is left of all, and so since ever.
    socket.ask("subscribe", &[json!({ "eventTypes": ["berth:*"] })]).await;
    said(&server, 3).await;
    socket.ask("subscribe", &[json!({ "eventTypes": ["said"] })]).await;
    let server = server.crash_and_restart().await;
    noted(&server, 4).await;
    said(&server, 5).await;
    let (socket, connected) = socket.reconnect(server.address, "p1/ann/").await;
    assert_eq!((socket.missed(), &connected["recovered"]), (vec![4, 5], &json!(true)));
}

#[tokio::test]
async fn a_client_that_few_events_are_for_comes_back_to_where_it_left() {
    let server = Server::start().await;
    let (mut quiet, _) = Socket::connect(server.address, "p1/bob/").await;
    for n in 0..30 {
        server.lead(n).await;
    }
    assert_eq!(quiet.expect("continuity:kept").await, json!({ "position": 30 }));
    assert_eq!(quiet.offset.as_deref(), Some("e1.30+0"), "as the stock client reads it");
    // With those before it is more than history holds.
    for n in 30..120 {
        server.lead(n).await;
    }
    let (quiet, connected) = quiet.reconnect(server.address, "p1/bob/").await;
    assert_eq!((&connected["recovered"], &connected["position"]), (&json!(true), &json!(120)));
    // More than history holds at once. The process knows that nothing of it was for this client.
    for n in 120..250 {
        server.lead(n).await;
    }
    let auth = json!({ "token": "p1/bob/", "pid": quiet.pid, "offset": quiet.offset });
    drop(quiet);
    server.until_all_left().await;
    let (quiet, connected) = Socket::open(server.address).await.join("/", auth).await.expect("let in");
    assert_eq!((&connected["recovered"], quiet.missed()), (&json!(true), vec![]));
    // It knows, too, what a client that shows an older offset has missed.
    let ann = Socket::connect(server.address, "p1/ann/").await.0;
    for n in 250..360 {
        server.lead(n).await;
    }
    let (_, connected) = ann.reconnect(server.address, "p1/ann/").await;
    assert_eq!(connected["recovered"], false);
}

#[tokio::test]
async fn the_answer_comes_before_what_was_missed_so_that_a_line_which_breaks_brings_nothing_twice() {
    let server = Server::start().await;
    let (socket, _) = Socket::connect(server.address, "p1/ann/").await;
    let auth = json!({ "token": "p1/ann/", "pid": socket.pid, "offset": socket.offset });
    drop(socket);
    for n in 1..4 {
        server.lead(n).await;
    }
    // What the stock client gets before the answer it keeps without the offset, and has it again when it comes back.
    let mut socket = Socket::open(server.address).await;
    socket.send(&format!("40{auth}")).await;
    assert_eq!(&socket.packet().await.expect("an answer")[..2], "40");
    assert_eq!(socket.expect("lead:created").await["n"], 1);
    let auth = json!({ "token": "p1/ann/", "pid": auth["pid"], "offset": socket.offset });
    let (socket, connected) = Socket::open(server.address).await.join("/", auth).await.expect("let in");
    assert_eq!((socket.missed(), &connected["recovered"]), (vec![2, 3], &json!(true)));
}

#[tokio::test]
async fn a_pattern_that_takes_the_place_of_a_type_brings_what_was_missed_of_it() {
    let server = Server::start().await;
    let (mut socket, _) = Socket::connect(server.address, "p1/ann/").await;
    socket.ask("subscribe", &[json!({ "eventTypes": ["said"] })]).await;
    socket.ask("subscribe", &[json!({ "eventTypes": ["lead:created"] })]).await;
    let offset = socket.offset.clone();
    server.lead(1).await;
    socket.ask("subscribe", &[json!({ "eventTypes": ["lead:*"] })]).await;
    socket.ask("unsubscribe", &[json!({ "eventTypes": ["lead:created"] })]).await;
    // It was lost on the way.
    socket.early.clear();
    socket.offset = offset;
    let (socket, connected) = socket.reconnect(server.address, "p1/ann/").await;
    assert_eq!((socket.missed(), &connected["recovered"]), (vec![1], &json!(true)));
}

#[tokio::test]
async fn who_has_dealt_with_all_that_it_was_sent_has_with_what_was_not_for_it() {
    let server = Server::start().await;
    let (mut socket, _) = Socket::connect(server.address, "p1/ann/").await;
    server.lead(1).await;
    socket.expect("lead:created").await;
    socket.ask("ack", &[json!({ "position": 1 })]).await;
    // More than history holds.
    for _ in 0..110 {
        server.publish("p1", "lead:created", json!({ "agentId": "bob" })).await;
    }
    let (mut socket, connected) = socket.reconnect(server.address, "p1/ann/").await;
    assert_eq!((socket.missed(), &connected["recovered"]), (vec![], &json!(true)));
    // What it was sent and has not dealt with comes again as ever.
    server.lead(2).await;
    socket.expect("lead:created").await;
    let (socket, connected) = socket.reconnect(server.address, "p1/ann/").await;
    assert_eq!((socket.missed(), &connected["recovered"]), (vec![2], &json!(true)));
}

#[tokio::test]
async fn who_gave_up_coming_back_in_the_middle_has_missed_nothing_for_it() {
    let server = Server::start().await;
    let (mut socket, _) = Socket::connect(server.address, "p1/ann/").await;
    socket.ask("join", &[json!("berth:b1")]).await;
    let auth = json!({ "token": "p1/ann//slow", "pid": socket.pid, "offset": socket.offset }).to_string();
    let again = json!({ "token": "p1/ann/", "pid": socket.pid, "offset": socket.offset });
    drop(socket);
    server.until_all_left().await;
    server.publish("p1", "berth:noted", json!({ "berthId": "b1", "text": "a", "n": 1 })).await;
    // Its poll ends while the credential is checked; the packet is dealt with all the same.
    let poll = Polling::open(server.address, "").await;
    let query = poll.query();
    let address = server.address;
    let waiting = tokio::spawn(async move { http(address, "GET", &query, "", "").await });
    while server.gateway.stats().polls == 0 {
        tokio::task::yield_now().await;
    }
    let connecting = tokio::spawn(async move { poll.post(&format!("40{auth}")).await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    waiting.abort();
    while server.gateway.stats().connections > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    connecting.await.expect("answered");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(server.gateway.stats().sockets, 0);
    let (socket, connected) = Socket::open(server.address).await.join("/", again).await.expect("let in");
    assert_eq!((socket.missed(), &connected["recovered"]), (vec![1], &json!(true)));
}

#[tokio::test]
async fn what_is_on_its_way_when_a_room_is_asked_for_is_in_its_history_and_does_not_come() {
    const FLOOD: u64 = 90;
    let server = Server::with(Options { max_relay_events: 3, ..Options::default() }).await;
    let (mut socket, _) = Socket::connect(server.address, "p1/ann/").await;
    let noted = async |n: u64| {
        server.publish("p1", "berth:noted", json!({ "berthId": "b1", "text": "a", "n": n })).await;
    };
    // The relay has to read them from the log, and that does not answer for now.
    server.store.broken.store(true, Ordering::SeqCst);
    for n in 0..FLOOD {
        noted(n).await;
    }
    assert_eq!(socket.ask("join", &[json!("berth:b1")]).await["ok"], true);
    server.store.broken.store(false, Ordering::SeqCst);
    let history = socket.ask("history", &[json!({ "types": ["berth:noted"] })]).await;
    let numbers = history["events"].as_array().expect("events").iter().map(|event| event["data"]["n"].as_u64());
    assert_eq!(numbers.collect::<Vec<_>>(), (0..FLOOD).map(Some).collect::<Vec<_>>());
    noted(FLOOD).await;
    assert_eq!(socket.expect("berth:noted").await["n"], FLOOD);
    let (socket, connected) = socket.reconnect(server.address, "p1/ann/").await;
    assert_eq!((socket.missed(), &connected["recovered"]), (vec![], &json!(true)));
}

#[tokio::test]
async fn an_event_larger_than_all_that_may_wait_comes_with_what_was_missed() {
    let server = Server::with(Options { max_backlog: 20_000, ..Options::default() }).await;
    let (socket, _) = Socket::connect(server.address, "p1/ann/").await;
    let text = "x".repeat(60_000);
    for n in 0..3 {
        server.publish("p1", "lead:created", json!({ "agentId": "ann", "n": n, "text": text })).await;
    }
    let (mut socket, connected) = socket.reconnect(server.address, "p1/ann/").await;
    assert_eq!(connected["recovered"], true);
    let mut missed = socket.missed();
    // It is told where it is, as not all of it fits before.
    assert_eq!(connected["position"], missed.len());
    while missed.len() < 3 {
        missed.extend(socket.expect("lead:created").await["n"].as_u64());
    }
    assert_eq!(missed, [0, 1, 2]);
}

/// A connection that says whose session it wants, and what came of it: its events by name and number, until its end or `connected`.
async fn come_back(mut socket: Socket, auth: &str) -> (Socket, Vec<(String, Option<u64>)>) {
    socket.send(&format!("40{auth}")).await;
    let mut events = Vec::new();
    while let Some(packet) = socket.packet().await {
        if let Some(body) = packet.strip_prefix("42") {
            let event: Value = serde_json::from_str(body).expect("json");
            let name = event[0].as_str().expect("a name").to_owned();
            events.push((name, event[1]["n"].as_u64()));
            if event[0] == "connected" {
                assert_eq!(event[1]["recovered"], true);
                break;
            }
        }
    }
    (socket, events)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_connections_that_come_back_at_once_each_gets_what_was_missed_or_nothing() {
    let server = Server::start().await;
    for n in 0..1_000 {
        // One user connects no more often than it may.
        let token = format!("p1/user{n}/");
        let (socket, _) = Socket::connect(server.address, &token).await;
        server.publish("p1", "port:closed", json!({ "n": n })).await;
        let auth = json!({ "token": token, "pid": socket.pid, "offset": socket.offset }).to_string();
        let (one, two) = (Socket::open(server.address).await, Socket::open(server.address).await);
        let later = async {
            for _ in 0..n % 60 {
                tokio::task::yield_now().await;
            }
            come_back(two, &auth).await
        };
        let (one, two) = tokio::join!(come_back(one, &auth), later);
        for (_, events) in [&one, &two] {
            let is_told = events.iter().any(|(name, _)| name == "connected");
            assert!(!is_told || events[0] == ("port:closed".to_owned(), Some(n)), "round {n}: {events:?}");
        }
        let (socket, _) = socket.reconnect(server.address, &token).await;
        assert_eq!(socket.missed(), [n]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_holds_when_somebody_takes_over_at_that_moment() {
    let server = Server::start().await;
    let (mut acknowledged, mut refused) = (0, 0);
    for n in 0..300 {
        let token = format!("p1/user{n}/");
        let (mut socket, _) = Socket::connect(server.address, &token).await;
        let (pid, offset) = (socket.pid.clone(), socket.offset.clone());
        let auth = json!({ "token": token, "pid": pid, "offset": offset }).to_string();
        let taker = Socket::open(server.address).await;
        socket.send(r#"420["join","berth:b1"]"#).await;
        for _ in 0..n / 4 {
            tokio::task::yield_now().await;
        }
        let (mut taker, _) = come_back(taker, &auth).await;
        let mut is_acknowledged = false;
        while let Some(packet) = socket.packet().await {
            is_acknowledged |= packet.starts_with("430") && packet.contains("\"ok\":true");
        }
        *(if is_acknowledged { &mut acknowledged } else { &mut refused }) += 1;
        (taker.pid, taker.offset) = (pid, offset);
        let (_, connected) = taker.reconnect(server.address, &token).await;
        assert_eq!(connected["recovered"], true);
        let is_in = connected["rooms"].as_array().expect("rooms").contains(&json!("berth:b1"));
        assert!(is_in || !is_acknowledged, "round {n}");
    }
    assert!(acknowledged > 0 && refused > 0, "{acknowledged} and {refused}: not at that moment");
}
