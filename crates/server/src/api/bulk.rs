//! The same change to many jobs: slice by slice, so that other calls have their turns between, and so much in one call.

use std::time::Duration;

use axum::Json;
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};
use tidewire_core::job::State as JobState;
use tidewire_core::store::{Bulk, Changed, JobQuery};
use tidewire_core::{Error, Id, Result, Timestamp};

use super::jobs::{owner, owner_or_all, sought};
use super::{Answer, Api};
use crate::auth::Caller;

/// How many jobs one call changes when it does not say, and at most.
const USUAL: u32 = 10_000;
const MOST: u32 = 100_000;

/// How many slices one call goes through, each of which looks at up to [`JobQuery::MAX_LOOKED_AT`] jobs.
const MOST_SLICES: usize = 500;

/// The most jobs that one call names.
const MOST_IDS: usize = 10_000;

/// Which jobs a call means, and how many of them.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Chosen {
    tenant: Option<String>,
    ids: Option<Vec<Id>>,
    queue: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    states: Option<Vec<JobState>>,
    text: Option<String>,
    error: Option<String>,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    failed_from: Option<Timestamp>,
    failed_to: Option<Timestamp>,
    user_id: Option<String>,
    correlation_id: Option<String>,
    flow: Option<Id>,
    key: Option<String>,
    limit: Option<u32>,
    cursor: Option<String>,
    dry_run: Option<bool>,
}

impl Chosen {
    /// How many. Code `request.invalid`.
    pub(super) fn extent(&self) -> Result<Extent> {
        Extent::new(self.limit, self.dry_run)
    }

    /// Which, in `usual` states where none are named. Codes `request.invalid`, `tenant.required`, `tenant.unknown`.
    pub(super) fn query(self, api: &Api, caller: &Caller, usual: &[JobState]) -> Result<JobQuery> {
        // An id says which job it is only together with its tenant.
        let tenant = match &self.ids {
            Some(_) => Some(owner(self.tenant.as_deref(), api, caller)?),
            None => owner_or_all(self.tenant.as_deref(), api, caller)?,
        };
        if let Some(ids) = &self.ids
            && (ids.is_empty() || ids.len() > MOST_IDS)
        {
            let detail = format!("ids: expected 1 to {MOST_IDS} in one call, got {}", ids.len());
            return Err(Error::invalid("request.invalid", detail));
        }
        if self.states.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::invalid("request.invalid", "states: expected at least one"));
        }
        Ok(JobQuery {
            tenant,
            ids: self.ids.unwrap_or_default(),
            queue: self.queue,
            kind: self.kind,
            states: self.states.unwrap_or_else(|| usual.to_vec()),
            text: sought("text", self.text)?,
            error: sought("error", self.error)?,
            from: self.from,
            to: self.to,
            failed_from: self.failed_from,
            failed_to: self.failed_to,
            user_id: self.user_id,
            correlation_id: self.correlation_id,
            flow: self.flow,
            key: self.key,
            cursor: self.cursor,
            ..JobQuery::default()
        })
    }

    /// Whether it says anything of the jobs it means, other than whose they are.
    pub(super) fn is_narrowed(&self) -> bool {
        let Self { queue, kind, text, error, user_id, correlation_id, key, .. } = self;
        let texts = [queue, kind, text, error, user_id, correlation_id, key];
        let times = [self.from, self.to, self.failed_from, self.failed_to];
        texts.into_iter().any(Option::is_some)
            || times.iter().any(Option::is_some)
            || self.ids.is_some()
            || self.states.is_some()
            || self.flow.is_some()
    }
}

/// How much one call does, and whether it only counts.
#[derive(Clone, Copy)]
pub(super) struct Extent {
    limit: u32,
    is_dry: bool,
}

impl Extent {
    /// Code `request.invalid`.
    pub(super) fn new(limit: Option<u32>, dry_run: Option<bool>) -> Result<Self> {
        let limit = limit.unwrap_or(USUAL);
        if limit == 0 || limit > MOST {
            return Err(Error::invalid("request.invalid", format!("limit: expected 1 to {MOST}, got {limit}")));
        }
        Ok(Self { limit, is_dry: dry_run.unwrap_or(false) })
    }

    /// Whether it only counts.
    pub(super) fn is_dry(self) -> bool {
        self.is_dry
    }
}

/// What a call came to.
#[derive(Serialize)]
#[serde(rename_all = "camelCase", untagged)]
enum Shown {
    #[serde(rename_all = "camelCase")]
    Dry { dry_run: bool, matched: u64, next_cursor: Option<String> },
    #[serde(rename_all = "camelCase")]
    Done { changed: u64, skipped: u64, next_cursor: Option<String> },
}

/// Does `action` to every job that matches and was enqueued before now, the oldest first.
pub(super) async fn run(api: &Api, mut query: JobQuery, action: Bulk, extent: Extent) -> Result<Changed> {
    // What comes while this goes on is not meant, and the call ends although it never ceases to come.
    let end = api.publisher.clock().now() + Duration::from_micros(1);
    query.to = Some(query.to.map_or(end, |to| to.min(end)));
    let action = if extent.is_dry { Bulk::Count } else { action };
    let ids = std::mem::take(&mut query.ids);
    let mut all = Changed::default();
    if !ids.is_empty() {
        for ids in ids.chunks(Bulk::MAX as usize) {
            let named = JobQuery { ids: ids.to_vec(), limit: Bulk::MAX, ..query.clone() };
            add(&mut all, &api.publisher.store().bulk(named, action).await?);
        }
        return Ok(all);
    }
    for _ in 0..MOST_SLICES {
        let left = u64::from(extent.limit) - (all.changed + all.skipped);
        query.limit = u32::try_from(left).unwrap_or(Bulk::MAX).min(Bulk::MAX);
        let slice = api.publisher.store().bulk(query.clone(), action).await?;
        add(&mut all, &slice);
        query.cursor = slice.next;
        if query.cursor.is_none() || all.changed + all.skipped >= u64::from(extent.limit) {
            break;
        }
    }
    all.next = query.cursor;
    Ok(all)
}

fn add(all: &mut Changed, slice: &Changed) {
    all.changed += slice.changed;
    all.skipped += slice.skipped;
}

/// What the caller is told.
pub(super) fn answer(extent: Extent, Changed { changed, skipped, next }: Changed) -> Answer {
    let shown = match extent.is_dry {
        true => Shown::Dry { dry_run: true, matched: changed, next_cursor: next },
        false => Shown::Done { changed, skipped, next_cursor: next },
    };
    Ok(Json(shown).into_response())
}
