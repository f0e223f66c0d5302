//! Resolving what an event causes: jobs, other events, flows.

use super::raw::{Place, Table, join};
use super::realtime::{Events, Roots, condition, publication, template};
use super::work::{Jobs, PRIORITIES, job_named};
use super::{Auth, Pattern, Rule, RuleFlow, RuleJob, RuleStep};
use crate::commit::{MAX_AFTER, cycle};
use crate::job::OnFailure;
use crate::suggest::suggest;
use crate::template::Template;

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
    let names: Vec<Option<&str>> = tables.iter().map(|table| table.text("ref")).collect();
    let mut before = Vec::with_capacity(tables.len());
    let mut steps = Vec::with_capacity(tables.len());
    for (index, table) in tables.into_iter().enumerate() {
        if let Some(name) = names[index].filter(|name| names[..index].contains(&Some(name))) {
            table.wrong("ref", format!("another job of the flow has the ref {name:?}"));
        }
        let after = table.texts("after").unwrap_or_default();
        if after.len() > MAX_AFTER {
            table.wrong("after", format!("expected at most {MAX_AFTER} jobs, got {}", after.len()));
        }
        let place_of = |(_, name): &(Place, &str)| names.iter().position(|known| known.as_deref() == Some(name));
        for (place, name) in after.iter().filter(|after| place_of(after).is_none()) {
            let suggestion = suggest(name, names.iter().flatten().copied());
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
