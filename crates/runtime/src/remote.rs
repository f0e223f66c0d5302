//! Remote workers: the same verdicts and effects as in-process handlers, given as data.

use serde::Deserialize;
use tidewire_core::commit::{MAX_DATA_BYTES, NewEvent, NewFlow, NewJob, NewSchedule, Request};
use tidewire_core::job::Verdict;
use tidewire_core::store::{Settle, Settled};
use tidewire_core::{Error, Id, Kind, Result, TenantId};

use crate::publisher::Publisher;
use crate::run::origin;

/// What a remote worker stages to commit with its verdict.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Effects {
    /// Events to publish.
    #[serde(default)]
    pub events: Vec<NewEvent>,
    /// Jobs to enqueue.
    #[serde(default)]
    pub jobs: Vec<NewJob>,
    /// Makes one flow of the jobs.
    #[serde(default)]
    pub flow: Option<NewFlow>,
    /// Schedules to put or delete.
    #[serde(default)]
    pub schedules: Vec<NewSchedule>,
}

/// The end of a remote run.
#[derive(Debug)]
pub struct Settlement {
    /// The job.
    pub id: Id,
    /// The token of its lease.
    pub lease: Box<str>,
    /// What the run came to.
    pub verdict: Verdict,
    /// Committed with `done`; discarded with any other verdict, as for a handler that stages and then fails.
    pub effects: Effects,
}

/// Settles a remote run. `bound` is the tenant that the worker's key is bound to, if any.
///
/// Codes: `job.lease_lost`, and those of [`Publisher::expand`] for the effects; then nothing is written and the lease is still held.
pub async fn settle(publisher: &Publisher, bound: Option<TenantId>, settlement: Settlement) -> Result<Settled> {
    let Settlement { id, lease, verdict, effects } = settlement;
    let Effects { events, jobs, flow, schedules } = effects;
    let request = Request { events, jobs, flow, schedules, dedup: None };
    let has_effects = !request.is_empty();
    let (effects, ephemeral) = match verdict {
        Verdict::Done { .. } if has_effects => {
            let job = publisher.store().leased(bound.as_ref(), &id, &lease).await?;
            if job.tenant == TenantId::app() && !request.schedules.is_empty() {
                let detail = "a worker cannot change the schedules of the app; call /v1/schedules with a key that may";
                return Err(Error::new(Kind::Forbidden, "auth.forbidden", detail));
            }
            publisher.effects(&job.tenant, request, &origin(&job))?
        }
        _ => (None, Vec::new()),
    };
    let settle = Settle { tenant: bound, id, lease, verdict, effects };
    let mut settled = publisher.store().settle(settle).await?;
    settled.effects = publisher.with_ephemeral(settled.effects, &ephemeral);
    Ok(settled)
}

/// The verdict that a worker's words stand for.
///
/// Codes `job.unknown_verdict`, `data.too_large`, `json.invalid`.
pub fn verdict(
    word: &str,
    result: Option<tidewire_core::Json>,
    error: Option<String>,
    delay: Option<std::time::Duration>,
) -> Result<Verdict> {
    if let Some(result) = &result {
        let size = result.get().len();
        if size > MAX_DATA_BYTES {
            let detail = format!("result: expected at most {MAX_DATA_BYTES} bytes, got {size}");
            return Err(Error::new(Kind::TooLarge, "data.too_large", detail));
        }
        result.to_value()?;
    }
    let error = || error.unwrap_or_else(|| "no reason given".to_owned());
    Ok(match word {
        "done" => Verdict::Done { result },
        "retry" => Verdict::Retry { error: error(), delay },
        "fail" => Verdict::Fail { error: error() },
        "snooze" => Verdict::Snooze { delay: delay.unwrap_or(std::time::Duration::from_secs(60)) },
        "release" => Verdict::Release,
        "cancel" => Verdict::Cancel,
        other => {
            let detail = format!("verdict: expected done, retry, fail, snooze, release or cancel, got {other:?}");
            return Err(Error::invalid("job.unknown_verdict", detail));
        }
    })
}
