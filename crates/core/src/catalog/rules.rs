//! What an event causes: jobs, other events, flows.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::raw::{Place, Table, join};
use super::realtime::{Events, Roots, condition, publication, template};
use super::work::{Jobs, PRIORITIES, job_named};
use super::{Auth, Publication};
use crate::commit::{MAX_AFTER, MAX_OPS, MAX_TEXT_BYTES, cycle};
use crate::expr::Expr;
use crate::job::OnFailure;
use crate::suggest::suggest;
use crate::template::Template;

/// `[[rules]]`
#[derive(Debug)]
pub struct Rule {
    /// An event type, or a pattern such as `ticket.*`.
    pub on: Pattern,
    /// Only if this holds: CEL over `data`, `params` and `tenant`.
    pub when: Option<Expr>,
    /// The job it enqueues.
    pub enqueue: Option<RuleJob>,
    /// The event it publishes.
    pub publish: Option<Publication>,
    /// The flow it begins.
    pub flow: Option<RuleFlow>,
    /// One line for people.
    pub description: String,
}

impl Rule {
    /// Every job that it can enqueue.
    pub fn jobs(&self) -> impl Iterator<Item = &RuleJob> {
        self.enqueue.iter().chain(self.flow.iter().flat_map(RuleFlow::jobs))
    }
}

/// The flow that a rule begins. Its references are unique and there are no circles.
#[derive(Debug)]
pub struct RuleFlow {
    /// For people; a text with holes.
    pub name: Option<Template>,
    /// Its jobs, at least one.
    pub steps: Vec<RuleStep>,
    /// Runs when all of them have completed.
    pub then: Option<RuleJob>,
    /// Runs when all of them have ended, however they did.
    pub finally: Option<RuleJob>,
    /// Only if this holds.
    pub when: Option<Expr>,
}

impl RuleFlow {
    /// Every job that it enqueues.
    pub fn jobs(&self) -> impl Iterator<Item = &RuleJob> {
        let steps = self.steps.iter().flat_map(|step| [Some(&step.job), step.compensate.as_ref()]);
        steps.chain([self.then.as_ref(), self.finally.as_ref()]).flatten()
    }
}

/// A job of a rule's flow.
#[derive(Debug)]
pub struct RuleStep {
    /// What it is.
    pub job: RuleJob,
    /// What the others call it.
    pub reference: Option<String>,
    /// The references of those it waits for.
    pub after: Vec<String>,
    /// What its failure means for those that wait for it.
    pub on_failure: OnFailure,
    /// The job that undoes it.
    pub compensate: Option<RuleJob>,
}

/// The job that a rule, a message or an alert enqueues.
#[derive(Debug)]
pub struct RuleJob {
    /// The job type.
    pub job: Arc<str>,
    /// Its data. In a rule it is rendered over `data`, `params`, `tenant` and `event` (`id`, `type`, `userId`).
    pub data: Template,
    /// Only if this holds.
    pub when: Option<Expr>,
    /// Waits this long.
    pub delay: Option<Duration>,
    /// Overrides the job type's priority.
    pub priority: Option<u8>,
}

/// An event type, or a prefix of types that ends in `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Exactly this type.
    Exact(Arc<str>),
    /// Every type that begins with this text (`ticket.*` has `ticket.`, `*` has the empty text).
    Prefix(Arc<str>),
}

impl Pattern {
    /// Reads a type or a pattern; a `*` may only stand at the end.
    pub fn parse(text: &str) -> Option<Self> {
        match text.strip_suffix('*') {
            Some(prefix) if !prefix.contains('*') => Some(Self::Prefix(prefix.into())),
            None if !text.is_empty() && !text.contains('*') => Some(Self::Exact(text.into())),
            Some(_) | None => None,
        }
    }

    /// Whether `event` is meant.
    pub fn matches(&self, event: &str) -> bool {
        match self {
            Self::Exact(name) => &**name == event,
            Self::Prefix(prefix) => event.starts_with(&**prefix),
        }
    }

    /// Whether there can be an event that both mean.
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(name), other) | (other, Self::Exact(name)) => other.matches(name),
            (Self::Prefix(one), Self::Prefix(another)) => one.starts_with(&**another) || another.starts_with(&**one),
        }
    }
}

pub(super) fn rules(top: &Table<'_>, auth: &Auth, events: &Events, jobs: &Jobs) -> Vec<Rule> {
    let roots = Roots { templates: &["data", "params", "tenant", "event"], conditions: &["data", "params", "tenant"] };
    let mut rules = Vec::new();
    for table in top.tables("rules") {
        let on = pattern(&table, events);
        let when = condition(&table, "when", roots.conditions, auth);
        let enqueue = table.table("enqueue").and_then(|table| rule_job(table, &roots, auth, jobs));
        let publish = table.table("publish").and_then(|table| publication(table, &roots, auth, events));
        let flow = table.table("flow").and_then(|table| flow(table, &roots, auth, jobs));
        if !table.all().iter().any(|(key, _)| ["enqueue", "publish", "flow"].contains(&key.as_str())) {
            table.report.note(table.place, &table.key, "does nothing; expected enqueue, publish or flow");
        }
        let description = table.description();
        table.finish();
        rules.extend(on.map(|on| Rule { on, when, enqueue, publish, flow, description }));
    }
    rules
}

/// The events of a rule: at least one declared one, and none that is only a reply.
fn pattern(table: &Table<'_>, events: &Events) -> Option<Pattern> {
    let text = table.required_text("on")?;
    let Some(pattern) = Pattern::parse(text) else {
        table.wrong("on", format!("expected an event or a pattern with one * at its end, got {text:?}"));
        return None;
    };
    match (&pattern, events.get(text)) {
        (Pattern::Exact(_), Some(event)) if event.reply => {
            table.wrong("on", format!("{text:?} is a reply to the socket that asked and is never published"));
        }
        (Pattern::Exact(_), None) => table.unknown("on", "event", text, events.keys().map(|name| &**name)),
        (Pattern::Prefix(_), _) if !events.values().any(|event| pattern.matches(&event.name) && !event.reply) => {
            table.wrong("on", format!("{text:?} is no event that can be published"));
        }
        (Pattern::Exact(_) | Pattern::Prefix(_), _) => {}
    }
    Some(pattern)
}

/// The flow that a rule begins: the jobs, who waits for whom, and what comes at the end.
fn flow(table: Table<'_>, roots: &Roots<'_>, auth: &Auth, jobs: &Jobs) -> Option<RuleFlow> {
    let job = |table: Table<'_>| {
        if table.all().iter().any(|(key, _)| key == "when") {
            table.wrong("when", "a job of a flow has no condition of its own; give one to the flow");
        }
        rule_job(table, roots, auth, jobs)
    };
    let name = table.parsed("name", |text| Template::parse(text.into(), roots.templates));
    let tables = table.tables("jobs");
    if tables.is_empty() {
        table.wrong("jobs", "expected at least one job");
    }
    if tables.len() >= MAX_OPS {
        table.wrong(
            "jobs",
            format!("expected less than {MAX_OPS} jobs, as a commit holds no more, got {}", tables.len()),
        );
    }
    let names: Vec<Option<&str>> = tables.iter().map(|table| table.text("ref")).collect();
    let mut places: HashMap<&str, usize> = HashMap::new();
    for (index, name) in names.iter().enumerate() {
        if let Some(name) = name {
            places.entry(name).or_insert(index);
        }
    }
    let mut before = Vec::with_capacity(tables.len());
    let mut steps = Vec::with_capacity(tables.len());
    for (index, table) in tables.into_iter().enumerate() {
        if let Some(name) = names[index].filter(|name| places[name] < index) {
            table.wrong("ref", format!("another job of the flow has the ref {name:?}"));
        }
        if names[index].is_some_and(|name| name.len() > MAX_TEXT_BYTES) {
            table.wrong("ref", format!("expected at most {MAX_TEXT_BYTES} bytes"));
        }
        let after = table.texts("after").unwrap_or_default();
        if after.len() > MAX_AFTER {
            table.wrong("after", format!("expected at most {MAX_AFTER} jobs, got {}", after.len()));
        }
        let place_of = |(_, name): &(Place, &str)| places.get(name).copied();
        for (place, name) in after.iter().filter(|after| place_of(after).is_none()) {
            let suggestion = suggest(name, places.keys().copied());
            let path = join(&table.key, "after");
            table.report.note_with_suggestion(*place, &path, format!("unknown ref {name:?}"), suggestion);
        }
        before.push(after.iter().filter_map(place_of).collect());
        let policies =
            [("fail", OnFailure::Fail), ("ignore", OnFailure::Ignore), ("compensate", OnFailure::Compensate)];
        let on_failure = table.one_of("onFailure", &policies).unwrap_or_default();
        let compensate = table.table("compensate").and_then(job);
        let (reference, after) = (names[index].map(str::to_owned), after.into_iter().map(|(_, name)| name.to_owned()));
        let after = after.collect();
        steps.extend(job(table).map(|job| RuleStep { job, reference, after, on_failure, compensate }));
    }
    if let Some(circle) = cycle(&before) {
        let path: Vec<&str> = circle.iter().chain(circle.first()).filter_map(|index| names[*index]).collect();
        table.wrong("jobs", format!("these jobs wait for each other: {}", path.join(" after ")));
    }
    let (then, finally) = (table.table("then").and_then(job), table.table("finally").and_then(job));
    let when = condition(&table, "when", roots.conditions, auth);
    table.finish();
    Some(RuleFlow { name, steps, then, finally, when })
}

/// A job that a rule, a message or an alert enqueues.
pub(super) fn rule_job(table: Table<'_>, roots: &Roots<'_>, auth: &Auth, jobs: &Jobs) -> Option<RuleJob> {
    let job = job_named(&table, "job", jobs);
    let data = template(&table, "data", roots.templates);
    let when = condition(&table, "when", roots.conditions, auth);
    let (delay, priority) = (table.duration("delay"), table.integer("priority", PRIORITIES));
    table.finish();
    Some(RuleJob { job: job?, data: data?, when, delay, priority })
}
