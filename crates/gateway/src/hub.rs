//! Who is in which room: tenants, their rooms, their sockets.
//!
//! A room belongs to a tenant; only rooms with `scope = "app"` stand in a table of their own. Fan-out reads a table while joins and
//! leaves write it. Locks are taken in this order and never the other way: a table of rooms, the state of a socket, its outbox.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use tidewire_core::event::{Event, Position};
use tidewire_core::limit::{Rate, RateState};
use tidewire_core::measure::Counter;
use tidewire_core::store::Store;
use tidewire_core::{Result, TenantId, Timestamp};
use tokio::sync::OnceCell;

use crate::gateway::Shared;
use crate::positions::Told;
use crate::presence::Presence;
use crate::socket::Socket;

/// All tenants of this process that have sockets.
pub(crate) struct Hub {
    tenants: RwLock<HashMap<TenantId, Arc<Tenant>>>,
    /// The rooms that span tenants, and how far their log has been relayed. It has no sockets of its own.
    pub(crate) across: Arc<Tenant>,
}

impl Hub {
    pub(crate) fn new() -> Self {
        Self { tenants: RwLock::default(), across: Arc::new(Tenant::new(TenantId::across())) }
    }

    /// The tenant, known from now on: the follower passes on its events.
    pub(crate) fn enter(&self, id: &TenantId) -> Arc<Tenant> {
        if let Some(tenant) = self.find(id) {
            return tenant;
        }
        self.tenants.write().entry(id.clone()).or_insert_with(|| Arc::new(Tenant::new(id.clone()))).clone()
    }

    pub(crate) fn find(&self, id: &TenantId) -> Option<Arc<Tenant>> {
        self.tenants.read().get(id).or_else(|| (*id == self.across.id).then_some(&self.across)).cloned()
    }

    pub(crate) fn knows(&self, id: &TenantId) -> bool {
        self.tenants.read().contains_key(id) || *id == self.across.id
    }

    /// These events were committed.
    pub(crate) fn note(&self, events: &[Arc<Event>]) {
        let tenants = self.tenants.read();
        for event in events {
            let across = || (event.tenant == self.across.id).then_some(&self.across);
            if let Some(tenant) = tenants.get(&event.tenant).or_else(across) {
                tenant.head.fetch_max(event.position.0, Ordering::SeqCst);
            }
        }
    }

    /// Without that of the rooms that span tenants.
    pub(crate) fn all(&self) -> Vec<Arc<Tenant>> {
        self.tenants.read().values().cloned().collect()
    }

    /// Forgets tenants that nobody uses, and what is remembered of users who are not there. Called now and then.
    pub(crate) fn tidy(&self, connects: Rate, now: Timestamp) {
        let mut tenants = self.tenants.write();
        tenants.retain(|_, tenant| {
            let mut directory = tenant.directory.lock();
            directory.users.retain(|_, user| {
                user.sockets > 0 || !user.messages.is_idle(now) || connects.take(&mut user.rate.clone(), now).is_err()
            });
            // Nobody can get at a tenant whose only owner is this map while the map is locked.
            Arc::strong_count(tenant) > 1 || !directory.sockets.is_empty() || !directory.users.is_empty()
        });
        tenants.shrink_to_fit();
    }
}

/// One tenant's rooms and sockets, and how far its log has been relayed.
pub(crate) struct Tenant {
    pub(crate) id: TenantId,
    /// The last event that was committed.
    head: AtomicU64,
    /// The last event whose fan-out has begun.
    begun: AtomicU64,
    /// The last event whose fan-out is complete.
    delivered: AtomicU64,
    ready: AtomicBool,
    opening: OnceCell<()>,
    pub(crate) rooms: RwLock<Rooms>,
    pub(crate) directory: Mutex<Directory>,
    pub(crate) presence: Presence,
    pub(crate) counts: Counts,
    pub(crate) told: Mutex<Told>,
}

/// What a tenant's sockets did.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) deliveries: Counter,
    pub(crate) delivery_bytes: Counter,
    pub(crate) messages_in: Counter,
    pub(crate) messages_limited: Counter,
}

impl Tenant {
    pub(crate) fn new(id: TenantId) -> Self {
        Self {
            id,
            head: AtomicU64::new(0),
            begun: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            ready: AtomicBool::new(false),
            opening: OnceCell::new(),
            rooms: RwLock::default(),
            directory: Mutex::default(),
            presence: Presence::default(),
            counts: Counts::default(),
            told: Mutex::default(),
        }
    }

    /// Finds out where the tenant's log is, once. Only then may sockets join.
    ///
    /// The tenant is known to the follower before the log's head is asked for, so every event is in one or the other.
    pub(crate) async fn open(&self, store: &dyn Store) -> Result<()> {
        self.opening
            .get_or_try_init(|| async {
                let head = store.head(&self.id).await?;
                // Under the lock, because the relay looks at `ready` and moves the position under it.
                let rooms = self.rooms.write();
                self.raise(head);
                self.ready.store(true, Ordering::SeqCst);
                drop(rooms);
                Ok(())
            })
            .await
            .copied()
    }

    /// All that get something from its log.
    pub(crate) fn sockets(&self) -> Vec<Arc<Socket>> {
        let own: Vec<_> = self.directory.lock().sockets.values().cloned().collect();
        if !own.is_empty() {
            return own;
        }
        // Rooms that span tenants have sockets of others.
        self.rooms.read().everybody().cloned().collect()
    }

    /// Whether the position is known. Before, the relay only notes how far it is.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::SeqCst)
    }

    /// Moves the position without delivering anything: nobody is there yet.
    pub(crate) fn raise(&self, position: Position) {
        self.head.fetch_max(position.0, Ordering::SeqCst);
        self.begun.fetch_max(position.0, Ordering::SeqCst);
        self.delivered.fetch_max(position.0, Ordering::SeqCst);
    }

    /// The last event that was committed, as far as anybody has been answered.
    pub(crate) fn head(&self) -> Position {
        Position(self.head.load(Ordering::SeqCst))
    }

    /// Copies of this tenant's events were queued.
    pub(crate) fn count_deliveries(&self, shared: &Shared, copies: u64, bytes: u64) {
        shared.stats.deliveries.add(copies);
        shared.stats.delivery_bytes.add(bytes);
        self.counts.deliveries.add(copies);
        self.counts.delivery_bytes.add(bytes);
    }

    pub(crate) fn begin(&self, position: Position) {
        self.begun.store(position.0, Ordering::SeqCst);
    }

    pub(crate) fn finish(&self, position: Position) {
        self.delivered.store(position.0, Ordering::SeqCst);
    }

    /// The last event that every live socket which may see it has been given.
    pub(crate) fn delivered(&self) -> Position {
        Position(self.delivered.load(Ordering::SeqCst))
    }

    /// The last event that some live socket may have been given. A socket that begins to hold live events back reads this afterwards:
    /// what comes later than this was held, what does not is in the log.
    pub(crate) fn begun(&self) -> Position {
        Position(self.begun.load(Ordering::SeqCst))
    }
}

/// A tenant's sockets and users.
#[derive(Default)]
pub(crate) struct Directory {
    pub(crate) sockets: HashMap<Arc<str>, Arc<Socket>>,
    users: HashMap<Arc<str>, User>,
    /// Sessions that clients come back to at this moment: between the look at what is known of one and its new socket.
    returning: HashSet<Arc<str>>,
    /// What is left of the tenant's rate of messages.
    messages: RateState,
}

/// The turn to come back to a session. There is one at a time, so that what is known of the session is so when it goes on.
pub(crate) struct Turn {
    tenant: Arc<Tenant>,
    sid: Arc<str>,
}

impl Turn {
    /// Nothing while another connection has it.
    pub(crate) fn take(tenant: &Arc<Tenant>, sid: &Arc<str>) -> Option<Self> {
        let is_first = tenant.directory.lock().returning.insert(sid.clone());
        is_first.then(|| Self { tenant: tenant.clone(), sid: sid.clone() })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.tenant.directory.lock().returning.remove(&self.sid);
    }
}

#[derive(Default)]
struct User {
    sockets: u32,
    rate: RateState,
    messages: RateState,
}

/// Why a user may not have one more socket.
pub(crate) enum Crowded {
    Sockets,
    /// So many visitors are at that address already.
    Address,
    Rate {
        until: Timestamp,
    },
    /// The tenant has as many sockets as it may.
    Tenant,
}

impl Crowded {
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Sockets => "limit.connections",
            Self::Address => "limit.address",
            Self::Rate { .. } => "limit.connects",
            Self::Tenant => "limit.tenant",
        }
    }
}

/// Which rate of messages a client is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    Connection,
    User,
    Tenant,
}

impl Over {
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::Connection => "limit.messages",
            Self::User => "limit.user_messages",
            Self::Tenant => "limit.tenant_messages",
        }
    }

    /// What `limit:exceeded` calls it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Connection => "messages",
            Self::User => "userMessages",
            Self::Tenant => "tenantMessages",
        }
    }
}

impl Directory {
    /// Counts one more socket of `user`, within the limits.
    pub(crate) fn admit(&mut self, user: &Arc<str>, most: u32, rate: Rate, now: Timestamp) -> Result<(), Crowded> {
        let user = self.users.entry(user.clone()).or_default();
        if user.sockets >= most {
            return Err(Crowded::Sockets);
        }
        rate.take(&mut user.rate, now).map_err(|until| Crowded::Rate { until })?;
        user.sockets += 1;
        Ok(())
    }

    /// Counts a message of `user` against the rate of its user, over all of its sockets, and then against the tenant's. The error is the
    /// limit that it is over, with that limit's rate and when the next message may come.
    pub(crate) fn admit_message(
        &mut self,
        user: Option<&Arc<str>>,
        per_user: Rate,
        per_tenant: Rate,
        now: Timestamp,
    ) -> Result<(), (Over, Rate, Timestamp)> {
        if let Some(user) = user.and_then(|user| self.users.get_mut(user)) {
            per_user.take(&mut user.messages, now).map_err(|until| (Over::User, per_user, until))?;
        }
        per_tenant.take(&mut self.messages, now).map_err(|until| (Over::Tenant, per_tenant, until))
    }

    pub(crate) fn release(&mut self, user: &Arc<str>) {
        if let Some(user) = self.users.get_mut(user) {
            user.sockets = user.sockets.saturating_sub(1);
        }
    }
}

/// A table of rooms. A room is there as long as it has a member.
#[derive(Default)]
pub(crate) struct Rooms {
    rooms: HashMap<Arc<str>, Room>,
    /// Who gets every logged event of the tenant, whatever its rooms.
    followers: Room,
}

/// The members of a room, in no order. Larger rooms keep an index, so that leaving costs the same in all of them.
#[derive(Default)]
struct Room {
    members: Vec<Arc<Socket>>,
    /// Boxed, because most rooms are one user's and have none.
    index: Option<Box<Index>>,
}

/// Where each member stands, by its key.
struct Index(HashMap<u64, u32>);

/// Rooms up to this size are searched through.
const INDEXED_FROM: usize = 64;

impl Rooms {
    pub(crate) fn members(&self, room: &str) -> &[Arc<Socket>] {
        self.rooms.get(room).map_or(&[], |room| &room.members)
    }

    pub(crate) fn followers(&self) -> &[Arc<Socket>] {
        &self.followers.members
    }

    pub(crate) fn follow(&mut self, socket: &Arc<Socket>) {
        self.followers.insert(socket.clone());
    }

    pub(crate) fn unfollow(&mut self, socket: &Socket) {
        self.followers.remove(socket.key);
    }

    /// Puts a socket into a room it is not in. Answers the room's name as the table keeps it.
    pub(crate) fn join(&mut self, room: &str, socket: &Arc<Socket>) -> Arc<str> {
        let name = self.rooms.get_key_value(room).map_or_else(|| room.into(), |(name, _)| name.clone());
        self.rooms.entry(name.clone()).or_default().insert(socket.clone());
        name
    }

    pub(crate) fn leave(&mut self, room: &str, socket: &Socket) {
        let Some(found) = self.rooms.get_mut(room) else { return };
        found.remove(socket.key);
        if found.members.is_empty() {
            self.rooms.remove(room);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.rooms.len()
    }

    /// Everybody, as often as in a room.
    pub(crate) fn everybody(&self) -> impl Iterator<Item = &Arc<Socket>> {
        self.rooms.values().flat_map(|room| &room.members)
    }

    /// Every room and its number of members.
    pub(crate) fn sizes(&self) -> impl Iterator<Item = (&str, usize)> {
        self.rooms.iter().map(|(name, room)| (&**name, room.members.len()))
    }
}

impl Room {
    fn insert(&mut self, socket: Arc<Socket>) {
        let at = self.members.len() as u32;
        match &mut self.index {
            Some(index) => {
                index.0.insert(socket.key, at);
            }
            None if self.members.len() >= INDEXED_FROM => {
                let known = self.members.iter().zip(0..).map(|(member, at)| (member.key, at));
                self.index = Some(Box::new(Index(known.chain([(socket.key, at)]).collect())));
            }
            None => {}
        }
        if self.members.is_empty() {
            // A room of one user often stays one of one socket.
            self.members.reserve_exact(1);
        }
        self.members.push(socket);
    }

    fn remove(&mut self, key: u64) {
        let at = match &mut self.index {
            Some(index) => index.0.remove(&key).map(|at| at as usize),
            None => self.members.iter().position(|member| member.key == key),
        };
        let Some(at) = at else { return };
        self.members.swap_remove(at);
        if let (Some(index), Some(moved)) = (&mut self.index, self.members.get(at)) {
            index.0.insert(moved.key, at as u32);
        }
        if self.members.len() * 4 < self.members.capacity() {
            self.members.shrink_to(self.members.len() * 2);
        }
    }
}
