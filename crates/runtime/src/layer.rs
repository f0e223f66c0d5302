//! What stands around every run: middleware, in the order in which it was added.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::context::JobContext;
use crate::handler::{HandlerResult, release};
use crate::handlers::Handlers;

/// Stands around every run of every handler of this process. It may look at the job before, at the answer after, answer something
/// else, or not let the run begin.
///
/// A panic in it ends the run as one in the handler does. The run's timeout and cancellation include it.
///
/// ```
/// use tidewire_runtime::{HandlerResult, JobContext, Middleware, Next, fail};
///
/// /// Runs only the jobs of tenants that pay.
/// struct Paying;
///
/// impl Middleware for Paying {
///     async fn run(&self, cx: JobContext, next: Next) -> HandlerResult {
///         if cx.tenant().as_str().starts_with("trial-") {
///             return fail("the trial is over");
///         }
///         next.run(cx).await
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no middleware",
    note = "implement `Middleware`, or give an async function `async fn layer(cx: JobContext, next: Next) -> HandlerResult`"
)]
pub trait Middleware: Send + Sync + 'static {
    /// One run. `next.run(cx)` goes on to the next middleware and at last to the handler.
    fn run(&self, cx: JobContext, next: Next) -> impl Future<Output = HandlerResult> + Send;
}

impl<F, Fut> Middleware for F
where
    F: Fn(JobContext, Next) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = HandlerResult> + Send + 'static,
{
    fn run(&self, cx: JobContext, next: Next) -> impl Future<Output = HandlerResult> + Send {
        self(cx, next)
    }
}

/// A [`Middleware`] of any type.
pub(crate) trait Layer: Send + Sync {
    fn run(&self, cx: JobContext, next: Next) -> Pin<Box<dyn Future<Output = HandlerResult> + Send + '_>>;
}

impl<M: Middleware> Layer for M {
    fn run(&self, cx: JobContext, next: Next) -> Pin<Box<dyn Future<Output = HandlerResult> + Send + '_>> {
        Box::pin(Middleware::run(self, cx, next))
    }
}

/// The rest of the way to the handler.
pub struct Next {
    handlers: Arc<Handlers>,
    /// How many layers are behind.
    passed: usize,
}

impl Next {
    pub(crate) fn new(handlers: Arc<Handlers>) -> Self {
        Self { handlers, passed: 0 }
    }

    /// Goes on, and answers what the handler or a middleware on the way answers.
    pub async fn run(self, cx: JobContext) -> HandlerResult {
        let Self { handlers, passed } = self;
        if let Some(layer) = handlers.layer_at(passed) {
            let next = Self { handlers: handlers.clone(), passed: passed + 1 };
            return layer.run(cx, next).await;
        }
        match handlers.of(&cx.job().kind) {
            Some(handler) => handler.run(cx).await,
            // The store only hands out types that were asked for.
            None => release(),
        }
    }
}
