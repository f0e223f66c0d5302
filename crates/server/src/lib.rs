//! The HTTP API, authentication and configuration of Tidewire.
//!
//! Only this crate knows HTTP shapes: it parses requests into the types of the core, calls the runtime, and turns answers and errors into
//! JSON. It decides who a caller is and which tenant that caller may act for; everything below takes the tenant as given.

pub mod api;
pub mod auth;
pub mod config;
mod fetch;
mod metrics;
mod problem;
pub mod revoke;
pub mod serve;
pub mod session;

pub use api::{Api, router};
pub use config::Config;
pub use problem::Problem;
