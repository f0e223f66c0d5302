//! A client's transport: a WebSocket, polling, or the one after the other. It says what came, packet by packet.

use std::collections::VecDeque;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use tidewire_gateway::Gateway;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;

use crate::world::World;

/// Longer than anything takes that works.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) enum Line {
    WebSocket(WebSocket),
    Polling(Polling),
}

/// How a client connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    WebSocket,
    Polling,
    /// Polling, and then the move to a WebSocket; while a poll waits, or while none does.
    Upgrade {
        amid: bool,
    },
}

impl Line {
    pub(crate) async fn open(world: &World, way: Way) -> Self {
        match way {
            Way::WebSocket => {
                let mut socket = WebSocket::open(world, "").await;
                assert!(socket.packet().await.expect("an open packet").starts_with("0{"));
                Self::WebSocket(socket)
            }
            Way::Polling | Way::Upgrade { .. } => Self::Polling(Polling::open(world).await),
        }
    }

    /// Moves from polling to a WebSocket. What came over polling until then has been taken or waits in front.
    pub(crate) async fn upgrade(self, world: &World, amid: bool) -> Self {
        let Self::Polling(mut polling) = self else { return self };
        let mut socket = WebSocket::open(world, &format!("&sid={}", polling.sid)).await;
        let waiting = amid.then(|| polling.get());
        // There is one thread on this side, so the poll begins now.
        tokio::task::yield_now().await;
        socket.send("2probe").await;
        assert_eq!(socket.packet().await.as_deref(), Some("3probe"));
        if let Some(waiting) = waiting {
            polling.answered(waiting).await;
        }
        socket.send("5").await;
        socket.waiting = polling.waiting;
        Self::WebSocket(socket)
    }

    /// The next packet; nothing at the end.
    pub(crate) async fn packet(&mut self) -> Option<String> {
        let next = async {
            match self {
                Self::WebSocket(socket) => socket.packet().await,
                Self::Polling(polling) => polling.packet().await,
            }
        };
        tokio::time::timeout(PATIENCE, next).await.expect("a packet, or the end, in time")
    }

    pub(crate) async fn send(&mut self, packet: &str) {
        match self {
            Self::WebSocket(socket) => socket.send(packet).await,
            Self::Polling(polling) => polling.post(packet).await,
        }
    }

    /// The client closes its transport in good order.
    pub(crate) async fn close(&mut self) {
        match self {
            Self::WebSocket(socket) => socket.frame(8, &[3, 232]).await,
            Self::Polling(polling) => polling.post("1").await,
        }
    }

    /// The same, until the server has dealt with all that was sent.
    pub(crate) async fn end(mut self) {
        self.close().await;
        while self.packet().await.is_some() {}
    }

    /// The connection breaks. What was on its way is lost: also the answer to a poll.
    pub(crate) async fn cut(self, amid_poll: bool) {
        if let Self::Polling(polling) = self
            && amid_poll
        {
            let waiting = polling.get();
            tokio::task::yield_now().await;
            waiting.abort();
            drop(waiting.await);
        }
    }
}

pub(crate) struct WebSocket {
    stream: DuplexStream,
    read: Vec<u8>,
    /// Packets from before the move.
    waiting: VecDeque<String>,
}

impl WebSocket {
    async fn open(world: &World, query: &str) -> Self {
        let mut stream = world.dial();
        let request = format!(
            "GET /socket.io/?EIO=4&transport=websocket{query} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut read = Vec::new();
        let end = loop {
            if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            assert!(stream.read_buf(&mut read).await.expect("read") > 0, "closed before the answer");
        };
        let head: Vec<u8> = read.drain(..end).collect();
        assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
        Self { stream, read, waiting: VecDeque::new() }
    }

    async fn packet(&mut self) -> Option<String> {
        if let Some(packet) = self.waiting.pop_front() {
            return Some(packet);
        }
        loop {
            match self.take_frame() {
                Some((1, payload)) => return Some(String::from_utf8(payload).expect("text")),
                Some((8, _)) => return None,
                Some((opcode, _)) => panic!("unexpected frame {opcode}"),
                None if self.stream.read_buf(&mut self.read).await.unwrap_or(0) == 0 => return None,
                None => {}
            }
        }
    }

    fn take_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let (&first, &second) = (self.read.first()?, self.read.get(1)?);
        let (len, header) = match second {
            126 => (u16::from_be_bytes(self.read.get(2..4)?.try_into().ok()?) as usize, 4),
            127 => panic!("nothing here is that long"),
            len => (len as usize, 2),
        };
        let payload = self.read.get(header..header + len)?.to_vec();
        self.read.drain(..header + len);
        Some((first & 0x0f, payload))
    }

    async fn send(&mut self, text: &str) {
        self.frame(1, text.as_bytes()).await;
    }

    async fn frame(&mut self, opcode: u8, payload: &[u8]) {
        let mut frame = vec![0x80 | opcode];
        match u8::try_from(payload.len()) {
            Ok(len @ 0..126) => frame.push(0x80 | len),
            Ok(_) | Err(_) => {
                frame.push(0x80 | 126);
                frame.extend_from_slice(&u16::try_from(payload.len()).expect("short").to_be_bytes());
            }
        }
        // The mask of zeros leaves the payload as it is.
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(payload);
        // A server that has closed takes nothing.
        let _ = self.stream.write_all(&frame).await;
    }
}

pub(crate) struct Polling {
    gateway: Gateway,
    sid: String,
    waiting: VecDeque<String>,
    over: bool,
}

impl Polling {
    async fn open(world: &World) -> Self {
        let mut polling = Self { gateway: world.gateway(), sid: String::new(), waiting: VecDeque::new(), over: false };
        let (status, body) = ask(polling.gateway.clone(), "GET", "", String::new()).await;
        assert_eq!(status, 200);
        let open: Value = serde_json::from_str(&body[1..]).expect("json");
        polling.sid = open["sid"].as_str().expect("sid").to_owned();
        polling
    }

    fn get(&self) -> JoinHandle<(u16, String)> {
        tokio::spawn(ask(self.gateway.clone(), "GET", &format!("&sid={}", self.sid), String::new()))
    }

    async fn answered(&mut self, get: JoinHandle<(u16, String)>) {
        let (status, body) = get.await.expect("answered");
        if status != 200 {
            self.over = true;
            return;
        }
        for packet in body.split('\u{1e}').filter(|packet| *packet != "6") {
            self.over |= packet == "1";
            self.waiting.extend((packet != "1").then(|| packet.to_owned()));
        }
    }

    async fn packet(&mut self) -> Option<String> {
        while self.waiting.is_empty() && !self.over {
            let get = self.get();
            self.answered(get).await;
        }
        self.waiting.pop_front()
    }

    async fn post(&self, packet: &str) {
        // A session that has ended refuses it, and the next poll says so.
        let _ = ask(self.gateway.clone(), "POST", &format!("&sid={}", self.sid), packet.to_owned()).await;
    }
}

fn ask(
    gateway: Gateway,
    method: &'static str,
    query: &str,
    body: String,
) -> impl Future<Output = (u16, String)> + Send + 'static {
    let request = Request::builder().method(method).uri(format!("/socket.io/?EIO=4&transport=polling{query}"));
    let request = request.body(Full::new(Bytes::from(body))).expect("a request");
    async move {
        let answer = gateway.handle(request).await;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        (status, String::from_utf8(body.to_vec()).expect("text"))
    }
}
