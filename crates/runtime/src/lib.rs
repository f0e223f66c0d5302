//! What moves things: the publishing path, workers, leases and the scheduler.
//!
//! The runtime owns no data. It turns requests into commits, asks the store for jobs, runs their handlers, and settles them together with
//! what the handlers staged. In-process handlers and remote workers take the same path: claim, run, settle.
//!
//! Every part has the same life: it is started, it runs until it is told to stop, and stopping waits for what runs up to a deadline.

mod active;
mod context;
mod extract;
mod handler;
mod handlers;
mod layer;
mod lives;
mod message;
mod publisher;
mod remote;
mod run;
mod scheduler;
mod slots;
mod workers;

pub use context::{JobContext, Stop};
pub use extract::{Attempt, Context, Events, FromContext, Heard, State, States, Tenant};
pub use handler::{
    EventHandler, Fatal, HandlerError, HandlerResult, JobHandler, MessageHandler, Running, cancel, done, done_with,
    fail, release, retry, retry_in, snooze,
};
pub use handlers::Handlers;
pub use layer::{Middleware, Next};
pub use lives::Lives;
pub use message::{Answering, MESSAGE_TIMEOUT, MessageContext};
pub use publisher::{Broadcast, Publisher};
pub use remote::{Effects, Settlement, settle, verdict};
pub use run::run;
pub use scheduler::{Clockwork, Declared, Scheduler, declared_schedules, run_schedule};
pub use workers::{QueueOptions, Workers};
