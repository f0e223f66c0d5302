//! From a request to a commit: check, resolve, apply rules and handlers.

mod flow;
mod jobs;
mod schedules;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    Append, Commit, Enqueue, FlowHead, Idempotency, MAX_DATA_BYTES, MAX_DEPTH, MAX_OPS, MAX_TEXT_BYTES, NewEvent,
    NewFlow, NewJob, ParamValue, Request, ScheduleWrite,
};
use crate::catalog::{Catalog, EventType, JobType, Pattern, Publication, RuleFlow, RuleJob, RuleStep};
use crate::event::Ephemeral;
use crate::id::Ids;
use crate::schema::Schema;
use crate::{Error, FieldError, Json, Kind, Result, TenantId, Timestamp};
pub(crate) use flow::cycle;

/// Where a request comes from.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// How many causes lie between the outside and this request; 0 from outside, the job's depth for a job's effects.
    pub depth: u8,
    /// The job whose effects these are: the cause of what names no other.
    pub cause: Option<Box<str>>,
    /// What effects belong to when they name nothing else.
    pub correlation_id: Option<Box<str>>,
    /// Whether it follows from the life of a job, so that the lives of its jobs cause nothing more.
    pub system: bool,
}

/// A durable handler of events: one job per event.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// The events it hears.
    pub on: Pattern,
    /// The job type that runs it.
    pub job: JobType,
}

/// Turns requests into commits by a catalog. One per app, shared by everything that publishes.
pub struct Expander {
    catalog: Arc<Catalog>,
    subscriptions: Vec<Subscription>,
    ids: Arc<dyn Ids>,
}

/// What a request came to.
#[derive(Clone, Debug)]
pub struct Expansion {
    /// What is written.
    pub commit: Commit,
    /// What is only delivered, after the commit.
    pub ephemeral: Vec<Ephemeral>,
}

impl Expander {
    /// An expander for `catalog` with the app's durable handlers.
    pub fn new(catalog: Arc<Catalog>, subscriptions: Vec<Subscription>, ids: Arc<dyn Ids>) -> Self {
        Self { catalog, subscriptions, ids }
    }

    /// The catalog it expands by.
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// Checks and expands a request. Everything that is wrong with it is in one error, nothing is written.
    ///
    /// Codes: `event.unknown_type`, `event.invalid_data`, `event.missing_param`, `event.not_publishable`, `job.unknown_type`,
    /// `job.unknown_queue`, `job.invalid_data`, `job.invalid_option`, `flow.cycle`, `flow.duplicate_ref`, `data.too_large`,
    /// `commit.too_large`, `commit.too_deep`, `dedup.invalid`, `tenant.mixed`, `schedule.invalid_option`, `schedule.invalid_cron`,
    /// `schedule.invalid_interval`, `schedule.unknown_zone`, `schedule.never_fires`, `schedule.declared`.
    pub fn expand(&self, tenant: &TenantId, request: Request, origin: &Origin, now: Timestamp) -> Result<Expansion> {
        let mut run = Run {
            expander: self,
            tenant,
            now,
            events: Vec::with_capacity(request.events.len()),
            jobs: Vec::with_capacity(request.jobs.len()),
            flows: Vec::new(),
            schedules: Vec::with_capacity(request.schedules.len()),
            scheduled: HashSet::new(),
            ephemeral: Vec::new(),
            caused: Vec::new(),
        };
        let is_alone =
            request.events.len() + request.jobs.len() + request.schedules.len() == 1 && request.flow.is_none();
        for (index, event) in request.events.into_iter().enumerate() {
            let at = Place::asked("events", index, is_alone);
            run.event(event, at, origin, None)?;
        }
        let asked_events = run.events.len();
        let place = |index| Place::asked("jobs", index, is_alone);
        let asked_jobs = run.tied_jobs(request.jobs, request.flow, place, origin, None)?;
        let asked_flows = run.flows.len();
        for (index, schedule) in request.schedules.into_iter().enumerate() {
            run.schedule(schedule, Place::asked("schedules", index, is_alone))?;
        }
        run.follow()?;
        let Run { events, jobs, flows, schedules, ephemeral, .. } = run;
        let dedup = request.dedup.map(|dedup| check_key("dedup.invalid", dedup.key).map(|key| (key, dedup.ttl.0)));
        let commit = Commit {
            tenant: tenant.clone(),
            events,
            jobs,
            asked_events,
            asked_jobs,
            flows,
            asked_flows,
            schedules,
            most_schedules: Some(self.catalog.app.schedules),
            dedup: dedup.transpose()?,
            idempotency: None,
        };
        Ok(Expansion { commit, ephemeral })
    }
}

impl Idempotency {
    /// A key of 1 to 256 bytes and the digest of the request it stands for. Code `idempotency.invalid_key`.
    pub fn new(key: String, digest: Vec<u8>) -> Result<Self> {
        Ok(Self { key: check_key("idempotency.invalid_key", key)?, digest })
    }
}

fn check_key(code: &'static str, key: String) -> Result<String> {
    if key.is_empty() || key.len() > 256 {
        return Err(Error::invalid(code, format!("key: expected 1 to 256 bytes, got {}", key.len())));
    }
    Ok(key)
}

/// Where in the request something stands, so that errors can point at it.
#[derive(Clone, Copy)]
struct Place {
    list: &'static str,
    index: usize,
    /// The request is this one object.
    alone: bool,
    /// A rule or handler made it, not the caller.
    is_caused: bool,
}

impl Place {
    const ALONE: Self = Self { list: "jobs", index: 0, alone: true, is_caused: false };
    const CAUSED: Self = Self { list: "caused", index: 0, alone: true, is_caused: true };

    fn asked(list: &'static str, index: usize, alone: bool) -> Self {
        Self { list, index, alone, is_caused: false }
    }

    /// `events[3]`, or `event` when the request is a single object.
    fn path(self) -> String {
        if self.alone { self.list.trim_end_matches('s').to_owned() } else { format!("{}[{}]", self.list, self.index) }
    }

    /// `events[3].data`, or `data` when the request is a single object.
    fn field(self, name: &str) -> String {
        match (self.is_caused, self.alone) {
            (true, _) => format!("caused.{name}"),
            (false, true) => name.to_owned(),
            (false, false) => format!("{}[{}].{name}", self.list, self.index),
        }
    }
}

/// One thing that a logged event or a rule caused and that is still to be expanded.
struct Cause {
    request: Consequence,
    origin: Origin,
    root: Option<usize>,
}

enum Consequence {
    Event(Box<NewEvent>),
    Job(Box<NewJob>),
    Flow(Box<NewFlow>, Vec<NewJob>),
}

struct Run<'a> {
    expander: &'a Expander,
    tenant: &'a TenantId,
    now: Timestamp,
    events: Vec<Append>,
    jobs: Vec<Enqueue>,
    flows: Vec<FlowHead>,
    schedules: Vec<ScheduleWrite>,
    /// The keys and users of these schedules.
    scheduled: HashSet<(Arc<str>, Option<Box<str>>)>,
    ephemeral: Vec<Ephemeral>,
    caused: Vec<Cause>,
}

impl Run<'_> {
    fn room_left(&self) -> Result<()> {
        if self.events.len() + self.jobs.len() + self.schedules.len() + self.ephemeral.len() >= MAX_OPS {
            let detail =
                format!("a commit holds at most {MAX_OPS} events, jobs and schedules, what rules add included");
            return Err(Error::new(Kind::TooLarge, "commit.too_large", detail));
        }
        Ok(())
    }

    fn same_tenant(&self, named: Option<&TenantId>, at: Place) -> Result<()> {
        match named {
            Some(named) if named != self.tenant => {
                let detail = format!("{}: a commit has one tenant; this one is {}", at.field("tenant"), self.tenant);
                Err(Error::invalid("tenant.mixed", detail))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn event(&mut self, event: NewEvent, at: Place, origin: &Origin, root: Option<usize>) -> Result<()> {
        self.room_left()?;
        self.same_tenant(event.tenant.as_ref(), at)?;
        let catalog = &self.expander.catalog;
        let Some(declared) = catalog.events.get(event.kind.as_str()) else {
            return Err(unknown("event.unknown_type", "type", &event.kind, catalog.events.keys(), at));
        };
        if declared.reply {
            return Err(Error::invalid(
                "event.not_publishable",
                format!("{}: {:?} is only sent in reply to a client's message", at.path(), event.kind),
            ));
        }
        check_size(&event.data, at)?;
        let texts = [
            ("userId", &event.user_id),
            ("correlationId", &event.correlation_id),
            ("causationId", &event.causation_id),
            ("stream", &event.stream),
        ];
        check_texts(at, texts)?;
        let data = check_data("event.invalid_data", declared.data.as_ref(), &event.data, at)?;
        if declared.ephemeral && (event.stream.is_some() || event.expected_version.is_some()) {
            let detail = format!("{}: an ephemeral event is in no stream", at.path());
            return Err(Error::invalid("event.invalid_data", detail));
        }
        let rooms = self.rooms(declared, &event, &data, at)?;
        let id = event.id.clone().unwrap_or_else(|| self.expander.ids.next());
        let own_root = if declared.ephemeral { root } else { root.or(Some(self.events.len())) };
        let correlation_id = event.correlation_id.as_deref().map(Into::into).or_else(|| origin.correlation_id.clone());
        let effects =
            Origin { depth: origin.depth, cause: Some(id.to_string().into()), correlation_id, system: origin.system };
        self.consequences(declared, &event, &data, &effects, own_root)?;
        if declared.ephemeral {
            self.ephemeral.push(Ephemeral {
                tenant: self.tenant.clone(),
                id,
                kind: declared.name.clone(),
                time: self.now,
                data: event.data,
                rooms,
                user_id: event.user_id.map(Into::into),
            });
            return Ok(());
        }
        let stream = self.stream(declared, &event, &data, at)?;
        self.events.push(Append {
            given_id: event.id.is_some(),
            id,
            kind: declared.name.clone(),
            data: event.data,
            rooms,
            across: self.expander.catalog.crosses_tenants(declared),
            user_id: event.user_id.map(Into::into),
            correlation_id: effects.correlation_id,
            causation_id: event.causation_id.map(Into::into).or_else(|| origin.cause.clone()),
            stream,
            expected_version: event.expected_version,
            root,
        });
        Ok(())
    }

    /// The aggregate stream of an event: the one it names, or that of the catalog's template.
    fn stream(&self, declared: &EventType, event: &NewEvent, data: &Value, at: Place) -> Result<Option<Box<str>>> {
        let stream = match (&event.stream, &declared.stream) {
            (Some(stream), _) => Some(stream.as_str().into()),
            (None, Some(template)) => {
                let rendered = template.render(|name| self.lookup(name, event, data));
                let rendered =
                    rendered.map_err(|missing| missing_param(&declared.name, &missing.name, template.source(), at))?;
                Some(rendered.into_boxed_str())
            }
            (None, None) => None,
        };
        if event.expected_version.is_some() && stream.is_none() {
            let detail = format!("{}: expectedVersion needs a stream", at.path());
            return Err(Error::invalid("event.invalid_data", detail));
        }
        Ok(stream)
    }

    fn rooms(&self, declared: &EventType, event: &NewEvent, data: &Value, at: Place) -> Result<Arc<[Box<str>]>> {
        let views = declared.views.iter().map(|view| &view.room);
        let mut rooms: Vec<Box<str>> = Vec::with_capacity(declared.rooms.len() + declared.views.len());
        for template in declared.rooms.iter().chain(views) {
            let room = template
                .render(|name| self.lookup(name, event, data))
                .map_err(|missing| missing_param(&declared.name, &missing.name, template.source(), at))?
                .into_boxed_str();
            let known = self.expander.catalog.room(&room).map(|known| &known.template);
            if let Some(known) = known.filter(|known| template.params().next().is_some() && !known.same_shape(template))
            {
                let (path, name) = (at.path(), &declared.name);
                let detail = format!("{path}: {room:?} is a room of {known}, and {name:?} is for those of {template}");
                return Err(Error::invalid("event.invalid_data", detail));
            }
            if !rooms.contains(&room) {
                rooms.push(room);
            }
        }
        Ok(rooms.into())
    }

    /// A room parameter: the tenant, then what the publisher gave, then the data, then the event's user.
    fn lookup<'a>(&'a self, name: &str, event: &'a NewEvent, data: &'a Value) -> Option<Cow<'a, str>> {
        if name == &*self.expander.catalog.app.tenant {
            return Some(Cow::Borrowed(self.tenant.as_str()));
        }
        if let Some(param) = event.params.get(name) {
            return Some(match param {
                ParamValue::Text(text) => Cow::Borrowed(text),
                ParamValue::Number(number) => Cow::Owned(number.to_string()),
            });
        }
        match data.get(name) {
            Some(Value::String(text)) => Some(Cow::Borrowed(text)),
            Some(Value::Number(number)) => Some(Cow::Owned(number.to_string())),
            _ if name == "userId" => event.user_id.as_deref().map(Cow::Borrowed),
            _ => None,
        }
    }

    /// Queues what rules and durable handlers make of an event; `origin` is that of its effects, but for the depth.
    fn consequences(
        &mut self,
        declared: &EventType,
        event: &NewEvent,
        data: &Value,
        origin: &Origin,
        root: Option<usize>,
    ) -> Result<()> {
        let expander = self.expander;
        let mut rules = expander.catalog.rules.iter().filter(|rule| rule.on.matches(&declared.name)).peekable();
        let mut handlers = expander.subscriptions.iter().filter(|sub| sub.on.matches(&declared.name)).peekable();
        if rules.peek().is_none() && handlers.peek().is_none() {
            return Ok(());
        }
        let origin = Origin { depth: origin.depth.saturating_add(1), ..origin.clone() };
        if origin.depth > MAX_DEPTH {
            return Err(Error::invalid(
                "commit.too_deep",
                format!(
                    "{:?} would be cause number {} in a row; a chain is cut at {MAX_DEPTH}",
                    event.kind, origin.depth
                ),
            ));
        }
        let params: BTreeMap<&str, String> =
            event.params.iter().map(|(name, value)| (name.as_str(), value.to_string())).collect();
        let about = json!({
            "id": origin.cause, "type": declared.name, "time": self.now, "userId": event.user_id, "data": data,
        });
        let scope = json!({ "data": data, "params": params, "tenant": self.tenant, "event": about });
        for rule in rules {
            if !holds(rule.when.as_ref(), &scope) {
                continue;
            }
            let requests = [
                rule.enqueue.as_ref().and_then(|job| rule_job(job, &scope)).map(Box::new).map(Consequence::Job),
                rule.publish
                    .as_ref()
                    .and_then(|event| publication(event, &scope))
                    .map(Box::new)
                    .map(Consequence::Event),
                rule.flow.as_ref().and_then(|flow| rule_flow(flow, &scope)),
            ];
            let requests = requests.into_iter().flatten();
            self.caused.extend(requests.map(|request| Cause { request, origin: origin.clone(), root }));
        }
        for handler in handlers {
            let job = NewJob::new(&*handler.job.name, scope["event"].clone());
            let request = Consequence::Job(Box::new(job));
            self.caused.push(Cause { request, origin: origin.clone(), root });
        }
        Ok(())
    }

    fn job(&mut self, job: NewJob, at: Place, origin: &Origin, root: Option<usize>) -> Result<()> {
        self.room_left()?;
        self.same_tenant(job.tenant.as_ref(), at)?;
        if job.compensate.is_some() || job.on_failure.is_some() {
            return Err(flow::needs_flow(at));
        }
        let after = flow::ids(&job.after, at)?;
        let job = self.expander.enqueue(job, at, origin, self.now)?;
        self.jobs.push(Enqueue { root, after, ..job });
        Ok(())
    }

    /// Expands what was caused until nothing is left; depth and size bound it.
    fn follow(&mut self) -> Result<()> {
        let at = Place::CAUSED;
        while !self.caused.is_empty() {
            for Cause { request, origin, root } in std::mem::take(&mut self.caused) {
                match request {
                    Consequence::Event(event) => self.event(*event, at, &origin, root)?,
                    Consequence::Job(job) => self.job(*job, at, &origin, root)?,
                    Consequence::Flow(flow, jobs) => {
                        self.tied_jobs(jobs, Some(*flow), |_| at, &origin, root)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn holds(when: Option<&crate::expr::Expr>, scope: &Value) -> bool {
    when.is_none_or(|when| {
        let names = ["data", "params", "tenant", "job", "args", "user"];
        when.eval(&names.map(|name| (name, &scope[name]))).unwrap_or(false)
    })
}

/// The job that a rule, a client's message or an alert enqueues, unless its condition says no.
pub fn rule_job(job: &RuleJob, scope: &Value) -> Option<NewJob> {
    holds(job.when.as_ref(), scope).then(|| NewJob {
        delay: job.delay.map(super::Delay),
        priority: job.priority.map(super::Priority),
        ..NewJob::new(&*job.job, job.data.render(scope))
    })
}

/// The flow that a rule begins, unless its condition says no.
fn rule_flow(flow: &RuleFlow, scope: &Value) -> Option<Consequence> {
    if !holds(flow.when.as_ref(), scope) {
        return None;
    }
    let boxed = |job: &Option<RuleJob>| job.as_ref().and_then(|job| rule_job(job, scope)).map(Box::new);
    let step = |step: &RuleStep| {
        Some(NewJob {
            reference: step.reference.clone(),
            after: step.after.clone(),
            on_failure: Some(step.on_failure),
            compensate: boxed(&step.compensate),
            ..rule_job(&step.job, scope)?
        })
    };
    let name = flow.name.as_ref().and_then(|name| match name.render(scope) {
        Value::Null => None,
        Value::String(name) => Some(name),
        other => Some(other.to_string()),
    });
    let head = NewFlow {
        id: None,
        name: name.map(|mut name| {
            name.truncate(name.floor_char_boundary(MAX_TEXT_BYTES));
            name
        }),
        then: boxed(&flow.then),
        finally: boxed(&flow.finally),
    };
    Some(Consequence::Flow(Box::new(head), flow.steps.iter().filter_map(step).collect()))
}

/// The event that a rule or a client's message publishes, unless its condition says no.
pub fn publication(publication: &Publication, scope: &Value) -> Option<NewEvent> {
    if !holds(publication.when.as_ref(), scope) {
        return None;
    }
    let mut event = NewEvent::new(&*publication.event, publication.data.render(scope));
    for (name, template) in &publication.params {
        let value = match template.render(scope) {
            Value::String(text) => ParamValue::Text(text),
            Value::Number(number) if number.is_i64() => ParamValue::Number(number.as_i64().unwrap_or_default()),
            _ => continue,
        };
        event.params.insert(name.clone(), value);
    }
    Some(event)
}

fn check_texts<const N: usize>(at: Place, texts: [(&str, &Option<String>); N]) -> Result<()> {
    let long = texts.into_iter().find(|(_, text)| text.as_ref().is_some_and(|text| text.len() > MAX_TEXT_BYTES));
    match long {
        None => Ok(()),
        Some((name, _)) => {
            let detail = format!("{}: expected at most {MAX_TEXT_BYTES} bytes", at.field(name));
            Err(Error::new(Kind::TooLarge, "data.too_large", detail))
        }
    }
}

/// The data as a tree, when it can be read and has the declared shape.
fn check_data(code: &'static str, schema: Option<&Schema>, data: &Json, at: Place) -> Result<Value> {
    let wrong = |errors| Error::invalid(code, "").with_fields(errors);
    let data = data
        .to_value()
        .map_err(|error| wrong(vec![FieldError { path: at.field("data"), message: error.detail().to_owned() }]))?;
    if let Some(schema) = schema {
        let mut errors = Vec::new();
        schema.validate(&data, &at.field("data"), &mut errors);
        if !errors.is_empty() {
            return Err(wrong(errors));
        }
    }
    Ok(data)
}

fn check_size(data: &Json, at: Place) -> Result<()> {
    let size = data.get().len();
    if size > MAX_DATA_BYTES {
        let detail = format!("{}: expected at most {MAX_DATA_BYTES} bytes, got {size}", at.field("data"));
        return Err(Error::new(Kind::TooLarge, "data.too_large", detail));
    }
    Ok(())
}

fn unknown<'a>(
    code: &'static str,
    field: &str,
    name: &str,
    known: impl Iterator<Item = &'a Arc<str>>,
    at: Place,
) -> Error {
    let shown: String = name.chars().take(80).collect();
    let mut message = format!("{shown:?} is not declared in the catalog");
    if let Some(close) = crate::suggest::suggest(name, known.map(|known| &**known)) {
        message.push_str(&format!("; did you mean {close:?}?"));
    }
    Error::invalid(code, "").with_fields(vec![FieldError { path: at.field(field), message }])
}

fn missing_param(event: &str, name: &str, template: &str, at: Place) -> Error {
    let message = format!("{event:?} goes to {template:?}; give {name:?} in params or data as text of 1 to 200 bytes");
    let path = at.field(&format!("params.{name}"));
    Error::invalid("event.missing_param", "").with_fields(vec![FieldError { path, message }])
}

#[cfg(test)]
mod tests;
