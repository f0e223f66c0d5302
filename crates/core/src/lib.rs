//! Tenants, the catalog, events, jobs and the contracts between the parts of Tidewire.
//!
//! Everything here is data and pure decisions: no IO, no async runtime, no global clock. Time comes from a [`time::Clock`], ids and
//! randomness from [`id::Ids`]; both are arguments. The parts that do things (`store`, `runtime`, `gateway`, `workers`) depend on this
//! crate and never on each other.
//!
//! Reading order: a [`TenantId`] owns [`event`]s and [`job`]s, whose types a [`catalog`] declares. A [`commit::Request`] is checked and
//! expanded against the catalog into a [`commit::Commit`], the atomic unit, and given to a [`store::Store`].

pub mod catalog;
pub mod commit;
mod error;
pub mod event;
pub mod expr;
pub mod id;
pub mod job;
mod json;
pub mod limit;
pub mod measure;
pub mod principal;
pub mod retry;
pub mod room;
pub mod schedule;
pub mod schema;
pub mod store;
pub mod suggest;
pub mod template;
mod tenant;
pub mod time;

pub use error::{Error, FieldError, Kind, Result};
pub use id::Id;
pub use json::Json;
pub use tenant::TenantId;
pub use time::Timestamp;
