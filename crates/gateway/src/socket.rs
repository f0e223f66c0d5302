//! A socket: one transport in one namespace, and how far it has been fed from its tenant's log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tidewire_core::catalog::Pattern;
use tidewire_core::event::{Event, Offset, Position};
use tidewire_core::principal::Principal;
use tidewire_core::{Error, Kind, Result, Timestamp};
use tidewire_wire::socket as packet;

use crate::cast::{Body, Cast, Target};
use crate::gateway::Shared;
use crate::hub::{Rooms, Tenant};
use crate::outbox::{Class, Frame, Pushed};
use crate::policy::Allowed;
use crate::recovery::Saved;
use crate::session::{Closing, Session};

/// A client in a namespace, with a user, a tenant and rooms.
pub(crate) struct Socket {
    /// Unique in this process.
    pub(crate) key: u64,
    /// What clients know as `socket.id`. Not a secret: the transport has another id.
    pub(crate) sid: Arc<str>,
    /// The index of the namespace in the catalog.
    pub(crate) namespace: u8,
    pub(crate) session: Arc<Session>,
    pub(crate) tenant: Arc<Tenant>,
    pub(crate) user: Option<Arc<str>>,
    pub(crate) since: Timestamp,
    state: Mutex<State>,
}

struct State {
    principal: Principal,
    rooms: Vec<Joined>,
    /// Rooms it would be in by itself and has left.
    left: Vec<Box<str>>,
    /// After the first `subscribe`: only these types.
    types: Option<Vec<Pattern>>,
    /// The last fan-out that came by.
    ticket: u64,
    /// Events up to here are not to be queued again.
    fed: Position,
    feed: Feed,
    /// The last position that the client said it has dealt with.
    acked: Option<Position>,
    /// When its rooms and types were last kept in the store.
    saved: Option<Timestamp>,
    changed: bool,
    warned: bool,
    closed: bool,
}

#[derive(Clone, Debug)]
struct Joined {
    name: Arc<str>,
    app: bool,
    auto: bool,
}

/// Where a socket's events come from.
enum Feed {
    /// The relay queues them as they are committed.
    Live,
    /// The log, when there is room: everything after `fed` is still to come.
    Parked { since: Instant },
    /// The log up to some position; what the relay brings meanwhile is held.
    Holding { since: Instant, frames: Vec<(Position, Bytes)>, bytes: usize },
}

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

/// What a socket begins with.
pub(crate) struct Beginning {
    pub(crate) sid: Arc<str>,
    pub(crate) namespace: u8,
    pub(crate) principal: Principal,
    pub(crate) types: Option<Vec<Pattern>>,
    pub(crate) left: Vec<Box<str>>,
    pub(crate) acked: Option<Position>,
}

impl Socket {
    pub(crate) fn new(session: Arc<Session>, tenant: Arc<Tenant>, beginning: Beginning) -> Arc<Self> {
        let Beginning { sid, namespace, principal, types, left, acked } = beginning;
        let shared = session.shared.clone();
        Arc::new(Self {
            key: shared.next_key(),
            sid,
            namespace,
            tenant,
            user: principal.user.clone(),
            since: shared.clock.now(),
            state: Mutex::new(State {
                principal,
                rooms: Vec::new(),
                left,
                types,
                ticket: 0,
                fed: Position(0),
                feed: Feed::Live,
                acked,
                saved: None,
                changed: false,
                warned: false,
                closed: false,
            }),
            session,
        })
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.session.shared
    }

    pub(crate) fn namespace_name(&self) -> &str {
        &self.shared().catalog.realtime.namespaces[usize::from(self.namespace)]
    }

    pub(crate) fn principal(&self) -> Principal {
        self.state.lock().principal.clone()
    }

    pub(crate) fn rooms(&self) -> Vec<Arc<str>> {
        self.state.lock().rooms.iter().map(|room| room.name.clone()).collect()
    }

    pub(crate) fn is_in(&self, room: &str) -> bool {
        self.state.lock().rooms.iter().any(|joined| &*joined.name == room)
    }

    /// Takes its first rooms, and from `fed` on every event of its tenant. `first` is queued before any of them when the socket is
    /// new (`live`); one that comes back waits parked until it has been read up to date.
    pub(crate) fn attach(self: &Arc<Self>, rooms: Vec<Allowed>, fed: Option<Position>, first: impl FnOnce(Position)) {
        let (app, own): (Vec<_>, Vec<_>) = rooms.into_iter().partition(|room| room.app);
        let mut table = self.tenant.rooms.write();
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        // Nothing is being fanned out while the table is locked, so the position is exact.
        let live_from = self.tenant.delivered();
        match fed {
            None => state.fed = live_from,
            Some(fed) => self.park(&mut state, fed),
        }
        for room in own {
            let name = table.join(&room.name, self);
            state.rooms.push(Joined { name, app: false, auto: room.auto });
        }
        drop(state);
        first(live_from);
        drop(table);
        for room in app {
            let _ = self.join(room);
        }
    }

    /// Puts the socket into a room it may be in. Answers whether it was not there before.
    pub(crate) fn join(self: &Arc<Self>, room: Allowed) -> Result<bool> {
        let most = self.shared().options.max_rooms_per_socket;
        let mut table = self.table(room.app).write();
        let mut state = self.state.lock();
        if state.closed || state.rooms.iter().any(|joined| *joined.name == *room.name) {
            return Ok(false);
        }
        if state.rooms.len() >= most {
            let detail = format!("a socket may be in at most {most} rooms; leave one first");
            return Err(Error::new(Kind::Limited, "limit.rooms", detail));
        }
        let name = table.join(&room.name, self);
        state.left.retain(|left| **left != *name);
        state.rooms.push(Joined { name, app: room.app, auto: room.auto });
        state.changed = true;
        Ok(true)
    }

    /// Takes the socket out of a room. Answers whether it was in it.
    pub(crate) fn leave(&self, room: &str) -> bool {
        let Some(app) = self.state.lock().rooms.iter().find(|joined| &*joined.name == room).map(|joined| joined.app)
        else {
            return false;
        };
        let mut table = self.table(app).write();
        let mut state = self.state.lock();
        let Some(at) = state.rooms.iter().position(|joined| &*joined.name == room) else { return false };
        if state.rooms.swap_remove(at).auto {
            state.left.push(room.into());
        }
        state.changed = true;
        table.leave(room, self);
        true
    }

    fn table(&self, app: bool) -> &RwLock<Rooms> {
        if app { &self.shared().hub.app } else { &self.tenant.rooms }
    }

    /// Takes over a renewed credential of the same user: leaves rooms that `keep` no longer allows and joins those of `auto` that it is not in.
    pub(crate) fn renew(
        self: &Arc<Self>,
        principal: Principal,
        auto: Vec<Allowed>,
        keep: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let gone: Vec<Arc<str>> = {
            let mut state = self.state.lock();
            state.principal = principal;
            state.warned = false;
            state.rooms.iter().map(|room| room.name.clone()).filter(|room| !keep(room)).collect()
        };
        let left = self.state.lock().left.clone();
        for room in &gone {
            self.leave(room);
        }
        // Being put out of a room is not leaving it: it is joined again when the claims allow it again.
        self.state.lock().left.clone_from(&left);
        for room in auto.into_iter().filter(|room| !left.iter().any(|left| **left == *room.name)) {
            self.join(room)?;
        }
        Ok(())
    }

    /// Adds or removes subscribed types. Answers how many patterns there are now.
    pub(crate) fn subscribe(&self, add: Vec<Pattern>, remove: &[Pattern]) -> Result<usize> {
        let most = self.shared().options.max_subscriptions;
        let mut state = self.state.lock();
        let mut types = state.types.clone().unwrap_or_default();
        types.retain(|pattern| !remove.contains(pattern));
        for pattern in add {
            if !types.contains(&pattern) {
                types.push(pattern);
            }
        }
        if types.len() > most {
            let detail = format!("a socket may be subscribed to at most {most} types or patterns");
            return Err(Error::new(Kind::Limited, "limit.subscriptions", detail));
        }
        let count = types.len();
        state.types = Some(types);
        state.changed = true;
        Ok(count)
    }

    /// Remembers what the client has dealt with.
    pub(crate) fn acknowledge(&self, position: Position) {
        let mut state = self.state.lock();
        state.acked = state.acked.max(Some(position.min(self.tenant.delivered())));
        // Not counted as a change: it would cost a write per event. It is kept with the next one, or at the end.
    }

    /// Offers a copy of an event that is being fanned out to a room of this socket.
    pub(crate) fn offer(&self, cast: &mut Cast<'_>, target: Target) {
        let mut state = self.state.lock();
        if state.closed || state.ticket == cast.ticket {
            return;
        }
        state.ticket = cast.ticket;
        if !state.wants(cast.body.kind) || !cast.is_visible(&state.principal.claims) {
            return;
        }
        let stats = &self.shared().stats;
        // Rooms that span tenants are not replayed, so their copies cannot wait on the log either.
        let position = cast.body.position.filter(|_| !target.app);
        match (&mut state.feed, position) {
            (Feed::Live, None) => {}
            (Feed::Live, Some(position)) => {
                if position <= state.fed {
                    return;
                }
                // Whatever happens to it below: what is sent later must not carry an earlier offset.
                state.fed = position;
            }
            (Feed::Parked { .. } | Feed::Holding { .. }, None) => return stats.dropped.up(),
            (Feed::Parked { .. }, Some(_)) => return,
            (Feed::Holding { since, frames, bytes }, Some(position)) => {
                let frame = cast.frame(self.namespace, target.view, &self.tenant.id, position);
                *bytes += frame.len();
                if *bytes > self.shared().options.max_backlog {
                    state.feed = Feed::Parked { since: *since };
                } else {
                    frames.push((position, frame));
                }
                return;
            }
        }
        let frame = cast.frame(self.namespace, target.view, &self.tenant.id, self.tenant.delivered());
        let len = frame.len();
        let class = if position.is_some() { cast.class() } else { Class::Ephemeral };
        let pushed =
            self.session.outbox.push(Frame { bytes: frame, class }, self.shared().options.max_backlog, &stats.dropped);
        match (pushed, position) {
            (Pushed::Queued, _) => cast.count(len),
            (Pushed::Full, Some(position)) => {
                self.park(&mut state, Position(position.0 - 1));
                stats.parked.up();
                drop(state);
                self.session.drained();
            }
            (Pushed::Full, None) | (Pushed::Ended, _) => {}
        }
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
        let bytes = cast.frame(self.namespace, target.view, &self.tenant.id, event.position);
        let len = bytes.len() as u64;
        let pushed = self.session.outbox.push(
            Frame { bytes, class: Class::Logged },
            shared.options.max_backlog,
            &shared.stats.dropped,
        );
        if pushed == Pushed::Full {
            return Replayed::Full;
        }
        state.fed = event.position;
        shared.stats.replayed.up();
        shared.stats.deliveries.up();
        shared.stats.delivery_bytes.add(len);
        Replayed::Sent
    }

    /// Whether this socket may see an event of the log in its rooms, and which copy. Types are not looked at.
    pub(crate) fn sees(&self, event: &Event) -> Option<Target> {
        self.state.lock().sees(self.shared(), event).map(|(_, target)| target)
    }

    /// From now on the relay's events are held. Answers the position up to which the socket has been fed.
    pub(crate) fn hold(&self) -> Position {
        let mut state = self.state.lock();
        state.feed = Feed::Holding { since: Instant::now(), frames: Vec::new(), bytes: 0 };
        state.fed
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
        for (position, bytes) in frames {
            if position <= state.fed {
                continue;
            }
            let len = bytes.len() as u64;
            let frame = Frame { bytes, class: Class::Logged };
            if self.session.outbox.push(frame, shared.options.max_backlog, &shared.stats.dropped) == Pushed::Full {
                // What lies between was not for this socket, or it would have been held.
                state.fed = Position(position.0 - 1);
                self.session.set_behind();
                return Joining::Full;
            }
            shared.stats.deliveries.up();
            shared.stats.delivery_bytes.add(len);
            state.fed = position;
        }
        state.feed = Feed::Live;
        if !state.closed {
            shared.stats.behind.down();
        }
        Joining::Live
    }

    /// There is no room for more: the rest of the log waits.
    pub(crate) fn wait_for_room(&self) {
        let mut state = self.state.lock();
        state.feed = Feed::Parked { since: Instant::now() };
        self.session.set_behind();
    }

    pub(crate) fn is_parked(&self) -> bool {
        matches!(self.state.lock().feed, Feed::Parked { .. })
    }

    pub(crate) fn is_behind(&self) -> bool {
        !matches!(self.state.lock().feed, Feed::Live)
    }

    fn park(&self, state: &mut State, fed: Position) {
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
        let state = self.state.lock();
        let position = match state.feed {
            Feed::Live => state.fed.max(self.tenant.delivered()),
            Feed::Parked { .. } | Feed::Holding { .. } => state.fed,
        };
        let pushed = self.emit_at(name, data, position);
        drop(state);
        self.session.close_if_full(pushed);
    }

    /// The same with an offset that the caller knows, and without closing a full transport.
    pub(crate) fn emit_at(&self, name: &str, data: &str, position: Position) -> Pushed {
        let shared = self.shared();
        let offset = Offset { epoch: shared.store.epoch().clone(), position }.to_string();
        let offset = shared.options.recovery.then_some(offset.as_str());
        self.session.push(&packet::event(self.namespace_name(), name, &[data], offset))
    }

    /// Answers a message that waits for it.
    pub(crate) fn ack(&self, id: u64, data: &str) {
        let pushed = self.session.push(&packet::ack(self.namespace_name(), id, &[data]));
        self.session.close_if_full(pushed);
    }

    /// What is due now: a warning that the credential ends, a kept copy of its rooms. Answers what else is due, or why to close.
    pub(crate) fn tend(&self, now: Timestamp, instant: Instant) -> Result<Option<Duration>, Closing> {
        let shared = self.shared();
        let mut state = self.state.lock();
        let mut due = None;
        match &state.feed {
            Feed::Live => {}
            Feed::Parked { since } | Feed::Holding { since, .. } => {
                let stalled = instant.saturating_duration_since(*since);
                match shared.options.max_stall.checked_sub(stalled) {
                    Some(left) if !left.is_zero() => due = Some(left),
                    Some(_) | None => return Err(Closing::TooSlow),
                }
            }
        }
        let history = shared.catalog.realtime.history_age;
        let old = state.saved.is_some_and(|saved| now.since(saved) > history / 2);
        if state.changed || old {
            self.save(&mut state, now);
        }
        let Some(expires) = state.principal.expires else { return Ok(due) };
        if expires <= now {
            return Err(Closing::Expired);
        }
        let left = expires.since(now);
        let mut next = left;
        if let Some(early) = left.checked_sub(WARNING).filter(|early| !early.is_zero()) {
            next = early;
        } else if !state.warned {
            state.warned = true;
            drop(state);
            self.emit("auth:expiring", &format!("{{\"expires\":\"{expires}\",\"seconds\":{}}}", left.as_secs()));
        }
        Ok(Some(due.map_or(next, |due| due.min(next))))
    }

    /// Keeps rooms and types for a client that comes back, if there is more than it gets by itself. Called after each change.
    pub(crate) fn keep(&self) {
        let now = self.shared().clock.now();
        let mut state = self.state.lock();
        if state.changed {
            self.save(&mut state, now);
        }
    }

    fn save(&self, state: &mut State, now: Timestamp) {
        state.changed = false;
        let saved = state.to_save();
        // A socket that never had more than its own rooms is never written; one that had may have to be written empty.
        if state.saved.is_none() && saved.is_empty() {
            return;
        }
        state.saved = Some(now);
        let expires = now + self.shared().catalog.realtime.history_age;
        self.shared().store.put_session(&self.tenant.id, &self.sid, saved.to_text(), expires);
    }

    /// What a client that takes this socket's place needs.
    pub(crate) fn saved(&self) -> Saved {
        self.state.lock().to_save()
    }

    /// Takes the socket out of everything. Whether it can come back depends on how it ended.
    pub(crate) fn detach(&self, closing: Closing) {
        let shared = self.shared();
        let now = shared.clock.now();
        let rooms = {
            let mut state = self.state.lock();
            if state.closed {
                return;
            }
            state.closed = true;
            if !matches!(state.feed, Feed::Live) {
                shared.stats.behind.down();
            }
            let saved = state.to_save();
            if closing == Closing::Left {
                if state.saved.is_some() {
                    let expires = now + shared.catalog.realtime.history_age;
                    shared.store.put_session(&self.tenant.id, &self.sid, Saved::ended().to_text(), expires);
                }
            } else if state.saved.is_some() || !saved.is_empty() {
                state.changed = true;
                self.save(&mut state, now);
                shared.recent.put(&self.sid, saved);
            }
            std::mem::take(&mut state.rooms)
        };
        for room in &rooms {
            let mut table = if room.app { shared.hub.app.write() } else { self.tenant.rooms.write() };
            table.leave(&room.name, self);
        }
        let mut directory = self.tenant.directory.lock();
        if directory.sockets.get(&self.sid).is_some_and(|socket| socket.key == self.key) {
            directory.sockets.remove(&self.sid);
        }
        if let Some(user) = &self.user {
            directory.release(user);
        }
        drop(directory);
        shared.stats.sockets.down();
    }
}

/// How long before the end of a credential the client is told.
const WARNING: Duration = Duration::from_secs(60);

impl State {
    fn wants(&self, kind: &str) -> bool {
        self.types.as_ref().is_none_or(|types| types.iter().any(|pattern| pattern.matches(kind)))
    }

    fn judge<'a>(&self, shared: &'a Shared, event: &'a Event) -> Option<(Cast<'a>, Target)> {
        self.wants(&event.kind).then(|| self.sees(shared, event)).flatten()
    }

    fn sees<'a>(&self, shared: &'a Shared, event: &'a Event) -> Option<(Cast<'a>, Target)> {
        // A type that the catalog no longer has: nobody knows who may see it.
        let route = shared.routes.get(&event.kind)?;
        let rooms = route.rooms(&event.rooms).into_iter().filter(|(_, target)| !target.app);
        let mut mine = rooms.filter(|(room, _)| self.rooms.iter().any(|joined| !joined.app && &*joined.name == *room));
        let (_, target) = mine.next()?;
        let mut cast = Cast::new(shared, &event.tenant, route, Body::logged(event), event.position, 0);
        cast.is_visible(&self.principal.claims).then_some((cast, target))
    }

    fn to_save(&self) -> Saved {
        Saved {
            rooms: self.rooms.iter().filter(|room| !room.auto).map(|room| (*room.name).into()).collect(),
            left: self.left.clone(),
            types: self.types.as_ref().map(|types| types.iter().map(pattern_text).collect()),
            acked: self.acked,
            ended: false,
        }
    }
}

fn pattern_text(pattern: &Pattern) -> String {
    match pattern {
        Pattern::Exact(name) => (**name).to_owned(),
        Pattern::Prefix(prefix) => format!("{prefix}*"),
    }
}
