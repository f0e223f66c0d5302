//! Durable events, background jobs, schedules and live sockets that commit together, per tenant.
//!
//! An app is a catalog (`app.toml`) and the handlers of its jobs. [`App::builder`] opens the store, starts workers, scheduler and
//! gateway, and gives an [`axum::Router`] with the HTTP API and the Socket.IO server to serve or to merge into a router of your own.
//!
//! ```no_run
//! use serde::{Deserialize, Serialize};
//! use tidewire::{App, Attempt, Config, Job, JobContext, NewEvent, Request, State, TenantId, done};
//!
//! #[derive(Serialize, Deserialize, tidewire::Job)] // its type in the catalog is `eoi-reminder`
//! #[job(attempts = 5, timeout = "30s")]
//! #[serde(rename_all = "camelCase")]
//! struct EoiReminder {
//!     document_id: String,
//!     recipient_email: String,
//! }
//!
//! struct Letter(&'static str);
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let app = App::builder("apps/port-nimara")
//!     .config(Config::load(None, std::env::vars())?) // secrets come from the environment
//!     .store("sqlite:data/tidewire.db")
//!     .state(Letter("Please sign."))
//!     .job(|job: EoiReminder, cx: JobContext, letter: State<Letter>, attempt: Attempt| async move {
//!         println!("to {}, attempt {}: {}", job.recipient_email, attempt.number, letter.0.0);
//!         cx.publish(NewEvent::new("document:reminderSent", serde_json::to_value(&job)?));
//!         done() // the event is committed with this, or not at all
//!     })
//!     .build()
//!     .await?;
//!
//! let tenant = TenantId::new("marina-bay")?;
//! let mut request = Request::default();
//! request.events.push(NewEvent::new("client:archived", serde_json::json!({ "clientId": "c1" })));
//! let reminder = EoiReminder { document_id: "d1".to_owned(), recipient_email: "ada@example.com".to_owned() };
//! request.jobs.push(reminder.stage()?);
//! app.commit(&tenant, request).await?; // the event and the job are there, or neither is
//!
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:7400").await?;
//! app.serve(listener, app.router()).await;
//! # Ok(())
//! # }
//! ```
//!
//! What answers clients' messages: [`Builder::message`]. What handlers share and ask for: [`State`], [`FromContext`]. What stands around each run: [`Middleware`]. When a run should end:
//! [`JobContext::cancelled`]. How to test all of it without waiting: `testing`, behind the feature `testing`.

mod app;
mod builder;
mod conformance;
mod job;
mod sockets;
#[cfg(feature = "testing")]
pub mod testing;

pub use app::App;
pub use builder::{BuildError, Builder};
#[doc(hidden)]
pub use conformance::conformance;
pub use job::Job;
pub use tidewire_core::commit::{
    Committed, Delay, NewEvent, NewFlow, NewJob, NewSchedule, NewUnique, ParamValue, Priority, Request,
};
pub use tidewire_core::job::{OnConflict, OnFailure, State as JobState, States as JobStates, Verdict};
pub use tidewire_core::limit::{Rate, RateState};
pub use tidewire_core::retry::{Backoff, Jitter};
pub use tidewire_core::{Error, FieldError, Id, Json, Kind, Result, TenantId, Timestamp, catalog, store};
pub use tidewire_derive::Job;
pub use tidewire_runtime::{
    Answering, Attempt, Context, EventHandler, Events, Fatal, FromContext, HandlerError, HandlerResult, Heard,
    JobContext, JobHandler, MESSAGE_TIMEOUT, MessageContext, MessageHandler, Middleware, Next, Running, State, States,
    Stop, Tenant, cancel, done, done_with, fail, release, retry, retry_in, snooze,
};
pub use tidewire_server::auth::random_secret;
pub use tidewire_server::{Config, Problem, config};

/// The SQLite library that a store is opened with, for statements that join a commit.
pub use rusqlite;
