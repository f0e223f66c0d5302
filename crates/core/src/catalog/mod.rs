//! The catalog: what an app declares. Rooms, events, queues, jobs, schedules, rules; the single source for validation.
//!
//! A catalog is read in three steps, each of which can only be reached through the one before: **parse** (TOML with the place of
//! every key), **resolve** (templates, expressions, durations and references become typed values), **check** (what is
//! legal but probably wrong). What comes out cannot name an event, queue, room or role that does not exist.

mod alerts;
mod check;
mod load;
mod raw;
mod realtime;
mod rules;
mod settings;
mod work;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

pub use check::{Finding, Severity, lint};
pub use load::{LoadError, Problem, load, parse};
pub use rules::{Pattern, Rule, RuleFlow, RuleJob, RuleStep};
pub use settings::{QueueSettings, TenantSettings};

use crate::expr::Expr;
use crate::job::{OnConflict, States};
use crate::limit::Rate;
use crate::retry::Backoff;
use crate::room::RoomTemplate;
use crate::schedule::{Missed, Overlap, Spec, Timing};
use crate::schema::Schema;
use crate::store::{QueueLimits, TenantLimits};
use crate::suggest::suggest;
use crate::template::Template;
use crate::{TenantId, Timestamp};

/// One app as its catalog declares it. Immutable and shared; every name in it resolves.
#[derive(Debug)]
pub struct Catalog {
    /// Name, tenant and zone.
    pub app: App,
    /// How end users prove who they are.
    pub auth: Auth,
    /// Namespaces, wire profile and history.
    pub realtime: Realtime,
    /// Rooms in the order of declaration.
    pub rooms: Vec<Room>,
    /// Event types by name.
    pub events: HashMap<Arc<str>, Arc<EventType>>,
    /// What clients may send beyond the built-in messages, by name.
    pub messages: HashMap<Arc<str>, Message>,
    /// Queues by name.
    pub queues: BTreeMap<Arc<str>, Queue>,
    /// Job types by name.
    pub jobs: BTreeMap<Arc<str>, JobType>,
    /// Schedules by name.
    pub schedules: BTreeMap<Arc<str>, ScheduleSpec>,
    /// Declared event -> job, event.
    pub rules: Vec<Rule>,
    /// What raises an alert for a job that failed, if anything does.
    pub alerts: Option<Alerts>,
    /// Declared caches by name.
    pub caches: BTreeMap<Arc<str>, Cache>,
}

impl Catalog {
    /// The event type called `name`.
    pub fn event(&self, name: &str) -> Option<&Arc<EventType>> {
        self.events.get(name)
    }

    /// The event type that `name` was probably meant to be.
    pub fn suggest_event(&self, name: &str) -> Option<&str> {
        suggest(name, self.events.keys().map(|known| &**known))
    }

    /// What declares the room called `name`: of several templates that make it the one that says most of the name itself, of equal ones
    /// the first.
    pub fn room(&self, name: &str) -> Option<&Room> {
        let rooms = self.rooms.iter().rev().filter(|room| room.template.matches(name));
        rooms.max_by_key(|room| room.template.fixed_bytes())
    }

    /// Whether the rooms that an event's template makes span tenants.
    pub fn is_across(&self, template: &RoomTemplate) -> bool {
        let same = self.rooms.iter().find(|room| room.template.same_shape(template));
        same.or_else(|| self.room(template.source())).is_some_and(|room| room.crosses_tenants)
    }

    /// Whether a room of this event type spans tenants.
    pub fn crosses_tenants(&self, event: &EventType) -> bool {
        event.rooms.iter().chain(event.views.iter().map(|view| &view.room)).any(|room| self.is_across(room))
    }

    /// The job type called `name`.
    pub fn job(&self, name: &str) -> Option<&JobType> {
        self.jobs.get(name)
    }

    /// The job type that `name` was probably meant to be.
    pub fn suggest_job(&self, name: &str) -> Option<&str> {
        suggest(name, self.jobs.keys().map(|known| &**known))
    }
}

/// `[app]`
#[derive(Debug)]
pub struct App {
    /// The name of the app, also its folder.
    pub name: Arc<str>,
    /// What this app calls its tenant in room templates and claims: `portId`.
    pub tenant: Arc<str>,
    /// IANA zone of schedules that name none.
    pub timezone: String,
    /// The most schedules that one tenant may have beside those of the catalog, those of its users included.
    pub schedules: u32,
    /// One line for people.
    pub description: String,
}

impl App {
    /// How many schedules a tenant may have unless the catalog says otherwise.
    pub const SCHEDULES: u32 = 100_000;
}

/// Where a credential may come from, in the order of the catalog. The first one present decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialSource {
    /// `auth.token`: the `token` of the Socket.IO auth object.
    AuthToken,
    /// `authorization`: the bearer token of the HTTP header.
    Authorization,
    /// `query.NAME`: a query parameter.
    Query(String),
    /// `cookie:NAME`: a cookie.
    Cookie(String),
    /// `header:NAME`: another header.
    Header(String),
}

/// `[auth]`
#[derive(Debug)]
pub struct Auth {
    /// Where credentials are looked for.
    pub sources: Vec<CredentialSource>,
    /// Every role that an expression may mention; empty means any.
    pub roles: Vec<String>,
    /// `[auth.jwt]`, when users come with a JWT.
    pub jwt: Option<Jwt>,
    /// `[auth.session]`: the URL at which the app itself checks a session token or cookie.
    pub introspect: Option<String>,
    /// How long after its last check a live socket's session is checked again. Default 30 s.
    pub recheck: Duration,
}

/// `[auth.jwt]`. Secrets come from the configuration, never from the catalog.
#[derive(Debug)]
pub struct Jwt {
    /// Accepted algorithms, such as `HS256`.
    pub algorithms: Vec<String>,
    /// Required `iss`.
    pub issuer: Option<String>,
    /// Required `aud`.
    pub audience: Option<String>,
    /// Clock difference that is forgiven on `exp` and `nbf`. Default 30 s.
    pub leeway: Duration,
    /// The claim that holds the user's id. Default `sub`.
    pub user_claim: String,
    /// The claim that holds the tenant. Default: the app's name for it.
    pub tenant_claim: String,
    /// The claim that holds the list of roles. Default `roles`.
    pub roles_claim: String,
    /// The claim that holds the tenants a user may switch to. Default `tenants`.
    pub tenants_claim: String,
}

/// How an event looks on the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// `emit(type, data)`
    Named,
    /// `emit("event", {id, type, time, data, …})`
    Envelope,
}

/// `[realtime]`
#[derive(Debug)]
pub struct Realtime {
    /// Socket.IO namespaces that this app answers on.
    pub namespaces: Vec<String>,
    /// Wire profile.
    pub profile: Profile,
    /// How many events of a tenant `history` and recovery can reach back to. Default 1,000.
    pub history_count: u32,
    /// How old an event may be for `history` and recovery. Default 24 h.
    pub history_age: Duration,
    /// Inbound messages per connection. Default 50/s.
    pub message_rate: Rate,
    /// New connections per user. Default 10/s.
    pub connect_rate: Rate,
}

/// How a socket gets into a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    /// On connect, when the user's claims fill the template.
    Auto,
    /// When the client asks for it.
    Request,
    /// Without a login, read only.
    Public,
}

/// `[rooms]`
#[derive(Debug)]
pub struct Room {
    /// `berth:{berthId}`
    pub template: RoomTemplate,
    /// How a socket gets in.
    pub join: Join,
    /// Whether the room spans all tenants (`scope = "app"`).
    pub crosses_tenants: bool,
    /// Who may be in it: CEL over `user` and `params`.
    pub when: Option<Expr>,
    /// Whether it is told who comes and goes.
    pub presence: bool,
    /// The shape of what a user tells of itself there; absent when that is nothing.
    pub member_data: Option<Schema>,
    /// One line for people.
    pub description: String,
}

/// `[events.NAME]`
#[derive(Debug)]
pub struct EventType {
    /// The name exactly as it goes over the wire.
    pub name: Arc<str>,
    /// The rooms it is delivered to. Each has the shape of a declared room.
    pub rooms: Vec<RoomTemplate>,
    /// The shape of its data; absent when anything goes.
    pub data: Option<Schema>,
    /// Not logged, may be dropped.
    pub ephemeral: bool,
    /// Goes only to the socket that asked; cannot be published.
    pub reply: bool,
    /// Who may see it: CEL over `user` and `data`, also applied to history and recovery.
    pub visible: Option<Expr>,
    /// The aggregate stream it belongs to: `lead-{leadId}`.
    pub stream: Option<RoomTemplate>,
    /// Only the last event of this key matters to a slow client.
    pub conflate: Option<RoomTemplate>,
    /// Redacted copies for other rooms.
    pub views: Vec<View>,
    /// One line for people.
    pub description: String,
}

/// A redacted copy of an event for another room.
#[derive(Debug)]
pub struct View {
    /// The room that gets the copy.
    pub room: RoomTemplate,
    /// The only top-level fields of the data that are in it.
    pub fields: Vec<String>,
}

/// `[messages.NAME]`: what a client may send.
#[derive(Debug)]
pub struct Message {
    /// Types of positional arguments.
    pub args: Vec<Schema>,
    /// The shape of the single object argument, when the message takes one.
    pub data: Option<Schema>,
    /// The room to join, with `{0}` for positional arguments and `{field}` for fields.
    pub join: Option<RoomTemplate>,
    /// The room to leave.
    pub leave: Option<RoomTemplate>,
    /// An event sent back to this socket only: its name and data.
    pub reply: Option<(Arc<str>, Template)>,
    /// Events to publish; templates see `data`, `args` and `user`.
    pub publish: Vec<Publication>,
    /// Jobs to enqueue in the same commit; templates see `data`, `args` and `user`.
    pub enqueue: Vec<RuleJob>,
    /// One line for people.
    pub description: String,
}

/// An event that a rule or a message publishes.
#[derive(Debug)]
pub struct Publication {
    /// The event's type.
    pub event: Arc<str>,
    /// Its data.
    pub data: Template,
    /// Parameters for room templates.
    pub params: BTreeMap<String, Template>,
    /// Only if this holds.
    pub when: Option<Expr>,
}

/// How long finished jobs are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The last so many.
    Count(u32),
    /// Those younger than this.
    Age(Duration),
}

/// `[queues.NAME]`
#[derive(Clone, Debug)]
pub struct Queue {
    /// The name.
    pub name: Arc<str>,
    /// Jobs at once in one process. Default 10.
    pub concurrency: u32,
    /// How many of these are kept for tenants of which no job runs, while the queue serves several tenants. Absent means 1 from a
    /// concurrency of 8 on, else 0.
    pub reserve: Option<u32>,
    /// Jobs at once over all processes; absent means no limit.
    pub global: Option<u32>,
    /// Jobs at once of one tenant.
    pub per_tenant: Option<u32>,
    /// Jobs at once of one key of one tenant.
    pub per_key: Option<u32>,
    /// Starts per time over all processes.
    pub rate: Option<Rate>,
    /// Starts per time of one tenant.
    pub rate_per_tenant: Option<Rate>,
    /// Starts per time of one key of one tenant.
    pub rate_per_key: Option<Rate>,
    /// Waiting jobs of one tenant; absent means no limit.
    pub backlog: Option<u64>,
    /// A waiting job gains one priority for each of these; absent means never.
    pub aging: Option<Duration>,
    /// A job that lost so many workers is dead. Default 3.
    pub poison: u16,
    /// The time between the soft and the hard end of a run. Default 10 s.
    pub grace: Duration,
    /// Turns of a tenant for each turn of one that is not named, 1 to 1,000.
    pub weights: BTreeMap<TenantId, u32>,
    /// Runs of a job before it is dead. Default 3.
    pub attempts: u16,
    /// The waiting time before each retry. Default exponential from 1 s, factor 2, up to 5 min.
    pub backoff: Backoff,
    /// The longest run of a job. Default 60 s.
    pub timeout: Duration,
    /// Completed jobs kept. Default the last 1,000.
    pub keep_completed: Keep,
    /// Cancelled jobs kept, of each tenant. Default 30 days.
    pub keep_cancelled: Keep,
    /// Dead letters kept, of each tenant: failed and dead jobs. Default 90 days.
    pub keep_dead: Keep,
    /// Priority of jobs that name none, 1 to 5. Default 3.
    pub priority: u8,
    /// When the failure of a job of it raises an alert, unless the job type says otherwise.
    pub alert: AlertOn,
    /// One line for people.
    pub description: String,
}

impl Queue {
    /// What a store enforces for it.
    pub fn limits(&self) -> QueueLimits {
        let tenants = self.weights.iter().map(|(tenant, weight)| {
            (tenant.clone(), TenantLimits { weight: Some(*weight), ..TenantLimits::default() })
        });
        QueueLimits {
            global: self.global,
            per_tenant: self.per_tenant,
            per_key: self.per_key,
            rate: self.rate,
            rate_per_tenant: self.rate_per_tenant,
            rate_per_key: self.rate_per_key,
            backlog: self.backlog,
            aging: self.aging,
            paused: false,
            poison: self.poison,
            grace: self.grace,
            keep_completed: self.keep_completed,
            keep_cancelled: self.keep_cancelled,
            keep_dead: self.keep_dead,
            tenants: tenants.collect(),
        }
    }
}

/// `[jobs.NAME]`: absent values are the queue's.
#[derive(Clone, Debug)]
pub struct JobType {
    /// The name.
    pub name: Arc<str>,
    /// The queue it waits in.
    pub queue: Arc<str>,
    /// Priority 1 (first) to 5.
    pub priority: u8,
    /// Runs before it is dead.
    pub attempts: u16,
    /// The waiting time before each retry.
    pub backoff: Backoff,
    /// The longest run.
    pub timeout: Duration,
    /// Waits this long after it was enqueued.
    pub delay: Option<Duration>,
    /// It is taken back if it has not begun this long after it was due.
    pub ttl: Option<Duration>,
    /// No retry begins later than this after it was enqueued.
    pub retry_for: Option<Duration>,
    /// Its key for the queue's `perKey` and `ratePerKey`: a template over the fields of its data.
    pub key: Option<RoomTemplate>,
    /// It is the only one of its key.
    pub unique: Option<UniqueRule>,
    /// When its failure raises an alert.
    pub alert: AlertOn,
    /// Whether the `job.*` events that the catalog declares are published about it. Default true.
    pub lifecycle: bool,
    /// The built-in worker that runs it; absent means a worker of the app.
    pub run: Option<Arc<str>>,
    /// The shape of its data; absent when anything goes.
    pub data: Option<Schema>,
    /// One line for people.
    pub description: String,
}

/// `unique` of a job type. Absent values are the engine's.
#[derive(Clone, Debug)]
pub struct UniqueRule {
    /// A template over the fields of the data; absent means the data itself.
    pub key: Option<RoomTemplate>,
    /// In which states a job keeps others out.
    pub states: Option<States>,
    /// It also keeps others out for this long after it was enqueued.
    pub window: Option<Duration>,
    /// What becomes of the one that comes later.
    pub on_conflict: OnConflict,
}

/// When the failure of a job raises an alert.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AlertOn {
    /// When it is a dead letter: after the last attempt, or an error that no retry can mend. The default.
    #[default]
    Dead,
    /// At its first failed run already, and when it is a dead letter.
    First,
    /// Never.
    Never,
}

/// `[alerts]`: what a failed job leads to, once in a while for each tenant, queue and type.
#[derive(Debug)]
pub struct Alerts {
    /// The event that is published; its templates see `job`.
    pub publish: Option<Publication>,
    /// The job that is enqueued; its templates see `job`.
    pub enqueue: Option<RuleJob>,
    /// For how long no other alert of the same tenant, queue and type follows. Default 5 min.
    pub dedupe: Duration,
}

/// `[schedules.NAME]`
#[derive(Debug)]
pub struct ScheduleSpec {
    /// The name.
    pub name: Arc<str>,
    /// The job type that each slot enqueues.
    pub job: Arc<str>,
    /// Whose job each slot enqueues.
    pub per: Per,
    /// When; absent when each user sets it.
    pub timing: Option<Timing>,
    /// No slot is earlier.
    pub start: Option<Timestamp>,
    /// No slot is later.
    pub end: Option<Timestamp>,
    /// It ends with so many runs, at least 1; of each tenant where it fires for each.
    pub limit: Option<u64>,
    /// What happens to slots that passed while nothing ran.
    pub missed: Missed,
    /// What happens when the job of the slot before is still unfinished.
    pub overlap: Overlap,
    /// The data of the job.
    pub data: crate::Json,
    /// One line for people.
    pub description: String,
}

/// Whom a schedule of the catalog fires for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Per {
    /// The app: one job for each slot.
    App,
    /// Each tenant that the store knows when the slot is due.
    Tenant,
    /// Each user who sets it.
    User,
}

impl ScheduleSpec {
    /// What each slot does and when; nothing when each user sets it.
    pub fn spec(&self) -> Option<Spec> {
        Some(Spec {
            job: self.job.clone(),
            data: self.data.clone(),
            timing: self.timing.clone()?,
            missed: self.missed,
            overlap: self.overlap,
            start: self.start,
            end: self.end,
            limit: self.limit,
        })
    }
}

/// `[caches.NAME]`
#[derive(Debug)]
pub struct Cache {
    /// How long an entry is fresh.
    pub ttl: Duration,
    /// How long a stale entry may still be served while it is filled again.
    pub stale: Option<Duration>,
    /// The key within the tenant.
    pub key: Option<String>,
    /// One line for people.
    pub description: String,
}
