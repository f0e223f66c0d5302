//! Rooms that span tenants have no log: what a client missed there cannot come, so it is told.

mod support;

use serde_json::{Value, json};
use support::Server;
use support::client::Socket;
use tidewire_core::event::Offset;
use tidewire_gateway::Options;

const TOKEN: &str = "p1/root/admin/cross";

async fn alert(server: &Server, text: &str) {
    server.publish("p2", "system:alert", json!({ "text": text })).await;
}

/// The rooms that a client is told of right after `connected`.
async fn lost(socket: &mut Socket) -> Value {
    socket.expect("continuity:lost").await["rooms"].take()
}

#[tokio::test]
async fn who_was_away_recovers_only_if_nothing_happened_there() {
    let server = Server::start().await;
    let (mut watcher, _) = Socket::connect(server.address, "p3/watcher/admin/cross").await;
    let (socket, _) = Socket::connect(server.address, TOKEN).await;
    let (mut socket, connected) = socket.reconnect(server.address, TOKEN).await;
    assert_eq!(connected["recovered"], true, "nothing happened");
    alert(&server, "heard").await;
    for socket in [&mut socket, &mut watcher] {
        socket.expect("system:alert").await;
    }
    let (socket, connected) = socket.reconnect(server.address, TOKEN).await;
    assert_eq!(connected["recovered"], true, "it had heard that one");
    // On its way to a transport that the client has given up.
    alert(&server, "unheard").await;
    watcher.expect("system:alert").await;
    let (mut socket, connected) = socket.reconnect(server.address, TOKEN).await;
    assert_eq!((&connected["recovered"], lost(&mut socket).await), (&json!(false), json!(["global"])));
    let (socket, connected) = socket.reconnect(server.address, TOKEN).await;
    assert_eq!(connected["recovered"], true, "it was told of that one");
    // Who is not there does not care.
    let (ann, _) = Socket::connect(server.address, "p1/ann/").await;
    alert(&server, "not for ann").await;
    watcher.expect("system:alert").await;
    let (ann, connected) = ann.reconnect(server.address, "p1/ann/").await;
    assert_eq!(connected["recovered"], true);
    assert_eq!(server.gateway.stats().lost_app_room, 1);
    // Another process knows nothing of what happened.
    let server = server.crash_and_restart().await;
    let (mut socket, connected) = socket.reconnect(server.address, TOKEN).await;
    assert_eq!((&connected["recovered"], lost(&mut socket).await), (&json!(false), json!(["global"])));
    let (_ann, connected) = ann.reconnect(server.address, "p1/ann/").await;
    assert_eq!(connected["recovered"], true);
}

#[tokio::test]
async fn who_begins_at_a_cursor_is_told_what_it_does_not_bring() {
    let server = Server::start().await;
    let begin = async || {
        let auth = json!({ "token": TOKEN, "after": "acked" });
        Socket::open(server.address).await.join("/", auth).await.expect("let in").0
    };
    let mut first = begin().await;
    alert(&server, "heard").await;
    assert_eq!(first.expect("system:alert").await["text"], "heard", "nothing was missed before the cursor was there");
    drop(first);
    server.publish("p1", "lead:created", json!({ "agentId": "ann", "n": 1 })).await;
    let mut second = begin().await;
    assert_eq!(second.expect("lead:created").await["n"], 1);
    assert_eq!(lost(&mut second).await, json!(["global"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_client_is_told_once_when_it_is_live_again() {
    let server = Server::with(Options { max_backlog: 20_000, ..Options::default() }).await;
    let (mut slow, _) = Socket::connect(server.address, TOKEN).await;
    let text = "x".repeat(20_000);
    const TOTAL: u64 = 1_500;
    let lead = |n: u64| server.publish("p1", "lead:created", json!({ "agentId": "ann", "n": n, "text": text }));
    for n in 0..TOTAL {
        lead(n).await;
    }
    while server.gateway.stats().behind == 0 {
        tokio::task::yield_now().await;
    }
    // The log brings this one for its other room.
    server.publish("p1", "port:closed", json!({ "n": TOTAL })).await;
    for _ in 0..2 {
        alert(&server, &text).await;
    }
    while server.gateway.stats().dropped < 2 {
        tokio::task::yield_now().await;
    }
    let (mut numbers, mut told) = (Vec::new(), Vec::new());
    while told.is_empty() || numbers.len() <= TOTAL as usize {
        let event = slow.event().await;
        match event[0].as_str() {
            Some("continuity:lost") => told.push(event[1]["rooms"].clone()),
            Some("system:alert") => panic!("it was dropped"),
            _ => numbers.extend(event[1]["n"].as_u64()),
        }
    }
    assert_eq!(numbers, (0..=TOTAL).collect::<Vec<_>>(), "its own log, whole and once");
    alert(&server, "live").await;
    assert_eq!(slow.expect("system:alert").await["text"], "live");
    assert_eq!(told, [json!(["global"])]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_slow_with_nothing_else_is_told_too() {
    let server = Server::with(Options { max_backlog: 20_000, ..Options::default() }).await;
    let (mut slow, _) = Socket::connect(server.address, TOKEN).await;
    let text = "x".repeat(20_000);
    const TOTAL: u64 = 1_500;
    for _ in 0..TOTAL {
        server.publish("p2", "system:alert", json!({ "text": text })).await;
    }
    while server.gateway.stats().dropped == 0 {
        tokio::task::yield_now().await;
    }
    let told = loop {
        let event = slow.event().await;
        if event[0] != "system:alert" {
            break event;
        }
    };
    assert_eq!((&told[0], &told[1]["rooms"]), (&json!("continuity:lost"), &json!(["global"])));
    assert!(server.gateway.stats().lost_app_room > 0);
}

#[tokio::test]
async fn what_the_relay_passes_over_is_told_to_all_in_the_room_and_to_who_comes_back() {
    let server = Server::with(Options { max_relay_events: 100, ..Options::default() }).await;
    let (mut watcher, _) = Socket::connect(server.address, TOKEN).await;
    let (gone, _) = Socket::connect(server.address, "p1/boss/admin/cross").await;
    // Nobody of p2 is here, so nobody reads its log. Nothing is relayed in between, as this runs on one thread and never waits.
    for n in 0..200 {
        alert(&server, &n.to_string()).await;
    }
    // One tenant has at most half of the room.
    for n in 0..50 {
        assert_eq!(watcher.expect("system:alert").await["text"], n.to_string());
    }
    assert_eq!(watcher.expect("continuity:lost").await, json!({ "rooms": ["global"], "position": 0 }));
    alert(&server, "next").await;
    assert_eq!(watcher.expect("system:alert").await["text"], "next");
    let (mut gone, connected) = gone.reconnect(server.address, "p1/boss/admin/cross").await;
    assert_eq!((&connected["recovered"], lost(&mut gone).await), (&json!(false), json!(["global"])));
}

#[tokio::test]
async fn an_event_for_a_room_of_ones_own_and_one_that_spans_tenants_arrives_once() {
    let server = Server::start().await;
    let close = async |n: u64| server.publish("p1", "port:closed", json!({ "n": n })).await;
    close(0).await;
    // One is the first socket of the tenant that it happens in, the other knows it by the room that spans tenants alone.
    let (mut own, connected) = Socket::connect(server.address, TOKEN).await;
    assert_eq!(connected["position"], 1);
    let (mut other, _) = Socket::connect(server.address, "p2/boss/admin/cross").await;
    for n in 1..=20 {
        close(n).await;
    }
    for socket in [&mut own, &mut other] {
        for n in 1..=20 {
            assert_eq!(socket.expect("port:closed").await["n"], n, "each once, in order");
        }
    }
    alert(&server, "last").await;
    for socket in [&mut own, &mut other] {
        assert_eq!(socket.expect("system:alert").await["text"], "last", "nothing twice");
    }
    let position = own.offset.as_deref().and_then(|offset| offset.parse::<Offset>().ok()).expect("an offset").position;
    assert_eq!(position.0, 21, "that of the log, from which it would go on");
}
