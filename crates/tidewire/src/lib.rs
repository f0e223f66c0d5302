//! Durable events, background jobs, schedules and live sockets that commit together, per tenant.
//!
//! An app is a catalog (`app.toml`) and the handlers of its jobs. [`App::builder`] opens the store, starts workers, scheduler and
//! gateway, and gives an [`axum::Router`] with the HTTP API and the Socket.IO server to serve or to merge into a router of your own.
//!
//! ```no_run
//! use serde::{Deserialize, Serialize};
//! use tidewire::{App, Config, Job, JobContext, NewEvent, Request, TenantId, done};
//!
//! #[derive(Serialize, Deserialize)]
//! #[serde(rename_all = "camelCase")]
//! struct EoiReminder {
//!     document_id: String,
//!     recipient_email: String,
//! }
//!
//! impl Job for EoiReminder {
//!     const TYPE: &'static str = "eoi-reminder";
//! }
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let app = App::builder("apps/port-nimara")
//!     .config(Config::load(None, std::env::vars())?) // secrets come from the environment
//!     .store("sqlite:data/tidewire.db")
//!     .job(|job: EoiReminder, cx: JobContext| async move {
//!         println!("reminding {}, attempt {}", job.recipient_email, cx.job().attempt);
//!         done()
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

mod app;
mod builder;
mod job;
mod sockets;

pub use app::App;
pub use builder::{BuildError, Builder};
pub use job::Job;
pub use tidewire_core::commit::{Committed, NewEvent, NewJob, NewSchedule, ParamValue, Request};
pub use tidewire_core::job::Verdict;
pub use tidewire_core::limit::{Rate, RateState};
pub use tidewire_core::{Error, FieldError, Id, Json, Kind, Result, TenantId, Timestamp, catalog, store};
pub use tidewire_runtime::{HandlerError, HandlerResult, JobContext, cancel, done, done_with, fail, retry, snooze};
pub use tidewire_server::auth::random_secret;
pub use tidewire_server::{Config, Problem, config};

/// The SQLite library that a store is opened with, for statements that join a commit.
pub use rusqlite;
