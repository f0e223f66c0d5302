//! How events get to a socket: live from the relay, or from the log while it is behind.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;
use tidewire_core::TenantId;
use tidewire_core::event::{Event, Position};

use super::{Joined, Socket, State, Wanted};
use crate::cast::{At, Cast, Place, Target};
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
    Holding { since: Instant, held: Vec<Held>, bytes: usize },
}

/// An event that came while the log was being read.
pub(super) enum Held {
    /// Made with all others who hold it.
    Frame(Place, Frame),
    /// For a socket in a room that spans tenants: what its offset says of the other log is not known yet.
    Event(Arc<Event>),
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
    /// Offers a copy of an event that is being fanned out to a room of this socket.
    pub(crate) fn offer(&self, cast: &mut Cast<'_>, target: Target) {
        let mut state = self.state.lock();
        if state.closed || state.ticket == cast.ticket {
            return;
        }
        state.ticket = cast.ticket;
        if !state.wants(cast.body.kind) || !cast.is_visible(&state.principal) {
            return;
        }
        let shared = self.shared();
        let before = self.is_at(&state);
        let Some(at) = before.with(cast.place) else { return };
        match (&mut state.feed, cast.event) {
            (Feed::Live, _) | (Feed::Holding { .. }, Some(_)) => {}
            (Feed::Parked { .. }, Some(_)) => return,
            (Feed::Parked { .. } | Feed::Holding { .. }, None) => return shared.stats.drop_copies("behind", 1),
        }
        // It is on its way since before the last thing that this client asked for.
        let is_late = !state.since.is_before(cast.place);
        if is_late && cast.event.is_some_and(|event| state.judge(shared, &self.tenant.id, event).is_none()) {
            return;
        }
        let key = cast.key(self.namespace, target.view);
        let frame = cast.frame(self, target, at);
        let len = frame.len();
        let frame = Frame { bytes: frame, class: cast.class(), key, since: cast.since };
        let is_across = state.is_across();
        if let (Feed::Holding { since, held, bytes }, Some(event)) = (&mut state.feed, cast.event) {
            *bytes += len;
            if *bytes > shared.options.max_backlog {
                state.feed = Feed::Parked { since: *since };
            } else if is_across || matches!(held.last(), Some(Held::Event(_))) {
                held.push(Held::Event(event.clone()));
            } else {
                held.push(Held::Frame(cast.place, Frame { since: Stamp::NONE, ..frame }));
            }
            return;
        }
        match self.session.outbox.push(frame, shared.options.max_backlog, &shared.stats) {
            pushed @ (Pushed::Queued | Pushed::Due) => {
                if pushed == Pushed::Due {
                    cast.due.push(self.session.clone());
                }
                state.send(at, cast.place);
                cast.count(len);
            }
            Pushed::Full if cast.event.is_some() => {
                self.park(&mut state, before.until(cast.place));
                shared.stats.parked.up();
                drop(state);
                self.watch_stall();
                self.session.drained();
            }
            Pushed::Full | Pushed::Ended => {}
        }
    }

    /// Queues an event read from the log, if it is for this socket. `fed` moves on unless there was no room.
    pub(crate) fn replay(&self, event: &Arc<Event>) -> Replayed {
        let replayed = self.feed(&mut self.state.lock(), event);
        if replayed == Replayed::Sent {
            self.shared().stats.replayed.up();
        }
        replayed
    }

    fn feed(&self, state: &mut State, event: &Arc<Event>) -> Replayed {
        let shared = self.shared();
        let place = Place::of(event);
        let Some(at) = state.fed.with(place) else { return Replayed::Skipped };
        if state.closed {
            // It has left its rooms.
            return Replayed::Full;
        }
        let Some((mut cast, target)) = state.judge(shared, &self.tenant.id, event) else {
            state.fed = at;
            return Replayed::Skipped;
        };
        let key = cast.key(self.namespace, target.view);
        let bytes = cast.frame(self, target, at);
        let len = bytes.len() as u64;
        if self.push(Frame { bytes, class: Class::Logged, key, since: Stamp::NONE }) == Pushed::Full {
            return Replayed::Full;
        }
        state.send(at, place);
        self.tenant.count_deliveries(shared, 1, len);
        Replayed::Sent
    }

    fn feed_frame(&self, state: &mut State, place: Place, frame: Frame) -> Replayed {
        let Some(at) = state.fed.with(place) else { return Replayed::Skipped };
        let len = frame.bytes.len() as u64;
        if state.closed || self.push(frame) == Pushed::Full {
            return Replayed::Full;
        }
        state.send(at, place);
        self.tenant.count_deliveries(self.shared(), 1, len);
        Replayed::Sent
    }

    /// Whether this socket may see an event of the log in its rooms, and which copy. Types are not looked at.
    pub(crate) fn sees(&self, event: &Arc<Event>) -> Option<Target> {
        self.state.lock().sees(self.shared(), &self.tenant.id, event, false).map(|(_, target)| target)
    }

    /// Whether an event of the log is for this socket when its turn comes.
    pub(crate) fn awaits(&self, event: &Arc<Event>) -> bool {
        self.state.lock().judge(self.shared(), &self.tenant.id, event).is_some()
    }

    /// From now on the relay's events are held. Answers how far a parked socket has been fed, across tenants only where that matters to it;
    /// nothing if it is not parked, as somebody else reads it up to date.
    pub(crate) fn hold(&self) -> Option<At> {
        let mut state = self.state.lock();
        if !matches!(state.feed, Feed::Parked { .. }) {
            return None;
        }
        state.feed = Feed::Holding { since: Instant::now(), held: Vec::new(), bytes: 0 };
        Some(At { across: state.fed.across.filter(|_| state.is_across()), ..state.fed })
    }

    /// Everything up to `up_to` was read from the logs: queues what was held and goes live, unless there is more in a log by now or
    /// no room for it.
    pub(crate) fn go_live(&self, up_to: At) -> Joining {
        let shared = self.shared();
        let mut state = self.state.lock();
        let Feed::Holding { held, .. } = std::mem::replace(&mut state.feed, Feed::Parked { since: Instant::now() })
        else {
            return Joining::Overflowed;
        };
        state.fed = state.fed.max(up_to);
        for held in held {
            let fed = match held {
                Held::Event(event) => self.feed(&mut state, &event),
                Held::Frame(place, frame) => self.feed_frame(&mut state, place, frame),
            };
            if fed == Replayed::Full {
                self.session.set_behind();
                return Joining::Full;
            }
        }
        state.feed = Feed::Live;
        if !state.closed {
            shared.stats.behind.down();
        }
        drop(state);
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

    pub(super) fn park(&self, state: &mut State, fed: At) {
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
        if state.cut {
            return;
        }
        let at = self.is_at(&state);
        state.told = Some(at);
        let pushed = self.session.push_frame(self.packet(name, data, at));
        drop(state);
        self.session.close_if_full(pushed);
    }

    /// How far a client is that has everything that is queued for it.
    pub(crate) fn reached(&self) -> Position {
        self.is_at(&self.state.lock()).position
    }

    /// The same of both logs.
    pub(super) fn is_at(&self, state: &State) -> At {
        let At { position, across } = state.fed;
        match state.feed {
            Feed::Live => At {
                position: position.max(self.tenant.delivered()),
                across: across.map(|across| across.max(self.shared().hub.across.delivered())),
            },
            Feed::Parked { .. } | Feed::Holding { .. } => state.fed,
        }
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
        let across = at.across.filter(|_| state.is_across());
        let is_behind = state.told.is_some_and(|told| At { across, ..at }.beyond(told) >= least);
        let is_asked = self.shared().options.recovery && self.session.streaming.is_none();
        if state.closed || !is_behind || !is_asked || !matches!(state.feed, Feed::Live) {
            return;
        }
        let data = || json!({ "position": at.position }).to_string();
        let bytes = self.packet_once("continuity:kept", data, at, frames);
        let pushed = self.push(Frame { bytes, class: Class::Ephemeral, key: None, since: Stamp::NONE });
        if matches!(pushed, Pushed::Queued | Pushed::Due) {
            state.told = Some(at);
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

    /// The same while it is being attached, before any event, and without closing a full transport.
    pub(crate) fn emit_first(&self, name: &str, data: &str) -> Pushed {
        let fed = self.state.lock().fed;
        self.session.push_frame(self.packet(name, data, fed))
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
    /// An event is queued, and the client is at `at` when it has it.
    fn send(&mut self, at: At, place: Place) {
        // What is sent from now on must not carry an earlier offset, also while the fan-out goes on.
        (self.fed, self.told) = (at, Some(at));
        if let Place::Own(position) = place {
            self.sent = position;
        }
    }

    /// How far a client has dealt with the log that says so, if it has been read for it up to `reached`: who has dealt with all that it was
    /// sent, has with what was not for it.
    pub(super) fn dealt_with(&self, reached: Position) -> Option<Position> {
        self.acked.map(|acked| if acked < self.sent { acked } else { acked.max(reached) })
    }

    fn wants(&self, kind: &str) -> bool {
        self.types.as_ref().is_none_or(|types| types.iter().any(|wanted| wanted.pattern.matches(kind)))
    }

    /// Whether an event that is read from a log is to be given to the client, by what it had asked for when the event was written.
    fn judge<'a>(&self, shared: &'a Shared, own: &TenantId, event: &'a Arc<Event>) -> Option<(Cast<'a>, Target)> {
        let place = Place::of(event);
        let is_wanted = |wanted: &Wanted| wanted.from.is_before(place) && wanted.pattern.matches(&event.kind);
        let wants = self.types.as_ref().is_none_or(|types| types.iter().any(is_wanted));
        wants.then(|| self.sees(shared, own, event, true)).flatten()
    }

    /// The copy of an event for the rooms in which the socket is; `by_then` for those in which it was when the event was written.
    fn sees<'a>(
        &self,
        shared: &'a Shared,
        own: &TenantId,
        event: &'a Arc<Event>,
        by_then: bool,
    ) -> Option<(Cast<'a>, Target)> {
        if self.whole_log {
            return Some((Cast::of_log(shared, event, 0), Target::WHOLE));
        }
        // The log of its own tenant has it.
        if event.origin.as_ref().is_some_and(|(tenant, _)| tenant == own) {
            return None;
        }
        // A type that the catalog no longer has: nobody knows who may see it.
        let route = shared.routes.get(&event.kind)?;
        let place = Place::of(event);
        let is_in = |joined: &Joined, room: &str, target: Target| {
            joined.app == target.app && &*joined.name == room && (!by_then || joined.from.is_before(place))
        };
        let rooms = route.rooms(&event.rooms).into_iter().filter(|(_, target)| target.app || event.origin.is_none());
        let mut mine = rooms.filter(|(room, target)| self.rooms.iter().any(|joined| is_in(joined, room, *target)));
        let (_, target) = mine.next()?;
        let mut cast = Cast::logged(shared, event, route, 0);
        cast.is_visible(&self.principal).then_some((cast, target))
    }
}
