//! Resolving what follows from jobs that fail.

use std::time::Duration;

use super::raw::Table;
use super::realtime::{Events, Roots, publication};
use super::rules::rule_job;
use super::work::Jobs;
use super::{AlertOn, Alerts, Auth};

/// `[alerts]`
pub(super) fn alerts(top: &Table<'_>, auth: &Auth, events: &Events, jobs: &Jobs) -> Option<Alerts> {
    let table = top.table("alerts")?;
    let roots = Roots { templates: &["job", "tenant"], conditions: &["job", "tenant"] };
    let alerts = Alerts {
        publish: table.table("publish").and_then(|table| publication(table, &roots, auth, events)),
        enqueue: table.table("enqueue").and_then(|table| rule_job(table, &roots, auth, jobs)),
        dedupe: table.positive_duration("dedupe").unwrap_or(Duration::from_secs(300)),
    };
    if !table.all().iter().any(|(key, _)| key == "publish" || key == "enqueue") {
        table.report.note(table.place, &table.key, "does nothing; expected publish or enqueue");
    }
    table.finish();
    Some(alerts)
}

/// `alert = "dead"`, `"first"` or `"never"`
pub(super) fn alert_on(table: &Table<'_>) -> Option<AlertOn> {
    table.one_of("alert", &[("dead", AlertOn::Dead), ("first", AlertOn::First), ("never", AlertOn::Never)])
}
