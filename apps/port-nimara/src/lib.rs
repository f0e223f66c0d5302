//! Port Nimara: the marina CRM of `tidewire dev`, as a Rust team would write it on Tidewire.
//!
//! The website's registration form is one transaction: the client's row, the interest's row, four kinds of events and two jobs are all
//! there when the website gets its 201, or none of them is. Everything else follows from the catalog beside this folder: which rooms hear
//! the events, and which jobs they cause.

mod demo;
mod notify;
mod registration;

use std::sync::Arc;

use axum::Router;
use tidewire::{App, Builder, Result};

pub use demo::PORTS;

/// The catalog of the app, for a binary that runs far from this folder: file names and contents.
pub const CATALOG: [(&str, &str); 3] = [
    ("app.toml", include_str!("../app.toml")),
    ("events.toml", include_str!("../events.toml")),
    ("jobs.toml", include_str!("../jobs.toml")),
];

/// Adds the handlers of the app's jobs.
#[must_use]
pub fn handlers(builder: Builder) -> Builder {
    builder.job(notify::registration).job(notify::duplicate).on(
        "notification:new",
        "unread-count",
        notify::unread_count,
    )
}

/// Creates the app's tables and answers its routes: the website's form and the live page with what that needs.
///
/// The live page hands out tokens of demo users to whoever asks, so these routes are for a loopback address only.
pub async fn routes(app: &App) -> Result<Router> {
    registration::create_tables(app).await?;
    let desk = Arc::new(registration::Desk::new(app.clone()));
    Ok(registration::routes(desk).merge(demo::routes(app.clone())))
}
