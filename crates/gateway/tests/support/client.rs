//! A client of bare bytes: frames and HTTP written by hand, so that it can do what no library would.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longer than anything takes that works.
const PATIENCE: Duration = Duration::from_secs(10);

/// One WebSocket, with the Socket.IO packets of one namespace on it.
pub(crate) struct Socket {
    stream: TcpStream,
    read: Vec<u8>,
    namespace: &'static str,
    next_ack: u64,
    /// What CONNECT answered.
    pub(crate) sid: String,
    pub(crate) pid: String,
    /// The last text argument of any event, as the stock client keeps it.
    pub(crate) offset: Option<String>,
    /// Events that came before `connected`, and those skipped while waiting for something else.
    pub(crate) early: Vec<Value>,
}

impl Socket {
    /// Opens a WebSocket and takes the engine's first packet.
    pub(crate) async fn open(address: SocketAddr) -> Self {
        Self::open_with(address, "", "").await.expect("a 101")
    }

    /// `Err` is the status of a refusal.
    pub(crate) async fn open_with(address: SocketAddr, query: &str, headers: &str) -> Result<Self, u16> {
        let mut socket = Self::upgrade(address, query, headers).await?;
        let open = socket.packet().await.expect("an open packet");
        assert!(open.starts_with("0{"), "{open}");
        Ok(socket)
    }

    pub(crate) async fn upgrade(address: SocketAddr, query: &str, headers: &str) -> Result<Self, u16> {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        let request = format!(
            "GET /socket.io/?EIO=4&transport=websocket{query} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
        );
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut read = Vec::new();
        let head = loop {
            if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
                let rest = read.split_off(end + 4);
                break String::from_utf8(std::mem::replace(&mut read, rest)).expect("text");
            }
            assert!(stream.read_buf(&mut read).await.expect("read") > 0, "closed before the answer");
        };
        let status: u16 = head[9..12].parse().expect("status");
        if status != 101 {
            return Err(status);
        }
        assert!(head.to_ascii_lowercase().contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
        Ok(Self {
            stream,
            read,
            namespace: "/",
            next_ack: 0,
            sid: String::new(),
            pid: String::new(),
            offset: None,
            early: Vec::new(),
        })
    }

    /// Opens and joins `/` as the user of a token.
    pub(crate) async fn connect(address: SocketAddr, token: &str) -> (Self, Value) {
        Self::open(address).await.join("/", json!({ "token": token })).await.expect("let in")
    }

    /// Comes back as the stock client does, with pid and offset. Answers the missed events too.
    pub(crate) async fn reconnect(self, address: SocketAddr, token: &str) -> (Self, Value) {
        let mut auth = json!({ "token": token, "pid": self.pid });
        if let Some(offset) = &self.offset {
            auth["offset"] = json!(offset);
        }
        Self::open(address).await.join("/", auth).await.expect("let in")
    }

    /// Joins a namespace; answers the data of `connected`, or the error.
    pub(crate) async fn join(mut self, namespace: &'static str, auth: Value) -> Result<(Self, Value), Value> {
        self.namespace = namespace;
        let prefix = self.prefix();
        self.send(&format!("40{prefix}{auth}")).await;
        let packet = self.packet().await.expect("an answer to CONNECT");
        let body = packet.get(2 + prefix.len()..).unwrap_or_default();
        let answer: Value = match &packet[..2] {
            "40" => serde_json::from_str(body).expect("json"),
            "44" => return Err(serde_json::from_str(body).expect("json")),
            _ => panic!("unexpected {packet}"),
        };
        self.sid = answer["sid"].as_str().expect("sid").to_owned();
        self.pid = answer["pid"].as_str().unwrap_or_default().to_owned();
        // What was missed comes first.
        loop {
            let event = self.event().await;
            if event[0] == "connected" {
                return Ok((self, event[1].clone()));
            }
            self.early.push(event);
        }
    }

    fn prefix(&self) -> String {
        if self.namespace == "/" { String::new() } else { format!("{},", self.namespace) }
    }

    fn note(&mut self, body: &str) -> Value {
        let event: Value = serde_json::from_str(body).expect("json");
        if let Some(Value::String(last)) = event.as_array().and_then(|event| event.last()) {
            self.offset = Some(last.clone());
        }
        event
    }

    /// The next event, `["name", data, "offset"]`.
    pub(crate) async fn event(&mut self) -> Value {
        loop {
            let packet = self.packet().await.expect("an event before the end");
            let prefix = format!("42{}", self.prefix());
            match packet.strip_prefix(&prefix) {
                Some(body) => return self.note(body),
                None => assert!(packet.starts_with("43"), "expected an event, got {packet}"),
            }
        }
    }

    /// The numbers of the events in `early`.
    pub(crate) fn missed(&self) -> Vec<u64> {
        self.early.iter().filter_map(|event| event[1]["n"].as_u64()).collect()
    }

    /// The next event has this name; answers its data.
    pub(crate) async fn expect(&mut self, name: &str) -> Value {
        let event = self.event().await;
        assert_eq!(event[0], name, "{event}");
        event[1].clone()
    }

    pub(crate) async fn emit(&mut self, name: &str, args: &[Value]) {
        let payload: Vec<Value> = [json!(name)].into_iter().chain(args.iter().cloned()).collect();
        self.send(&format!("42{}{}", self.prefix(), json!(payload))).await;
    }

    /// Sends a message and waits for its acknowledgement; events that come before it are kept in `early`.
    pub(crate) async fn ask(&mut self, name: &str, args: &[Value]) -> Value {
        let (id, prefix) = (self.next_ack, self.prefix());
        self.next_ack += 1;
        let payload: Vec<Value> = [json!(name)].into_iter().chain(args.iter().cloned()).collect();
        self.send(&format!("42{prefix}{id}{}", json!(payload))).await;
        loop {
            let packet = self.packet().await.expect("an acknowledgement before the end");
            if let Some(body) = packet.strip_prefix(&format!("43{prefix}{id}")) {
                return serde_json::from_str::<Value>(body).expect("json")[0].clone();
            }
            let body = packet.strip_prefix(&format!("42{prefix}")).unwrap_or_else(|| panic!("unexpected {packet}"));
            let event = self.note(body);
            self.early.push(event);
        }
    }

    /// The next packet that is no ping; `None` at the end of the connection.
    pub(crate) async fn packet(&mut self) -> Option<String> {
        loop {
            let packet = self.any_packet().await?;
            if packet == "2" {
                self.send("3").await;
            } else {
                return Some(packet);
            }
        }
    }

    /// The next packet, pings too.
    pub(crate) async fn any_packet(&mut self) -> Option<String> {
        loop {
            match self.frame().await? {
                (1, payload) => return Some(String::from_utf8(payload).expect("text")),
                (8, _) => return None,
                (9 | 10, _) => {}
                (opcode, _) => panic!("unexpected frame {opcode}"),
            }
        }
    }

    /// The code and reason of the close frame that comes next; packets before it are dropped.
    pub(crate) async fn closed(&mut self) -> Option<(u16, String)> {
        loop {
            if let (8, payload) = self.frame().await? {
                let (code, reason) = payload.split_first_chunk::<2>()?;
                return Some((u16::from_be_bytes(*code), String::from_utf8_lossy(reason).into_owned()));
            }
        }
    }

    /// Opcode and payload of the next frame.
    pub(crate) async fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let Some(frame) = self.take_frame() {
                return Some(frame);
            }
            let read =
                tokio::time::timeout(PATIENCE, self.stream.read_buf(&mut self.read)).await.expect("a frame in time");
            if read.is_err() || read.is_ok_and(|read| read == 0) {
                return None;
            }
        }
    }

    fn take_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let (&first, &second) = (self.read.first()?, self.read.get(1)?);
        assert_eq!(second & 0x80, 0, "a server does not mask");
        let (len, header) = match second {
            126 => (u16::from_be_bytes(self.read.get(2..4)?.try_into().ok()?) as usize, 4),
            127 => (u64::from_be_bytes(self.read.get(2..10)?.try_into().ok()?) as usize, 10),
            len => (len as usize, 2),
        };
        let payload = self.read.get(header..header + len)?.to_vec();
        self.read.drain(..header + len);
        Some((first & 0x0f, payload))
    }

    pub(crate) async fn send(&mut self, text: &str) {
        self.send_frame(1, text.as_bytes()).await;
    }

    pub(crate) async fn send_frame(&mut self, opcode: u8, payload: &[u8]) {
        let mut frame = vec![0x80 | opcode];
        match payload.len() {
            len @ 0..126 => frame.push(0x80 | len as u8),
            len @ 126..65_536 => {
                frame.push(0x80 | 126);
                frame.extend_from_slice(&(len as u16).to_be_bytes());
            }
            len => {
                frame.push(0x80 | 127);
                frame.extend_from_slice(&(len as u64).to_be_bytes());
            }
        }
        let mask = [1, 2, 3, 4];
        frame.extend_from_slice(&mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        // A server that has closed may have closed for writing as well.
        let _ = self.stream.write_all(&frame).await;
    }

    pub(crate) async fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("written");
    }
}

/// An answer to a plain HTTP request.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

/// One request on a connection of its own.
pub(crate) async fn http(address: SocketAddr, method: &str, query: &str, headers: &str, body: &str) -> Answer {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let len = body.len();
    let request = format!(
        "{method} /socket.io/?{query} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {len}\r\n{headers}\r\n{body}"
    );
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an answer in time");
    read.expect("read");
    let answer = String::from_utf8(answer).expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    Answer { status: head[9..12].parse().expect("status"), head: head.to_ascii_lowercase(), body: body.to_owned() }
}

/// A session over HTTP polling.
pub(crate) struct Polling {
    pub(crate) address: SocketAddr,
    pub(crate) sid: String,
}

impl Polling {
    pub(crate) async fn open(address: SocketAddr, headers: &str) -> Self {
        let answer = http(address, "GET", "EIO=4&transport=polling", headers, "").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let open: Value = serde_json::from_str(&answer.body[1..]).expect("json");
        assert_eq!(open["upgrades"], json!(["websocket"]));
        Self { address, sid: open["sid"].as_str().expect("sid").to_owned() }
    }

    pub(crate) fn query(&self) -> String {
        format!("EIO=4&transport=polling&sid={}", self.sid)
    }

    pub(crate) async fn get(&self) -> Answer {
        http(self.address, "GET", &self.query(), "", "").await
    }

    pub(crate) async fn post(&self, body: &str) -> Answer {
        http(self.address, "POST", &self.query(), "Content-Type: text/plain\r\n", body).await
    }

    /// Packets of polls until one that starts with `start` has come.
    pub(crate) async fn until(&self, start: &str) -> Vec<String> {
        let mut packets: Vec<String> = Vec::new();
        while !packets.iter().any(|packet| packet.starts_with(start)) {
            let answer = self.get().await;
            assert_eq!(answer.status, 200, "{answer:?}");
            packets.extend(answer.body.split('\u{1e}').map(str::to_owned));
        }
        packets
    }
}
