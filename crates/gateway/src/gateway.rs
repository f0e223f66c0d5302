//! The gateway as the server crate holds it: what it needs, what it can be asked, how it stops.

use std::collections::HashMap;
use std::fmt;
use std::hash::RandomState;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::Value;
use tidewire_core::catalog::Catalog;
use tidewire_core::commit::{Committed, Request};
use tidewire_core::event::Ephemeral;
use tidewire_core::id::UuidV7;
use tidewire_core::measure::Counter;
use tidewire_core::principal::Sender;
use tidewire_core::store::{Answer, Follower, Store};
use tidewire_core::time::Clock;
use tidewire_core::{Json, Result, TenantId, Timestamp};
use tidewire_wire::websocket;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::{Authenticate, Handshake};
use crate::cast::Route;
use crate::cursors::Cursors;
use crate::heartbeat::{self, Wheel};
use crate::http::Refused;
use crate::hub::{Hub, Tenant};
use crate::options::Options;
use crate::polling::Partings;
use crate::positions;
use crate::recovery::{Recent, Signer};
use crate::refusals::Refusals;
use crate::relay::writers::{self, Writers};
use crate::relay::{self, Feeder, Follow};
use crate::session::{Closing, Opening, Session};
use crate::socket::Socket;
use crate::stats::{Counters, Stats};
use crate::visitors::Visitors;

/// What an app's handler made of a message: the answer for the acknowledgement, and what is to be committed before it.
pub type Handled = (Json, Request);

/// Publishes what clients send with the catalog's messages, and calls the app's own handlers of them. Implemented by the facade over its
/// publisher and handlers.
pub trait Publish: Send + Sync {
    /// Checks, expands and commits a request; `user` sent it. Ephemeral events of it come back by [`Gateway::deliver_ephemeral`].
    fn publish(&self, tenant: &TenantId, user: Option<&str>, request: Request) -> Answer<'_, Committed>;

    /// Calls the app's handler of a declared message, whose data has the declared shape. `None` when it has no handler, as by default.
    fn handle(&self, message: &str, data: &Value, sender: &Sender) -> Option<Answer<'_, Handled>> {
        let _ = (message, data, sender);
        None
    }
}

/// The Socket.IO server. Cheap to clone; all clones are one gateway. It runs until [`Gateway::drain`].
#[derive(Clone)]
pub struct Gateway(Arc<Shared>);

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// What every session and task of a gateway shares.
pub(crate) struct Shared {
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) auth: Arc<dyn Authenticate>,
    pub(crate) publish: Arc<dyn Publish>,
    pub(crate) clock: Arc<dyn Clock>,
    /// When this process began to serve.
    pub(crate) since: Timestamp,
    pub(crate) ids: UuidV7,
    pub(crate) options: Options,
    pub(crate) routes: HashMap<Arc<str>, Route>,
    /// The route of every event to those who follow the whole log.
    pub(crate) log: Route,
    pub(crate) hub: Hub,
    pub(crate) feeder: Feeder,
    pub(crate) writers: Writers,
    pub(crate) wheel: Wheel,
    pub(crate) signer: Signer,
    pub(crate) recent: Recent,
    pub(crate) visitors: Visitors,
    pub(crate) refusals: Refusals,
    pub(crate) cursors: Cursors,
    pub(crate) partings: Partings,
    pub(crate) stats: Counters,
    /// Seeded anew in each process, so that nobody can choose keys that collide.
    pub(crate) hasher: RandomState,
    pub(crate) tracker: TaskTracker,
    sessions: Sessions,
    keys: AtomicU64,
    draining: AtomicBool,
    stop: CancellationToken,
}

/// All sessions by their secret id, in parts that are locked alone.
#[derive(Default)]
struct Sessions([Mutex<HashMap<Arc<str>, Arc<Session>>>; 16]);

impl Sessions {
    fn part(&self, id: &str) -> &Mutex<HashMap<Arc<str>, Arc<Session>>> {
        // Ids are random text, so any byte of one spreads them.
        &self.0[usize::from(id.as_bytes().first().copied().unwrap_or(0)) % self.0.len()]
    }

    fn all(&self) -> Vec<Arc<Session>> {
        self.0.iter().flat_map(|part| part.lock().values().cloned().collect::<Vec<_>>()).collect()
    }
}

impl Gateway {
    /// Starts a gateway: its relay and its timer run on the current tokio runtime. Hand [`Gateway::follower`] to the store afterwards.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(
        catalog: Arc<Catalog>,
        store: Arc<dyn Store>,
        auth: Arc<dyn Authenticate>,
        publish: Arc<dyn Publish>,
        clock: Arc<dyn Clock>,
        options: Options,
    ) -> Self {
        let shared = Arc::new(Shared {
            routes: Route::all(&catalog),
            log: Route::log(),
            hub: Hub::new(),
            feeder: Feeder::default(),
            writers: Writers::default(),
            wheel: Wheel::new(options.ping_interval.min(options.ping_timeout)),
            signer: Signer::new(store.secret()),
            recent: Recent::default(),
            visitors: Visitors::default(),
            refusals: Refusals::default(),
            cursors: Cursors::default(),
            partings: Partings::default(),
            stats: Counters::default(),
            hasher: RandomState::new(),
            tracker: TaskTracker::new(),
            sessions: Sessions::default(),
            keys: AtomicU64::new(1),
            draining: AtomicBool::new(false),
            stop: CancellationToken::new(),
            ids: UuidV7::from_os(clock.clone()),
            since: clock.now(),
            catalog,
            store,
            auth,
            publish,
            clock,
            options,
        });
        shared.tracker.spawn(relay::run(shared.clone(), shared.stop.clone()));
        for _ in 0..Handle::current().metrics().num_workers() {
            shared.tracker.spawn(writers::run(shared.clone(), shared.stop.clone()));
        }
        shared.tracker.spawn(heartbeat::run(shared.clone(), shared.stop.clone()));
        shared.tracker.spawn(positions::run(shared.clone(), shared.stop.clone()));
        Self(shared)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }

    /// What the store is to tell of every commit. It never blocks: what its queue cannot take is read from the log.
    pub fn follower(&self) -> Arc<dyn Follower> {
        Arc::new(Follow(Arc::downgrade(&self.0)))
    }

    /// Delivers events that are not logged to who is there, behind what was committed before. Slow clients may not get them.
    pub fn deliver_ephemeral(&self, events: &[Ephemeral]) {
        relay::offer_ephemeral(&self.0, events);
    }

    /// For whoever answers publishers, after the commit: waits for a time if the sockets of this tenant are far behind, the longer the
    /// further, at most [`Options::max_publish_hold`]. So one that publishes faster than its sockets can be written to is slowed to their pace, and takes
    /// no more of the cores from others.
    pub async fn hold_publisher(&self, tenant: &TenantId) {
        relay::hold(&self.0, tenant).await;
    }

    /// The counters, and how much there is now.
    pub fn stats(&self) -> Stats {
        let tenants = self.0.hub.all();
        let rooms = tenants.iter().map(|tenant| tenant.rooms.read().len()).sum::<usize>()
            + self.0.hub.across.rooms.read().len();
        Stats { rooms: rooms as u64, tenants: tenants.len() as u64, ..self.0.stats.snapshot() }
    }

    /// Stops: refuses new transports with 503, closes the ones there are in equal batches over `window`, and ends its tasks.
    ///
    /// Transports are closed, sockets are not told to leave: so the stock client comes back, here or on another node, with its offset.
    pub async fn drain(&self, window: Duration) {
        const BATCHES: usize = 20;
        let shared = &self.0;
        shared.draining.store(true, Ordering::SeqCst);
        let sessions = shared.sessions.all();
        let batch = sessions.len().div_ceil(BATCHES).max(1);
        for (index, batch) in sessions.chunks(batch).enumerate() {
            if index > 0 {
                tokio::time::sleep(window / BATCHES as u32).await;
            }
            batch.iter().for_each(|session| session.close(Closing::Draining));
        }
        // Some may have opened before the flag was seen.
        shared.sessions.all().iter().for_each(|session| session.close(Closing::Draining));
        shared.stop.cancel();
        shared.tracker.close();
        // A connection's task ends with its last write, which waits for nobody; a handler may still wait for the store.
        let _ = tokio::time::timeout(Duration::from_secs(5), shared.tracker.wait()).await;
    }
}

impl Shared {
    /// The tenant, with its log and that across tenants open: sockets may join.
    pub(crate) async fn enter(&self, id: &TenantId) -> Result<Arc<Tenant>> {
        let tenant = self.hub.enter(id);
        tenant.open(&*self.store).await?;
        self.hub.across.open(&*self.store).await?;
        Ok(tenant)
    }

    pub(crate) fn next_key(&self) -> u64 {
        self.keys.fetch_add(1, Ordering::Relaxed)
    }

    /// Frames for clients that agreed to compression: the same ones where it gains nothing.
    pub(crate) fn compress(&self, plain: Bytes) -> Bytes {
        if plain.len() < Options::COMPRESSED_FROM {
            return plain;
        }
        match websocket::compress(&plain, Options::COMPRESSED_FROM) {
            Some(compressed) => {
                self.stats.compressed.up();
                compressed
            }
            None => plain,
        }
    }

    /// A client came back and did not get what it missed.
    pub(crate) fn lose(&self, counter: &Counter, outcome: &'static str) {
        counter.up();
        self.stats.by.returned.up(outcome);
    }

    /// Until when what is written of a session now is kept: long enough for a client that comes back within what history holds. What a
    /// live socket has written is up to half of that old, and a killed process writes no more.
    pub(crate) fn kept_until(&self) -> Timestamp {
        self.clock.now() + self.catalog.realtime.history_age * 2 + Duration::from_secs(60)
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Opens a session, unless there are too many or the gateway is draining.
    pub(crate) fn open(self: &Arc<Self>, handshake: Handshake, opening: Opening) -> Result<Arc<Session>, Refused> {
        if self.is_draining() {
            self.stats.refused.up();
            return Err(Refused::Draining);
        }
        if self.stats.connections.get() >= self.options.max_connections as u64 {
            self.stats.refused.up();
            return Err(Refused::Busy);
        }
        let session = Session::new(self.clone(), handshake, opening);
        self.stats.connections.up();
        self.stats.opened.up();
        self.sessions.part(&session.id).lock().insert(session.id.clone(), session.clone());
        self.wheel.plan(&session, session.heartbeat().min(self.options.connect_timeout));
        Ok(session)
    }

    pub(crate) fn all_sessions(&self) -> Vec<Arc<Session>> {
        self.sessions.all()
    }

    pub(crate) fn session(&self, id: &str) -> Option<Arc<Session>> {
        self.sessions.part(id).lock().get(id).cloned()
    }

    pub(crate) fn forget(&self, id: &str) {
        let mut part = self.sessions.part(id).lock();
        if part.remove(id).is_some() {
            self.stats.connections.down();
        }
        if part.len() * 4 < part.capacity() {
            let most = part.len() * 2;
            part.shrink_to(most);
        }
    }

    /// Whether an event type goes to a room that spans tenants.
    pub(crate) fn crosses_tenants(&self, kind: &str) -> bool {
        self.routes.get(kind).is_some_and(Route::crosses_tenants)
    }

    /// The sockets of a tenant, or of all, in no order.
    pub(crate) fn sockets(&self, tenant: Option<&TenantId>) -> Vec<Arc<Socket>> {
        let tenants = match tenant {
            Some(tenant) => self.hub.find(tenant).into_iter().collect(),
            None => self.hub.all(),
        };
        tenants
            .iter()
            .flat_map(|tenant| tenant.directory.lock().sockets.values().cloned().collect::<Vec<_>>())
            .collect()
    }
}
