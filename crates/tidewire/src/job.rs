//! A job type as a Rust type.

use serde::Serialize;
use serde::de::DeserializeOwned;
use tidewire_core::commit::NewJob;
use tidewire_core::{Json, Result};

/// The data of one job type, which the catalog declares. Usually derived:
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use tidewire::{Job, Priority};
///
/// #[derive(Serialize, Deserialize, tidewire::Job)]
/// #[job(queue = "email", attempts = 5, backoff = "exponential(1s, factor 2, cap 5m)", timeout = "60s", priority = "high")]
/// struct SendWelcome { to: String }
///
/// assert_eq!(SendWelcome::TYPE, "send-welcome");
/// let job = SendWelcome { to: "ada@example.com".to_owned() }.stage()?;
/// assert_eq!((job.queue.as_deref(), job.attempts, job.priority), (Some("email"), Some(5), Some(Priority(2))));
/// # Ok::<(), tidewire::Error>(())
/// ```
///
/// Every option may be left out; then it is as the catalog says. What is given wins for jobs that are staged from the struct, in this
/// process; jobs of this type that come by HTTP, from rules or from schedules are as the catalog says.
///
/// | option | |
/// |---|---|
/// | `type = "welcome"` | the type in the catalog; default: the name of the struct, `SendWelcome` as `send-welcome` |
/// | `queue = "email"` | the queue, declared in the catalog |
/// | `attempts = 5` | runs that it may have, 1 to 1,000 |
/// | `backoff = "fixed(5s)"` | the same wait before each retry |
/// | `backoff = "exponential(1s, factor 2, cap 5m)"` | `1s`, `2s`, `4s` … up to `5m`; factor 1 to 1,000, default 2; cap default `5m` |
/// | `backoff = "1s, 10s, 1m"` | these, the last one again and again; at most 100 |
/// | `timeout = "60s"` | the longest run |
/// | `ttl = "10m"` | it is cancelled if its first run has not begun by then |
/// | `retry_for = "24h"` | no retry is due later than this after it was enqueued |
/// | `priority = 2` | 1 (first) to 5, or `"critical"`, `"high"`, `"normal"`, `"low"` |
/// | `key = "{to}"` | what `perKey` and `ratePerKey` of the queue count by, from fields of the data |
/// | `unique(key = "{to}", …)` | at most one such job |
///
/// `fixed` and `exponential` take `jitter 0.2`, which takes off up to a fifth at random, or `jitter 1s`, which adds up to a second.
/// Durations are `250ms`, `30s`, `5m`, `24h`, `7d`. A wrong option does not compile:
///
/// ```compile_fail
/// # use serde::{Deserialize, Serialize};
/// #[derive(Serialize, Deserialize, tidewire::Job)]
/// #[job(attempts = 0)] // attempts: expected 1 to 1000
/// struct SendWelcome { to: String }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a job type",
    note = "add `#[derive(serde::Serialize, serde::Deserialize, tidewire::Job)]` to it"
)]
pub trait Job: Serialize + DeserializeOwned + Send + 'static {
    /// The name of the job type in the catalog.
    const TYPE: &'static str;

    /// The job as it is staged into a commit. Code `json.invalid` when the data cannot be written as JSON.
    fn stage(&self) -> Result<NewJob> {
        Ok(NewJob::new(Self::TYPE, Json::from_serialize(self)?))
    }
}
