//! How events get to a socket: live from the relay, or from the log while it is behind.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;
use tidewire_core::event::{Event, Position};

use super::{Joined, Socket, State, Wanted};
use crate::across::Numbered;
use crate::cast::{At, Body, Cast, Target};
use crate::encode;
use crate::gateway::Shared;
use crate::latency::Stamp;
use crate::outbox::{Class, Frame, Pushed};
use crate::positions;

/// Where a socket's events come from.
pub(super) enum Feed {
    /// The relay queues them as they are committed.
    Live,
    /// The log, when there is room: everything after `fed` is still to come.
    Parked { since: Instant },
    /// The log up to some position; what the relay brings meanwhile is held.
    Holding { since: Instant, frames: Vec<(Position, Frame)>, bytes: usize },
}

/// Packets of the gateway's own, by what they depend on: the namespace, whether it is for a stream, and the offset.
pub(crate) type Encoded = Vec<((u8, bool, At), Bytes)>;

/// How a replayed event went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replayed {
    Sent,
    /// Not for this socket.
    Skipped,
    /// No room now.
    Full,
}

/// How a socket came to follow its tenant live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Joining {
    Live,
    /// More was held than may be: the log has it.
    Overflowed,
    /// The client has to take something first.
    Full,
}

impl Socket {
    /// Offers a copy of an event that is being fanned out to a room of this socket; `numbered` if it is logged and the room spans tenants.
    pub(crate) fn offer(&self, cast: &mut Cast<'_>, target: Target, numbered: Option<Numbered<'_>>) {
        let mut state = self.state.lock();
        if state.closed || state.ticket == cast.ticket {
            return;
        }
        let Shared { stats, across, .. } = &**self.shared();
        let is_live = matches!(state.feed, Feed::Live);
        let is_own = target.app && cast.is_of(&self.tenant.id);
        // The log may yet bring it for another room of this socket, and must not bring it twice.
        let waits = numbered.filter(|_| !is_live && is_own && !cast.route.only_crosses_tenants());
        if waits.is_none() {
            state.ticket = cast.ticket;
        }
        if !state.wants(cast.body.kind) || !cast.is_visible(&state.principal) {
            return;
        }
        if let Some(Numbered { room, .. }) = waits {
            state.across.miss(room, across);
            return stats.drop_copies("app_room", 1);
        }
        // Rooms that span tenants are not replayed, so their copies cannot wait on the log either.
        let position = cast.body.position.filter(|_| !target.app);
        let seen = state.across.seen(across);
        match (&mut state.feed, position) {
            (Feed::Live, None) => {}
            (Feed::Live, Some(position)) => {
                if position <= state.fed {
                    return;
                }
                // Whatever happens to it below: what is sent later must not carry an earlier offset.
                state.send(position);
            }
            (Feed::Parked { .. } | Feed::Holding { .. }, None) if numbered.is_none() => {
                return stats.drop_copies("behind", 1);
            }
            (Feed::Parked { .. } | Feed::Holding { .. }, None) => {}
            (Feed::Parked { .. }, Some(_)) => return,
            (Feed::Holding { since, frames, bytes }, Some(position)) => {
                let key = cast.key(self.namespace, target.view);
                let frame = cast.frame(self, target, At { position, across: seen });
                *bytes += frame.len();
                if *bytes > self.shared().options.max_backlog {
                    state.feed = Feed::Parked { since: *since };
                } else {
                    let frame = Frame { bytes: frame, class: Class::Logged, key, since: Stamp::NONE };
                    frames.push((position, frame));
                }
                return;
            }
        }
        let key = cast.key(self.namespace, target.view);
        let before = if target.app { self.is_at(&state).position } else { cast.at };
        let at = At {
            position: if is_own && is_live { before.max(cast.at) } else { before },
            across: numbered.map_or(seen, |numbered| Some(state.across.with(numbered.number))),
        };
        let frame = cast.frame(self, target, at);
        let len = frame.len();
        let frame = Frame { bytes: frame, class: cast.class(), key, since: cast.since };
        let pushed = self.session.outbox.push(frame, self.shared().options.max_backlog, stats);
        let fed = match (pushed, position, numbered) {
            (Pushed::Queued | Pushed::Due, ..) => {
                if pushed == Pushed::Due {
                    cast.due.push(self.session.clone());
                }
                if let Some(Numbered { number, .. }) = numbered {
                    state.across.take(number);
                }
                // What is sent from now on must not carry an earlier offset, also while the fan-out goes on.
                state.fed = state.fed.max(at.position);
                return cast.count(len);
            }
            (Pushed::Full, Some(position), _) => Position(position.0 - 1),
            (Pushed::Full, None, Some(Numbered { room, .. })) => {
                state.across.miss(room, across);
                stats.drop_copies("app_room", 1);
                if !is_live {
                    return;
                }
                // It is told when it has been read up to date.
                before
            }
            (Pushed::Full, None, None) | (Pushed::Ended, ..) => return,
        };
        self.park(&mut state, fed);
        stats.parked.up();
        drop(state);
        self.watch_stall();
        self.session.drained();
    }

    /// An event of a room that spans tenants will not come.
    pub(crate) fn miss(&self, room: &str) {
        self.state.lock().across.miss(room, &self.shared().across);
    }

    /// Whether a client that had everything of its rooms up to the number it has shown still has now that it is in them again. If not, it will
    /// be told.
    pub(crate) fn is_whole_since(&self, seen: Option<u64>) -> bool {
        let numbers = &self.shared().across;
        let mut state = self.state.lock();
        let mut rooms = state.rooms.iter().filter(|room| room.app && !numbers.is_whole(&room.name, seen));
        let missed: Vec<_> = rooms.by_ref().map(|room| room.name.clone()).collect();
        missed.iter().for_each(|room| state.across.miss(room, numbers));
        if !missed.is_empty() {
            state.across.stay_at(seen);
        }
        missed.is_empty()
    }

    /// Tells a live client of which rooms that span tenants something has not come; others when they are live again.
    pub(crate) fn tell_missed(&self) {
        let mut state = self.state.lock();
        if state.closed || state.across.missed().is_empty() || !matches!(state.feed, Feed::Live) {
            return;
        }
        let rooms = json!(state.across.missed());
        state.across.told();
        let at = self.is_at(&state);
        state.told = Some(at.position);
        let told = json!({ "rooms": rooms, "position": at.position });
        let pushed = self.session.push_frame(self.packet("continuity:lost", &told.to_string(), at));
        drop(state);
        self.shared().stats.lost_app_room.up();
        self.session.close_if_full(pushed);
    }

    /// Queues an event read from the log, if it is for this socket. `fed` moves on unless there was no room.
    pub(crate) fn replay(&self, event: &Event) -> Replayed {
        let shared = self.shared();
        let mut state = self.state.lock();
        if event.position <= state.fed {
            return Replayed::Skipped;
        }
        let Some((mut cast, target)) = state.judge(shared, event) else {
            state.fed = event.position;
            return Replayed::Skipped;
        };
        let key = cast.key(self.namespace, target.view);
        let at = At { position: event.position, across: state.across.seen(&shared.across) };
        let bytes = cast.frame(self, target, at);
        let len = bytes.len() as u64;
        let pushed = self.push(Frame { bytes, class: Class::Logged, key, since: Stamp::NONE });
        if pushed == Pushed::Full {
            return Replayed::Full;
        }
        state.send(event.position);
        shared.stats.replayed.up();
        self.tenant.count_deliveries(shared, 1, len);
        Replayed::Sent
    }

    /// Whether this socket may see an event of the log in its rooms, and which copy. Types are not looked at.
    pub(crate) fn sees(&self, event: &Event) -> Option<Target> {
        self.state.lock().sees(self.shared(), event, Position(u64::MAX)).map(|(_, target)| target)
    }

    /// From now on the relay's events are held. Answers the position up to which a parked socket has been fed; nothing if it is not parked,
    /// as somebody else reads it up to date.
    pub(crate) fn hold(&self) -> Option<Position> {
        let mut state = self.state.lock();
        if !matches!(state.feed, Feed::Parked { .. }) {
            return None;
        }
        state.feed = Feed::Holding { since: Instant::now(), frames: Vec::new(), bytes: 0 };
        Some(state.fed)
    }

    /// Everything up to `up_to` was read from the log: queues what was held and goes live, unless there is more in the log by now or
    /// no room for it.
    pub(crate) fn go_live(&self, up_to: Position) -> Joining {
        let shared = self.shared();
        let mut state = self.state.lock();
        let Feed::Holding { frames, .. } = std::mem::replace(&mut state.feed, Feed::Parked { since: Instant::now() })
        else {
            return Joining::Overflowed;
        };
        state.fed = state.fed.max(up_to);
        for (position, frame) in frames {
            if position <= state.fed {
                continue;
            }
            let len = frame.bytes.len() as u64;
            if self.push(frame) == Pushed::Full {
                // What lies between was not for this socket, or it would have been held.
                state.fed = Position(position.0 - 1);
                self.session.set_behind();
                return Joining::Full;
            }
            self.tenant.count_deliveries(shared, 1, len);
            state.send(position);
        }
        state.feed = Feed::Live;
        if !state.closed {
            shared.stats.behind.down();
        }
        drop(state);
        self.tell_missed();
        self.tell_position(positions::margin(u64::from(shared.catalog.realtime.history_count)), &mut Vec::new());
        Joining::Live
    }

    /// There is no room for more: the rest of the log waits.
    pub(crate) fn wait_for_room(&self) {
        let mut state = self.state.lock();
        state.feed = Feed::Parked { since: Instant::now() };
        self.session.set_behind();
        drop(state);
        self.watch_stall();
    }

    /// Has the timer look at the session soon: it then knows when this socket will have been behind for too long, which can be sooner than
    /// what the timer would look at next.
    fn watch_stall(&self) {
        self.shared().wheel.plan(&self.session, Duration::ZERO);
    }

    pub(crate) fn is_parked(&self) -> bool {
        matches!(self.state.lock().feed, Feed::Parked { .. })
    }

    pub(crate) fn is_behind(&self) -> bool {
        !matches!(self.state.lock().feed, Feed::Live)
    }

    pub(super) fn park(&self, state: &mut State, fed: Position) {
        if matches!(state.feed, Feed::Live) {
            self.shared().stats.behind.up();
        }
        state.fed = fed;
        state.feed = Feed::Parked { since: Instant::now() };
        self.session.set_behind();
    }

    /// Sends an event of the gateway's own, such as `connected`. Every one carries an offset, because the client takes the last
    /// text of any event for it.
    pub(crate) fn emit(&self, name: &str, data: &str) {
        // The state stays locked until the frame is queued: an event queued in between would have the later offset.
        let mut state = self.state.lock();
        let at = self.is_at(&state);
        state.told = Some(at.position);
        let pushed = self.session.push_frame(self.packet(name, data, at));
        drop(state);
        self.session.close_if_full(pushed);
    }

    /// How far a client is that has everything that is queued for it.
    pub(crate) fn reached(&self) -> Position {
        self.is_at(&self.state.lock()).position
    }

    /// The same as an offset.
    pub(super) fn is_at(&self, state: &State) -> At {
        let position = match state.feed {
            Feed::Live => state.fed.max(self.tenant.delivered()),
            Feed::Parked { .. } | Feed::Holding { .. } => state.fed,
        };
        At { position, across: state.across.seen(&self.shared().across) }
    }

    /// A sign of life in a stream. It says how far the log has been read for it, so that a client which few events are for comes back
    /// to where it left, and not to the last event that it saw.
    pub(crate) fn beat(&self) {
        let state = self.state.lock();
        let pushed = self.session.push_frame(encode::stream_beat(&self.is_at(&state).offset(self.shared())));
        drop(state);
        self.session.close_if_full(pushed);
    }

    /// Sends an event of the gateway's own that may be lost: a client that is slow or being caught up does not get it. `frames` has what
    /// was encoded for others with the same offset.
    pub(crate) fn notify(&self, name: &str, data: &str, frames: &mut Encoded) {
        let shared = self.shared();
        let state = self.state.lock();
        if state.closed {
            return;
        }
        if !matches!(state.feed, Feed::Live) {
            return shared.stats.drop_copies("behind", 1);
        }
        let bytes = self.packet_once(name, || data.to_owned(), self.is_at(&state), frames);
        self.push(Frame { bytes, class: Class::Ephemeral, key: None, since: Stamp::NONE });
    }

    /// Tells a live client how far the log has been read for it, if that is at least so many events beyond the last offset that it was
    /// sent. Nothing in place of it matters to a client that is slow: it is sent events.
    pub(crate) fn tell_position(&self, least: u64, frames: &mut Encoded) {
        let mut state = self.state.lock();
        let at = self.is_at(&state);
        let is_behind = state.told.is_some_and(|told| at.position.0.saturating_sub(told.0) >= least);
        let is_asked = self.shared().options.recovery && self.session.streaming.is_none();
        if state.closed || !is_behind || !is_asked || !matches!(state.feed, Feed::Live) {
            return;
        }
        let data = || json!({ "position": at.position }).to_string();
        let bytes = self.packet_once("continuity:kept", data, at, frames);
        let pushed = self.push(Frame { bytes, class: Class::Ephemeral, key: None, since: Stamp::NONE });
        if matches!(pushed, Pushed::Queued | Pushed::Due) {
            state.told = Some(at.position);
            if state.acked.is_some() {
                state.acked = state.dealt_with(at.position);
                state.changed = true;
            }
        }
    }

    /// A packet of the gateway's own, encoded once for all who get the same.
    fn packet_once(&self, name: &str, data: impl FnOnce() -> String, at: At, frames: &mut Encoded) -> Bytes {
        let key = (self.namespace, self.session.streaming.is_some(), at);
        if let Some((_, bytes)) = frames.iter().rev().find(|(known, _)| *known == key) {
            return bytes.clone();
        }
        let bytes = self.packet(name, &data(), at);
        frames.push((key, bytes.clone()));
        bytes
    }

    /// Queues a copy for this socket alone.
    fn push(&self, frame: Frame) -> Pushed {
        let shared = self.shared();
        let pushed = self.session.outbox.push(frame, shared.options.max_backlog, &shared.stats);
        if pushed == Pushed::Due {
            shared.writers.add(&self.tenant.id, [self.session.clone()], 1);
        }
        pushed
    }

    /// The same as `emit` with a position that the caller knows, and without closing a full transport.
    pub(crate) fn emit_at(&self, name: &str, data: &str, position: Position) -> Pushed {
        let across = {
            let mut state = self.state.lock();
            state.told = state.told.max(Some(position));
            state.across.seen(&self.shared().across)
        };
        self.session.push_frame(self.packet(name, data, At { position, across }))
    }

    fn packet(&self, name: &str, data: &str, at: At) -> Bytes {
        let options = &self.shared().options;
        let offset = at.offset(self.shared());
        if self.session.streaming.is_some() {
            return encode::stream_event(&offset, name, data);
        }
        let offset = options.recovery.then_some(offset.as_str());
        options.parser.event(self.namespace_name(), name, &[data], offset)
    }
}

impl State {
    /// The logged event at this position is queued.
    fn send(&mut self, position: Position) {
        (self.fed, self.told, self.sent) = (position, Some(position), position);
    }

    /// How far a client has dealt with the log that says so, if it has been read for it up to `reached`: who has dealt with all that it was
    /// sent, has with what was not for it.
    pub(super) fn dealt_with(&self, reached: Position) -> Option<Position> {
        self.acked.map(|acked| if acked < self.sent { acked } else { acked.max(reached) })
    }

    fn wants(&self, kind: &str) -> bool {
        self.types.as_ref().is_none_or(|types| types.iter().any(|wanted| wanted.pattern.matches(kind)))
    }

    /// Whether an event that is read from the log is to be given to the client, by what it had asked for when the event was written.
    fn judge<'a>(&self, shared: &'a Shared, event: &'a Event) -> Option<(Cast<'a>, Target)> {
        let at = event.position;
        let is_wanted = |wanted: &Wanted| at > wanted.from && wanted.pattern.matches(&event.kind);
        let wants = self.types.as_ref().is_none_or(|types| types.iter().any(is_wanted));
        wants.then(|| self.sees(shared, event, at)).flatten()
    }

    /// The copy of an event for the rooms in which the socket was before the position `at`.
    fn sees<'a>(&self, shared: &'a Shared, event: &'a Event, at: Position) -> Option<(Cast<'a>, Target)> {
        if self.whole_log {
            return Some((Cast::of_log(shared, event, 0), Target::WHOLE));
        }
        // A type that the catalog no longer has: nobody knows who may see it.
        let route = shared.routes.get(&event.kind)?;
        let rooms = route.rooms(&event.rooms).into_iter().filter(|(_, target)| !target.app);
        let is_in = |joined: &Joined, room: &str| !joined.app && at > joined.from && &*joined.name == room;
        let mut mine = rooms.filter(|(room, _)| self.rooms.iter().any(|joined| is_in(joined, room)));
        let (_, target) = mine.next()?;
        let mut cast = Cast::new(shared, &event.tenant, route, Body::logged(event), event.position, 0);
        cast.is_visible(&self.principal).then_some((cast, target))
    }
}
