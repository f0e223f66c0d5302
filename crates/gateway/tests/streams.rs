//! Server-sent events whose client does not read: closed within its time, and resumed without a gap.

mod support;

use std::pin::Pin;
use std::time::Duration;

use http::request::Parts;
use http_body_util::BodyExt;
use serde_json::json;
use support::Server;
use tidewire_core::TenantId;
use tidewire_gateway::{EventStream, Hangup, Options, Reader};

fn impatient(max_backlog: usize) -> Options {
    let stall = Duration::from_millis(200);
    Options { max_stall: stall, max_backlog, ping_interval: Duration::from_millis(100), ..Options::default() }
}

fn request(token: &str, last: Option<&str>, hangup: &Hangup) -> Parts {
    let mut request = http::Request::get("/v1/events").extension(hangup.clone());
    if !token.is_empty() {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    request.body(()).expect("a request").into_parts().0
}

/// Everything up to and with `last`, as text.
async fn read(stream: &mut Pin<Box<EventStream>>, last: &str) -> String {
    let mut text = String::new();
    while !text.contains(last) {
        let frame = tokio::time::timeout(Duration::from_secs(10), stream.frame()).await.expect("in time");
        let data = frame.expect("not the end").expect("a frame").into_data().expect("data");
        text.push_str(std::str::from_utf8(&data).expect("text"));
    }
    text
}

async fn lead(server: &Server, n: u64) {
    server.publish("p1", "lead:created", json!({ "agentId": "ann", "n": n, "pad": "x".repeat(1_000) })).await;
}

/// The numbers in what was read, in their order.
fn numbers(text: &str) -> Vec<u64> {
    let of_line = |line: &str| line.split_once("\"n\":")?.1.split([',', '}']).next()?.parse().ok();
    text.lines().filter_map(of_line).collect()
}

#[tokio::test]
async fn a_parked_stream_that_takes_nothing_is_closed_with_its_connection_and_resumes() {
    let server = Server::with(impatient(8 * 1024)).await;
    let all = Reader::Tenant(TenantId::new("p1").expect("tenant"));
    for (token, reader) in [("p1/ann/", Reader::EndUser), ("", all)] {
        let before = server.gateway.stats();
        let hangup = Hangup::default();
        let answer = server.gateway.follow(&request(token, None, &hangup), reader.clone()).await.expect("a stream");
        let mut stream = Box::pin(answer.into_body());
        lead(&server, 0).await;
        let seen = read(&mut stream, "\"n\":0").await;
        let last = seen.rsplit("id: ").next().and_then(|rest| rest.lines().next()).expect("an id").to_owned();
        for n in 1..50 {
            lead(&server, n).await;
        }
        let within = tokio::time::timeout(Duration::from_secs(10), hangup.asked()).await.expect("hung up");
        assert_eq!(within, Duration::ZERO, "at once: there is nothing to wait for");
        assert!(stream.frame().await.is_none(), "what waited is gone");
        let stats = server.gateway.stats();
        assert_eq!(stats.closed_slow, before.closed_slow + 1);
        assert!(stats.parked > before.parked);
        assert_eq!((stats.sockets, stats.connections, stats.behind), (0, 0, 0));
        let back = server.gateway.follow(&request(token, Some(&last), &Hangup::default()), reader).await.expect("back");
        let text = read(&mut Box::pin(back.into_body()), "\"n\":49").await;
        assert_eq!(numbers(&text), (1..50).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_stream_that_takes_nothing_is_closed_even_if_little_waits_and_others_live_on() {
    let server = Server::with(impatient(1024 * 1024)).await;
    let (hangup, living) = (Hangup::default(), Hangup::default());
    let stuck = server.gateway.follow(&request("p1/ann/", None, &hangup), Reader::EndUser).await.expect("a stream");
    let reads = server.gateway.follow(&request("p1/ann/", None, &living), Reader::EndUser).await.expect("a stream");
    let mut reads = Box::pin(reads.into_body());
    let reading = async {
        // Signs of life come as long as it is read.
        for _ in 0..20 {
            read(&mut reads, ": still here").await;
        }
    };
    let (_, ()) = tokio::join!(tokio::time::timeout(Duration::from_secs(10), hangup.asked()), reading);
    let stats = server.gateway.stats();
    assert_eq!((stats.closed_slow, stats.sockets), (1, 1));
    drop(stuck);
    drop(reads);
    assert_eq!(server.gateway.stats().sockets, 0, "a body that is dropped leaves at once");
}

#[tokio::test]
async fn a_stop_gives_streams_time_to_take_what_waits() {
    let server = Server::start().await;
    let hangup = Hangup::default();
    let answer = server.gateway.follow(&request("p1/ann/", None, &hangup), Reader::EndUser).await.expect("a stream");
    let mut stream = Box::pin(answer.into_body());
    server.gateway.drain(Duration::ZERO).await;
    assert!(hangup.asked().await > Duration::from_secs(1));
    let text = read(&mut stream, "event: connected").await;
    assert!(text.starts_with("retry: "), "{text}");
    assert!(stream.frame().await.is_none());
    let error = server.gateway.follow(&request("p1/ann/", None, &hangup), Reader::EndUser).await.expect_err("stopping");
    assert_eq!((error.code(), error.retry_after().is_some()), ("unavailable", true));
}
