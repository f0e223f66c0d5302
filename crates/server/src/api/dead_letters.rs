//! `/dead-letters`: jobs that failed for good, run again or thrown away.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use tidewire_core::job::State as JobState;
use tidewire_core::store::{Bulk, JobQuery};
use tidewire_core::{Error, Result};

use super::bulk::{Chosen, answer, run};
use super::extract::{Call, Query};
use super::jobs::ListQuery;
use super::{Answer, Shared};
use crate::auth::Caller;
use crate::config::Scope;

/// The states of dead letters.
pub(super) const DEAD_LETTERS: [JobState; 2] = [JobState::Failed, JobState::Dead];

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/dead-letters", get(list))
        .route("/dead-letters/redrive", post(|state, request| change(Bulk::Redrive, state, request)))
        .route("/dead-letters/discard", post(|state, request| change(Bulk::Delete, state, request)))
}

async fn list(State(api): State<Shared>, caller: Caller, Query(query): Query<ListQuery>) -> Answer {
    let query = dead_letters_alone(query.resolve(&api, &caller, &DEAD_LETTERS)?)?;
    Ok(Json(api.publisher.store().jobs(query).await?).into_response())
}

async fn change(action: Bulk, State(api): State<Shared>, request: Request<Body>) -> Answer {
    let call = Call::read(&api, request).await?;
    call.caller.require(Scope::Enqueue)?;
    let chosen: Chosen = call.json()?;
    let extent = chosen.extent()?;
    let query = dead_letters_alone(chosen.query(&api, &call.caller, &DEAD_LETTERS)?)?;
    answer(extent, run(&api, query, action, extent).await?)
}

fn dead_letters_alone(query: JobQuery) -> Result<JobQuery> {
    match query.states.iter().find(|state| !state.is_dead_letter()) {
        Some(state) => {
            let detail = format!("state: dead letters are failed or dead, got {state}");
            Err(Error::invalid("request.invalid", detail))
        }
        None => Ok(query),
    }
}
