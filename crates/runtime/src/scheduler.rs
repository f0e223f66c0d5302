//! The scheduler: sleeps until a slot is due and fires it. The store makes sure that a slot fires once.
//!
//! Schedules are those of the catalog, which fire for the app or for each tenant, and those that tenants and users made at run time. Of the latter
//! nothing is kept in memory: the due ones are read from the store when the earliest of them is due.

mod clockwork;
mod declared;
mod plan;
mod stored;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tidewire_core::event::Event;
use tidewire_core::store::Follower;
use tidewire_core::{Error, Result, Timestamp};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use clockwork::Clockwork;
pub use declared::{Declared, declared_schedules, run_schedule};

use crate::publisher::Publisher;

/// The longest sleep, so that a changed system clock is noticed before the slots that it skipped count as missed.
const LONGEST_SLEEP: Duration = Duration::from_secs(5);

/// How many schedules or tenants are in memory and fire at the same time, so that they share commits of the store.
const AT_ONCE: u32 = 500;

/// The smallest step of a timestamp.
const TICK: Duration = Duration::from_micros(1);

/// How long to wait before asking again for a slot whose predecessor is unfinished, or after the store refused.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// The running scheduler.
pub struct Scheduler {
    stop: CancellationToken,
    task: TaskTracker,
}

impl Scheduler {
    /// Starts firing the catalog's app-wide schedules and those of the store.
    pub fn start(publisher: Arc<Publisher>) -> Self {
        let stop = CancellationToken::new();
        let task = TaskTracker::new();
        let stopped = stop.clone();
        task.spawn(async move {
            tokio::select! {
                () = run(publisher) => {}
                () = stopped.cancelled() => {}
            }
        });
        task.close();
        Self { stop, task }
    }

    /// Stops firing. Slots that pass meanwhile are missed slots for the next start.
    pub async fn stop(self) {
        self.stop.cancel();
        self.task.wait().await;
    }
}

/// Waits for all that fire at the same time. The error of one of them comes when all have ended.
async fn all_of<T: 'static>(mut firing: JoinSet<Result<T>>) -> Result<()> {
    let mut failed = None;
    while let Some(fired) = firing.join_next().await {
        let fired = fired.unwrap_or_else(|lost| Err(Error::internal("the firing of a schedule did not end", lost)));
        failed = fired.err().or(failed);
    }
    failed.map_or(Ok(()), Err)
}

async fn run(publisher: Arc<Publisher>) {
    let alarm = Arc::new(Alarm { set_to: AtomicI64::new(i64::MAX), rings: Notify::new() });
    publisher.store().follow(alarm.clone());
    let clock = publisher.clock().clone();
    let mut clockwork = Clockwork::new(publisher);
    loop {
        // Whatever is put from here on is perhaps not seen by this look, so it rings.
        alarm.set_to.store(i64::MAX, Ordering::SeqCst);
        let now = clock.now();
        let next = clockwork.tick(now).await.unwrap_or(Timestamp::from_micros(i64::MAX)).min(now + LONGEST_SLEEP);
        alarm.set_to.store(next.as_micros(), Ordering::SeqCst);
        let sleep = next.since(clock.now()).max(Duration::from_millis(1));
        tokio::select! {
            () = tokio::time::sleep(sleep) => {}
            () = alarm.rings.notified() => {}
        }
    }
}

/// Wakes the scheduler when a schedule was put that is due before it would wake by itself.
struct Alarm {
    set_to: AtomicI64,
    rings: Notify,
}

impl Follower for Alarm {
    fn committed(&self, _events: &[Arc<Event>]) {}

    fn scheduled(&self, next: Timestamp) {
        if next.as_micros() < self.set_to.load(Ordering::SeqCst) {
            self.rings.notify_one();
        }
    }
}
