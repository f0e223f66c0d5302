//! Where a client left off: what it had asked for and when, what was read for it, what it has dealt with.

mod support;

use std::time::Duration;

use serde_json::json;
use support::Server;
use support::client::{Polling, Socket, http};

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
    assert_eq!(quiet.offset.as_deref(), Some("e1.30"), "as the stock client reads it");
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
