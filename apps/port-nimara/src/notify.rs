//! The jobs that tell salespeople: a notification is an event in the person's own room, on every tab.

use serde::{Deserialize, Serialize};
use serde_json::json;
use tidewire::store::LogQuery;
use tidewire::{HandlerResult, Job, JobContext, NewEvent, done, done_with};

use crate::demo::PORTS;

/// `notify-registration`, caused by `registration:new`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NotifyRegistration {
    client_id: String,
    interest_id: String,
    client_name: String,
    berth_number: String,
}

impl Job for NotifyRegistration {
    const TYPE: &'static str = "notify-registration";
}

/// `duplicate-alert`, caused by `client:duplicateDetected`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DuplicateAlert {
    client_a_id: String,
    client_b_id: String,
    score: f64,
    reason: String,
}

impl Job for DuplicateAlert {
    const TYPE: &'static str = "duplicate-alert";
}

pub(crate) async fn registration(job: NotifyRegistration, cx: JobContext) -> HandlerResult {
    let about = if job.berth_number.is_empty() { "a berth".to_owned() } else { format!("berth {}", job.berth_number) };
    let text = format!("{} is interested in {about}", job.client_name);
    notify(&cx, "registration", "New website registration", &text, &format!("/interests/{}", job.interest_id))
}

pub(crate) async fn duplicate(job: DuplicateAlert, cx: JobContext) -> HandlerResult {
    let text = format!("{} ({:.0} % sure)", job.reason, job.score * 100.0);
    notify(&cx, "duplicate", "Possible duplicate client", &text, &format!("/clients/{}", job.client_a_id))
}

/// Hears `notification:new`: tells the person how many there are now. Nothing marks them read yet, so it is all of them.
pub(crate) async fn unread_count(cx: JobContext) -> HandlerResult {
    let event: Notified = cx.data()?;
    let theirs = LogQuery {
        kind: Some("notification:new".to_owned()),
        user: Some(event.user_id.clone()),
        limit: LogQuery::MAX,
        ..LogQuery::default()
    };
    let count = cx.events(theirs).await?.len();
    cx.publish(NewEvent::new("notification:unreadCount", json!({ "count": count })).param("userId", event.user_id));
    done()
}

/// The event that a durable handler is given, as far as it matters here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Notified {
    user_id: String,
}

/// Stages a notification for each salesperson of the port. The job's id makes it the same notification if the job runs twice.
fn notify(cx: &JobContext, kind: &str, title: &str, description: &str, link: &str) -> HandlerResult {
    let staff = PORTS.iter().filter(|port| port.id == cx.tenant().as_str()).map(|port| port.user_id);
    let mut told = 0;
    for user in staff {
        let data = json!({
            "notificationId": format!("{}-{user}", cx.job().id),
            "type": kind, "title": title, "description": description, "link": link,
        });
        let mut event = NewEvent::new("notification:new", data).param("userId", user);
        event.user_id = Some(user.to_owned());
        cx.publish(event);
        told += 1;
    }
    done_with(json!({ "notified": told }))
}
