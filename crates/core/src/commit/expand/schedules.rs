//! One schedule: checked as if its job were enqueued now, its options resolved.

use std::sync::Arc;

use serde_json::Value;

use super::{Origin, Place, Run, check_texts, unknown};
use crate::commit::{NewJob, NewSchedule, ScheduleWrite};
use crate::schedule::{Spec, Timing};
use crate::{Error, FieldError, Json, Result, TenantId};

/// The longest key of a schedule, in bytes.
const MAX_KEY_BYTES: usize = 128;

impl Run<'_> {
    pub(super) fn schedule(&mut self, schedule: NewSchedule, at: Place) -> Result<()> {
        self.room_left()?;
        self.same_tenant(schedule.tenant.as_ref(), at)?;
        let key = checked_key(&schedule.key, at)?;
        check_texts(at, [("userId", &schedule.user_id)])?;
        if schedule.user_id.as_ref().is_some_and(String::is_empty) {
            return Err(option(at, "userId", "expected at least one character"));
        }
        let user_id: Option<Box<str>> = schedule.user_id.as_deref().map(Into::into);
        if !self.scheduled.insert((key.clone(), user_id.clone())) {
            return Err(option(at, "key", "expected each schedule at most once in a commit"));
        }
        let write = if schedule.delete {
            if schedule.paused || !is_bare(&schedule) {
                return Err(option(at, "delete", "expected nothing beside key and userId"));
            }
            ScheduleWrite::Delete { key, user_id }
        } else if let Some(declared) = self.declared_for_app(&key).filter(|_| user_id.is_none()) {
            // What the store keeps of it says that it is paused, and nothing else: the catalog has the rest.
            match (schedule.paused, is_bare(&schedule)) {
                (true, true) => ScheduleWrite::Put { key, user_id, spec: Box::new(declared), paused: true },
                (false, true) => ScheduleWrite::Delete { key, user_id },
                (_, false) => {
                    let detail = format!("the catalog has the schedule {key:?}, of which only paused can be put");
                    return Err(Error::conflict("schedule.declared", detail));
                }
            }
        } else {
            let paused = schedule.paused;
            ScheduleWrite::Put { spec: Box::new(self.spec(schedule, &key, at)?), key, user_id, paused }
        };
        self.schedules.push(write);
        Ok(())
    }

    /// A schedule with times of the catalog, if the app commits.
    fn declared_for_app(&self, key: &str) -> Option<Spec> {
        self.expander.catalog.schedules.get(key).filter(|_| *self.tenant == TenantId::app())?.spec()
    }

    fn spec(&self, schedule: NewSchedule, key: &str, at: Place) -> Result<Spec> {
        let catalog = &self.expander.catalog;
        let declared = catalog.schedules.get(key);
        if declared.is_some_and(|declared| declared.timing.is_some()) {
            let detail =
                format!("{}: the catalog has a schedule {key:?} of its own; choose another key", at.field("key"));
            return Err(Error::conflict("schedule.declared", detail));
        }
        if declared.is_some() && schedule.user_id.is_none() {
            return Err(option(at, "userId", &format!("the catalog declares {key:?} per user; say which")));
        }
        let timing = self.timing(&schedule, at)?;
        check_bounds(&schedule, at)?;
        let Some(job) = schedule.job.as_deref().or(declared.map(|declared| &*declared.job)) else {
            return Err(option(at, "job", "expected the job that each slot enqueues"));
        };
        let Some((job, kind)) = catalog.jobs.get_key_value(job) else {
            return Err(unknown("job.unknown_type", "job", job, catalog.jobs.keys(), at));
        };
        let takes_user = kind.data.as_ref().is_some_and(|data| data.field("userId").is_some());
        let user = schedule.user_id.as_deref().filter(|_| takes_user);
        let data = schedule.data.clone().or(declared.map(|declared| declared.data.clone()));
        let data = with_user(data.unwrap_or_else(Json::empty_object), user);
        // What could not be enqueued now could not be at a slot either.
        let trial = NewJob { user_id: schedule.user_id.clone(), ..NewJob::new(&**job, data.clone()) };
        self.expander.enqueue(trial, at, &Origin::default(), self.now)?;
        let (missed, overlap) = declared.map(|declared| (declared.missed, declared.overlap)).unwrap_or_default();
        Ok(Spec {
            job: job.clone(),
            data,
            timing,
            missed: schedule.missed.unwrap_or(missed),
            overlap: schedule.overlap.unwrap_or(overlap),
            start: schedule.start,
            end: schedule.end,
            limit: schedule.limit,
        })
    }

    fn timing(&self, schedule: &NewSchedule, at: Place) -> Result<Timing> {
        let app_zone = self.expander.catalog.app.timezone.as_str();
        let (field, timing) = match (&schedule.cron, schedule.every, schedule.at) {
            (Some(cron), None, None) => ("cron", Timing::cron(cron, schedule.timezone.as_deref().unwrap_or(app_zone))),
            (None, Some(every), None) => ("every", Timing::every(every.0)),
            (None, None, Some(once)) => ("at", Ok(Timing::Once(once))),
            _ => return Err(option(at, "cron", "expected exactly one of cron, every and at")),
        };
        if schedule.timezone.is_some() && schedule.cron.is_none() {
            return Err(option(at, "timezone", "only a cron has a time zone"));
        }
        timing.map_err(|error| {
            let field = if error.code() == "schedule.unknown_zone" { "timezone" } else { field };
            let wrong = FieldError { path: at.field(field), message: error.detail().to_owned() };
            Error::invalid(error.code(), "").with_fields(vec![wrong])
        })
    }
}

fn check_bounds(schedule: &NewSchedule, at: Place) -> Result<()> {
    if let (Some(start), Some(end)) = (schedule.start, schedule.end)
        && end < start
    {
        return Err(option(at, "end", &format!("expected no earlier time than start, {start}, got {end}")));
    }
    match schedule.limit {
        Some(0) => Err(option(at, "limit", "expected at least 1 run, got 0")),
        Some(limit) if i64::try_from(limit).is_err() => Err(option(at, "limit", "expected fewer runs")),
        Some(_) | None => Ok(()),
    }
}

fn checked_key(key: &str, at: Place) -> Result<Arc<str>> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(option(at, "key", "expected 1 to 128 printable ASCII characters without spaces"));
    }
    Ok(key.into())
}

/// Whether it says nothing but which schedule it is, and whether it is paused.
fn is_bare(schedule: &NewSchedule) -> bool {
    let NewSchedule { job, data, cron, timezone, every, at, missed, overlap, start, end, limit, .. } = schedule;
    job.is_none()
        && data.is_none()
        && cron.is_none()
        && timezone.is_none()
        && every.is_none()
        && at.is_none()
        && missed.is_none()
        && overlap.is_none()
        && start.is_none()
        && end.is_none()
        && limit.is_none()
}

/// Adds the user to the data, unless it names one. Data that is no object stays as it is, for the job's own check.
fn with_user(data: Json, user: Option<&str>) -> Json {
    match (user, data.to_value()) {
        (Some(user), Ok(Value::Object(mut fields))) if !fields.contains_key("userId") => {
            fields.insert("userId".to_owned(), user.into());
            Value::Object(fields).into()
        }
        _ => data,
    }
}

fn option(at: Place, field: &str, message: &str) -> Error {
    let wrong = FieldError { path: at.field(field), message: message.to_owned() };
    Error::invalid("schedule.invalid_option", "").with_fields(vec![wrong])
}

#[cfg(test)]
mod tests;
