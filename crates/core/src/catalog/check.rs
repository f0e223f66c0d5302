//! What is legal in a catalog but probably wrong.

use std::collections::BTreeSet;
use std::fmt;

use super::{Catalog, Join, Pattern, Rule, RuleJob};
use crate::FieldError;
use crate::expr::Expr;
use crate::room::RoomTemplate;
use crate::schema::Schema;
use crate::suggest::suggest;
use crate::template::Template;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Very likely a mistake.
    Warning,
    /// Worth knowing.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

/// Something about a catalog that its author should know. Shown as `warning: queue "x": no job waits in it`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// What it is about and what it means.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.severity, self.message)
    }
}

/// Everything worth knowing about `catalog`: warnings first, then by name.
pub fn lint(catalog: &Catalog) -> Vec<Finding> {
    let mut findings = Vec::new();
    rooms(catalog, &mut findings);
    events(catalog, &mut findings);
    work(catalog, &mut findings);
    schedules(catalog, &mut findings);
    rules(catalog, &mut findings);
    messages(catalog, &mut findings);
    roles(catalog, &mut findings);
    findings.sort();
    findings
}

fn warn(findings: &mut Vec<Finding>, message: String) {
    findings.push(Finding { severity: Severity::Warning, message });
}

fn note(findings: &mut Vec<Finding>, message: String) {
    findings.push(Finding { severity: Severity::Note, message });
}

fn rooms(catalog: &Catalog, findings: &mut Vec<Finding>) {
    let used: Vec<&RoomTemplate> = catalog
        .events
        .values()
        .flat_map(|event| event.rooms.iter().chain(event.views.iter().map(|view| &view.room)))
        .collect();
    for room in catalog.rooms.iter().filter(|room| room.join != Join::Request) {
        if !used.iter().any(|template| room.template.same_shape(template) || room.template.matches(template.source())) {
            warn(findings, format!("room {:?}: no event is delivered to it", room.template.source()));
        }
    }
}

fn events(catalog: &Catalog, findings: &mut Vec<Finding>) {
    for (name, event) in &catalog.events {
        let heard = event.reply
            || !event.rooms.is_empty()
            || !event.views.is_empty()
            || catalog.rules.iter().any(|rule| rule.on.matches(name));
        if !heard {
            warn(findings, format!("event {name:?}: declared but never heard, it has neither rooms nor a rule"));
        }
    }
}

fn work(catalog: &Catalog, findings: &mut Vec<Finding>) {
    for name in catalog.queues.keys() {
        if !catalog.jobs.values().any(|job| job.queue == *name) {
            warn(findings, format!("queue {name:?}: no job waits in it"));
        }
    }
    let by_rule = catalog.rules.iter().flat_map(Rule::jobs);
    let by_message = catalog.messages.values().flat_map(|message| &message.enqueue);
    let by_schedule = catalog.schedules.values().map(|schedule| &*schedule.job);
    let by_alert = catalog.alerts.iter().filter_map(|alerts| alerts.enqueue.as_ref());
    let enqueued: BTreeSet<&str> =
        by_rule.chain(by_message).chain(by_alert).map(|enqueue| &*enqueue.job).chain(by_schedule).collect();
    for name in catalog.jobs.keys().filter(|name| !enqueued.contains(&***name)) {
        note(findings, format!("job {name:?}: no rule, message, schedule or alert enqueues it, so the app has to"));
    }
}

fn schedules(catalog: &Catalog, findings: &mut Vec<Finding>) {
    for (name, schedule) in &catalog.schedules {
        // What a user's own schedule passes to the job is known when that user sets it.
        let schema = catalog.job(&schedule.job).and_then(|job| job.data.as_ref());
        if let (Some(schema), true) = (schema, schedule.timing.is_some()) {
            let mut errors = Vec::new();
            schema.validate(&schedule.data.to_value().unwrap_or_default(), "data", &mut errors);
            for FieldError { path, message } in errors {
                let job = &schedule.job;
                warn(findings, format!("schedule {name:?}: {path}: {message}, but the job {job:?} needs it"));
            }
        }
    }
}

/// A rule's templates against the shapes of the event they read and of the job they fill.
fn rules(catalog: &Catalog, findings: &mut Vec<Finding>) {
    for (index, rule) in catalog.rules.iter().enumerate() {
        let Pattern::Exact(on) = &rule.on else {
            continue;
        };
        let read = catalog.event(on).and_then(|event| event.data.as_ref());
        let reader = Reader { label: format!("rule {index} on {on:?}"), from: "event", read };
        let published = rule.publish.iter().flat_map(|publish| publish.params.values().chain([&publish.data]));
        let names = rule.flow.iter().filter_map(|flow| flow.name.as_ref());
        reader.paths(published.chain(rule.jobs().map(|job| &job.data)).chain(names), findings);
        // A flow has one condition for all its jobs.
        let of_flow = rule.flow.as_ref().and_then(|flow| flow.when.as_ref());
        for job in rule.jobs() {
            reader.fills(&Filled::job(job, catalog), rule.when.iter().chain(of_flow).chain(&job.when), findings);
        }
        if let Some(publish) = &rule.publish {
            reader.fills(
                &Filled::event(&publish.event, &publish.data, catalog),
                rule.when.iter().chain(&publish.when),
                findings,
            );
        }
    }
}

/// A message's templates against its own shape and that of the jobs they fill.
fn messages(catalog: &Catalog, findings: &mut Vec<Finding>) {
    for (name, message) in &catalog.messages {
        let acts = message.join.is_some()
            || message.leave.is_some()
            || message.reply.is_some()
            || !message.publish.is_empty()
            || !message.enqueue.is_empty();
        if !acts {
            let lacks = "has none of join, leave, reply, publish and enqueue, so only a handler in Rust can answer it";
            note(findings, format!("message {name:?}: {lacks}"));
        }
        let reader = Reader { label: format!("message {name:?}"), from: "message", read: message.data.as_ref() };
        let published = message.publish.iter().flat_map(|publish| publish.params.values().chain([&publish.data]));
        let replied = message.reply.iter().map(|(_, data)| data);
        reader.paths(published.chain(message.enqueue.iter().map(|enqueue| &enqueue.data)).chain(replied), findings);
        for enqueue in &message.enqueue {
            reader.fills(&Filled::job(enqueue, catalog), enqueue.when.iter(), findings);
        }
        for publish in &message.publish {
            reader.fills(&Filled::event(&publish.event, &publish.data, catalog), publish.when.iter(), findings);
        }
        if let Some((event, data)) = &message.reply {
            reader.fills(&Filled::event(event, data, catalog), None.into_iter(), findings);
        }
    }
}

/// What has templates over some data.
struct Reader<'a> {
    label: String,
    /// What the data is of.
    from: &'static str,
    /// The shape of the data, if it has one.
    read: Option<&'a Schema>,
}

impl Reader<'_> {
    /// Whether the data has what the templates read.
    fn paths<'t>(&self, templates: impl Iterator<Item = &'t Template>, findings: &mut Vec<Finding>) {
        let paths: BTreeSet<&str> = templates.flat_map(Template::paths).collect();
        for (path, schema) in paths.into_iter().filter_map(|path| Some((path, self.read?))) {
            let field = path.strip_prefix("data.").map(|path| path.split('.').next().unwrap_or_default());
            if let Some(field) = field
                && !schema.fields().any(|known| known == field)
            {
                let hint =
                    suggest(field, schema.fields()).map_or(String::new(), |hint| format!("; did you mean {hint:?}?"));
                let Self { label, from, .. } = self;
                warn(findings, format!("{label}: {{{{ {path} }}}} is not in the {from}'s data{hint}"));
            }
        }
    }

    /// Whether a job or an event gets what it needs; `when` are the conditions under which it does.
    fn fills<'c>(
        &self,
        filled: &Filled<'_>,
        when: impl Iterator<Item = &'c Expr> + Clone,
        findings: &mut Vec<Finding>,
    ) {
        let (label, &Filled { what, name, data, schema }) = (&self.label, filled);
        for braces in data.stray_braces() {
            let hint = "what is to be filled in has two, as {{ data.id }}";
            note(findings, format!("{label}: the {what} {name:?} gets {braces:?} as it stands; {hint}"));
        }
        let Some((schema, given)) = schema.zip(data.keys()) else { return };
        let given: BTreeSet<&str> = given.collect();
        for missing in schema.required_fields().filter(|field| !given.contains(field)) {
            warn(findings, format!("{label}: the {what} {name:?} needs data.{missing}"));
        }
        let mut errors = Vec::new();
        for (field, shape) in given.iter().filter_map(|field| Some((field, schema.field(field)?))) {
            if let Some(constant) = data.constant(field) {
                shape.validate(constant, &format!("data.{field}"), &mut errors);
            }
        }
        for FieldError { path, message } in errors {
            warn(findings, format!("{label}: {path}: {message}, but the {what} {name:?} needs it"));
        }
        let maybe_absent = |path: &str| {
            let field = path.strip_prefix("data.").and_then(|name| self.read?.field(name));
            let asked = when.clone().any(|when| when.source().contains(path));
            field.is_some_and(Schema::is_optional) && !asked
        };
        for (field, path) in schema.required_fields().filter_map(|field| Some((field, data.hole(field)?))) {
            if maybe_absent(path) {
                warn(findings, format!("{label}: {path} is optional, but the {what} {name:?} needs data.{field}"));
            }
        }
    }
}

/// What a template is the data of.
struct Filled<'a> {
    what: &'static str,
    name: &'a str,
    data: &'a Template,
    /// The shape that it is to have, if it has one.
    schema: Option<&'a Schema>,
}

impl<'a> Filled<'a> {
    fn job(job: &'a RuleJob, catalog: &'a Catalog) -> Self {
        let schema = catalog.job(&job.job).and_then(|job| job.data.as_ref());
        Self { what: "job", name: &job.job, data: &job.data, schema }
    }

    fn event(name: &'a str, data: &'a Template, catalog: &'a Catalog) -> Self {
        Self { what: "event", name, data, schema: catalog.event(name).and_then(|event| event.data.as_ref()) }
    }
}

fn roles(catalog: &Catalog, findings: &mut Vec<Finding>) {
    let rooms = catalog.rooms.iter().filter_map(|room| room.when.as_ref());
    let events = catalog.events.values().filter_map(|event| event.visible.as_ref());
    let published = catalog.messages.values().flat_map(|message| &message.publish);
    let enqueued = catalog.messages.values().flat_map(|message| &message.enqueue);
    let messages = published.filter_map(|publish| publish.when.as_ref());
    let messages = messages.chain(enqueued.filter_map(|enqueue| enqueue.when.as_ref()));
    let rules = catalog.rules.iter().filter_map(|rule| rule.when.as_ref());
    let used: BTreeSet<&str> =
        rooms.chain(events).chain(messages).chain(rules).flat_map(Expr::roles_mentioned).collect();
    for role in catalog.auth.roles.iter().filter(|role| !used.contains(role.as_str())) {
        note(findings, format!("role {role:?}: declared but no expression asks for it"));
    }
}
