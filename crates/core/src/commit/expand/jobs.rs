//! One job: checked against its type, its options resolved.

use std::borrow::Cow;

use serde_json::Value;

use super::{Expander, Origin, Place, check_data, check_size, check_texts, unknown};
use crate::catalog::JobType;
use crate::commit::{Enqueue, NewJob, NewUnique};
use crate::job::{Rare, States, Unique};
use crate::room::RoomTemplate;
use crate::{Error, Json, Result, Timestamp};

/// The most runs that a job may have.
const MAX_ATTEMPTS: u16 = 1_000;

/// The longest key of a job, in bytes.
const MAX_KEY_BYTES: usize = 256;

impl Expander {
    /// One checked job, for a slot of a schedule.
    pub fn job(&self, job: NewJob, origin: &Origin, now: Timestamp) -> Result<Enqueue> {
        self.enqueue(job, Place::ALONE, origin, now)
    }

    /// Whether a job of a type that is declared takes this data. Codes `job.unknown_type`, `job.invalid_data`, `data.too_large`.
    pub fn check_job_data(&self, kind: &str, data: &Json) -> Result<()> {
        let declared = self.job_type(kind, Place::ALONE)?;
        check_size(data, Place::ALONE)?;
        check_data("job.invalid_data", declared.data.as_ref(), data, Place::ALONE).map(drop)
    }

    pub(super) fn enqueue(&self, job: NewJob, at: Place, origin: &Origin, now: Timestamp) -> Result<Enqueue> {
        let declared = self.job_type(&job.kind, at)?;
        if !at.is_caused {
            check_size(&job.data, at)?;
        }
        let texts = [
            ("userId", &job.user_id),
            ("correlationId", &job.correlation_id),
            ("causationId", &job.causation_id),
            ("ref", &job.reference),
        ];
        check_texts(at, texts)?;
        let data = check_data("job.invalid_data", declared.data.as_ref(), &job.data, at)?;
        let queue = match &job.queue {
            None => declared.queue.clone(),
            Some(name) => match self.catalog.queues.get_key_value(name.as_str()) {
                Some((known, _)) => known.clone(),
                None => return Err(unknown("job.unknown_queue", "queue", name, self.catalog.queues.keys(), at)),
            },
        };
        if job.delay.is_some() && job.run_at.is_some() {
            return Err(option(at, "give either delay or runAt, not both"));
        }
        if let Some(attempts) = job.attempts.filter(|attempts| !(1..=MAX_ATTEMPTS).contains(attempts)) {
            return Err(option(at, &format!("attempts: expected 1 to {MAX_ATTEMPTS}, got {attempts}")));
        }
        if let Some(backoff) = &job.backoff {
            backoff.validate().map_err(|error| option(at, &format!("backoff: {}", error.detail())))?;
        }
        for (name, duration) in [("timeout", job.timeout), ("ttl", job.ttl), ("retryFor", job.retry_for)] {
            if duration.is_some_and(|duration| duration.0.is_zero()) {
                return Err(option(at, &format!("{name}: expected more than 0")));
            }
        }
        let delay = job.delay.map(|delay| delay.0).or(declared.delay).filter(|delay| !delay.is_zero());
        let run_at = job.run_at.or_else(|| delay.map(|delay| now + delay));
        let rare = Rare {
            key: match job.key {
                Some(key) => Some(checked_key("key", key, at)?),
                None => declared.key.as_ref().map(|template| rendered_key("key", template, &data, at)).transpose()?,
            },
            unique: unique(declared, job.unique, &data, at)?,
            expires_at: job.ttl.map(|ttl| ttl.0).or(declared.ttl).map(|ttl| run_at.unwrap_or(now).max(now) + ttl),
            retry_until: job.retry_for.map(|time| time.0).or(declared.retry_for).map(|time| now + time),
            reference: job.reference.map(Into::into),
            on_failure: job.on_failure.unwrap_or_default(),
            system: origin.system,
            ..Rare::default()
        };
        Ok(Enqueue {
            given_id: job.id.is_some(),
            id: job.id.unwrap_or_else(|| self.ids.next()),
            kind: declared.name.clone(),
            queue,
            priority: job.priority.map_or(declared.priority, |priority| priority.0),
            data: job.data,
            run_at,
            attempts: job.attempts.unwrap_or(declared.attempts),
            backoff: job.backoff.unwrap_or_else(|| declared.backoff.clone()),
            timeout: job.timeout.map_or(declared.timeout, |timeout| timeout.0),
            user_id: job.user_id.map(Into::into),
            correlation_id: job.correlation_id.map(Into::into).or_else(|| origin.correlation_id.clone()),
            causation_id: job.causation_id.map(Into::into).or_else(|| origin.cause.clone()),
            depth: origin.depth,
            rare: (rare != Rare::default()).then(|| Box::new(rare)),
            after: Vec::new(),
            root: None,
        })
    }

    fn job_type(&self, kind: &str, at: Place) -> Result<&JobType> {
        // The jobs of durable handlers follow from events; nobody asks for them.
        let handler = || {
            let mut handlers = self.subscriptions.iter().map(|subscription| &subscription.job);
            handlers.find(|job| at.is_caused && &*job.name == kind)
        };
        self.catalog
            .jobs
            .get(kind)
            .or_else(handler)
            .ok_or_else(|| unknown("job.unknown_type", "type", kind, self.catalog.jobs.keys(), at))
    }
}

/// An option that is wrong.
pub(super) fn option(at: Place, what: &str) -> Error {
    Error::invalid("job.invalid_option", format!("{}: {what}", at.path()))
}

/// What the job asks for, and for the rest what its type says.
fn unique(declared: &JobType, asked: Option<NewUnique>, data: &Value, at: Place) -> Result<Option<Unique>> {
    let declared = declared.unique.as_ref();
    if asked.is_none() && declared.is_none() {
        return Ok(None);
    }
    let asked = asked.unwrap_or_default();
    let key = match (asked.key, declared.and_then(|declared| declared.key.as_ref())) {
        (Some(key), _) => checked_key("unique.key", key, at)?,
        (None, Some(template)) => rendered_key("unique.key", template, data, at)?,
        // The members of an object stand in the order of their names, so that equal data are equal text.
        (None, None) => checked_key("unique.key (the data, as none is given)", data.to_string(), at)?,
    };
    Ok(Some(Unique {
        key,
        states: asked.states.or_else(|| declared.and_then(|rule| rule.states)).unwrap_or(States::UNFINISHED),
        window: asked.window.map(|window| window.0).or_else(|| declared.and_then(|rule| rule.window)),
        on_conflict: asked.on_conflict.or_else(|| declared.map(|rule| rule.on_conflict)).unwrap_or_default(),
    }))
}

fn checked_key(name: &str, key: String, at: Place) -> Result<Box<str>> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(option(at, &format!("{name}: expected 1 to {MAX_KEY_BYTES} bytes, got {}", key.len())));
    }
    Ok(key.into())
}

fn rendered_key(name: &str, template: &RoomTemplate, data: &Value, at: Place) -> Result<Box<str>> {
    let field = |name: &str| match data.get(name)? {
        Value::String(text) => Some(Cow::Borrowed(text.as_str())),
        Value::Number(number) => Some(Cow::Owned(number.to_string())),
        _ => None,
    };
    let key = template.render(field).map_err(|missing| {
        let source = template.source();
        option(at, &format!("{name}: {source:?} needs data.{} as text of 1 to 200 bytes or a number", missing.name))
    })?;
    checked_key(name, key, at)
}
