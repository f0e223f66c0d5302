//! One run of a leased job: the handler within its time, then its verdict and effects in one commit.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tidewire_core::commit::Origin;
use tidewire_core::job::{Job, State, Verdict};
use tidewire_core::store::{Leased, Settle, Settled};
use tidewire_core::{Error, Kind};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::context::{JobContext, Stop};
use crate::handler::HandlerError;
use crate::handlers::Handlers;
use crate::layer::Next;
use crate::publisher::Publisher;

/// How long to wait after the store refused for want of room.
pub(crate) const AFTER_REFUSAL: Duration = Duration::from_millis(500);

/// How long a dropped run may take to end. It ends at its next `.await`; one that blocks its thread is not waited for.
const LEAVE: Duration = Duration::from_secs(1);

/// Runs one leased job and settles it. Answers the state it reached, or nothing when the result was not taken: the lease was lost, or
/// the store has closed. `grace` is the time between the soft and the hard end of the run.
///
/// The timeout is that of the job, by the clock of the async runtime.
pub async fn run(publisher: &Publisher, handlers: &Arc<Handlers>, leased: Leased, grace: Duration) -> Option<State> {
    let context = JobContext::new(leased, publisher.store().clone(), handlers.states().clone());
    perform(publisher, handlers, &context, grace, &CancellationToken::new()).await
}

/// As [`run`], in a context that others may know. `abort` ends the run and hands the job back.
pub(crate) async fn perform(
    publisher: &Publisher,
    handlers: &Arc<Handlers>,
    context: &JobContext,
    grace: Duration,
    abort: &CancellationToken,
) -> Option<State> {
    let (next, cx) = (Next::new(handlers.clone()), context.clone());
    // A task of its own, so that a panic, in the handler or in what it drops, ends the run and nothing else.
    let mut run = tokio::spawn(async move { next.run(cx).await.unwrap_or_else(HandlerError::into_verdict) });
    let dropped = tokio::select! {
        ended = &mut run => return settle(publisher, context, ended.unwrap_or_else(panicked)).await,
        dropped = outlasted(context, grace) => dropped,
        () = abort.cancelled() => Verdict::Release,
    };
    run.abort();
    let verdict = match tokio::time::timeout(LEAVE, &mut run).await {
        // It ended in the same moment.
        Ok(Ok(verdict)) => verdict,
        Ok(Err(error)) if error.is_panic() => panicked(error),
        Ok(Err(_)) | Err(_) => dropped,
    };
    settle(publisher, context, verdict).await
}

/// Ends when a run is to be dropped: `grace` after it was told that it was cancelled or has run too long. A shutdown has a deadline of
/// its own.
async fn outlasted(context: &JobContext, grace: Duration) -> Verdict {
    let timeout = context.job().timeout;
    let soft_end = Instant::now() + timeout;
    let why = match tokio::time::timeout_at(soft_end, context.cancelled()).await {
        Ok(Stop::Shutdown) => {
            tokio::time::sleep_until(soft_end).await;
            Stop::TimedOut
        }
        Ok(why) => why,
        Err(_) => {
            context.stop(Stop::TimedOut);
            Stop::TimedOut
        }
    };
    tokio::time::sleep(grace).await;
    match why {
        Stop::Cancelled => Verdict::Cancel,
        Stop::TimedOut | Stop::Shutdown => {
            let limit = tidewire_core::time::format_duration(timeout);
            Verdict::Retry { error: format!("timed out after {limit}"), delay: None }
        }
    }
}

fn panicked(error: tokio::task::JoinError) -> Verdict {
    Verdict::Retry { error: panic_text(error), delay: None }
}

/// What a task that did not answer died of.
pub(crate) fn panic_text(error: tokio::task::JoinError) -> String {
    let text = match error.try_into_panic() {
        Ok(panic) => match panic.downcast::<String>() {
            Ok(text) => *text,
            Err(panic) => panic.downcast_ref::<&str>().copied().unwrap_or("no message").to_owned(),
        },
        Err(_) => "the run was aborted".to_owned(),
    };
    format!("panicked: {text}")
}

/// Settles a run with what its handler staged. Effects that are refused make the run a failed one.
async fn settle(publisher: &Publisher, context: &JobContext, verdict: Verdict) -> Option<State> {
    let job = context.job();
    let staged = context.take_staged();
    // A condition of the catalog is evaluated here; were it to panic, the lease must not be left behind.
    let expanded = catch_unwind(AssertUnwindSafe(|| match verdict {
        Verdict::Done { .. } => publisher.effects(&job.tenant, staged, &origin(job)),
        _ => Ok((None, Vec::new())),
    }));
    let expanded = expanded.unwrap_or_else(|_| Err(Error::internal("expanding the effects panicked", "panic")));
    let end = |verdict, effects| {
        let (id, lease) = (job.id.clone(), context.lease().into());
        send(publisher, Settle { tenant: None, id, lease, verdict, effects })
    };
    let refused = match expanded {
        Ok((effects, ephemeral)) => match end(verdict, effects).await {
            Ok(settled) => {
                publisher.with_ephemeral(settled.effects, &ephemeral);
                return Some(settled.state);
            }
            Err(error) => error,
        },
        Err(error) => error,
    };
    if refused.kind() == Kind::Unavailable || refused.code() == "job.lease_lost" {
        tracing::warn!(job = %job.id, kind = %job.kind, error = %refused, "the result of a job was not taken");
        return None;
    }
    let verdict = Verdict::Retry { error: format!("its effects were refused: {refused}"), delay: None };
    match end(verdict, None).await {
        Ok(settled) => Some(settled.state),
        Err(error) => {
            tracing::warn!(job = %job.id, kind = %job.kind, %error, "a failed job could not be settled");
            None
        }
    }
}

/// Settles, however often the store is too busy: a local lease has no end that would give the job back.
async fn send(publisher: &Publisher, settle: Settle) -> Result<Settled, Error> {
    loop {
        match publisher.store().settle(settle.clone()).await {
            // Only that: a full backlog, for one, may wait for this very run to end.
            Err(error) if error.code() == "store.busy" => tokio::time::sleep(AFTER_REFUSAL).await,
            answer => return answer,
        }
    }
}

/// Where the effects of a job come from.
pub(crate) fn origin(job: &Job) -> Origin {
    Origin {
        depth: job.depth,
        cause: Some(job.id.to_string().into()),
        correlation_id: job.correlation_id.clone(),
        system: job.rare.as_ref().is_some_and(|rare| rare.system),
    }
}
