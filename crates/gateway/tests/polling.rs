//! HTTP polling, its rules, and the move to WebSocket.

mod support;

use serde_json::json;
use support::Server;
use support::client::{Polling, Socket, http};
use tidewire_gateway::{Options, Whom};

async fn until_a_poll_waits(server: &Server) {
    while server.gateway.stats().polls == 0 {
        tokio::task::yield_now().await;
    }
}

const CONNECT: &str = r#"40{"token":"p1/ann/"}"#;

#[tokio::test]
async fn a_polling_client_connects_and_gets_events() {
    let server = Server::start().await;
    let poll = Polling::open(server.address, "").await;
    let answer = poll.post(CONNECT).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "ok"));
    let packets = poll.until("42[\"connected\"").await;
    assert!(packets[0].starts_with("40{\"sid\":"), "{packets:?}");
    let waiting = tokio::spawn(async move { (poll.get().await, poll) });
    server.publish("p1", "lead:created", json!({ "agentId": "ann" })).await;
    let (answer, poll) = waiting.await.expect("answered");
    assert_eq!(answer.body, r#"42["lead:created",{"agentId":"ann"},"e1.1+0"]"#);
    assert!(answer.head.contains("content-type: text/plain; charset=utf-8"), "{}", answer.head);
    poll.post("421[\"join\",\"berth:b1\"]\u{1e}422[\"leave\",\"berth:b1\"]").await;
    let packets = poll.until("432[").await;
    assert!(packets[0].starts_with("431[{"), "acknowledged in order: {packets:?}");
    assert_eq!(server.gateway.connections(&Whom::default(), None, 10).expect("a page").items[0].transport, "polling");
}

#[tokio::test]
async fn wrong_requests_get_the_reference_servers_answers() {
    let server = Server::start().await;
    let poll = Polling::open(server.address, "").await;
    for (method, query, status, code) in [
        ("GET", "EIO=4", 400, 0),
        ("GET", "EIO=4&transport=carrier-pigeon", 400, 0),
        ("GET", "EIO=4&transport=polling&sid=unknown", 400, 1),
        ("POST", "EIO=4&transport=polling", 400, 2),
        ("PUT", "EIO=4&transport=polling", 400, 2),
        ("GET", "EIO=4&transport=websocket", 400, 3),
        ("PUT", &poll.query(), 400, 3),
        ("GET", "EIO=3&transport=polling", 400, 5),
        ("GET", "transport=polling", 400, 5),
    ] {
        let answer = http(server.address, method, query, "", "").await;
        let body: serde_json::Value = serde_json::from_str(&answer.body).expect("json");
        assert_eq!((answer.status, &body["code"]), (status, &json!(code)), "{method} {query}");
    }
    assert_eq!(http(server.address, "OPTIONS", "", "", "").await.status, 204);
}

#[tokio::test]
async fn pages_of_other_sites_need_to_be_named() {
    let options = Options { allowed_origins: vec!["https://app.example".to_owned()], ..Options::default() };
    let server = Server::with(options).await;
    let get = |headers: &'static str| http(server.address, "GET", "EIO=4&transport=polling", headers, "");
    let answer = get("Origin: https://app.example\r\n").await;
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("access-control-allow-origin: https://app.example\r\n"), "{}", answer.head);
    assert!(answer.head.contains("access-control-allow-credentials: true"));
    let answer = get("Origin: https://evil.example\r\n").await;
    assert_eq!((answer.status, answer.body.contains("\"code\":4")), (403, true));
    assert!(!answer.head.contains("access-control-allow"));
    let refused = Socket::open_with(server.address, "", "Origin: https://evil.example\r\n").await;
    assert_eq!(refused.map(|_| ()), Err(403));
    let preflight = "Origin: https://app.example\r\nAccess-Control-Request-Headers: x-custom\r\n";
    let answer = http(server.address, "OPTIONS", "EIO=4&transport=polling", preflight, "").await;
    assert!(answer.head.contains("access-control-allow-headers: x-custom"), "{}", answer.head);
}

#[tokio::test]
async fn cookies_do_not_count_for_pages_that_only_the_star_lets_in() {
    let server = Server::with(Options { allowed_origins: vec!["*".to_owned()], ..Options::default() }).await;
    let headers = "Origin: https://evil.example\r\nCookie: session=p1/ann/\r\n";
    let socket = Socket::open_with(server.address, "", headers).await.expect("open");
    let error = socket.join("/", json!({})).await.map(|_| ()).expect_err("refused");
    assert_eq!(error["data"]["code"], "auth.required");
}

#[tokio::test]
async fn two_polls_at_once_end_the_session() {
    let server = Server::start().await;
    let poll = Polling::open(server.address, "").await;
    let (address, query) = (poll.address, poll.query());
    let ask = move || {
        let query = query.clone();
        tokio::spawn(async move { http(address, "GET", &query, "", "").await })
    };
    let (one, two) = (ask(), ask());
    let (one, two) = (one.await.expect("answered"), two.await.expect("answered"));
    let mut answers = [(one.status, one.body), (two.status, two.body)];
    answers.sort();
    assert_eq!(answers[0], (200, "1".to_owned()));
    assert_eq!(answers[1].0, 400);
    assert_eq!(poll.get().await.status, 400);
}

#[tokio::test]
async fn a_poll_that_is_given_up_ends_the_session() {
    let server = Server::start().await;
    let poll = Polling::open(server.address, "").await;
    let query = poll.query();
    let address = server.address;
    let waiting = tokio::spawn(async move { http(address, "GET", &query, "", "").await });
    until_a_poll_waits(&server).await;
    waiting.abort();
    while server.gateway.stats().connections > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(poll.post(CONNECT).await.status, 400);
}

#[tokio::test]
async fn bad_and_large_bodies_end_the_session() {
    let server = Server::with(Options { max_message: 1_000, ..Options::default() }).await;
    for body in ["abc", "", "4\u{1e}", "0{}", "2", "42", &format!("{CONNECT}\u{1e}42{{}}")] {
        let poll = Polling::open(server.address, "").await;
        assert_eq!(poll.post(body).await.status, 400, "{body:?}");
        assert_eq!(poll.post(CONNECT).await.status, 400, "{body:?} ended it");
    }
    let poll = Polling::open(server.address, "").await;
    assert_eq!(poll.post(&"x".repeat(1_001)).await.status, 413);
    assert_eq!(poll.post(CONNECT).await.status, 400, "and ended it");
    let poll = Polling::open(server.address, "").await;
    let binary = http(server.address, "POST", &poll.query(), "Content-Type: application/octet-stream\r\n", "x").await;
    assert_eq!(binary.status, 400);
}

#[tokio::test]
async fn a_client_that_closes_gets_its_poll_back() {
    let server = Server::start().await;
    let poll = Polling::open(server.address, "").await;
    let (address, query) = (poll.address, poll.query());
    let waiting = tokio::spawn(async move { http(address, "GET", &query, "", "").await });
    until_a_poll_waits(&server).await;
    assert_eq!(poll.post("1").await.status, 200);
    assert_eq!(waiting.await.expect("answered").body, "6");
    assert_eq!(poll.get().await.status, 400);
}

#[tokio::test]
async fn a_poll_that_the_close_overtook_is_answered_as_if_it_had_waited() {
    let server = Server::start().await;
    let poll = Polling::open(server.address, "").await;
    assert_eq!(poll.post("1").await.status, 200);
    let late = poll.get().await;
    assert_eq!((late.status, late.body.as_str()), (200, "6"));
    assert_eq!(poll.get().await.status, 400, "one poll, as one could have been under way");
    // Of a session that the server ended nobody is told so.
    let poll = Polling::open(server.address, "").await;
    assert_eq!(poll.post("abc").await.status, 400);
    assert_eq!(poll.get().await.status, 400);
}

#[tokio::test]
async fn a_session_moves_to_a_websocket_without_losing_anything() {
    let server = Server::start().await;
    let poll = Polling::open(server.address, "").await;
    poll.post(CONNECT).await;
    poll.until("42[\"connected\"").await;
    let mut socket = Socket::upgrade(server.address, &format!("&sid={}", poll.sid), "").await.expect("101");
    // A second WebSocket for the same session has no business.
    let mut second = Socket::upgrade(server.address, &format!("&sid={}", poll.sid), "").await.expect("101");
    assert_eq!(second.closed().await.map(|(code, _)| code), Some(1002));
    let (address, query) = (poll.address, poll.query());
    let waiting = tokio::spawn(async move { http(address, "GET", &query, "", "").await });
    for n in 0..3 {
        server.publish("p1", "lead:created", json!({ "agentId": "ann", "n": n })).await;
    }
    socket.send("2probe").await;
    assert_eq!(socket.packet().await.as_deref(), Some("3probe"));
    let mut got = waiting.await.expect("the poll ends").body;
    for n in 3..6 {
        server.publish("p1", "lead:created", json!({ "agentId": "ann", "n": n })).await;
    }
    // The client may poll once more before it knows; it does not have to wait then.
    let more = poll.get().await.body;
    got.push_str(&more);
    socket.send("5").await;
    server.publish("p1", "lead:created", json!({ "agentId": "ann", "n": 6 })).await;
    while !got.contains("\"n\":6") {
        got.push_str(&socket.packet().await.expect("a packet"));
    }
    let order: Vec<_> = (0..7).map(|n| got.find(&format!("\"n\":{n}")).expect("each")).collect();
    assert!(order.is_sorted(), "{got}");
    assert_eq!(got.matches("lead:created").count(), 7, "{got}");
    assert_eq!(poll.get().await.status, 400, "no polling after the move");
    assert_eq!(server.gateway.connections(&Whom::default(), None, 10).expect("a page").items[0].transport, "websocket");
}

#[tokio::test]
async fn a_poll_that_overtook_the_move_comes_too_late() {
    let server = Server::start().await;
    let poll = Polling::open(server.address, "").await;
    let mut socket = Socket::upgrade(server.address, &format!("&sid={}", poll.sid), "").await.expect("101");
    socket.send("2probe").await;
    assert_eq!(socket.packet().await.as_deref(), Some("3probe"));
    let waiting = tokio::spawn(async move { poll.get().await });
    until_a_poll_waits(&server).await;
    socket.send("5").await;
    assert_eq!(waiting.await.expect("answered").status, 400);
}

#[tokio::test]
async fn a_wrong_probe_costs_only_the_websocket() {
    let server = Server::start().await;
    let poll = Polling::open(server.address, "").await;
    poll.post(CONNECT).await;
    let mut socket = Socket::upgrade(server.address, &format!("&sid={}", poll.sid), "").await.expect("101");
    socket.send("2nonsense").await;
    assert!(socket.closed().await.is_some());
    poll.until("42[\"connected\"").await;
    server.publish("p1", "lead:created", json!({ "agentId": "ann" })).await;
    poll.until("42[\"lead:created\"").await;
}
