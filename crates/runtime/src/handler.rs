//! What a job handler gets and what it can answer.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tidewire_core::commit::{MAX_DATA_BYTES, NewEvent, NewJob, NewSchedule, Request};
use tidewire_core::event::Event;
use tidewire_core::job::{Job, Verdict};
use tidewire_core::store::{LogQuery, Store};
use tidewire_core::{Json, Result, TenantId};

/// What a handler answers: a verdict, or an error that makes the job run again.
pub type HandlerResult = Result<Verdict, HandlerError>;

/// An error of a handler. Any error becomes one by `?`, and then the job is retried by its backoff.
pub struct HandlerError {
    message: String,
    is_final: bool,
}

impl<E: std::error::Error> From<E> for HandlerError {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            // Some errors show their cause themselves.
            if !message.ends_with(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            source = cause.source();
        }
        Self { message, is_final: false }
    }
}

impl HandlerError {
    /// The verdict that this error is.
    pub fn into_verdict(self) -> Verdict {
        if self.is_final {
            Verdict::Fail { error: self.message }
        } else {
            Verdict::Retry { error: self.message, delay: None }
        }
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// The job is done: processing -> completed.
pub fn done() -> HandlerResult {
    Ok(Verdict::Done { result: None })
}

/// The job is done and this is kept as its result: processing -> completed. A result over 256 KiB fails the job.
pub fn done_with(result: impl Serialize) -> HandlerResult {
    let result = Json::from_serialize(&result).map_err(HandlerError::from)?;
    if result.get().len() > MAX_DATA_BYTES {
        return fail(format!("the result has {} bytes, more than {MAX_DATA_BYTES}", result.get().len()));
    }
    Ok(Verdict::Done { result: Some(result) })
}

/// It may work later: processing -> scheduled by the job's backoff, or dead when the attempts are used up.
pub fn retry(error: impl Into<String>) -> HandlerResult {
    Ok(Verdict::Retry { error: error.into(), delay: None })
}

/// It will never work: processing -> failed at once.
pub fn fail(error: impl Into<String>) -> HandlerResult {
    Err(HandlerError { message: error.into(), is_final: true })
}

/// Not now: processing -> scheduled after `delay`, and the attempt is given back.
pub fn snooze(delay: Duration) -> HandlerResult {
    Ok(Verdict::Snooze { delay })
}

/// It is no longer wanted: processing -> cancelled.
pub fn cancel() -> HandlerResult {
    Ok(Verdict::Cancel)
}

/// One run of a job: what it is about, and where its effects are staged.
///
/// What a handler stages is committed together with the job's completion, or not at all: a handler that publishes two events and
/// then fails leaves none of them.
#[derive(Clone)]
pub struct JobContext {
    job: Arc<Job>,
    store: Arc<dyn Store>,
    staged: Arc<Mutex<Request>>,
}

impl JobContext {
    /// A context for one run of `job`.
    pub fn new(job: Job, store: Arc<dyn Store>) -> Self {
        Self { job: Arc::new(job), store, staged: Arc::new(Mutex::new(Request::default())) }
    }

    /// The job, its `attempt` counting this run.
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// Whose job it is; everything staged belongs to the same tenant.
    pub fn tenant(&self) -> &TenantId {
        &self.job.tenant
    }

    /// The job's data as `T`. Data of another shape is an error that no retry mends, so `?` in a handler is not enough: see
    /// [`Handlers::on`](crate::Handlers::on), which fails the job.
    pub fn data<T: DeserializeOwned>(&self) -> Result<T> {
        self.job.data.to()
    }

    /// Events of the job's tenant, ascending by position.
    pub async fn events(&self, query: LogQuery) -> Result<Vec<Arc<Event>>> {
        self.store.read(&self.job.tenant, query).await
    }

    /// Stages an event.
    pub fn publish(&self, event: NewEvent) {
        self.staged.lock().events.push(event);
    }

    /// Stages a job.
    pub fn enqueue(&self, job: NewJob) {
        self.staged.lock().jobs.push(job);
    }

    /// Stages a schedule of the job's tenant, to be put or deleted.
    pub fn schedule(&self, schedule: NewSchedule) {
        self.staged.lock().schedules.push(schedule);
    }

    /// Takes what was staged.
    pub(crate) fn take_staged(&self) -> Request {
        std::mem::take(&mut *self.staged.lock())
    }
}

/// Runs the jobs of one type.
pub trait Handler: Send + Sync + 'static {
    /// Runs one job. Dropping the future stops the run.
    fn run(&self, context: JobContext) -> Pin<Box<dyn Future<Output = HandlerResult> + Send>>;
}

impl<F, Fut> Handler for F
where
    F: Fn(JobContext) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = HandlerResult> + Send + 'static,
{
    fn run(&self, context: JobContext) -> Pin<Box<dyn Future<Output = HandlerResult> + Send>> {
        Box::pin(self(context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_tells_its_cause_once() {
        let cause = || std::io::Error::other("the disk is full");
        let shows_it = HandlerError::from(tidewire_core::Error::internal("it failed", cause()));
        assert_eq!(format!("{shows_it:?}").matches("the disk is full").count(), 1);
    }
}
