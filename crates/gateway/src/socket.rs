//! A socket: one transport in one namespace, and how far it has been fed from its tenant's log.

mod asked;
mod change;
mod feed;

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use tidewire_core::event::Position;
use tidewire_core::principal::Principal;
use tidewire_core::{Error, Kind, Result, Timestamp};

use self::asked::Joined;
pub(crate) use self::asked::{Since, Wanted};
pub(crate) use self::change::Change;
use self::feed::Feed;
pub(crate) use self::feed::{Joining, Replayed};
use crate::cast::{At, Form};
use crate::connect;
use crate::gateway::Shared;
use crate::hub::{Rooms, Tenant};
use crate::policy::Allowed;
use crate::presence::{self, Word};
use crate::recovery::{self, Parting, Saved};
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
    /// Held by who changes where the socket is or whose it is, over the write of it.
    changing: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

struct State {
    principal: Principal,
    rooms: Vec<Joined>,
    /// Rooms it would be in by itself and has left.
    left: Vec<Box<str>>,
    /// After the first `subscribe`: only these types.
    types: Option<Vec<Wanted>>,
    /// Nothing up to here is for it by what it asked for last.
    since: Since,
    /// The last fan-out that came by.
    ticket: u64,
    /// Events up to here are not to be queued again. In the log across tenants where the app has such rooms.
    fed: At,
    /// The last offset that was queued for it; not before it is attached.
    told: Option<At>,
    /// The last event of its tenant's log that was queued for it.
    sent: Position,
    feed: Feed,
    /// The last position that the client said it has dealt with.
    acked: Option<Position>,
    /// When its rooms and types were last kept in the store.
    saved: Option<Timestamp>,
    changed: bool,
    warned: bool,
    /// The credential is being checked again.
    checking: bool,
    credential: Option<Box<str>>,
    /// It gets every logged event of its tenant, whatever the rooms.
    whole_log: bool,
    closed: bool,
    /// Its transport is gone with it: nothing is said to it any more.
    cut: bool,
    /// What was to be kept when it closed: it has left its rooms since.
    parting: Option<Box<Parting>>,
}

/// What a socket begins with.
pub(crate) struct Beginning {
    pub(crate) sid: Arc<str>,
    pub(crate) namespace: u8,
    pub(crate) principal: Principal,
    pub(crate) types: Option<Vec<Wanted>>,
    pub(crate) left: Vec<Box<str>>,
    pub(crate) acked: Option<Position>,
    /// The store has something of this session, so it has to hear of every change.
    pub(crate) kept: bool,
    /// The token to check again, for credentials that have to be.
    pub(crate) credential: Option<Box<str>>,
}

impl Socket {
    pub(crate) fn new(session: Arc<Session>, tenant: Arc<Tenant>, beginning: Beginning) -> Arc<Self> {
        let Beginning { sid, namespace, principal, types, left, acked, kept, credential } = beginning;
        let shared = session.shared.clone();
        let now = shared.clock.now();
        let brings_types = types.is_some();
        Arc::new(Self {
            key: shared.next_key(),
            sid,
            namespace,
            tenant,
            user: principal.user.clone(),
            since: now,
            changing: tokio::sync::Mutex::default(),
            state: Mutex::new(State {
                principal,
                rooms: Vec::new(),
                left,
                types,
                since: Since::EVER,
                ticket: 0,
                fed: At::default(),
                told: None,
                sent: Position(0),
                feed: Feed::Live,
                acked,
                saved: kept.then_some(now),
                // What was kept of a session that comes back may be about to expire.
                changed: kept || brings_types,
                warned: false,
                checking: false,
                credential,
                whole_log: session.form() == Form::Log,
                closed: false,
                cut: false,
                parting: None,
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

    pub(crate) fn credential(&self) -> Option<Box<str>> {
        self.state.lock().credential.clone()
    }

    pub(crate) fn keep_credential(&self, credential: Option<Box<str>>) {
        self.state.lock().credential = credential;
    }

    /// The credential could not be checked: it is tried again at `at`.
    pub(crate) fn put_off_check(&self, at: Timestamp) {
        let mut state = self.state.lock();
        state.checking = false;
        state.principal.recheck = Some(at);
    }

    /// What a check can change: the roles, and the rooms in their order by name.
    pub(crate) fn standing(&self) -> (Arc<[String]>, Vec<Arc<str>>) {
        let state = self.state.lock();
        let mut rooms: Vec<_> = state.rooms.iter().map(|room| room.name.clone()).collect();
        rooms.sort_unstable();
        (state.principal.roles.clone(), rooms)
    }

    pub(crate) fn rooms_with_presence(&self) -> Vec<Arc<str>> {
        self.state.lock().rooms.iter().filter(|room| room.presence).map(|room| room.name.clone()).collect()
    }

    pub(crate) fn is_in(&self, room: &str) -> bool {
        self.state.lock().is_in(room)
    }

    /// The types that it is subscribed to; `None` before the first `subscribe`.
    pub(crate) fn types(&self) -> Option<Vec<String>> {
        self.state.lock().types_text()
    }

    /// Where the logs are now: what it asks for, it gets from here on.
    pub(crate) fn now(&self) -> Since {
        Since(self.tenant.head(), self.shared().hub.across.head())
    }

    /// Takes its first rooms, and from `fed` on every event of its tenant. `first` is queued before any of them when the socket is
    /// new (`live`); one that comes back waits parked until it has been read up to date.
    pub(crate) fn attach(self: &Arc<Self>, rooms: Vec<Allowed>, fed: Option<At>, first: impl FnOnce(At)) {
        let mut table = self.tenant.rooms.write();
        // In this order, as the relay takes them. With both, what `first` says of either is exact.
        let across = &self.shared().hub.across;
        let crosses = rooms.iter().any(|room| room.app);
        let mut app = crosses.then(|| across.rooms.write());
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        // Nothing is being fanned out while the table is locked, so the position is exact.
        let has_across = self.shared().catalog.rooms.iter().any(|room| room.crosses_tenants);
        let now = At { position: self.tenant.delivered(), across: has_across.then(|| across.delivered()) };
        match fed {
            None => state.fed = now,
            // Who is in no such room misses nothing there.
            Some(fed) => self.park(&mut state, At { across: fed.across.filter(|_| crosses).or(now.across), ..fed }),
        }
        state.told = Some(state.fed);
        if state.whole_log {
            table.follow(self);
        }
        state.rooms.reserve_exact(rooms.len());
        let mut audited = Vec::new();
        for room in rooms {
            let name = match &mut app {
                Some(app) if room.app => {
                    let name = app.join(&room.name, self);
                    audited.push(name.clone());
                    name
                }
                _ => table.join(&room.name, self),
            };
            state.since = state.since.max(room.from);
            state.rooms.push(self.enter(name, room, fed.is_some()));
        }
        drop(state);
        first(now);
        drop(app);
        drop(table);
        audited.iter().for_each(|room| self.audit(room, "joined a room that spans tenants"));
        presence::tell(self.shared(), &self.tenant);
    }

    /// Puts the socket into a room it may be in, or lets the user tell something else of itself where it is already. Answers whether it was
    /// not there before. Codes `limit.rooms`, `data.too_large`.
    pub(crate) fn join(self: &Arc<Self>, room: Allowed) -> Result<bool> {
        let most = self.shared().options.max_rooms_per_socket;
        let mut table = self.table(room.app).write();
        let mut state = self.state.lock();
        if state.closed {
            return Ok(false);
        }
        if let Some(data) = &room.data {
            state.has_room_for(&room.name, data)?;
        }
        if let Some(at) = state.rooms.iter().position(|joined| *joined.name == *room.name) {
            if let (Some(data), Some(user)) = (room.data, &self.user) {
                self.tenant.presence.update(&state.rooms[at].name, user, &data);
                state.rooms[at].data = Some(data);
                state.changed = true;
            }
            drop(state);
            drop(table);
            presence::tell(self.shared(), &self.tenant);
            return Ok(false);
        }
        // Those that it is in by itself are as many as the catalog has.
        if state.rooms.len() >= most && !room.auto {
            let detail = format!("a socket may be in at most {most} rooms; leave one first");
            return Err(Error::new(Kind::Limited, "limit.rooms", detail));
        }
        let name = table.join(&room.name, self);
        state.left.retain(|left| **left != *name);
        let app = room.app;
        state.since = state.since.max(room.from);
        state.rooms.push(self.enter(name.clone(), room, false));
        state.changed = true;
        drop(state);
        drop(table);
        if app {
            self.audit(&name, "joined a room that spans tenants");
        }
        presence::tell(self.shared(), &self.tenant);
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
        let left = state.rooms.swap_remove(at);
        if left.auto {
            state.left.push(room.into());
        }
        state.changed = true;
        table.leave(room, self);
        self.exit(&left, None);
        drop(state);
        drop(table);
        if app {
            self.audit(room, "left a room that spans tenants");
        }
        presence::tell(self.shared(), &self.tenant);
        true
    }

    /// Tells the operator who sees more than one tenant, and since when. Rooms that are open to everybody are of no interest.
    fn audit(&self, room: &str, what: &str) {
        let declared = self.shared().catalog.room(room);
        let Some(user) = self.user.as_deref().filter(|_| declared.is_some_and(|declared| declared.when.is_some()))
        else {
            return;
        };
        tracing::info!(target: "audit", tenant = %self.tenant.id, user, socket = %self.sid, room, "{what}");
    }

    /// Counts this socket, perhaps `back` after a break, in where it matters who is there. Called with the socket's state locked, so that
    /// a room is entered before it is left.
    fn enter(&self, name: Arc<str>, room: Allowed, back: bool) -> Joined {
        let Allowed { name: _, app, auto, presence, data, from } = room;
        if let (true, Some(user)) = (presence, &self.user) {
            self.tenant.presence.enter(&name, user, self.shared().clock.now(), data.as_ref(), back);
        }
        Joined { name, from, app, auto, presence, data }
    }

    fn exit(&self, room: &Joined, gone_at: Option<Instant>) {
        if let (true, Some(user)) = (room.presence, &self.user) {
            self.tenant.presence.leave(&room.name, user, gone_at);
        }
    }

    fn table(&self, app: bool) -> &RwLock<Rooms> {
        if app { &self.shared().hub.across.rooms } else { &self.tenant.rooms }
    }

    /// Takes over a checked credential of the same user, a new one or that of before as it is now (`is_new`): leaves rooms that `keep` no
    /// longer allows and joins those of `auto` that it is not in.
    pub(crate) fn renew(
        self: &Arc<Self>,
        principal: Principal,
        auto: Vec<Allowed>,
        is_new: bool,
        keep: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let now = self.shared().clock.now();
        let gone: Vec<Arc<str>> = {
            let mut state = self.state.lock();
            // Of a session that each check extends a little the client is told once.
            state.warned &= !is_new && principal.expires.is_some_and(|expires| expires.since(now) <= WARNING);
            state.principal = principal;
            state.checking = false;
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

    /// Answers a message that waits for it.
    pub(crate) fn ack(&self, id: u64, data: &str) {
        // Locked, so that what was made too late for who takes its place is not acknowledged.
        let state = self.state.lock();
        if state.cut {
            return;
        }
        let pushed = self.session.push_frame(self.shared().options.parser.ack(self.namespace_name(), id, &[data]));
        drop(state);
        self.session.close_if_full(pushed);
    }

    /// What is due now: a warning that the credential ends, a kept copy of its rooms. Answers what else is due, or why to close.
    pub(crate) fn tend(self: &Arc<Self>, now: Timestamp, instant: Instant) -> Result<Option<Duration>, Closing> {
        let shared = self.shared();
        let mut state = self.state.lock();
        if state.closed {
            return Ok(None);
        }
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
            state.changed = true;
            // Whoever has the turn is writing now. What the store refuses is written by a later look.
            if self.changing.try_lock().is_ok() {
                let socket = self.clone();
                shared.tracker.spawn(async move { drop(socket.keep().await) });
            }
        }
        if let Some(at) = state.principal.recheck.filter(|_| !state.checking) {
            if at <= now {
                state.checking = true;
                shared.tracker.spawn(connect::recheck(self.clone()));
            } else {
                due = Some(due.map_or(at.since(now), |due: Duration| due.min(at.since(now))));
            }
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

    /// What a client that takes this socket's place needs. The socket may be closing at this moment.
    /// Nothing of one that was never attached: what is known of its session from before is still so.
    pub(crate) fn parting(&self) -> Option<Parting> {
        let state = self.state.lock();
        state.parting.as_deref().cloned().or_else(|| self.part(&state, state.to_save()))
    }

    fn part(&self, state: &State, saved: Saved) -> Option<Parting> {
        let (told, reached) = (state.told?, self.is_at(state));
        let saved = Saved { acked: saved.acked.and(state.dealt_with(reached.position)), ..saved };
        Some(Parting { saved, told, reached, rights: recovery::rights(self.shared(), &state.principal) })
    }

    /// Takes the socket out of everything. Whether it can come back depends on how it ended.
    pub(crate) fn detach(&self, closing: Closing) {
        let shared = self.shared();
        // Its client may be back on another transport already: what that one keeps is newer.
        let is_replaced =
            self.tenant.directory.lock().sockets.get(&self.sid).is_some_and(|socket| socket.key != self.key);
        let rooms = {
            let mut state = self.state.lock();
            if state.closed {
                return;
            }
            (state.closed, state.cut) = (true, closing != Closing::Left);
            if !matches!(state.feed, Feed::Live) {
                shared.stats.behind.down();
            }
            let saved = if closing == Closing::Left { Saved::ended() } else { state.to_save() };
            let parting = self.part(&state, saved);
            state.parting = parting.clone().map(Box::new);
            if let Some(parting) = parting.filter(|_| !is_replaced) {
                self.write_last(&mut state, parting, closing);
            }
            let rooms = std::mem::take(&mut state.rooms);
            // Who leaves on purpose is gone at once; a connection that breaks may come back.
            let gone_at = (closing != Closing::Left).then(|| Instant::now() + shared.options.presence_grace);
            rooms.iter().for_each(|room| self.exit(room, gone_at));
            rooms
        };
        for room in &rooms {
            self.table(room.app).write().leave(&room.name, self);
            if room.app {
                self.audit(&room.name, "left a room that spans tenants");
            }
        }
        if self.session.form() == Form::Log {
            self.tenant.rooms.write().unfollow(self);
        }
        let mut directory = self.tenant.directory.lock();
        if directory.sockets.get(&self.sid).is_some_and(|socket| socket.key == self.key) {
            directory.sockets.remove(&self.sid);
        }
        if let Some(user) = &self.user {
            directory.release(user);
        }
        drop(directory);
        if self.user.is_none() {
            shared.visitors.release(self.session.handshake.address);
        }
        presence::tell(shared, &self.tenant);
        shared.stats.sockets.down();
    }
}

/// How long before the end of a credential the client is told.
const WARNING: Duration = Duration::from_secs(60);

/// The most bytes that the user of one socket tells of itself in all rooms together: they are kept with its session.
const MAX_MEMBER_DATA: usize = 32 * 1024;

impl State {
    /// Whether it is in a room that spans tenants.
    fn is_across(&self) -> bool {
        self.rooms.iter().any(|joined| joined.app)
    }

    fn is_in(&self, room: &str) -> bool {
        self.rooms.iter().any(|joined| &*joined.name == room)
    }

    fn types_text(&self) -> Option<Vec<String>> {
        self.types.as_ref().map(|types| types.iter().map(|wanted| wanted.saved().0).collect())
    }

    /// Whether `data` fits beside what is told in the other rooms.
    fn has_room_for(&self, room: &str, word: &Word) -> Result<()> {
        let others = self.rooms.iter().filter(|joined| *joined.name != *room).filter_map(|joined| joined.data.as_ref());
        if others.chain([word]).map(|word| word.data.get().len()).sum::<usize>() <= MAX_MEMBER_DATA {
            return Ok(());
        }
        let detail = format!("data: a socket tells at most {MAX_MEMBER_DATA} bytes in all its rooms; leave one first");
        Err(Error::new(Kind::TooLarge, "data.too_large", detail))
    }

    fn to_save(&self) -> Saved {
        Saved {
            rooms: self
                .rooms
                .iter()
                .filter(|room| !room.is_given())
                .map(|room| ((*room.name).into(), room.from))
                .collect(),
            left: self.left.clone(),
            data: self.rooms.iter().filter_map(|room| Some(((*room.name).into(), room.data.clone()?))).collect(),
            types: self.types.as_ref().map(|types| types.iter().map(Wanted::saved).collect()),
            acked: self.acked,
            ended: false,
        }
    }
}
