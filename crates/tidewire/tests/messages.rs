//! Handlers in Rust of messages that clients send, asked over a socket.

use std::future::{pending, ready};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tidewire::testing::{TestApp, TestBuilder};
use tidewire::{App, Error, MessageContext, NewEvent, NewJob, Result, State, Tenant, TenantId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

const CATALOG: &str = r#"
[app]
name = "shop"
tenant = "shopId"

[rooms]
"shop:{shopId}" = { join = "auto" }
"order:{orderId}" = { join = "request", when = "params.orderId != 'sealed'" }

[events."order.placed"]
rooms = ["shop:{shopId}"]
data = { orderId = "string" }

[events."order.noted"]
rooms = ["shop:{shopId}"]

[events.told]
reply = true

[queues.packing]

[jobs.pack]
queue = "packing"
data = { orderId = "string" }

[messages.order]
data = { orderId = "string", items = "integer" }
publish = [{ type = "order.noted", data = { orderId = "{{ data.orderId }}" } }]
join = "order:{orderId}"
reply = { event = "told", data = { orderId = "{{ data.orderId }}" } }

[messages.add]
args = ["integer", "integer?"]

[messages.hello]
"#;

/// Longer than anything takes that works.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Order {
    order_id: String,
    items: u32,
}

struct Shelf(&'static str);

struct Shop {
    dir: tempfile::TempDir,
    tenant: TenantId,
}

impl Shop {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("app.toml"), CATALOG).expect("the catalog");
        Self { dir, tenant: TenantId::new("corner").expect("a tenant") }
    }

    fn test(&self) -> TestBuilder {
        TestApp::new(self.dir.path())
    }

    /// A socket of the clerk Ann.
    async fn connect(&self, app: &App) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (app, router) = (app.clone(), app.router());
        // The clock of the app stands still and is behind the one by which tokens are checked.
        let ten_years = Duration::from_secs(3_650 * 24 * 3_600);
        let token = app.token(&self.tenant, "ann", &["clerk".to_owned()], ten_years).expect("a token");
        tokio::spawn(async move { app.serve_until(listener, router, pending()).await });
        Client::connect(address, &token).await
    }

    /// Nothing was written.
    async fn is_empty(&self, app: &TestApp) -> bool {
        app.events(&self.tenant).await.is_empty() && app.jobs(&self.tenant).await.is_empty()
    }
}

/// A Socket.IO client over polling.
struct Client {
    address: SocketAddr,
    /// The session's id and the socket's.
    sid: String,
    socket: String,
    asked: u64,
}

impl Client {
    async fn connect(address: SocketAddr, token: &str) -> Self {
        let open = http(address, "GET", "", "").await;
        let open: Value = serde_json::from_str(&open[1..]).expect("an open packet");
        let sid = open["sid"].as_str().expect("a sid").to_owned();
        let mut client = Self { address, sid, socket: String::new(), asked: 0 };
        client.post(&format!("40{}", json!({ "token": token }))).await;
        let connected: Value = serde_json::from_str(&client.packet("40").await).expect("json");
        client.socket = connected["sid"].as_str().expect("a sid").to_owned();
        client
    }

    async fn post(&self, body: &str) {
        assert_eq!(http(self.address, "POST", &format!("&sid={}", self.sid), body).await, "ok");
    }

    /// What comes behind `start` in the next packet that begins with it.
    async fn packet(&self, start: &str) -> String {
        loop {
            let packets = http(self.address, "GET", &format!("&sid={}", self.sid), "").await;
            if let Some(found) = packets.split('\u{1e}').find_map(|packet| packet.strip_prefix(start)) {
                return found.to_owned();
            }
        }
    }

    /// Sends a message and waits for its acknowledgement.
    async fn ask(&mut self, name: &str, args: &[Value]) -> Value {
        let id = self.asked;
        self.asked += 1;
        let message: Vec<Value> = [json!(name)].into_iter().chain(args.iter().cloned()).collect();
        self.post(&format!("42{id}{}", json!(message))).await;
        let answer: Value = serde_json::from_str(&self.packet(&format!("43{id}")).await).expect("json");
        answer[0].clone()
    }

    async fn order(&mut self, items: u32) -> Value {
        self.ask("order", &[json!({ "orderId": "o1", "items": items })]).await
    }
}

async fn http(address: SocketAddr, method: &str, query: &str, body: &str) -> String {
    let (status, body) = answered(address, method, query, body).await;
    assert_eq!(status, 200, "{body}");
    body
}

async fn answered(address: SocketAddr, method: &str, query: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let len = body.len();
    let request = format!(
        "{method} /socket.io/?EIO=4&transport=polling{query} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Content-Type: text/plain\r\nContent-Length: {len}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("in time").expect("read");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head[9..12].parse().expect("a status"), body.to_owned())
}

fn stage(cx: &MessageContext, order: &Order) {
    cx.publish(NewEvent::new("order.placed", json!({ "orderId": order.order_id })));
    cx.enqueue(NewJob::new("pack", json!({ "orderId": order.order_id })));
}

async fn place(order: Order, shelf: State<Shelf>, cx: MessageContext, tenant: Tenant) -> Result<Value> {
    stage(&cx, &order);
    assert_eq!(*tenant, *cx.tenant());
    Ok(json!([cx.name(), cx.tenant(), cx.user(), cx.roles(), cx.socket(), shelf.0.0, order.items]))
}

fn code(answer: &Value) -> &str {
    assert_eq!(answer["ok"], false, "{answer}");
    answer["error"]["code"].as_str().expect("a code")
}

#[tokio::test]
async fn a_handler_answers_and_what_it_stages_is_committed_with_the_declaration() {
    let shop = Shop::new();
    let app = shop.test().state(Shelf("left")).message("order", place).build().await.expect("an app");
    let mut ann = shop.connect(&app).await;
    let answer = ann.order(2).await;
    assert_eq!(answer["ok"], true, "{answer}");
    assert_eq!(answer["result"], json!(["order", "corner", "ann", ["clerk"], ann.socket, "left", 2]));
    assert_eq!((&answer["room"], answer["jobs"][0]["type"].as_str()), (&json!("order:o1"), Some("pack")));
    assert_eq!(answer["jobs"][0]["state"], "pending");
    let events = app.events(&shop.tenant).await;
    let events: Vec<_> = events.iter().map(|event| (&*event.kind, event.user_id.as_deref())).collect();
    assert_eq!(events, [("order.noted", Some("ann")), ("order.placed", Some("ann"))]);
    let jobs = app.jobs(&shop.tenant).await;
    let [job] = &jobs[..] else { panic!("one job, got {jobs:?}") };
    assert_eq!((&job.tenant, job.user_id.as_deref()), (&shop.tenant, Some("ann")));
    assert_eq!(answer["jobs"][0]["id"], json!(job.id));
}

#[tokio::test]
async fn what_is_declared_is_checked_before_the_handler_is_called_and_arguments_come_as_a_list() {
    let shop = Shop::new();
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    let app = shop
        .test()
        .message("order", move |_: Order| {
            counted.fetch_add(1, Ordering::SeqCst);
            async { Ok(()) }
        })
        .message("add", |(a, b): (i64, Option<i64>)| async move { Ok(a + b.unwrap_or(1)) })
        .message("hello", |(): (), cx: MessageContext| async move { Ok(format!("hello {}", cx.user())) })
        .build()
        .await
        .expect("an app");
    let mut ann = shop.connect(&app).await;
    assert_eq!(code(&ann.ask("order", &[json!({ "orderId": 7, "items": 1 })]).await), "message.invalid_data");
    // Fits the declaration, and not the type of the handler.
    assert_eq!(code(&ann.ask("order", &[json!({ "orderId": "o1", "items": -1 })]).await), "message.invalid_data");
    assert_eq!(code(&ann.ask("order", &[json!({ "orderId": "sealed", "items": 1 })]).await), "room.forbidden");
    assert_eq!(calls.load(Ordering::SeqCst), 0);
    assert!(shop.is_empty(&app).await);
    let nothing = ann.order(1).await;
    assert_eq!((&nothing["ok"], nothing.get("result")), (&json!(true), None));
    assert_eq!(ann.ask("add", &[json!(2), json!(3), json!(4)]).await["result"], 5);
    assert_eq!(ann.ask("add", &[json!(2)]).await["result"], 3);
    assert_eq!(ann.ask("hello", &[json!("unasked")]).await["result"], "hello ann");
}

#[tokio::test]
async fn nothing_is_committed_when_the_handler_fails_or_what_it_staged_is_refused() {
    let shop = Shop::new();
    let handler = |order: Order, cx: MessageContext| async move {
        stage(&cx, &order);
        match order.items {
            0 => return Err(Error::invalid("order.empty", "an order has at least one item")),
            1 => panic!("the shelf fell down"),
            2 => cx.enqueue(NewJob::new("pack", json!({ "orderId": 2 }))),
            3 => return Ok("x".repeat(300_000)),
            _ => {}
        }
        Ok("placed".to_owned())
    };
    let at_once = |(a, _): (i64, Option<i64>)| {
        assert!(a > 0, "it panics before there is a future");
        ready(Ok(a))
    };
    let app = shop.test().message("order", handler).message("add", at_once).build().await.expect("an app");
    let mut ann = shop.connect(&app).await;
    assert_eq!(code(&ann.ask("add", &[json!(0)]).await), "internal");
    assert_eq!(ann.ask("add", &[json!(1)]).await["result"], 1);
    let refused = ann.order(0).await;
    assert_eq!(refused["error"], json!({ "code": "order.empty", "message": "an order has at least one item" }));
    let panicked = ann.order(1).await;
    assert_eq!(code(&panicked), "internal");
    assert!(!panicked.to_string().contains("shelf"), "what it died of is for the log: {panicked}");
    assert_eq!(code(&ann.order(2).await), "job.invalid_data");
    assert_eq!(code(&ann.order(3).await), "data.too_large");
    assert!(shop.is_empty(&app).await);
    let placed = ann.order(4).await;
    assert_eq!((&placed["ok"], &placed["result"]), (&json!(true), &json!("placed")));
    assert_eq!((app.events(&shop.tenant).await.len(), app.jobs(&shop.tenant).await.len()), (2, 1));
}

/// Tells that it was dropped.
struct Told(UnboundedSender<()>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.send(()).expect("the test waits");
    }
}

#[tokio::test]
async fn a_handler_that_takes_too_long_is_dropped_and_leaves_nothing() {
    let shop = Shop::new();
    let (send, mut dropped) = unbounded_channel();
    let handler = move |order: Order, cx: MessageContext| {
        let told = Told(send.clone());
        async move {
            stage(&cx, &order);
            if order.items == 0 {
                pending::<()>().await;
            }
            drop(told);
            Ok(())
        }
    };
    let limit = Duration::from_millis(20);
    let test = shop.test().with(|builder| builder.message_timeout(limit));
    let app = test.message("order", handler).build().await.expect("an app");
    let mut ann = shop.connect(&app).await;
    assert_eq!(code(&ann.order(0).await), "message.timed_out");
    tokio::time::timeout(PATIENCE, dropped.recv()).await.expect("in time").expect("dropped");
    assert!(shop.is_empty(&app).await);
    assert_eq!(ann.ask("hello", &[]).await, json!({ "ok": true }));
}

#[tokio::test]
async fn a_handler_whose_connection_has_ended_leaves_nothing() {
    let shop = Shop::new();
    let (send, mut began) = unbounded_channel();
    let go = Arc::new(Notify::new());
    let goes = go.clone();
    let handler = move |order: Order, cx: MessageContext| {
        let (send, go) = (send.clone(), goes.clone());
        async move {
            stage(&cx, &order);
            send.send(()).expect("the test waits");
            go.notified().await;
            Ok(())
        }
    };
    let app = shop.test().message("order", handler).build().await.expect("an app");
    let ann = shop.connect(&app).await;
    let message = format!("42{}", json!(["order", { "orderId": "o1", "items": 1 }]));
    let cut_off = async {
        began.recv().await.expect("a handler begins");
        // A second POST beside the first ends the session.
        let (status, _) = answered(ann.address, "POST", &format!("&sid={}", ann.sid), "3").await;
        go.notify_one();
        status
    };
    let ((), status) = tokio::join!(ann.post(&message), cut_off);
    assert_eq!(status, 400);
    assert!(shop.is_empty(&app).await);
}

#[tokio::test]
async fn what_can_never_be_called_is_an_error_of_the_build() {
    let shop = Shop::new();
    let build = |builder: tidewire::Builder| async move { builder.build().await.err().expect("refused").to_string() };
    let builder = || App::builder(shop.dir.path()).store("memory:");
    let said = build(builder().message("ordr", |_: Order| async { Ok(()) })).await;
    assert!(said.contains("did you mean \"order\"?") && said.contains("(message.unknown)"), "{said}");
    let said = build(builder().message("join", |_: Value| async { Ok(()) })).await;
    assert!(said.contains("(message.unknown)"), "{said}");
    let said = build(builder().message("order", place)).await;
    assert!(said.contains("Shelf") && said.contains("(handler.missing_state)"), "{said}");
    for limit in [Duration::ZERO, Duration::from_secs(20)] {
        let said = build(builder().message("order", |_: Order| async { Ok(()) }).message_timeout(limit)).await;
        assert!(said.contains("realtime.pingTimeout") && said.contains("(config.invalid)"), "{said}");
    }
}
