//! From the store's writer to the sockets: bounded queues, one task that fans out, and the log for whatever the queues could not take.
//!
//! There is one fan-out at a time. So a tenant's events reach every socket in the order of the log, ephemeral ones keep their place
//! between them, and "has this socket seen this event" is one number per socket. The work per copy is small: it is
//! queued, and [`writers`] write. Tenants take turns ([`turns`]), also with what is read from the log, so that one that floods waits for
//! itself; events of different tenants have no order among them.

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tidewire_core::event::{Ephemeral, Event, Position};
use tidewire_core::store::{Follower, LogQuery};
use tidewire_core::{Result, TenantId};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cast::{Cast, Place, Target};
use crate::gateway::Shared;
use crate::hub::{Rooms, Tenant};
use crate::latency::Stamp;
use crate::socket::Socket;

mod turns;
pub(crate) mod writers;

use turns::{Room, Turns, Work};

/// How many copies are queued before other tasks get their turn.
const BATCH_DELIVERIES: u64 = 4_096;
/// How many events are looked at before other tasks get their turn.
const BATCH_EVENTS: u64 = 512;
/// How long the relay waits before it asks again for what the log did not answer.
const RETRY: Duration = Duration::from_millis(250);
/// What may wait of a tenant before its publishers are held back, in the points of [`turns`]. A point is about a microsecond of a core.
const FREE_DEBT: u64 = 65_536;
/// The most events that one read of the log asks for.
const PAGE: u32 = 256;

/// Events on their way to the relay.
#[derive(Default)]
pub(crate) struct Feeder {
    turns: Mutex<Turns<Item>>,
    filled: Notify,
}

enum Item {
    /// With the time at which the store told of it.
    Logged(Arc<Event>, Stamp),
    Ephemeral(Box<Ephemeral>),
}

impl Item {
    fn tenant(&self) -> &TenantId {
        match self {
            Self::Logged(event, _) => &event.tenant,
            Self::Ephemeral(event) => &event.tenant,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Logged(event, _) => event.data.get().len(),
            Self::Ephemeral(event) => event.data.get().len(),
        }
    }
}

impl Feeder {
    /// Takes what fits. Never waits: it runs on the store's writer.
    fn offer(&self, shared: &Shared, items: impl Iterator<Item = Item>) {
        let room = Room { events: shared.options.max_relay_events, bytes: shared.options.max_relay_bytes };
        let mut turns = self.turns.lock();
        for item in items {
            let (tenant, bytes) = (item.tenant().clone(), item.bytes());
            match turns.push(&tenant, item, bytes, room) {
                Ok(()) => {}
                Err(Item::Ephemeral(_)) => shared.stats.drop_copies("relay", 1),
                Err(Item::Logged(..)) => {
                    // The log is read for who is here.
                    if turns.lag(&tenant) {
                        shared.stats.relay_lagged.up();
                    }
                }
            }
        }
        drop(turns);
        self.wake();
    }

    /// How long who publishes for a tenant is held back: what its events that wait take beyond a fair backlog.
    fn hold(&self, tenant: &TenantId, most: Duration) -> Duration {
        let debt = self.turns.lock().debt(tenant).saturating_sub(FREE_DEBT);
        most.min(Duration::from_micros(debt))
    }

    /// The relay is to look again.
    pub(crate) fn wake(&self) {
        self.filled.notify_one();
    }
}

/// What the store is given. Holds the gateway weakly: the store outlives it, and the gateway holds the store.
pub(crate) struct Follow(pub(crate) Weak<Shared>);

impl Follower for Follow {
    fn durable(&self, events: &[Arc<Event>]) {
        if let Some(shared) = self.0.upgrade() {
            shared.hub.note(events);
        }
    }

    fn committed(&self, events: &[Arc<Event>]) {
        let Some(shared) = self.0.upgrade() else { return };
        // A tenant without sockets costs no more than this look. Its position is asked of the log when its first socket comes,
        // after it is known here, so that no event falls between the two.
        let mut wanted = events.iter().filter(|event| shared.hub.knows(&event.tenant)).peekable();
        if wanted.peek().is_some() {
            let now = shared.stats.latency.now();
            shared.feeder.offer(&shared, wanted.cloned().map(|event| Item::Logged(event, now)));
        }
    }
}

/// Queues ephemeral events behind what was committed before them. What does not fit is dropped.
pub(crate) fn offer_ephemeral(shared: &Shared, events: &[Ephemeral]) {
    let wanted = events.iter().filter(|event| shared.hub.knows(&event.tenant) || shared.crosses_tenants(&event.kind));
    let mut wanted = wanted.peekable();
    if wanted.peek().is_some() {
        shared.feeder.offer(shared, wanted.map(|event| Item::Ephemeral(Box::new(event.clone()))));
    }
}

/// Holds a publisher back, the longer the further its tenant's sockets are behind.
pub(crate) async fn hold(shared: &Shared, tenant: &TenantId) {
    let hold = shared.feeder.hold(tenant, shared.options.max_publish_hold);
    if !hold.is_zero() {
        shared.stats.publishers_held.up();
        tokio::time::sleep(hold).await;
    }
}

/// Runs until `stop`.
pub(crate) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let mut relay = Relay {
        shared: &shared,
        ticket: 0,
        late: HashSet::new(),
        retry_at: Instant::now(),
        price: 0,
        since_pause: (0, 0),
    };
    while !stop.is_cancelled() {
        // Looked at here as well, because a queue that never gets empty would put it off for ever.
        if !relay.late.is_empty() && relay.retry_at <= Instant::now() {
            relay.retry().await;
        }
        let next = shared.feeder.turns.lock().next(|tenant| shared.writers.is_full(tenant));
        if let Some((tenant, work)) = next {
            relay.work(&tenant, work).await;
            relay.pause().await;
            continue;
        }
        let retry = async {
            if relay.late.is_empty() {
                std::future::pending().await
            } else {
                tokio::time::sleep_until(relay.retry_at).await
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = shared.feeder.filled.notified() => {}
            () = retry => {}
        }
    }
}

struct Relay<'a> {
    shared: &'a Arc<Shared>,
    /// The number of the last fan-out.
    ticket: u64,
    /// Tenants whose log could not be read when it had to be, and when that is tried again.
    late: HashSet<TenantId>,
    retry_at: Instant,
    /// Sockets looked at since a tenant's turn was last charged.
    price: u64,
    /// Events and copies since other tasks had their turn.
    since_pause: (u64, u64),
}

/// What is to be done with an event.
enum Next {
    Done,
    /// The log has to be read up to here first.
    Behind(Position),
}

impl Relay<'_> {
    async fn work(&mut self, tenant: &TenantId, work: Work<Item>) {
        match work {
            Work::Item(Item::Logged(event, since)) => self.logged(&event, since),
            Work::Item(Item::Ephemeral(event)) => self.ephemeral(&event),
            Work::Read(up_to, most) => return self.read(tenant, up_to, most.min(PAGE)).await,
            Work::Compare => self.compare(tenant).await,
        }
        self.charge();
    }

    /// Takes what was done off the tenant's turn. Whether the turn goes on.
    fn charge(&mut self) -> bool {
        self.shared.feeder.turns.lock().spend(1 + std::mem::take(&mut self.price))
    }

    fn logged(&mut self, event: &Arc<Event>, since: Stamp) {
        // It may have been forgotten meanwhile.
        let Some(tenant) = self.shared.hub.find(&event.tenant) else { return };
        match self.deliver(&tenant, event, since) {
            Next::Done => {}
            Next::Behind(up_to) => self.shared.feeder.turns.lock().aim(&tenant.id, up_to),
        }
    }

    /// Delivers the event that comes next in its log.
    fn deliver(&mut self, tenant: &Arc<Tenant>, event: &Arc<Event>, since: Stamp) -> Next {
        // Locked for as long as the fan-out takes, so that a socket joins before it or after it and never in its middle.
        let rooms = tenant.rooms.read();
        if !tenant.is_ready() {
            tenant.raise(event.position);
            return Next::Done;
        }
        let delivered = tenant.delivered();
        if event.position <= delivered {
            return Next::Done;
        }
        if event.position > delivered.next() {
            return Next::Behind(event.position);
        }
        tenant.begin(event.position);
        if let Some(route) = self.shared.routes.get(&event.kind) {
            self.ticket += 1;
            let mut cast = Cast::logged(self.shared, event, route, self.ticket);
            cast.since = since;
            self.offer(&mut cast, &event.rooms, Some(&rooms));
            self.count(cast, Some(tenant));
        }
        if !rooms.followers().is_empty() {
            self.ticket += 1;
            let mut cast = Cast::of_log(self.shared, event, self.ticket);
            cast.since = since;
            rooms.followers().iter().for_each(|socket| socket.offer(&mut cast, Target::WHOLE));
            tenant.count_deliveries(self.shared, cast.deliveries, cast.delivery_bytes);
            self.price += rooms.followers().len() as u64;
            self.since_pause.1 += cast.deliveries;
            cast.send();
        }
        tenant.finish(event.position);
        Next::Done
    }

    fn ephemeral(&mut self, event: &Ephemeral) {
        let Some(route) = self.shared.routes.get(&event.kind) else { return };
        let tenant = self.shared.hub.find(&event.tenant);
        let rooms = tenant.as_ref().map(|tenant| tenant.rooms.read());
        self.ticket += 1;
        let mut cast = Cast::ephemeral(self.shared, event, route, self.ticket);
        self.offer(&mut cast, &event.rooms, rooms.as_deref());
        self.count(cast, tenant.as_deref());
    }

    /// Offers an event to its rooms; `rooms` are those of the log that it is read from. In a room that spans tenants, the sockets of its
    /// own tenant have it from the log of that, in its order with all else, and the others from that across tenants.
    fn offer(&mut self, cast: &mut Cast<'_>, names: &[Box<str>], rooms: Option<&Rooms>) {
        let (own, place, across) = (cast.tenant, cast.place, &self.shared.hub.across);
        for (room, target) in cast.route.rooms(names) {
            let mut offer = |members: &[Arc<Socket>], to: &dyn Fn(&TenantId) -> bool| {
                members.iter().filter(|socket| to(&socket.tenant.id)).for_each(|socket| socket.offer(cast, target));
                self.price += members.len() as u64;
            };
            let members = rooms.map_or(&[][..], |rooms| rooms.members(room));
            match (place, target.app) {
                (Place::Own(_) | Place::Nowhere, false) => offer(members, &|_| true),
                (Place::Own(_), true) => offer(across.rooms.read().members(room), &|tenant| tenant == own),
                (Place::Across(_), true) => offer(members, &|tenant| tenant != own),
                (Place::Nowhere, true) => offer(across.rooms.read().members(room), &|_| true),
                (Place::Across(_), false) => {}
            }
        }
    }

    fn count(&mut self, cast: Cast<'_>, tenant: Option<&Tenant>) {
        let stats = &self.shared.stats;
        stats.events.up();
        match tenant {
            Some(tenant) => tenant.count_deliveries(self.shared, cast.deliveries, cast.delivery_bytes),
            None => {
                stats.deliveries.add(cast.deliveries);
                stats.delivery_bytes.add(cast.delivery_bytes);
            }
        }
        self.since_pause.0 += 1;
        self.since_pause.1 += cast.deliveries;
        cast.send();
    }

    async fn pause(&mut self) {
        if self.since_pause.0 >= BATCH_EVENTS || self.since_pause.1 >= BATCH_DELIVERIES {
            self.since_pause = (0, 0);
            tokio::task::yield_now().await;
        }
    }

    /// Delivers what the log has up to a position, `limit` events at most or as many as the tenant's turn allows. What cannot be read
    /// now is tried again; nothing later overtakes it.
    async fn read(&mut self, id: &TenantId, up_to: Position, limit: u32) {
        let Some(tenant) = self.shared.hub.find(id).filter(|tenant| tenant.is_ready()) else {
            // It was forgotten meanwhile. When somebody comes again, its position is asked of the log.
            return self.reached(id);
        };
        match self.try_read(&tenant, up_to, limit).await {
            // Its goal stays, and so the next turn goes on from here.
            Ok(true) if tenant.delivered() < up_to => {}
            Ok(_) => self.reached(id),
            Err(error) => {
                if self.retry_later(id) {
                    tracing::warn!(tenant = %id, %error, "the log cannot be read; live events of this tenant wait");
                }
            }
        }
    }

    /// Whether there may be more.
    async fn try_read(&mut self, tenant: &Arc<Tenant>, up_to: Position, limit: u32) -> Result<bool> {
        let after = tenant.delivered();
        if after >= up_to {
            return Ok(false);
        }
        let query = LogQuery { after, up_to: Some(up_to), limit, ..LogQuery::default() };
        let page = self.shared.store.read(&tenant.id, query).await?;
        let Some(first) = page.first() else { return Ok(false) };
        if first.position != after.next() {
            // The log was trimmed under us. Nobody may believe to have seen what nobody can show any more.
            tracing::warn!(tenant = %tenant.id, %after, "the log begins later than what was delivered; closing this tenant's sockets");
            tenant.sockets().iter().for_each(|socket| socket.session.close(crate::session::Closing::TooSlow));
            tenant.raise(Position(first.position.0 - 1));
        }
        for event in page {
            if let Next::Behind(_) = self.deliver(tenant, &event, Stamp::NONE) {
                return Ok(false);
            }
            let goes_on = self.charge();
            self.pause().await;
            if !goes_on {
                break;
            }
        }
        Ok(true)
    }

    /// The log was read as far as it had to be.
    fn reached(&mut self, id: &TenantId) {
        self.shared.feeder.turns.lock().reached(id);
        self.late.remove(id);
    }

    /// Whether this is the first time.
    fn retry_later(&mut self, id: &TenantId) -> bool {
        self.shared.feeder.turns.lock().reached(id);
        if self.late.is_empty() {
            self.retry_at = Instant::now() + RETRY;
        }
        self.late.insert(id.clone())
    }

    async fn retry(&mut self) {
        self.retry_at = Instant::now() + RETRY;
        for id in self.late.clone() {
            self.compare(&id).await;
        }
    }

    /// Has the log read up to its head: something of this tenant did not come by the queue.
    async fn compare(&mut self, id: &TenantId) {
        let Some(tenant) = self.shared.hub.find(id) else {
            self.late.remove(id);
            return;
        };
        // Before it is ready, nobody knows whether its position is before or behind what did not come.
        if !tenant.is_ready() {
            self.retry_later(id);
            return;
        }
        match self.shared.store.head(id).await {
            Ok(head) => self.shared.feeder.turns.lock().aim(id, head),
            Err(_) => drop(self.retry_later(id)),
        }
    }
}
