//! WebSocket: the handshake, the upgrade from polling, and the one task per connection.
//!
//! The task is one small state machine. An idle connection owns no buffer: it reads into a buffer of its thread, and what it writes are
//! shared frames. All frames that wait are written with one call, answers by this task and events by the relay's writers.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tidewire_wire::engine::{PROBE, PacketType, TransportError};
use tidewire_wire::websocket::{self, Decoder, Message};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use crate::auth::Handshake;
use crate::echo::Echo;
use crate::gateway::Shared;
use crate::http::{Answer, Refused, plain};
use crate::session::{Closing, Opening, Probe, Session, Step, Transport, Work};

/// How much is taken, and for how long, of a client that was told to go.
const LINGER_BYTES: u64 = 16 * 1024 * 1024;
const LINGER: Duration = Duration::from_secs(1);
/// The read buffer of each thread.
const SCRATCH: usize = 64 * 1024;

/// Answers a WebSocket handshake: a new session, or the upgrade of one that polls.
pub(crate) fn open<B>(
    shared: &Arc<Shared>,
    mut request: Request<B>,
    session: Option<Arc<Session>>,
    handshake: Handshake,
) -> Result<Answer, Refused> {
    let headers = request.headers();
    if request.method() != Method::GET
        || !names(headers, CONNECTION.as_str(), "upgrade")
        || !names(headers, UPGRADE.as_str(), "websocket")
    {
        return Err(TransportError::BadRequest.into());
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        let mut answer = plain(StatusCode::UPGRADE_REQUIRED, "text/plain", "WebSocket version 13 is served");
        answer.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return Ok(answer);
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or(TransportError::BadRequest)?.as_bytes();
    if STANDARD.decode(key).map_or(true, |key| key.len() != 16) {
        return Err(TransportError::BadRequest.into());
    }
    let accept = HeaderValue::from_str(&accept(key)).map_err(|_| TransportError::BadRequest)?;
    let extension = if shared.options.compression { extension(headers) } else { None };
    // As the reference server: a client that offers some expects one, and none of them means anything here.
    let offered = headers.get(SEC_WEBSOCKET_PROTOCOL).and_then(|offered| offered.to_str().ok()?.split(',').next());
    let protocol = offered.and_then(|protocol| HeaderValue::from_str(protocol.trim()).ok());
    let upgrade = hyper::upgrade::on(&mut request);
    match session {
        None => {
            let session = shared.open(handshake, Opening::WebSocket)?;
            if shared.options.echo != Some(Echo::WebSocket) {
                session.push(&session.open_packet(true));
            }
            shared.tracker.spawn(run(upgrade, session, extension.is_some()));
        }
        Some(session) => {
            let begin = |transport: &mut Transport| match transport {
                Transport::Polling(polling) if polling.probe == Probe::None => {
                    polling.probe = Probe::Opened;
                    true
                }
                Transport::Polling(_) | Transport::WebSocket | Transport::Stream => false,
            };
            if session.transport(begin) == Some(true) {
                shared.tracker.spawn(probe(upgrade, session, extension.is_some()));
            } else {
                shared.tracker.spawn(turn_away(upgrade));
            }
        }
    }
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let out = answer.headers_mut();
    if let Some(protocol) = protocol {
        out.insert(SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    out.insert(UPGRADE, HeaderValue::from_static("websocket"));
    out.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    out.insert(SEC_WEBSOCKET_ACCEPT, accept);
    if let Some(extension) = extension {
        out.insert(SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_static(extension));
    }
    Ok(answer)
}

/// What to answer to the extensions that a client offers, in its order.
fn extension(headers: &HeaderMap) -> Option<&'static str> {
    let mut offers = headers.get_all(SEC_WEBSOCKET_EXTENSIONS).iter().filter_map(|offers| offers.to_str().ok());
    offers.find_map(websocket::accept_deflate)
}

/// RFC 6455, section 4.2.2: the one use of SHA-1 here, where it proves nothing but that the server speaks WebSocket.
fn accept(key: &[u8]) -> String {
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key);
    context.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(context.finish())
}

/// Whether a header lists a token.
fn names(headers: &HeaderMap, header: &str, token: &str) -> bool {
    headers
        .get_all(header)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|value| value.trim().eq_ignore_ascii_case(token))
}

/// How many bytes the system keeps for a connection that have not been sent. Left to itself it keeps up to 4 MiB for each client that
/// does not read, beside what is bounded here.
#[cfg(any(target_os = "linux", target_os = "android"))]
const UNSENT: u32 = 128 << 10;

/// Sets a connection up for frames: small ones go out at once, because they are written whole and together, and few wait in the system.
pub fn tune(stream: &TcpStream) {
    // What the system does not have is not missed.
    let _ = stream.set_nodelay(true);
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let _ = socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT);
}

/// What the handshake left: the bare connection where that is possible, or an adapter.
enum Io {
    Tcp(Tcp, Bytes),
    Other(TokioIo<Upgraded>),
}

async fn take(upgrade: OnUpgrade) -> Option<Io> {
    let upgraded = upgrade.await.ok()?;
    Some(match upgraded.downcast::<TokioIo<TcpStream>>() {
        Ok(parts) => {
            let stream = parts.io.into_inner();
            tune(&stream);
            Io::Tcp(Tcp(Arc::new(stream)), parts.read_buf)
        }
        Err(upgraded) => Io::Other(TokioIo::new(upgraded)),
    })
}

/// A bare connection, which the relay's writers may write to as well.
struct Tcp(Arc<TcpStream>);

impl AsyncRead for Tcp {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read(buffer.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read.map(|bytes| buffer.advance(bytes))),
            }
        }
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write_vectored(slices) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                wrote => return Poll::Ready(wrote),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Whoever ends the session has had the writers let go of it.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Arc::get_mut(&mut self.0) {
            Some(stream) => Pin::new(stream).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }
}

/// A session that was opened over WebSocket.
///
/// This task is there for as long as the client, so it holds one line and nothing else: what an async function moves, matches on or
/// passes by value over an await stands in its task twice.
async fn run(upgrade: OnUpgrade, session: Arc<Session>, compressed: bool) {
    let mut served = match take(upgrade).await {
        None => return session.close(Closing::Lost),
        Some(io) => Served::new(io, &session, compressed),
    };
    let closing = poll_fn(|cx| match &mut served {
        Served::Tcp(line) => line.poll_to_end(&session, cx),
        Served::Other(line) => line.poll_to_end(&session, cx),
    })
    .await;
    match served {
        Served::Tcp(line) => line.linger(&session, closing),
        Served::Other(line) => line.linger(&session, closing),
    }
}

/// The line of a session that was opened over WebSocket.
enum Served {
    Tcp(Line<Tcp>),
    Other(Box<Line<TokioIo<Upgraded>>>),
}

impl Served {
    fn new(io: Io, session: &Session, compressed: bool) -> Self {
        if compressed {
            session.compress();
        }
        let decoder = decoder(session, compressed);
        match io {
            Io::Tcp(tcp, read) => {
                session.outbox.attach(tcp.0.clone());
                Self::Tcp(Line::new(tcp, read, decoder))
            }
            Io::Other(stream) => Self::Other(Box::new(Line::new(stream, Bytes::new(), decoder))),
        }
    }
}

/// A WebSocket beside a polling session: `2probe`, `3probe`, `5`, and from then on it is the transport.
async fn probe(upgrade: OnUpgrade, session: Arc<Session>, compressed: bool) {
    let decoder = decoder(&session, compressed);
    match take(upgrade).await {
        None => back_to_polling(&session),
        Some(Io::Tcp(tcp, read)) => {
            let connection = tcp.0.clone();
            probe_on(Line::new(tcp, read, decoder), session, compressed, Some(connection)).await;
        }
        Some(Io::Other(stream)) => {
            probe_on(Line::new(Box::new(stream), Bytes::new(), decoder), session, compressed, None).await;
        }
    }
}

/// A WebSocket that nobody waits for: the session has one, or is trying one. It is opened and closed, as the reference server does it, so
/// that a client sees a close and no failed request.
async fn turn_away(upgrade: OnUpgrade) {
    let close = websocket::close(1002, "the session has a WebSocket already");
    match take(upgrade).await {
        None => {}
        Some(Io::Tcp(mut stream, _)) => drop(stream.write_all(&close).await),
        Some(Io::Other(mut stream)) => drop(stream.write_all(&close).await),
    }
}

fn decoder(session: &Session, compressed: bool) -> Decoder {
    let decoder = Decoder::new(session.shared.options.max_message);
    if compressed { decoder.inflating() } else { decoder }
}

async fn probe_on<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    mut line: Line<S>,
    session: Arc<Session>,
    compressed: bool,
    direct: Option<Arc<TcpStream>>,
) {
    let limit = session.shared.options.upgrade_timeout;
    let moved = matches!(tokio::time::timeout(limit, line.probe(&session)).await, Ok(Some(())));
    if moved {
        session.shared.stats.upgraded.up();
        if compressed {
            session.compress();
        }
        if let Some(connection) = direct {
            session.outbox.attach(connection);
        }
        line.serve(&session).await;
    } else {
        back_to_polling(&session);
        let _ = line.io.write_all(&websocket::close(1002, "the upgrade was not finished")).await;
    }
}

fn back_to_polling(session: &Arc<Session>) {
    session.transport(|transport| {
        if let Transport::Polling(polling) = transport {
            polling.probe = Probe::None;
        }
    });
}

/// One WebSocket connection.
struct Line<S> {
    io: S,
    decoder: Decoder,
    /// Received and not yet decoded. Without memory while nothing is.
    input: BytesMut,
    work: Option<Work>,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Line<S> {
    fn new(io: S, read: Bytes, decoder: Decoder) -> Self {
        let input = if read.is_empty() { BytesMut::new() } else { BytesMut::from(read) };
        Self { io, decoder, input, work: None }
    }

    /// The probe. `None` when the client did anything else, or the session ended.
    async fn probe(&mut self, session: &Arc<Session>) -> Option<()> {
        if self.text().await? != format!("{}{PROBE}", PacketType::Ping.as_str()) {
            return None;
        }
        session.transport(|transport| {
            if let Transport::Polling(polling) = transport {
                polling.probe = Probe::Answered;
            }
        })?;
        let answer = websocket::text(format!("{}{PROBE}", PacketType::Pong.as_str()).as_bytes());
        self.io.write_all(&answer).await.ok()?;
        // The client waits for its poll to end before it moves.
        session.outbox.nudge();
        if self.text().await? != PacketType::Upgrade.as_str() {
            return None;
        }
        session.transport(|transport| *transport = Transport::WebSocket)?;
        session.outbox.hand_over();
        Some(())
    }

    /// The next text message; pings are answered on the way.
    async fn text(&mut self) -> Option<String> {
        loop {
            match self.decoder.feed(&mut self.input).ok()? {
                Some(Message::Text(text)) => return String::from_utf8(text.to_vec()).ok(),
                Some(Message::Ping(data)) => self.io.write_all(&websocket::pong(&data)).await.ok()?,
                Some(Message::Pong(_)) => {}
                Some(Message::Binary(_) | Message::Close(_)) => return None,
                None => {
                    if poll_fn(|cx| self.poll_read(cx)).await.ok()? == 0 {
                        return None;
                    }
                }
            }
        }
    }

    /// Serves the session until it ends.
    async fn serve(mut self, session: &Arc<Session>) {
        let closing = poll_fn(|cx| self.poll_to_end(session, cx)).await;
        self.linger(session, closing);
    }

    /// Takes what a client still sends that was told to go in the middle of it, for a moment: a connection that is closed with unread
    /// bytes is reset, and then the client may never see why.
    fn linger(self, session: &Session, closing: Closing) {
        if !matches!(closing, Closing::Malformed(..)) {
            return;
        }
        let mut rest = self.io.take(LINGER_BYTES);
        session.shared.tracker.spawn(async move {
            let _ = tokio::time::timeout(LINGER, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
        });
    }

    fn poll_to_end(&mut self, session: &Arc<Session>, cx: &mut Context<'_>) -> Poll<Closing> {
        let closing = ready!(self.poll_serve(session, cx));
        session.outbox.detach();
        if closing == Closing::Lost {
            return Poll::Ready(Closing::Lost);
        }
        let (code, reason) = closing.frame();
        // Once and without waiting: a client that takes nothing must not keep this task.
        let _ = Pin::new(&mut self.io).poll_write(cx, &websocket::close(code, reason));
        let _ = Pin::new(&mut self.io).poll_flush(cx);
        let _ = Pin::new(&mut self.io).poll_shutdown(cx);
        Poll::Ready(closing)
    }

    fn poll_serve(&mut self, session: &Arc<Session>, cx: &mut Context<'_>) -> Poll<Closing> {
        loop {
            match self.poll_write(session, cx) {
                Poll::Ready(Ok(closing)) => return Poll::Ready(closing),
                Poll::Ready(Err(_)) => {
                    session.close(Closing::Lost);
                    return Poll::Ready(Closing::Lost);
                }
                Poll::Pending => {}
            }
            // One message after the other: while one is being dealt with, nothing is read. That is also what holds back a client which
            // sends faster than its messages can be served.
            if let Some(work) = &mut self.work {
                let done = ready!(work.as_mut().poll(cx));
                self.work = None;
                if let Err(closing) = done {
                    session.close(closing);
                }
                continue;
            }
            match self.decoder.feed(&mut self.input) {
                Ok(Some(message)) => {
                    self.take(session, message);
                    continue;
                }
                Ok(None) => {}
                Err(error) => {
                    session.close(Closing::malformed(error));
                    continue;
                }
            }
            // A client that does not take its answers gets to ask for no more.
            if session.outbox.is_stuck(session.shared.options.max_backlog) {
                return Poll::Pending;
            }
            let_go(&mut self.input);
            match ready!(self.poll_read(cx)) {
                Ok(0) | Err(_) => session.close(Closing::Lost),
                Ok(_) => {}
            }
        }
    }

    fn take(&mut self, session: &Arc<Session>, message: Message) {
        let step = match message {
            Message::Text(text) => session.text(text),
            Message::Binary(data) => session.binary(data),
            Message::Ping(data) => {
                session.push_frame(websocket::pong(&data));
                Ok(Step::Done)
            }
            Message::Pong(_) => Ok(Step::Done),
            Message::Close(_) => Err(Closing::Client),
        };
        match step {
            Ok(Step::Done) => {}
            Ok(Step::Later(work)) => self.work = Some(work),
            Err(closing) => session.close(closing),
        }
    }

    /// Writes all there is. Ready only at the end.
    fn poll_write(&mut self, session: &Arc<Session>, cx: &mut Context<'_>) -> Poll<io::Result<Closing>> {
        let (io, latency) = (&mut self.io, &session.shared.stats.latency);
        let write = |cx: &mut Context<'_>, slices: &[IoSlice<'_>]| Pin::new(&mut *io).poll_write_vectored(cx, slices);
        let ended = session.outbox.poll_write(cx, latency, write)?;
        session.drained();
        // An adapter may buffer; a bare connection has nothing to flush.
        let _ = Pin::new(&mut self.io).poll_flush(cx)?;
        ended.map(Ok)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        thread_local! {
            static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into());
        }
        BUFFER.with_borrow_mut(|buffer| {
            let mut buffer = ReadBuf::new(buffer);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer))?;
            self.input.extend_from_slice(buffer.filled());
            Poll::Ready(Ok(buffer.filled().len()))
        })
    }
}

/// Gives back the memory of a read that is used up. Its capacity may be 0 by then, and still it holds the bytes that were split off.
fn let_go(input: &mut BytesMut) {
    if input.is_empty() {
        *input = BytesMut::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The size of what an async function keeps while it waits.
    fn task<A, B, C, F>(_: impl FnOnce(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_idle_connection_holds_one_line_and_little_else() {
        assert!(size_of::<Line<Tcp>>() <= 80, "a line has {} bytes", size_of::<Line<Tcp>>());
        assert!(task(run) <= 136, "the task has {} bytes", task(run));
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn the_system_keeps_little_for_a_client_that_does_not_read() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let client = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("a client");
        let (server, _) = listener.accept().await.expect("accepted");
        tune(&server);
        let (block, mut taken) = (vec![0; 32 << 10], 0);
        // Time for what was written to move on into the buffer of the other end.
        for _ in 0..20 {
            while let Ok(bytes) = server.try_write(&block) {
                taken += bytes;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        drop(client);
        assert!((64 << 10..1 << 20).contains(&taken), "{taken} bytes");
    }

    #[test]
    fn a_read_that_is_used_up_is_let_go() {
        // A masked text frame, alone in its read.
        let mut input = BytesMut::from(&[0x81, 0x84, 0, 0, 0, 0, b'a', b'b', b'c', b'd'][..]);
        let message = Decoder::new(100).feed(&mut input).expect("a frame").expect("a message");
        let Message::Text(text) = message else { panic!("text") };
        assert!(!text.is_unique());
        let_go(&mut input);
        assert!(text.is_unique(), "nobody but the message holds the bytes");
    }

    #[test]
    fn the_accept_key_is_that_of_the_rfc() {
        assert_eq!(accept(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
