//! One event on its way to many sockets: encoded once per namespace and view, judged once per user.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::HashMap;
use std::hash::BuildHasher;
use std::num::NonZeroU64;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};
use tidewire_core::catalog::{Catalog, EventType};
use tidewire_core::event::{Ephemeral, Event, Offset, Position};
use tidewire_core::principal::Principal;
use tidewire_core::{Id, Json, TenantId, Timestamp};

use crate::encode;
use crate::gateway::Shared;
use crate::latency::Stamp;
use crate::outbox::Class;
use crate::session::Session;
use crate::socket::Socket;

/// Sets of roles whose answers are kept: they are searched through, and no app has many.
const MAX_JUDGED_ROLES: usize = 32;

/// Where an event type goes, worked out once from the catalog.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) declared: Arc<EventType>,
    /// One per room template of the event and its views, in this order.
    targets: Vec<Target>,
    /// Who may see it depends on nothing of a user but the roles.
    by_roles: bool,
}

/// How events are written for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Packets in frames.
    Packets,
    /// The same, compressed.
    Compressed,
    /// Server-sent events, each with what a socket gets.
    Stream,
    /// Server-sent events, each with the whole event as the log has it.
    Log,
}

/// What the members of a room get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// The room spans tenants.
    pub(crate) app: bool,
    /// The redacted copy, by its index; `None` is the whole event.
    pub(crate) view: Option<u16>,
}

/// How far a client is that has everything up to a frame: what the offset of the frame says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct At {
    /// In the log of its tenant.
    pub(crate) position: Position,
    /// In that of what goes to rooms which span tenants, if it is in one.
    pub(crate) across: Option<Position>,
}

/// Where an event stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the log of its tenant.
    Own(Position),
    /// In that across tenants.
    Across(Position),
    /// In none: it is ephemeral.
    Nowhere,
}

impl Place {
    pub(crate) fn of(event: &Event) -> Self {
        if event.origin.is_some() { Self::Across(event.position) } else { Self::Own(event.position) }
    }
}

impl At {
    /// The same when the client has the event that is there, too; nothing if it has it already, or is in no such room.
    pub(crate) fn with(self, place: Place) -> Option<Self> {
        match place {
            Place::Own(position) => (position > self.position).then_some(Self { position, ..self }),
            Place::Across(number) => {
                self.across.filter(|across| number > *across).map(|_| Self { across: Some(number), ..self })
            }
            Place::Nowhere => Some(self),
        }
    }

    /// The same right before the event that is there.
    pub(crate) fn until(self, place: Place) -> Self {
        let before = |position: Position| Position(position.0 - 1);
        match place {
            Place::Own(position) => Self { position: before(position), ..self },
            Place::Across(number) => Self { across: self.across.map(|_| before(number)), ..self },
            Place::Nowhere => self,
        }
    }

    /// The later of each. Who is in no room that spans tenants stays out.
    pub(crate) fn max(self, other: Self) -> Self {
        Self {
            position: self.position.max(other.position),
            across: self.across.map(|across| across.max(other.across.unwrap_or_default())),
        }
    }

    /// How many events lie between this and what was before it, in the log where there are more.
    pub(crate) fn beyond(self, before: Self) -> u64 {
        let of = |now: Option<Position>, before: Option<Position>| {
            now.zip(before).map_or(0, |(now, before)| now.0.saturating_sub(before.0))
        };
        of(Some(self.position), Some(before.position)).max(of(self.across, before.across))
    }

    pub(crate) fn offset(self, shared: &Shared) -> String {
        let Self { position, across } = self;
        Offset { epoch: shared.store.epoch().clone(), position, across }.to_string()
    }
}

impl Target {
    /// The whole event.
    pub(crate) const WHOLE: Self = Self { app: false, view: None };
}

impl Route {
    /// The routes of all event types.
    pub(crate) fn all(catalog: &Catalog) -> HashMap<Arc<str>, Self> {
        let route = |declared: &Arc<EventType>| {
            let whole = declared.rooms.iter().map(|room| Target { app: catalog.is_across(room), view: None });
            let views = declared.views.iter().zip(0..);
            let views = views.map(|(view, index)| Target { app: catalog.is_across(&view.room), view: Some(index) });
            let fields = declared.visible.as_ref().and_then(|visible| visible.fields_of("user"));
            let by_roles = fields.is_some_and(|fields| fields.iter().all(|field| *field == "roles"));
            Self { targets: whole.chain(views).collect(), by_roles, declared: declared.clone() }
        };
        catalog.events.iter().map(|(name, declared)| (name.clone(), route(declared))).collect()
    }

    /// The way of every event to those who follow the whole log: to no room, and everybody may see it.
    pub(crate) fn log() -> Self {
        let declared = EventType {
            name: "".into(),
            rooms: Vec::new(),
            data: None,
            ephemeral: false,
            reply: false,
            visible: None,
            stream: None,
            conflate: None,
            views: Vec::new(),
            description: String::new(),
        };
        Self { declared: Arc::new(declared), targets: Vec::new(), by_roles: false }
    }

    /// Whether a room of this type spans tenants.
    pub(crate) fn crosses_tenants(&self) -> bool {
        self.targets.iter().any(|target| target.app)
    }

    /// What the rooms of one event get. The whole event comes before its views, so that a socket in both gets the whole.
    ///
    /// An event's rooms stand in the order of the templates, each once. When two templates gave the same room, the rooms are matched by
    /// their shape instead, and in doubt a room gets the redacted copy.
    pub(crate) fn rooms<'a>(&self, rooms: &'a [Box<str>]) -> Vec<(&'a str, Target)> {
        if rooms.len() == self.targets.len() {
            let mut found: Vec<_> = rooms.iter().zip(&self.targets).map(|(room, target)| (&**room, *target)).collect();
            if self.crosses_tenants() {
                found.sort_by_key(|(_, target)| (target.view, target.app));
            }
            return found;
        }
        let templates = || self.declared.rooms.iter().chain(self.declared.views.iter().map(|view| &view.room));
        let target = |room: &str| templates().zip(&self.targets).filter(|(shape, _)| shape.matches(room)).last();
        let mut found: Vec<_> =
            rooms.iter().filter_map(|room| target(room).map(|(_, target)| (&**room, *target))).collect();
        found.sort_by_key(|(_, target)| (target.view, target.app));
        found
    }
}

/// The parts of an event that a socket is shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Body<'a> {
    pub(crate) id: &'a Id,
    pub(crate) kind: &'a str,
    pub(crate) time: Timestamp,
    pub(crate) data: &'a Json,
    pub(crate) user_id: Option<&'a str>,
    pub(crate) correlation_id: Option<&'a str>,
    pub(crate) position: Option<Position>,
    pub(crate) version: Option<u64>,
}

impl<'a> Body<'a> {
    pub(crate) fn logged(event: &'a Event) -> Self {
        let own = event.origin.as_ref().map_or(event.position, |(_, position)| *position);
        Self {
            id: &event.id,
            kind: &event.kind,
            time: event.time,
            data: &event.data,
            user_id: event.user_id.as_deref(),
            correlation_id: event.correlation_id.as_deref(),
            position: Some(own),
            version: event.version,
        }
    }

    pub(crate) fn ephemeral(event: &'a Ephemeral) -> Self {
        Self {
            id: &event.id,
            kind: &event.kind,
            time: event.time,
            data: &event.data,
            user_id: event.user_id.as_deref(),
            correlation_id: None,
            position: None,
            version: None,
        }
    }
}

/// One event being fanned out or replayed.
pub(crate) struct Cast<'a> {
    shared: &'a Shared,
    pub(crate) tenant: &'a TenantId,
    pub(crate) body: Body<'a>,
    /// The logged event.
    pub(crate) event: Option<&'a Arc<Event>>,
    /// It goes to those who follow the whole log.
    whole: bool,
    pub(crate) route: &'a Route,
    /// Sockets remember the last one they saw, so that an event for two rooms of a socket arrives once. 0 in a replay.
    pub(crate) ticket: u64,
    pub(crate) place: Place,
    /// When the store told of it; of what is read from the log nothing.
    pub(crate) since: Stamp,
    data: Option<Value>,
    /// By the address of the claims, which are kept here so that the address stays theirs.
    judged: HashMap<usize, (Arc<Value>, bool)>,
    /// By the roles, where nothing else of a user matters.
    judged_roles: Vec<(Arc<[String]>, bool)>,
    frames: Vec<(Key, Bytes)>,
    /// Of a state: which one, once that is known.
    state: OnceCell<Option<String>>,
    pub(crate) deliveries: u64,
    pub(crate) delivery_bytes: u64,
    /// Who has to be written to.
    pub(crate) due: Vec<Arc<Session>>,
}

/// What a frame depends on.
#[derive(Clone, PartialEq, Eq)]
struct Key {
    namespace: u8,
    form: Form,
    view: Option<u16>,
    at: At,
}

impl<'a> Cast<'a> {
    pub(crate) fn logged(shared: &'a Shared, event: &'a Arc<Event>, route: &'a Route, ticket: u64) -> Self {
        let tenant = event.origin.as_ref().map_or(&event.tenant, |(tenant, _)| tenant);
        let (body, place) = (Body::logged(event), Place::of(event));
        Self { event: Some(event), ..Self::new(shared, tenant, route, body, place, ticket) }
    }

    pub(crate) fn ephemeral(shared: &'a Shared, event: &'a Ephemeral, route: &'a Route, ticket: u64) -> Self {
        Self::new(shared, &event.tenant, route, Body::ephemeral(event), Place::Nowhere, ticket)
    }

    fn new(
        shared: &'a Shared,
        tenant: &'a TenantId,
        route: &'a Route,
        body: Body<'a>,
        place: Place,
        ticket: u64,
    ) -> Self {
        Self {
            shared,
            tenant,
            body,
            event: None,
            whole: false,
            route,
            ticket,
            place,
            since: Stamp::NONE,
            data: None,
            judged: HashMap::new(),
            judged_roles: Vec::new(),
            frames: Vec::new(),
            state: OnceCell::new(),
            deliveries: 0,
            delivery_bytes: 0,
            due: Vec::new(),
        }
    }

    /// An event on its way to those who follow the whole log.
    pub(crate) fn of_log(shared: &'a Shared, event: &'a Arc<Event>, ticket: u64) -> Self {
        Self { whole: true, ..Self::logged(shared, event, &shared.log, ticket) }
    }

    pub(crate) fn class(&self) -> Class {
        if self.event.is_some() { Class::Logged } else { Class::Ephemeral }
    }

    /// Whether this user may see the event. Judged once for all who have the same roles where only these matter, else once per credential.
    pub(crate) fn is_visible(&mut self, principal: &Principal) -> bool {
        let Some(visible) = &self.route.declared.visible else { return true };
        let Principal { roles, claims, .. } = principal;
        if self.route.by_roles {
            let known = self.judged_roles.iter().find(|(known, _)| Arc::ptr_eq(known, roles) || known == roles);
            if let Some((_, seen)) = known {
                return *seen;
            }
        }
        let data = self.data.get_or_insert_with(|| self.body.data.to_value().unwrap_or_default());
        let judge = |user: &Value| visible.eval(&[("user", user), ("data", data)]).unwrap_or(false);
        if self.route.by_roles {
            // Asked with nothing but the roles, so that the answer cannot depend on whose they are.
            let seen = judge(&json!({ "roles": &**roles }));
            if self.judged_roles.len() < MAX_JUDGED_ROLES {
                self.judged_roles.push((roles.clone(), seen));
            }
            return seen;
        }
        self.judged.entry(Arc::as_ptr(claims) as usize).or_insert_with(|| (claims.clone(), judge(claims))).1
    }

    /// Of which state this event is a value, for the sockets of a namespace that get this copy; `None` when every event matters.
    pub(crate) fn key(&mut self, namespace: u8, view: Option<u16>) -> Option<NonZeroU64> {
        let declared = &self.route.declared;
        let template = declared.conflate.as_ref()?;
        let (shared, tenant, body) = (self.shared, self.tenant, self.body);
        let data = self.data.get_or_insert_with(|| body.data.to_value().unwrap_or_default());
        let state = self.state.get_or_init(|| {
            let value = |name: &str| match &data[name] {
                _ if name == &*shared.catalog.app.tenant => Some(Cow::Borrowed(tenant.as_str())),
                Value::String(text) => Some(Cow::Owned(text.clone())),
                Value::Number(number) => Some(Cow::Owned(number.to_string())),
                _ => body.user_id.filter(|_| name == "userId").map(Cow::Borrowed),
            };
            // What lacks a part of its key is a value of nothing.
            template.render(value).ok()
        });
        // In rooms that span tenants, each has states of its own.
        let hash = shared.hasher.hash_one((tenant, &*declared.name, state.as_ref()?, namespace, view));
        Some(NonZeroU64::new(hash).unwrap_or(NonZeroU64::MIN))
    }

    /// The frames for a socket, and what the client is to remember when it has them.
    pub(crate) fn frame(&mut self, socket: &Socket, target: Target, at: At) -> Bytes {
        self.shared_frame(Key { namespace: socket.namespace, form: socket.session.form(), view: target.view, at })
    }

    /// Made once for each key, and compressed once out of the plain one.
    fn shared_frame(&mut self, key: Key) -> Bytes {
        if let Some((_, frame)) = self.frames.iter().find(|(known, _)| *known == key) {
            return frame.clone();
        }
        let frame = match key.form {
            Form::Compressed => {
                let plain = self.shared_frame(Key { form: Form::Packets, ..key.clone() });
                self.shared.compress(plain)
            }
            Form::Packets | Form::Stream | Form::Log => self.encode(&key),
        };
        self.frames.push((key, frame.clone()));
        frame
    }

    fn encode(&self, key: &Key) -> Bytes {
        let Key { namespace, view, at, form } = *key;
        let realtime = &self.shared.catalog.realtime;
        let offset = at.offset(self.shared);
        let fields = view.map(|view| self.route.declared.views[usize::from(view)].fields.as_slice());
        if let (Form::Log, Some(event)) = (form, self.event.filter(|_| self.whole)) {
            return encode::stream_event(&offset, &event.kind, &encode::json(event));
        }
        if matches!(form, Form::Stream | Form::Log) {
            return encode::streamed(realtime.profile, self.body, fields, &offset);
        }
        let namespace = &realtime.namespaces[usize::from(namespace)];
        encode::event(self.shared.options.parser, namespace, realtime.profile, self.body, fields, &offset)
    }

    /// Has the copies that were queued written.
    pub(crate) fn send(self) {
        self.shared.writers.add(self.tenant, self.due, self.deliveries);
    }

    pub(crate) fn count(&mut self, bytes: usize) {
        self.deliveries += 1;
        self.delivery_bytes += bytes as u64;
    }
}
