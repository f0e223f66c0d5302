//! The storage engines of Tidewire.
//!
//! An engine is a **writer** and its **rows**. The writer is the same for every embedded engine: one thread that takes all waiting calls,
//! applies them in one transaction, commits once, answers everybody, and then tells the followers of the log. It owns the dispatch heads,
//! the leases and the positions. The rows are where things are kept: a `SQLite` file, or memory.
//!
//! Invariants:
//! - Nothing is answered, and no follower is told, before the transaction that holds it has committed.
//! - A call checks everything before it writes anything, so that a refused call leaves no trace in a shared transaction.
//! - Dispatch heads are a bounded window on the pending rows; what does not fit is read again when the window has drained.
//! - A failed write to the disk ends the writer. Nothing that came after it is answered as done.
//!
//! Both engines pass the conformance suite in `tests/conformance`.

mod answer;
mod apply;
mod bonds;
mod change;
mod claims;
mod control;
mod counts;
mod dispatch;
mod embedded;
mod enqueue;
mod failpoint;
mod flows;
mod inbox;
mod key_rates;
mod lease;
mod memory;
mod meter;
mod names;
mod operate;
mod pace;
mod recent;
mod rows;
mod schedules;
#[cfg(feature = "sqlite")]
mod sqlite;
mod writer;

pub use memory::Memory;
#[cfg(feature = "sqlite")]
pub use sqlite::{Options as SqliteOptions, Sqlite};
