//! What follows from the lives of jobs: the `job.*` events that the catalog declares, and its alerts.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};

use serde_json::{Map, Value, json};
use tidewire_core::catalog::{AlertOn, Catalog};
use tidewire_core::commit::{Dedup, Delay, Expansion, NewEvent, Origin, Request, publication, rule_job};
use tidewire_core::event::Ephemeral;
use tidewire_core::job::{Job, State};
use tidewire_core::store::{Lifecycle, Moment};
use tidewire_core::{Result, Timestamp};

use crate::publisher::Publisher;

/// The moments in the order of [`name`].
const MOMENTS: [Moment; 6] =
    [Moment::Enqueued, Moment::Retrying, Moment::Completed, Moment::Failed, Moment::Cancelled, Moment::Progress];

/// The event that tells of a moment.
fn name(moment: Moment) -> &'static str {
    match moment {
        Moment::Enqueued => "job.enqueued",
        Moment::Retrying => "job.retrying",
        Moment::Completed => "job.completed",
        Moment::Failed => "job.failed",
        Moment::Cancelled => "job.cancelled",
        Moment::Progress => "job.progress",
    }
}

/// Tells of the lives of jobs what the catalog asks for.
///
/// An event or alert that cannot be made, because its room needs a user whom the job does not have or its data are declared otherwise,
/// is left out: telling of a job never changes what becomes of it.
pub struct Lives {
    catalog: Arc<Catalog>,
    /// Weak, because the store that asks belongs to the publisher.
    publisher: Weak<Publisher>,
    /// Which moments have an event, in the order of [`MOMENTS`].
    told: [bool; 6],
}

impl Lives {
    /// What the catalog of `publisher` asks for.
    pub fn new(publisher: &Arc<Publisher>) -> Self {
        let catalog = publisher.expander().catalog().clone();
        let told = MOMENTS.map(|moment| catalog.event(name(moment)).is_some_and(|event| !event.reply));
        Self { catalog, publisher: Arc::downgrade(publisher), told }
    }

    fn tells(&self, moment: Moment, job: &Job) -> bool {
        let is_told = MOMENTS.iter().position(|known| *known == moment).is_some_and(|index| self.told[index]);
        is_told && self.catalog.job(&job.kind).is_none_or(|declared| declared.lifecycle)
    }

    fn alerts(&self, moment: Moment, job: &Job) -> bool {
        if self.catalog.alerts.is_none() {
            return false;
        }
        let on = self.catalog.job(&job.kind).map_or(AlertOn::default(), |declared| declared.alert);
        match moment {
            Moment::Failed => on != AlertOn::Never,
            // A later run that fails has had its alert, or has none.
            Moment::Retrying => on == AlertOn::First && job.attempt <= 1,
            Moment::Enqueued | Moment::Completed | Moment::Cancelled | Moment::Progress => false,
        }
    }

    fn event(&self, moment: Moment, job: &Job, now: Timestamp) -> Request {
        let mut data = about(moment, job, now);
        // A declared shape gets its own fields and no others.
        if let Some(shape) = self.catalog.event(name(moment)).and_then(|event| event.data.as_ref())
            && shape.fields().next().is_some()
        {
            data.retain(|field, _| shape.field(field).is_some());
        }
        let mut event = NewEvent::new(name(moment), Value::Object(data));
        event.user_id = job.user_id.as_deref().map(str::to_owned);
        event = event.param("jobId", job.id.to_string()).param("queue", &*job.queue).param("type", &*job.kind);
        Request { events: vec![event], ..Request::default() }
    }

    fn alert(&self, moment: Moment, job: &Job, now: Timestamp) -> Option<Request> {
        let alerts = self.catalog.alerts.as_ref()?;
        let mut about = about(moment, job, now);
        about.insert("id".to_owned(), json!(job.id));
        about.insert("data".to_owned(), job.data.to_value().unwrap_or_default());
        let scope = json!({ "job": about, "tenant": job.tenant });
        Some(Request {
            events: alerts.publish.iter().filter_map(|event| publication(event, &scope)).collect(),
            jobs: alerts.enqueue.iter().filter_map(|job| rule_job(job, &scope)).collect(),
            dedup: Some(Dedup { key: dedup_key(job), ttl: Delay(alerts.dedupe) }),
            ..Request::default()
        })
    }

    fn expand(&self, job: &Job, request: Request) -> Result<Option<Expansion>> {
        let Some(publisher) = self.publisher.upgrade() else { return Ok(None) };
        let origin = Origin {
            depth: job.depth,
            cause: Some(job.id.to_string().into()),
            correlation_id: job.correlation_id.clone(),
            system: true,
        };
        publisher.expand(&job.tenant, request, &origin).map(Some)
    }
}

impl Lifecycle for Lives {
    fn cares(&self, moment: Moment, job: &Job) -> bool {
        self.tells(moment, job) || self.alerts(moment, job)
    }

    fn follows(&self, moment: Moment, job: &Job, now: Timestamp) -> Vec<Expansion> {
        let event = self.tells(moment, job).then(|| self.event(moment, job, now));
        let alert = self.alerts(moment, job).then(|| self.alert(moment, job, now)).flatten();
        let expansion = |request| {
            // A condition of the catalog is evaluated here; were it to panic, the store must not end.
            match catch_unwind(AssertUnwindSafe(|| self.expand(job, request))) {
                Ok(Ok(expansion)) => expansion,
                Ok(Err(error)) => {
                    tracing::debug!(job = %job.id, kind = %job.kind, %error, "an event about a job was left out");
                    None
                }
                Err(_) => {
                    tracing::error!(job = %job.id, kind = %job.kind, "making an event about a job panicked");
                    None
                }
            }
        };
        event.into_iter().chain(alert).filter_map(expansion).collect()
    }

    fn committed(&self, ephemeral: &[Ephemeral]) {
        if let Some(publisher) = self.publisher.upgrade() {
            publisher.broadcast(ephemeral);
        }
    }
}

/// One alert for each tenant, queue and type at a time.
fn dedup_key(job: &Job) -> String {
    let mut key = format!("alert:{}:{}", job.queue, job.kind);
    key.truncate(key.floor_char_boundary(256));
    key
}

/// What is said about a job.
fn about(moment: Moment, job: &Job, now: Timestamp) -> Map<String, Value> {
    let mut about = Map::new();
    let mut say = |field: &str, value: Value| drop(about.insert(field.to_owned(), value));
    say("jobId", json!(job.id));
    say("type", json!(job.kind));
    say("queue", json!(job.queue));
    say("state", json!(job.state));
    say("attempt", json!(job.attempt));
    say("attempts", json!(job.attempts));
    say("priority", json!(job.priority));
    let rare = job.rare.as_deref();
    if let Some(user) = &job.user_id {
        say("userId", json!(user));
    }
    if let Some(correlation) = &job.correlation_id {
        say("correlationId", json!(correlation));
    }
    if let Some(flow) = rare.and_then(|rare| rare.flow.as_ref()) {
        say("flowId", json!(flow));
    }
    if let (Some(began), true) = (job.started_at, job.state.is_final()) {
        say("duration", json!(job.finished_at.unwrap_or(now).since(began).as_millis() as u64));
    }
    if let Some(error) = job.error.as_ref().filter(|_| job.state != State::Completed) {
        say("error", json!(error));
    }
    match moment {
        Moment::Completed => {
            if let Some(result) = &job.result {
                say("result", result.to_value().unwrap_or_default());
            }
        }
        Moment::Retrying => say("nextRunAt", json!(job.run_at)),
        Moment::Progress => say(
            "progress",
            rare.and_then(|rare| rare.progress.as_ref())
                .map_or(Value::Null, |progress| progress.to_value().unwrap_or_default()),
        ),
        Moment::Enqueued | Moment::Failed | Moment::Cancelled => {}
    }
    about
}
