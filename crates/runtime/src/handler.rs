//! What a job handler is, and what it can answer.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tidewire_core::commit::MAX_DATA_BYTES;
use tidewire_core::job::Verdict;
use tidewire_core::{Json, Result};

use crate::context::JobContext;
use crate::extract::{FromContext, States};
use crate::message::{Answering, MessageContext, told};

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

/// For errors that no retry mends: with `?` alone an error is tried again, with `.fatal()?` the job fails at once.
///
/// ```
/// use tidewire_runtime::{Fatal, HandlerResult, JobContext, done};
///
/// async fn dial(cx: JobContext) -> HandlerResult {
///     let number = cx.data::<String>()?.parse::<u16>().fatal()?;
///     done()
/// }
/// ```
pub trait Fatal<T> {
    /// The value, or an error that fails the job: processing -> failed.
    fn fatal(self) -> Result<T, HandlerError>;
}

impl<T, E: Into<HandlerError>> Fatal<T> for Result<T, E> {
    fn fatal(self) -> Result<T, HandlerError> {
        self.map_err(|error| HandlerError { is_final: true, ..error.into() })
    }
}

impl HandlerError {
    /// What went wrong.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Whether the job fails for good instead of being retried.
    pub fn is_final(&self) -> bool {
        self.is_final
    }

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

/// It may work after `delay`, whatever the job's backoff says: processing -> scheduled, or dead when the attempts are used up.
pub fn retry_in(delay: Duration, error: impl Into<String>) -> HandlerResult {
    Ok(Verdict::Retry { error: error.into(), delay: Some(delay) })
}

/// It will never work: processing -> failed at once.
pub fn fail(error: impl Into<String>) -> HandlerResult {
    Err(final_error(error))
}

/// An error that no retry mends.
pub(crate) fn final_error(error: impl Into<String>) -> HandlerError {
    HandlerError { message: error.into(), is_final: true }
}

/// Not now: processing -> scheduled after `delay`, and the attempt is given back.
pub fn snooze(delay: Duration) -> HandlerResult {
    Ok(Verdict::Snooze { delay })
}

/// Somebody else is to run it, now: processing -> pending, and the attempt is given back. The answer to
/// [`Stop::Shutdown`](crate::Stop::Shutdown).
pub fn release() -> HandlerResult {
    Ok(Verdict::Release)
}

/// It is no longer wanted: processing -> cancelled.
pub fn cancel() -> HandlerResult {
    Ok(Verdict::Cancel)
}

/// A run that goes on. Dropping it ends the run.
pub type Running = Pin<Box<dyn Future<Output = HandlerResult> + Send>>;

/// Runs the jobs of one type.
pub(crate) trait Handler: Send + Sync {
    fn run(&self, cx: JobContext) -> Running;
}

/// A handler of jobs whose data is `J`: an async function that takes the job and then up to five arguments that implement
/// [`FromContext`], in any order.
///
/// ```
/// use tidewire_runtime::{Attempt, HandlerResult, JobContext, JobHandler, State, done};
///
/// #[derive(serde::Deserialize)]
/// struct SendWelcome { to: String }
/// struct Mailer;
///
/// async fn send(job: SendWelcome, mailer: State<Mailer>, attempt: Attempt) -> HandlerResult { done() }
///
/// fn is_handler<Args>(_: impl JobHandler<SendWelcome, Args>) {}
/// is_handler(send);
/// is_handler(|job: SendWelcome| async { done() });
/// is_handler(|job: SendWelcome, cx: JobContext| async { done() });
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a handler of `{J}`",
    label = "expected an async function of the job, then of arguments that implement `FromContext`",
    note = "a handler looks like `async fn send(job: SendWelcome, cx: JobContext, mailer: State<Mailer>) -> HandlerResult`, with at most five arguments after the job",
    note = "a closure names the types of all its arguments: `|job: SendWelcome, cx: JobContext| async move {{ done() }}`"
)]
pub trait JobHandler<J, Args>: Send + Sync + 'static {
    /// Begins a run; the error of an argument that could not be made ends it.
    fn begin(&self, job: J, cx: &JobContext) -> Result<Running, HandlerError>;

    /// Whether all arguments can be made, asked once when the app is built.
    fn check(states: &States) -> Result<()>;
}

/// A durable handler of events: an async function of up to five arguments that implement [`FromContext`], such as
/// [`Heard<T>`](crate::Heard).
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a handler of events",
    label = "expected an async function of arguments that implement `FromContext`",
    note = "a handler looks like `async fn index(event: Heard<Client>, cx: JobContext) -> HandlerResult`, with at most five arguments",
    note = "a closure names the types of all its arguments: `|cx: JobContext| async move {{ done() }}`"
)]
pub trait EventHandler<Args>: Send + Sync + 'static {
    /// Begins a run; the error of an argument that could not be made ends it.
    fn begin(&self, cx: &JobContext) -> Result<Running, HandlerError>;

    /// Whether all arguments can be made, asked once when the app is built.
    fn check(states: &States) -> Result<()>;
}

/// A handler of a message of clients whose data is `D`: an async function that takes the data and then up to five arguments that implement
/// [`FromContext<MessageContext>`](FromContext), in any order. What it answers stands in the acknowledgement as `result`, unless it is
/// nothing; an error's code and sentence are told to the client.
///
/// ```
/// use tidewire_core::Result;
/// use tidewire_runtime::{MessageContext, MessageHandler, State};
///
/// #[derive(serde::Deserialize)]
/// struct Quote { berth: String }
/// struct Prices;
///
/// async fn quote(ask: Quote, cx: MessageContext, prices: State<Prices>) -> Result<u32> { Ok(42) }
///
/// fn is_handler<Args>(_: impl MessageHandler<Quote, Args>) {}
/// is_handler(quote);
/// is_handler(|ask: Quote| async { Ok(()) });
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a handler of messages with `{D}`",
    label = "expected an async function of the data, then of arguments that implement `FromContext<MessageContext>`",
    note = "a handler looks like `async fn quote(ask: Quote, cx: MessageContext, prices: State<Prices>) -> tidewire::Result<Price>`, with at most five arguments after the data",
    note = "a closure names the types of all its arguments: `|ask: Quote, cx: MessageContext| async move {{ Ok(price) }}`"
)]
pub trait MessageHandler<D, Args>: Send + Sync + 'static {
    /// Begins the work on a message; the error of an argument that could not be made ends it.
    fn begin(&self, data: D, cx: &MessageContext) -> Result<Answering, HandlerError>;

    /// Whether all arguments can be made, asked once when the app is built.
    fn check(states: &States) -> Result<()>;
}

/// Functions of so many arguments. The names of the context and the states come in, as none of them is used without arguments.
macro_rules! functions {
    ($cx:ident, $states:ident $(, $arg:ident: $Arg:ident)*) => {
        impl<F, Fut, J, $($Arg,)*> JobHandler<J, ($($Arg,)*)> for F
        where
            F: Fn(J, $($Arg),*) -> Fut + Send + Sync + 'static,
            Fut: Future<Output = HandlerResult> + Send + 'static,
            $($Arg: FromContext,)*
        {
            fn begin(&self, job: J, $cx: &JobContext) -> Result<Running, HandlerError> {
                $(let $arg = $Arg::from_context($cx)?;)*
                Ok(Box::pin(self(job, $($arg),*)))
            }

            fn check($states: &States) -> Result<()> {
                $($Arg::check($states)?;)*
                Ok(())
            }
        }

        impl<F, Fut, $($Arg,)*> EventHandler<($($Arg,)*)> for F
        where
            F: Fn($($Arg),*) -> Fut + Send + Sync + 'static,
            Fut: Future<Output = HandlerResult> + Send + 'static,
            $($Arg: FromContext,)*
        {
            fn begin(&self, $cx: &JobContext) -> Result<Running, HandlerError> {
                $(let $arg = $Arg::from_context($cx)?;)*
                Ok(Box::pin(self($($arg),*)))
            }

            fn check($states: &States) -> Result<()> {
                $($Arg::check($states)?;)*
                Ok(())
            }
        }

        impl<F, Fut, M, R, $($Arg,)*> MessageHandler<M, ($($Arg,)*)> for F
        where
            F: Fn(M, $($Arg),*) -> Fut + Send + Sync + 'static,
            Fut: Future<Output = Result<R>> + Send + 'static,
            R: Serialize,
            $($Arg: FromContext<MessageContext>,)*
        {
            fn begin(&self, data: M, $cx: &MessageContext) -> Result<Answering, HandlerError> {
                $(let $arg = $Arg::from_context($cx)?;)*
                let answer = self(data, $($arg),*);
                Ok(Box::pin(async move { told(&answer.await?) }))
            }

            fn check($states: &States) -> Result<()> {
                $($Arg::check($states)?;)*
                Ok(())
            }
        }
    };
}

functions!(_cx, _states);
functions!(cx, states, a: A);
functions!(cx, states, a: A, b: B);
functions!(cx, states, a: A, b: B, c: C);
functions!(cx, states, a: A, b: B, c: C, d: D);
functions!(cx, states, a: A, b: B, c: C, d: D, e: E);

/// A [`JobHandler`] that reads the job's data. Data of another shape fails the job: no retry would mend it.
pub(crate) struct OfJob<J, Args, H> {
    handler: H,
    takes: PhantomData<fn(J, Args)>,
}

impl<J, Args, H> OfJob<J, Args, H> {
    pub(crate) fn new(handler: H) -> Self {
        Self { handler, takes: PhantomData }
    }
}

impl<J: DeserializeOwned, Args, H: JobHandler<J, Args>> Handler for OfJob<J, Args, H> {
    fn run(&self, cx: JobContext) -> Running {
        let job = cx.data::<J>().map_err(|error| final_error(error.detail()));
        begun(job.and_then(|job| self.handler.begin(job, &cx)))
    }
}

/// An [`EventHandler`]; the event is the job's data.
pub(crate) struct OfEvent<Args, H> {
    handler: H,
    takes: PhantomData<fn(Args)>,
}

impl<Args, H> OfEvent<Args, H> {
    pub(crate) fn new(handler: H) -> Self {
        Self { handler, takes: PhantomData }
    }
}

impl<Args, H: EventHandler<Args>> Handler for OfEvent<Args, H> {
    fn run(&self, cx: JobContext) -> Running {
        begun(self.handler.begin(&cx))
    }
}

fn begun(run: Result<Running, HandlerError>) -> Running {
    run.unwrap_or_else(|error| Box::pin(std::future::ready(Err(error))))
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
