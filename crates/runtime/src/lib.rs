//! What moves things: the publishing path, workers, leases and the scheduler.
//!
//! The runtime owns no data. It turns requests into commits, asks the store for jobs, runs their handlers, and settles them together with
//! what the handlers staged. In-process handlers and remote workers take the same path: claim, run, settle.
//!
//! Every part has the same life: it is started, it runs until it is told to stop, and stopping waits for what runs up to a deadline.

mod handler;
mod publisher;
mod remote;
mod scheduler;
mod workers;

pub use handler::{Handler, HandlerError, HandlerResult, JobContext, cancel, done, done_with, fail, retry, snooze};
pub use publisher::{Broadcast, Publisher};
pub use remote::{Effects, Settlement, settle, verdict};
pub use scheduler::{Clockwork, NextSlots, Scheduler, next_slots, slot_job};
pub use workers::{Handlers, Workers};
