//! Tenants take turns on the way to the sockets. A transport with a socket of each in its two namespaces shows in which order.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::Server;
use support::client::Socket;
use tidewire_core::TenantId;
use tidewire_gateway::Options;

/// So many that they need several turns.
const FLOOD: u64 = 2_000;
/// The number of the one event of the quiet tenant.
const QUIET: u64 = 1_000_000;
/// A turn is 1,024 points, and an event to one socket costs two.
const ONE_TURN: usize = 512;

/// A transport with a socket of the quiet tenant and, in the namespace beside it, one of the tenant that floods.
async fn watch(server: &Server) -> Socket {
    let (quiet, _) = Socket::connect(server.address, "p3/ann/").await;
    quiet.join("/ws", json!({ "token": "p2/bob/" })).await.expect("let in").0
}

/// Publishes a flood of one tenant and then one event of another; nothing is relayed in between, as this runs on one thread and never
/// waits. Answers the numbers in the order in which they come.
async fn flood(server: &Server, watcher: &mut Socket) -> Vec<u64> {
    for n in 0..FLOOD {
        server.publish("p2", "lead:created", json!({ "agentId": "bob", "n": n })).await;
    }
    server.publish("p3", "lead:created", json!({ "agentId": "ann", "n": QUIET })).await;
    let mut numbers = Vec::new();
    for _ in 0..=FLOOD {
        let packet = watcher.packet().await.expect("an event");
        let event: Value = serde_json::from_str(&packet[packet.find('[').expect("an event")..]).expect("json");
        numbers.extend(event[1]["n"].as_u64());
    }
    numbers
}

/// The quiet tenant's event came after one turn of the flood, and that kept its order.
fn assert_in_turns(mut numbers: Vec<u64>) {
    let quiet = numbers.iter().position(|n| *n == QUIET).expect("it came");
    assert!(quiet <= ONE_TURN, "only after {quiet} events of the other tenant");
    numbers.remove(quiet);
    assert_eq!(numbers, (0..FLOOD).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_tenant_does_not_wait_for_the_flood_of_another() {
    let server = Server::start().await;
    let mut watcher = watch(&server).await;
    assert_in_turns(flood(&server, &mut watcher).await);
    assert_eq!(server.gateway.stats().relay_lagged, 0);
}

#[tokio::test]
async fn nor_while_the_flood_is_read_from_the_log() {
    let server = Server::with(Options { max_relay_events: 100, ..Options::default() }).await;
    let mut watcher = watch(&server).await;
    assert_in_turns(flood(&server, &mut watcher).await);
    assert_eq!(server.gateway.stats().relay_lagged, 1, "of the one that floods; the other found room");
}

#[tokio::test]
async fn publishers_of_a_tenant_whose_sockets_are_far_behind_are_held_back() {
    for (most, held) in [(Duration::from_millis(1), 1), (Duration::ZERO, 0)] {
        let options = Options { max_relay_events: 100, max_publish_hold: most, ..Options::default() };
        let server = Server::with(options).await;
        let (_noisy, _) = Socket::connect(server.address, "p2/bob/").await;
        for _ in 0..FLOOD {
            server.publish("p2", "system:alert", json!({ "text": "again" })).await;
        }
        for tenant in ["p3", "p2"] {
            server.gateway.hold_publisher(&TenantId::new(tenant).expect("a tenant")).await;
        }
        assert_eq!(server.gateway.stats().publishers_held, held, "the flood's, and not the other's");
    }
}

#[tokio::test]
async fn a_client_whose_messages_publish_is_held_back_too() {
    let options = Options { max_relay_events: 100, max_publish_hold: Duration::from_millis(1), ..Options::default() };
    let server = Server::with(options).await;
    let (mut noisy, _) = Socket::connect(server.address, "p2/bob/").await;
    for n in 0..FLOOD {
        server.publish("p2", "port:closed", json!({ "n": n })).await;
    }
    // It asks while the log is being read for it.
    assert_eq!(noisy.ask("say", &[json!({ "text": "hi" })]).await["ok"], true);
    assert_eq!(server.gateway.stats().publishers_held, 1);
}

#[tokio::test]
async fn ephemeral_events_keep_their_place_over_the_turns() {
    let server = Server::start().await;
    let (mut socket, _) = Socket::connect(server.address, "p1/ann/").await;
    let (_other, _) = Socket::connect(server.address, "p2/bob/").await;
    for n in 0..FLOOD {
        let (kind, data) = match n % 2 {
            0 => ("lead:created", json!({ "agentId": "ann", "n": n })),
            _ => ("user:typing", json!({ "n": n })),
        };
        server.publish("p1", kind, data).await;
        server.publish("p2", "lead:created", json!({ "agentId": "bob" })).await;
    }
    for n in 0..FLOOD {
        assert_eq!(socket.event().await[1]["n"], n);
    }
}

#[tokio::test]
async fn a_tenant_with_much_on_the_way_goes_on_when_it_has_been_written() {
    let server = Server::start().await;
    let mut sockets = Vec::new();
    // More than are written to in one turn, so that the relay fills their list again before it is empty.
    for _ in 0..100 {
        sockets.push(Socket::connect(server.address, "p1/ann/").await.0);
    }
    // More copies than may be on the way at once.
    for n in 0..FLOOD / 5 {
        server.publish("p1", "lead:created", json!({ "agentId": "ann", "n": n })).await;
    }
    for socket in &mut sockets {
        for n in 0..FLOOD / 5 {
            assert_eq!(socket.event().await[1]["n"], n);
        }
    }
    assert_eq!(server.gateway.stats().relay_lagged, 0);
}
