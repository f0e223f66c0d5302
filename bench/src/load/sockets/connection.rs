//! One client: from TCP connect to the accepted CONNECT packet, then reading until the end.

use super::{Memory, Tally, frame, inbox::Inbox};
use anyhow::{Context, Result, bail, ensure};
use std::{
    cell::RefCell,
    future::poll_fn,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, PoisonError, atomic::Ordering},
    task::{Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf},
    net::{TcpSocket, TcpStream},
};

/// From TCP connect to the accepted CONNECT packet.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest answer to the upgrade request, in bytes.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// Bytes that one read may return.
const READ_BYTES: usize = 64 * 1024;
/// How long a client that comes back waits before it tries again.
const RETRY: Duration = Duration::from_millis(50);

/// The key of RFC 6455, section 1.3, and the answer it must get. The key protects nothing here that would need chance.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

thread_local! {
    /// All clients of a thread read into the same bytes, because a read is used up before the next one begins. So ten
    /// thousand clients have one buffer, and it stays in the CPU's cache.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// A connected client.
pub(super) struct Client {
    stream: TcpStream,
    inbox: Inbox,
    tally: Arc<Tally>,
}

/// Connects, upgrades, opens the session and joins the namespace.
pub(super) async fn open(
    addr: SocketAddr,
    source: Option<Ipv4Addr>,
    path: &str,
    token: &str,
    memory: Option<Arc<Memory>>,
    tally: Arc<Tally>,
) -> Result<Client> {
    let mut last = None;
    let opened = tokio::time::timeout(CONNECT_TIMEOUT, async {
        loop {
            match Opening::begin(addr, source, path, &tally.packets.prefix, token, memory.as_deref()).await {
                // As the stock client does when a connection fails or breaks before it is accepted.
                Err(error) if memory.is_some() => {
                    last = Some(error);
                    tokio::time::sleep(RETRY).await;
                }
                opened => return opened,
            }
        }
    });
    let opened = opened.await;
    let late = || {
        last.map_or_else(
            || "not connected within 30 s".to_owned(),
            |error| format!("not connected within 30 s: {error:#}"),
        )
    };
    let Opening { stream, buffer, mut missed } = opened.with_context(late)??;
    if !missed.is_empty() {
        missed.extend_from_slice(&buffer);
    }
    let rest = if missed.is_empty() { buffer } else { missed };
    Ok(Client { stream, inbox: Inbox::new(rest, memory), tally })
}

async fn dial(addr: SocketAddr, source: Option<Ipv4Addr>) -> Result<TcpStream> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(source) = source {
        socket.bind((source, 0).into()).with_context(|| format!("binding a port of {source}"))?;
    }
    let stream = socket.connect(addr).await.context("TCP connect")?;
    stream.set_nodelay(true)?;
    // Closing then resets: thousands of ports in TIME_WAIT would leave none for the next run.
    stream.set_zero_linger()?;
    Ok(stream)
}

/// A connection during its handshakes, with what was read and not used yet.
struct Opening {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// Frames of events that came before the CONNECT packet was answered: what a client that is back has missed.
    missed: Vec<u8>,
}

impl Opening {
    async fn begin(
        addr: SocketAddr,
        source: Option<Ipv4Addr>,
        path: &str,
        prefix: &str,
        token: &str,
        memory: Option<&Memory>,
    ) -> Result<Self> {
        let stream = dial(addr, source).await?;
        let mut opening = Self { stream, buffer: Vec::with_capacity(512), missed: Vec::new() };
        opening.upgrade(addr, path).await?;
        opening.join(prefix, token, memory).await?;
        Ok(opening)
    }

    /// The WebSocket handshake (RFC 6455, section 4.1). No extension is asked for, so nothing is compressed.
    async fn upgrade(&mut self, addr: SocketAddr, path: &str) -> Result<()> {
        let request = format!(
            "GET {path}?EIO=4&transport=websocket HTTP/1.1\r\nHost: {addr}\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
        );
        self.stream.write_all(request.as_bytes()).await?;
        let end = loop {
            self.fill().await?;
            if let Some(at) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            ensure!(self.buffer.len() < MAX_HEAD_BYTES, "the upgrade was answered with more than 16 KiB of headers");
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]);
        if !head.starts_with("HTTP/1.1 101 ") || !head.contains(ACCEPT) {
            bail!("the upgrade was refused: {}", String::from_utf8_lossy(&self.buffer));
        }
        self.buffer.drain(..end);
        Ok(())
    }

    /// Waits for the Engine.IO open packet, sends the CONNECT packet and waits until it is accepted.
    async fn join(&mut self, prefix: &str, token: &str, memory: Option<&Memory>) -> Result<()> {
        let open = self.packet().await?;
        ensure!(open.starts_with('0'), "expected the Engine.IO open packet, found {open}");
        let mut auth = serde_json::Map::new();
        if !token.is_empty() {
            auth.insert("token".to_owned(), token.into());
        }
        if let Some((pid, offset)) = memory.and_then(Memory::session) {
            auth.insert("pid".to_owned(), pid.into());
            auth.insert("offset".to_owned(), offset.into());
        }
        let auth = if auth.is_empty() { String::new() } else { serde_json::Value::Object(auth).to_string() };
        self.send(&format!("40{prefix}{auth}")).await?;
        loop {
            let packet = self.packet().await?;
            if let Some(answer) = packet.strip_prefix("40") {
                return memory.map_or(Ok(()), |memory| memory.connected(answer));
            } else if packet.starts_with("42") && memory.is_some() {
                frame::encode_unmasked(packet.as_bytes(), &mut self.missed);
            } else if packet.starts_with('2') {
                self.send("3").await?;
            } else {
                bail!("the CONNECT packet was not accepted: {packet}");
            }
        }
    }

    async fn send(&mut self, packet: &str) -> Result<()> {
        let mut bytes = Vec::with_capacity(packet.len() + 14);
        frame::encode(frame::TEXT, packet.as_bytes(), &mut bytes);
        Ok(self.stream.write_all(&bytes).await?)
    }

    /// The next text message.
    async fn packet(&mut self) -> Result<String> {
        loop {
            let Some(frame) = frame::decode(&self.buffer).map_err(anyhow::Error::msg)? else {
                self.fill().await?;
                continue;
            };
            let text = String::from_utf8_lossy(frame.payload).into_owned();
            let (opcode, len) = (frame.opcode, frame.len);
            self.buffer.drain(..len);
            match opcode {
                frame::TEXT => return Ok(text),
                frame::CLOSE => bail!("the server closed the WebSocket during the handshake"),
                _ => {}
            }
        }
    }

    async fn fill(&mut self) -> Result<()> {
        let read = self.stream.read_buf(&mut self.buffer).await?;
        ensure!(
            read > 0,
            "the server closed the connection during the handshake, after {:?}",
            String::from_utf8_lossy(&self.buffer)
        );
        Ok(())
    }
}

impl Client {
    /// Reads until the connection is over, and counts that as a loss: a fleet ends its clients by dropping them.
    pub(super) async fn run(mut self) {
        let Err(reason) = self.read().await;
        let tally = &self.tally;
        tally.first_loss.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        tally.lost.fetch_add(1, Ordering::SeqCst);
        tally.changed.notify_one();
    }

    async fn read(&mut self) -> Result<std::convert::Infallible, String> {
        let Self { stream, inbox, tally } = self;
        let mut replies = Vec::new();
        // Events may have come in one read with the end of the handshake.
        inbox.take(&[], tally, &mut replies)?;
        loop {
            if !replies.is_empty() {
                stream.write_all(&replies).await.map_err(|error| format!("answering a ping: {error}"))?;
                replies = Vec::new();
            }
            // `poll_read` rather than `try_read`: after a read that did not fill the buffer tokio knows that the socket is
            // empty and saves the system call that would only say so.
            poll_fn(|cx| {
                if tally.stopped.load(Ordering::Relaxed) {
                    // Nobody wakes it any more; it ends with its fleet.
                    return Poll::Pending;
                }
                SCRATCH.with_borrow_mut(|scratch| {
                    let mut buffer = ReadBuf::new(scratch);
                    let read = ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer));
                    let taken = match read {
                        Err(error) => Err(format!("reading: {error}")),
                        Ok(()) if buffer.filled().is_empty() => Err("the server closed the connection".to_owned()),
                        Ok(()) => inbox.take(buffer.filled(), tally, &mut replies),
                    };
                    taken.into()
                })
            })
            .await?;
        }
    }
}
