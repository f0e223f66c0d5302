//! A transport session: Engine.IO over polling or WebSocket, from its handshake to its end.
//!
//! A session has one outbox and at most one task that empties it: a waiting poll, or the WebSocket's task. Inbound packets are dealt with
//! one after the other. How a session ends is a [`Closing`]; the first one counts, and it takes the session's sockets out of everything.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use parking_lot::Mutex;
use tidewire_core::Timestamp;
use tidewire_core::limit::{Rate, RateState};
use tidewire_wire::engine::{self, PacketType};
use tidewire_wire::socket::{Assembler, Packet};
use tidewire_wire::{socket as packet, websocket};

use crate::auth::Handshake;
use crate::gateway::Shared;
use crate::hub::Over;
use crate::outbox::{Frame, Outbox, Pushed};
use crate::parser::Parser;
use crate::socket::Socket;
use crate::stream::{self, Streaming};
use crate::{connect, messages, recovery};

/// Why a session, or one of its sockets, ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closing {
    /// The connection broke.
    Lost,
    /// The client closed the transport.
    Client,
    /// The client left the namespace; it does not come back to this session.
    Left,
    /// The client sent what it may not, with the WebSocket close code for it.
    Malformed(u16, &'static str),
    /// No pong.
    Silent,
    /// No CONNECT in time.
    Unused,
    /// Too slow to be caught up.
    TooSlow,
    /// The credential has ended.
    Expired,
    /// The same client came back on another transport.
    Replaced,
    /// This process is stopping.
    Draining,
    /// An operator asked for it.
    Disconnected,
    /// The credential is no longer good.
    Revoked,
    /// Ten times over the rate.
    Flooding,
    /// Something behind the gateway did not answer.
    Unavailable,
}

impl Closing {
    /// The code and reason of the WebSocket close frame. None of them keeps the stock client from coming back.
    pub(crate) fn frame(self) -> (u16, &'static str) {
        match self {
            Self::Malformed(code, reason) => (code, reason),
            Self::Lost | Self::Client | Self::Left => (1000, ""),
            Self::Silent => (1001, "no pong in time"),
            Self::Unused => (1008, "no namespace was joined in time"),
            Self::TooSlow => (1013, "too slow"),
            Self::Expired => (1008, "the credential has expired"),
            Self::Replaced => (1000, "taken over"),
            Self::Draining => (1012, "the server is restarting"),
            Self::Disconnected => (1008, "disconnected by the server"),
            Self::Revoked => (1008, "the credential has been revoked"),
            Self::Flooding => (1008, "over the rate"),
            Self::Unavailable => (1011, "try again later"),
        }
    }

    /// Whether what still waits is of no use to anybody.
    pub(crate) fn drops_backlog(self) -> bool {
        match self {
            Self::Lost | Self::Client | Self::Silent | Self::Replaced | Self::TooSlow => true,
            Self::Left
            | Self::Malformed(..)
            | Self::Unused
            | Self::Expired
            | Self::Draining
            | Self::Disconnected
            | Self::Revoked
            | Self::Flooding
            | Self::Unavailable => false,
        }
    }

    pub(crate) fn malformed(error: tidewire_wire::Error) -> Self {
        Self::Malformed(error.close_code, error.reason)
    }
}

/// One client's transport.
pub(crate) struct Session {
    /// The Engine.IO id. A secret: it is what authorises a poll.
    pub(crate) id: Arc<str>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) outbox: Outbox,
    pub(crate) handshake: Handshake,
    control: Mutex<Control>,
    inbound: Mutex<Inbound>,
    /// A socket waits for room in the outbox.
    behind: AtomicBool,
    /// A task is catching sockets up.
    catching_up: AtomicBool,
    /// Compressed frames may be queued: the client is on a WebSocket for good, and agreed to it.
    compressed: AtomicBool,
    /// Of a client that only listens, over server-sent events.
    pub(crate) streaming: Option<Streaming>,
    /// Which of the wheel's entries counts.
    pub(crate) turn: AtomicU32,
}

struct Control {
    transport: Transport,
    sockets: Vec<Arc<Socket>>,
    joined_once: bool,
    opened: Instant,
    next_ping: Instant,
    pong_due: Option<Instant>,
    closed: bool,
}

/// How a session begins.
pub(crate) enum Opening {
    Polling,
    WebSocket,
    Stream(Streaming),
}

/// How the client is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Polling(Polling),
    WebSocket,
    /// The body of one long answer.
    Stream,
}

/// What is going on over HTTP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Polling {
    pub(crate) getting: bool,
    pub(crate) posting: bool,
    pub(crate) probe: Probe,
}

/// A WebSocket on its way to take over from polling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Probe {
    #[default]
    None,
    /// It is open.
    Opened,
    /// It has answered the probe: polls are ended quickly, so that the client can move.
    Answered,
}

struct Inbound {
    assembler: Assembler,
    rate: RateState,
    limited: Limited,
}

/// How far over the rate a client is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limited {
    since: Option<Instant>,
    refused: u32,
}

/// What is left to do with a packet: nothing, or something that takes a while.
pub(crate) enum Step {
    Done,
    Later(Work),
}

pub(crate) type Work = Pin<Box<dyn Future<Output = Result<(), Closing>> + Send>>;

/// A client sends to a namespace only between joining and leaving it, as the reference server has it.
const NOT_JOINED: Closing = Closing::Malformed(1002, "a packet came for a namespace that was not joined");

static PING: LazyLock<Bytes> = LazyLock::new(|| websocket::text(PacketType::Ping.as_str().as_bytes()));

impl Session {
    pub(crate) fn new(shared: Arc<Shared>, handshake: Handshake, opening: Opening) -> Arc<Self> {
        let now = Instant::now();
        let (transport, streaming) = match opening {
            Opening::Polling => (Transport::Polling(Polling::default()), None),
            Opening::WebSocket => (Transport::WebSocket, None),
            Opening::Stream(streaming) => (Transport::Stream, Some(streaming)),
        };
        Arc::new(Self {
            id: random_id(),
            outbox: Outbox::default(),
            handshake,
            control: Mutex::new(Control {
                transport,
                sockets: Vec::new(),
                joined_once: false,
                opened: now,
                next_ping: now + stream::heartbeat(&shared, streaming.is_some()),
                pong_due: None,
                closed: false,
            }),
            inbound: Mutex::new(Inbound {
                assembler: Assembler::new(shared.options.max_message),
                rate: RateState::default(),
                limited: Limited::default(),
            }),
            behind: AtomicBool::new(false),
            catching_up: AtomicBool::new(false),
            compressed: AtomicBool::new(false),
            streaming,
            turn: AtomicU32::new(0),
            shared,
        })
    }

    /// The engine's first packet.
    pub(crate) fn open_packet(&self, websocket: bool) -> String {
        let options = &self.shared.options;
        engine::Open {
            sid: &self.id,
            upgrades: if websocket { &[] } else { &["websocket"] },
            ping_interval_ms: options.ping_interval.as_millis() as u64,
            ping_timeout_ms: options.ping_timeout.as_millis() as u64,
            max_payload: options.max_message,
        }
        .encode()
    }

    /// Changes the transport's state, unless the session is closed.
    pub(crate) fn transport<T>(&self, change: impl FnOnce(&mut Transport) -> T) -> Option<T> {
        let mut control = self.control.lock();
        if control.closed { None } else { Some(change(&mut control.transport)) }
    }

    /// Ends a session whose pong is overdue and answers whether it was. For requests, which may come before the wheel does.
    pub(crate) fn end_if_silent(self: &Arc<Self>) -> bool {
        let silent = self.control.lock().pong_due.is_some_and(|due| due <= Instant::now());
        if silent {
            self.close(Closing::Silent);
        }
        silent
    }

    /// How operators call the transport.
    pub(crate) fn transport_name(&self) -> &'static str {
        match self.control.lock().transport {
            Transport::Polling(_) => "polling",
            Transport::WebSocket => "websocket",
            Transport::Stream => "sse",
        }
    }

    /// Queues one packet that must not be lost.
    pub(crate) fn push(&self, text: &str) -> Pushed {
        self.push_frame(websocket::text(text.as_bytes()))
    }

    /// From now on large frames are compressed. Only for a session that never polls again: polling has no such frames.
    pub(crate) fn compress(&self) {
        self.compressed.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_compressed(&self) -> bool {
        self.compressed.load(Ordering::SeqCst)
    }

    /// Queues frames, plain ones, that must not be lost.
    pub(crate) fn push_frame(&self, frame: Bytes) -> Pushed {
        let frame = if self.is_compressed() { self.shared.compress(frame) } else { frame };
        self.outbox.push(Frame::control(frame), self.shared.options.max_backlog, &self.shared.stats)
    }

    /// A client that does not even take answers is closed. Not to be called with a lock held.
    pub(crate) fn close_if_full(self: &Arc<Self>, pushed: Pushed) {
        if pushed == Pushed::Full {
            self.close(Closing::TooSlow);
        }
    }

    /// A message came: the client lives, and its pong may wait behind more of them.
    fn heard(&self) {
        let mut control = self.control.lock();
        if let Some(due) = &mut control.pong_due {
            *due = (*due).max(Instant::now() + self.shared.options.ping_timeout);
        }
    }

    /// Takes a text packet. What takes a while comes back as work, to be finished before the next packet.
    pub(crate) fn text(self: &Arc<Self>, text: Bytes) -> Result<Step, Closing> {
        if let Some(pushed) = self.shared.options.echo.and_then(|echo| echo.text(self, &text)) {
            self.close_if_full(pushed);
            return Ok(Step::Done);
        }
        let packet = std::str::from_utf8(&text).map_err(|_| Closing::Malformed(1007, "the packet is not UTF-8"))?;
        match engine::Packet::parse(packet).map_err(Closing::malformed)? {
            engine::Packet::Text(PacketType::Message, _) => {
                self.heard();
                Ok(Step::Later(Box::pin(self.clone().message(text.slice(1..)))))
            }
            engine::Packet::Text(PacketType::Pong, _) => {
                let mut control = self.control.lock();
                control.pong_due = None;
                control.next_ping = Instant::now() + self.shared.options.ping_interval;
                Ok(Step::Done)
            }
            engine::Packet::Text(PacketType::Close, _) => Err(Closing::Client),
            engine::Packet::Text(PacketType::Noop, _) => Ok(Step::Done),
            engine::Packet::Text(PacketType::Open | PacketType::Ping | PacketType::Upgrade, _)
            | engine::Packet::Binary(_) => Err(Closing::Malformed(1002, "a client does not send such a packet here")),
        }
    }

    /// Takes a binary packet: an attachment of the message before, or a whole packet in MessagePack.
    pub(crate) fn binary(self: &Arc<Self>, data: Bytes) -> Result<Step, Closing> {
        if let Some(pushed) = self.shared.options.echo.and_then(|echo| echo.binary(self, &data)) {
            self.close_if_full(pushed);
            return Ok(Step::Done);
        }
        self.heard();
        if self.shared.options.parser == Parser::MessagePack {
            let session = self.clone();
            return Ok(Step::Later(Box::pin(async move {
                session.packet(packet::msgpack::decode(&data).map_err(Closing::malformed)?).await
            })));
        }
        match self.inbound.lock().assembler.binary(&data).map_err(Closing::malformed)? {
            None => Ok(Step::Done),
            Some(packet) => {
                let session = self.clone();
                Ok(Step::Later(Box::pin(async move { session.packet(packet).await })))
            }
        }
    }

    async fn message(self: Arc<Self>, text: Bytes) -> Result<(), Closing> {
        let text = std::str::from_utf8(&text).map_err(|_| Closing::Malformed(1007, "the packet is not UTF-8"))?;
        if self.shared.options.parser == Parser::MessagePack {
            return Err(Closing::Malformed(1002, "packets come as MessagePack, in binary messages"));
        }
        let packet = Packet::decode(text).map_err(Closing::malformed)?;
        let whole = self.inbound.lock().assembler.text(packet).map_err(Closing::malformed)?;
        match whole {
            None => Ok(()),
            Some(packet) => self.packet(packet).await,
        }
    }

    async fn packet(self: &Arc<Self>, packet: Packet<'_>) -> Result<(), Closing> {
        match packet {
            Packet::Connect { nsp, auth } => connect::connect(self, nsp, auth.as_deref()).await,
            Packet::Disconnect { nsp } => match self.remove_socket(nsp) {
                Some(socket) => {
                    socket.detach(Closing::Left);
                    Ok(())
                }
                None => Err(NOT_JOINED),
            },
            Packet::Event(event) => match self.socket(event.namespace()) {
                Some(socket) => messages::receive(&socket, &event).await,
                None => Err(NOT_JOINED),
            },
            // Nothing here asks a client for an acknowledgement; an unasked one is ignored, as the reference server does.
            Packet::Ack(ack) => self.socket(ack.namespace()).map(drop).ok_or(NOT_JOINED),
        }
    }

    /// Counts a message against the connection's rate. `Err` says when the next one may come.
    pub(crate) fn admit_message(&self, now: Timestamp) -> Result<(), (Over, Rate, Timestamp)> {
        let rate = self.shared.catalog.realtime.message_rate;
        rate.take(&mut self.inbound.lock().rate, now).map_err(|until| (Over::Connection, rate, until))
    }

    /// Counts a message that was over a rate. Answers whether it is the first one in its period, or why to close.
    pub(crate) fn count_refused(&self, over: Over, rate: Rate) -> Result<bool, Closing> {
        let instant = Instant::now();
        let limited = &mut self.inbound.lock().limited;
        if limited.since.is_none_or(|since| instant.saturating_duration_since(since) > rate.per) {
            *limited = Limited { since: Some(instant), refused: 0 };
        }
        limited.refused = limited.refused.saturating_add(1);
        // Ten times its own rate within its period is nobody's honest mistake.
        if over == Over::Connection && limited.refused > rate.amount.saturating_mul(10) {
            return Err(Closing::Flooding);
        }
        Ok(limited.refused == 1)
    }

    pub(crate) fn socket(&self, namespace: &str) -> Option<Arc<Socket>> {
        self.control.lock().sockets.iter().find(|socket| socket.namespace_name() == namespace).cloned()
    }

    pub(crate) fn sockets(&self) -> Vec<Arc<Socket>> {
        self.control.lock().sockets.clone()
    }

    /// Adds a socket; false when the session closed meanwhile, so that the caller takes it back.
    pub(crate) fn add_socket(&self, socket: &Arc<Socket>) -> bool {
        let mut control = self.control.lock();
        control.joined_once = true;
        if !control.closed {
            // Nearly every client joins one namespace.
            control.sockets.reserve_exact(1);
            control.sockets.push(socket.clone());
        }
        !control.closed
    }

    pub(crate) fn remove_socket(&self, namespace: &str) -> Option<Arc<Socket>> {
        let mut control = self.control.lock();
        let at = control.sockets.iter().position(|socket| socket.namespace_name() == namespace)?;
        Some(control.sockets.swap_remove(at))
    }

    /// Ends the session. Only the first call does something. Not to be called with a lock of a room table, a socket or an outbox held.
    pub(crate) fn close(self: &Arc<Self>, closing: Closing) {
        let sockets = {
            let mut control = self.control.lock();
            if std::mem::replace(&mut control.closed, true) {
                return;
            }
            std::mem::take(&mut control.sockets)
        };
        let stats = &self.shared.stats;
        stats.by.closed.up(closing.reason());
        match closing {
            Closing::Malformed(_, reason) => {
                stats.closed_malformed.up();
                tracing::debug!(session = %self.id.get(..6).unwrap_or_default(), reason, "closing over a malformed packet");
            }
            Closing::Silent => stats.closed_silent.up(),
            Closing::TooSlow => stats.closed_slow.up(),
            Closing::Lost
            | Closing::Client
            | Closing::Left
            | Closing::Unused
            | Closing::Expired
            | Closing::Replaced
            | Closing::Draining
            | Closing::Disconnected
            | Closing::Revoked
            | Closing::Flooding
            | Closing::Unavailable => {}
        }
        for socket in sockets {
            let user = socket.user.as_deref().unwrap_or("visitor");
            tracing::debug!(tenant = %socket.tenant.id, user, socket = %socket.sid, ?closing, "socket disconnected");
            socket.detach(closing);
        }
        self.shared.forget(&self.id);
        self.outbox.end(closing);
        if let Some(streaming) = &self.streaming {
            streaming.hang_up(closing);
        }
    }

    /// Deals with what is due: pings, missing pongs, ending credentials, stalled sockets. Answers when to look again, `None` when closed.
    pub(crate) fn tend(self: &Arc<Self>) -> Option<Duration> {
        let (now, options) = (Instant::now(), &self.shared.options);
        let streams = self.streaming.is_some();
        let (mut due, sockets, ping) = {
            let mut control = self.control.lock();
            if control.closed {
                return None;
            }
            if control.pong_due.is_some_and(|due| due <= now) {
                drop(control);
                self.close(if streams { Closing::TooSlow } else { Closing::Silent });
                return None;
            }
            let unused_at = control.opened + options.connect_timeout;
            if !control.joined_once && unused_at <= now {
                drop(control);
                self.close(Closing::Unused);
                return None;
            }
            let mut ping = control.next_ping <= now && (streams || control.pong_due.is_none());
            if ping && streams {
                // A stream has no pongs. But a client that reads takes what waits for it, and then it needs no sign of life either.
                control.next_ping = now + self.heartbeat();
                ping = self.outbox.bytes() == 0;
                if !ping {
                    control.pong_due.get_or_insert(now + options.max_stall);
                }
            } else if ping {
                // Counted from when the ping was due, so that a client can rely on interval and timeout together; but a ping that this
                // side was late with leaves most of the time for its pong all the same.
                let due = control.next_ping + options.ping_timeout;
                control.pong_due = Some(due.max(now + options.ping_timeout * 3 / 4));
            }
            let mut due = control.pong_due.unwrap_or(control.next_ping);
            if streams {
                due = due.min(control.next_ping);
            }
            if !control.joined_once {
                due = due.min(unused_at);
            }
            (due.saturating_duration_since(now), control.sockets.clone(), ping)
        };
        if ping && streams {
            sockets.iter().for_each(|socket| socket.beat());
        } else if ping {
            let pushed = self.push_frame(PING.clone());
            self.close_if_full(pushed);
        }
        let clock = self.shared.clock.now();
        for socket in sockets {
            match socket.tend(clock, now) {
                Ok(Some(next)) => due = due.min(next),
                Ok(None) => {}
                Err(closing) => {
                    self.close(closing);
                    return None;
                }
            }
        }
        Some(due)
    }

    pub(crate) fn set_behind(&self) {
        self.behind.store(true, Ordering::SeqCst);
    }

    /// A stream's client has taken something: it is there.
    pub(crate) fn taken(self: &Arc<Self>) {
        self.control.lock().pong_due = None;
        self.drained();
    }

    /// The writer has made room, or a socket was parked: if both is so, catching up begins. Cheap when nobody is behind.
    pub(crate) fn drained(self: &Arc<Self>) {
        if self.may_catch_up() && !self.catching_up.swap(true, Ordering::SeqCst) {
            self.shared.tracker.spawn(self.clone().catch_up());
        }
    }

    fn may_catch_up(&self) -> bool {
        self.behind.load(Ordering::SeqCst) && self.outbox.bytes() * 2 <= self.shared.options.max_backlog
    }

    async fn catch_up(self: Arc<Self>) {
        loop {
            self.behind.store(false, Ordering::SeqCst);
            for socket in self.sockets() {
                if socket.is_parked()
                    && let Err(closing) = recovery::catch_up(&socket).await
                {
                    return self.close(closing);
                }
            }
            self.catching_up.store(false, Ordering::SeqCst);
            // Whoever parked a socket or made room meanwhile saw the flag and left it to this task.
            if !self.may_catch_up() || self.catching_up.swap(true, Ordering::SeqCst) {
                return;
            }
        }
    }

    /// Refuses a CONNECT. The transport stays open, as the client library expects.
    pub(crate) fn refuse(self: &Arc<Self>, namespace: &str, message: &str, data: Option<&str>) {
        let pushed = self.push_frame(self.shared.options.parser.connect_error(namespace, message, data));
        self.close_if_full(pushed);
    }
}

/// 20 characters from 120 random bits.
pub(crate) fn random_id() -> Arc<str> {
    URL_SAFE_NO_PAD.encode(random::<15>()).into()
}

/// Random bytes from the operating system's generator. Not from that of the cryptographic library, which gathers entropy of its own for
/// a tenth of a second when it is first asked: the first client would wait for it.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // It fails only where the system has no source of randomness at all; then no session can be secret.
    getrandom::fill(&mut bytes).expect("the operating system has a random number generator");
    bytes
}
