//! `/dead-letters`: jobs that failed for good, run again or thrown away.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use tidewire_core::job::State as JobState;
use tidewire_core::store::{Bulk, JobQuery};
use tidewire_core::{Error, Id, Result, TenantId, Timestamp};

use super::bulk::{Extent, answer, run};
use super::extract::{Call, Query};
use super::jobs::{ListQuery, sought};
use super::{Answer, Api, Shared};
use crate::auth::Caller;
use crate::config::Scope;

/// The most jobs that one call names.
const MOST_IDS: usize = 10_000;

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/dead-letters", get(list))
        .route("/dead-letters/redrive", post(|state, request| change(Bulk::Redrive, state, request)))
        .route("/dead-letters/discard", post(|state, request| change(Bulk::Delete, state, request)))
}

async fn list(State(api): State<Shared>, caller: Caller, Query(query): Query<ListQuery>) -> Answer {
    let query = query.resolve(&api, &caller, &[JobState::Failed, JobState::Dead])?;
    if let Some(state) = query.states.iter().find(|state| !state.is_dead_letter()) {
        let detail = format!("state: dead letters are failed or dead, got {state}");
        return Err(Error::invalid("request.invalid", detail).into());
    }
    Ok(Json(api.publisher.store().jobs(query).await?).into_response())
}

/// Which dead letters, and how many of them.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ChosenBody {
    tenant: Option<TenantId>,
    ids: Option<Vec<Id>>,
    queue: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    text: Option<String>,
    error: Option<String>,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    limit: Option<u32>,
    cursor: Option<String>,
    dry_run: Option<bool>,
}

impl ChosenBody {
    fn query(self, api: &Api, caller: &Caller) -> Result<JobQuery> {
        // An id says which job it is only together with its tenant.
        let tenant = match &self.ids {
            Some(_) => Some(caller.tenant(self.tenant.as_ref(), api.tenants.as_deref())?),
            None => caller.tenant_or_all(self.tenant.as_ref(), api.tenants.as_deref())?,
        };
        if let Some(ids) = &self.ids
            && (ids.is_empty() || ids.len() > MOST_IDS)
        {
            let detail = format!("ids: expected 1 to {MOST_IDS} in one call, got {}", ids.len());
            return Err(Error::invalid("request.invalid", detail));
        }
        Ok(JobQuery {
            tenant,
            ids: self.ids.unwrap_or_default(),
            queue: self.queue,
            kind: self.kind,
            states: vec![JobState::Failed, JobState::Dead],
            text: sought("text", self.text)?,
            error: sought("error", self.error)?,
            from: self.from,
            to: self.to,
            cursor: self.cursor,
            ..JobQuery::default()
        })
    }
}

async fn change(action: Bulk, State(api): State<Shared>, request: Request<Body>) -> Answer {
    let call = Call::read(&api, request).await?;
    call.caller.require(Scope::Enqueue)?;
    let body: ChosenBody = call.json()?;
    let extent = Extent::new(body.limit, body.dry_run)?;
    let query = body.query(&api, &call.caller)?;
    answer(extent, run(&api, query, action, extent).await?)
}
