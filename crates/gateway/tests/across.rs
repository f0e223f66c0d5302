//! Rooms that span tenants: who misses something there gets it from a log of their own, beside that of its tenant.

mod support;

use serde_json::json;
use support::Server;
use support::client::Socket;
use tidewire_core::event::Offset;
use tidewire_gateway::Options;

const TOKEN: &str = "p1/root/admin/cross";

async fn alert(server: &Server, n: u64) {
    alert_of(server, "p2", n).await;
}

async fn alert_of(server: &Server, tenant: &str, n: u64) {
    server.publish(tenant, "system:alert", json!({ "text": "", "n": n })).await;
}

fn offset(socket: &Socket) -> Offset {
    socket.offset.as_deref().and_then(|offset| offset.parse().ok()).expect("an offset")
}

#[tokio::test]
async fn who_was_away_gets_what_happened_there_also_from_another_process() {
    let server = Server::start().await;
    let (socket, _) = Socket::connect(server.address, TOKEN).await;
    let (mut socket, connected) = socket.reconnect(server.address, TOKEN).await;
    assert_eq!(connected["recovered"], true, "nothing happened");
    alert(&server, 0).await;
    assert_eq!(socket.expect("system:alert").await["n"], 0);
    let (mut socket, _) = socket.reconnect(server.address, TOKEN).await;
    assert!(socket.missed().is_empty(), "it had heard that one");
    for round in 1..=2 {
        // Of three tenants, its own among them, on their way to a transport that the client has given up.
        for n in 0..9 {
            alert_of(&server, ["p2", "p1", "p3"][n as usize % 3], n).await;
            server.publish("p1", "lead:created", json!({ "agentId": "x", "n": 100 + n })).await;
        }
        let (back, connected) = socket.reconnect(server.address, TOKEN).await;
        assert_eq!(connected["recovered"], true, "in round {round}");
        let (mut own, mut across): (Vec<_>, Vec<_>) = (Vec::new(), Vec::new());
        for event in &back.early {
            let n = event[1]["n"].as_u64().expect("a number");
            if event[0] == "system:alert" && n % 3 != 1 { across.push(n) } else { own.push(n) }
        }
        assert_eq!(across, [0, 2, 3, 5, 6, 8], "those of others, in their order");
        let expected: Vec<u64> =
            (0..9).flat_map(|n| [Some(n).filter(|n| n % 3 == 1), Some(100 + n)]).flatten().collect();
        assert_eq!(own, expected, "the log of its own tenant, in its order");
        socket = back;
    }
    alert(&server, 7).await;
    let server = server.crash_and_restart().await;
    alert(&server, 8).await;
    let (socket, connected) = socket.reconnect(server.address, TOKEN).await;
    assert_eq!((&connected["recovered"], socket.missed()), (&json!(true), vec![7, 8]));
}

#[tokio::test]
async fn history_reaches_back_as_far_there_as_in_a_tenants_log() {
    let server = Server::start().await;
    let (away, _) = Socket::connect(server.address, TOKEN).await;
    let (ann, _) = Socket::connect(server.address, "p1/ann/").await;
    for n in 0..100 {
        alert(&server, n).await;
    }
    let (away, connected) = away.reconnect(server.address, TOKEN).await;
    assert_eq!((&connected["recovered"], away.missed().len()), (&json!(true), 100));
    for n in 0..101 {
        alert(&server, n).await;
    }
    let (mut away, connected) = away.reconnect(server.address, TOKEN).await;
    assert_eq!(connected["recovered"], false);
    away.expect("continuity:lost").await;
    assert_eq!(server.gateway.stats().lost_history, 1);
    let (_ann, connected) = ann.reconnect(server.address, "p1/ann/").await;
    assert_eq!(connected["recovered"], true, "who is not there does not care");
}

#[tokio::test]
async fn who_was_not_there_gets_nothing_from_before() {
    let server = Server::start().await;
    alert(&server, 0).await;
    let (root, _) = Socket::connect(server.address, "p1/root/admin").await;
    alert(&server, 1).await;
    // It may be in there since it was away, and what it missed is judged by the rights of today.
    let (mut root, connected) = root.reconnect(server.address, TOKEN).await;
    assert_eq!((&connected["recovered"], root.missed()), (&json!(true), vec![1]));
    alert(&server, 2).await;
    assert_eq!(root.expect("system:alert").await["n"], 2);
    assert_eq!(root.ask("leave", &[json!("global")]).await["ok"], true);
    alert(&server, 3).await;
    assert_eq!(root.ask("join", &[json!("global")]).await["ok"], true);
    let (root, connected) = root.reconnect(server.address, TOKEN).await;
    assert_eq!((&connected["recovered"], root.missed()), (&json!(true), vec![]));
}

#[tokio::test]
async fn who_begins_at_a_cursor_is_told_what_it_does_not_bring() {
    let server = Server::start().await;
    let begin = async || {
        let auth = json!({ "token": TOKEN, "after": "acked" });
        Socket::open(server.address).await.join("/", auth).await.expect("let in").0
    };
    let mut first = begin().await;
    alert(&server, 1).await;
    assert_eq!(first.expect("system:alert").await["n"], 1, "nothing was missed before the cursor was there");
    drop(first);
    server.publish("p1", "lead:created", json!({ "agentId": "ann", "n": 1 })).await;
    let mut second = begin().await;
    assert_eq!(second.expect("continuity:lost").await["rooms"], json!(["global"]));
    assert_eq!(second.expect("lead:created").await["n"], 1);
    // It is in the log of its own tenant, which the cursor is a place of.
    drop(second);
    alert_of(&server, "p1", 2).await;
    let mut third = begin().await;
    third.expect("continuity:lost").await;
    assert_eq!(
        (third.expect("lead:created").await["n"].take(), third.expect("system:alert").await["n"].take()),
        (json!(1), json!(2))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_client_gets_everything_once_and_in_order_of_both_logs() {
    const TOTAL: u64 = 1_000;
    let server = Server::with(Options { max_backlog: 20_000, ..Options::default() }).await;
    let (mut slow, _) = Socket::connect(server.address, TOKEN).await;
    let text = "x".repeat(20_000);
    let publish = async |tenant: &str, kind: &str, n: u64| {
        server.publish(tenant, kind, json!({ "agentId": "ann", "n": n, "text": text })).await;
    };
    for n in 0..TOTAL {
        publish("p1", "lead:created", n).await;
        publish("p2", "system:alert", n).await;
        publish("p1", "port:closed", n).await;
    }
    assert!(server.gateway.stats().parked > 0);
    let mut found = std::collections::BTreeMap::<String, Vec<u64>>::new();
    for _ in 0..3 * TOTAL {
        let event = slow.event().await;
        let name = event[0].as_str().expect("a name").to_owned();
        found.entry(name).or_default().extend(event[1]["n"].as_u64());
    }
    let all: Vec<u64> = (0..TOTAL).collect();
    assert_eq!(found.values().collect::<Vec<_>>(), [&all, &all, &all], "{:?}", found.keys());
    alert(&server, TOTAL).await;
    assert_eq!(slow.expect("system:alert").await["n"], TOTAL, "live again");
    let at = offset(&slow);
    assert_eq!((at.position.0, at.across.map(|across| across.0)), (2 * TOTAL, Some(2 * TOTAL + 1)));
}

#[tokio::test]
async fn what_the_queue_to_the_relay_cannot_take_is_read_from_the_log() {
    let server = Server::with(Options { max_relay_events: 100, ..Options::default() }).await;
    let (mut watcher, _) = Socket::connect(server.address, TOKEN).await;
    // Nothing is relayed in between, as this runs on one thread and never waits.
    for n in 0..200 {
        alert(&server, n).await;
    }
    for n in 0..200 {
        assert_eq!(watcher.expect("system:alert").await["n"], n);
    }
    assert_eq!(server.gateway.stats().relay_lagged, 1);
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
    alert_of(&server, "p3", 99).await;
    for socket in [&mut own, &mut other] {
        assert_eq!(socket.expect("system:alert").await["n"], 99, "nothing twice");
        assert_eq!(offset(socket).across.map(|across| across.0), Some(22));
    }
    assert_eq!((offset(&own).position.0, offset(&other).position.0), (21, 0));
    let (own, _) = own.reconnect(server.address, TOKEN).await;
    assert!(own.missed().is_empty());
}

#[tokio::test]
async fn each_tenant_has_states_of_its_own_there() {
    let server = Server::start().await;
    let (watcher, _) = Socket::connect(server.address, TOKEN).await;
    for (tenant, n) in [("p2", 1), ("p3", 2), ("p1", 3), ("p2", 4)] {
        server.publish(tenant, "system:level", json!({ "key": "k", "n": n })).await;
    }
    let (watcher, connected) = watcher.reconnect(server.address, TOKEN).await;
    let missed = watcher.missed();
    assert_eq!(connected["recovered"], true);
    // Of one tenant only the last that waits matters.
    let of = |wanted: &[u64]| missed.iter().copied().filter(|n| wanted.contains(n)).collect::<Vec<_>>();
    assert_eq!((of(&[2, 3]), of(&[1, 4]).last()), (vec![3, 2], Some(&4)), "{missed:?}");
}
