//! How many jobs of one queue run at once, and the change of that number while they run.

use std::pin::pin;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The slots of one queue in this process. One loop takes them; every run gives its own back.
pub(crate) struct Slots {
    count: Mutex<Count>,
    /// Wakes the loop that waits for a slot.
    freed: Notify,
    /// Tells the loop that waits for jobs that the slots it asked for may be gone.
    resized: Notify,
}

struct Count {
    limit: u32,
    taken: u32,
}

impl Slots {
    pub(crate) fn new(limit: u32) -> Self {
        Self { count: Mutex::new(Count { limit, taken: 0 }), freed: Notify::new(), resized: Notify::new() }
    }

    /// How many are free, as soon as at least one is.
    pub(crate) async fn free(&self) -> u32 {
        loop {
            let free = self.free_now();
            if free > 0 {
                return free;
            }
            self.freed.notified().await;
        }
    }

    fn free_now(&self) -> u32 {
        let count = self.count.lock();
        count.limit.saturating_sub(count.taken)
    }

    pub(crate) fn take(&self) {
        self.count.lock().taken += 1;
    }

    pub(crate) fn give_back(&self) {
        self.count.lock().taken -= 1;
        self.freed.notify_one();
    }

    /// Sets how many there are. When more are taken, they go as their runs end.
    pub(crate) fn resize(&self, limit: u32) {
        self.count.lock().limit = limit;
        self.freed.notify_one();
        self.resized.notify_waiters();
    }

    /// Ends when fewer than `asked` are free because there are fewer than there were.
    pub(crate) async fn fewer_than(&self, asked: u32) {
        loop {
            let mut resized = pin!(self.resized.notified());
            // From here on no change is missed, so the look at the count comes after it.
            resized.as_mut().enable();
            if self.free_now() < asked {
                return;
            }
            resized.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn free_now(slots: &Slots) -> Option<u32> {
        tokio::select! {
            biased;
            free = slots.free() => Some(free),
            () = std::future::ready(()) => None,
        }
    }

    #[tokio::test]
    async fn slots_grow_at_once_and_shrink_as_they_are_given_back() {
        let slots = Slots::new(2);
        slots.take();
        slots.take();
        assert_eq!(free_now(&slots).await, None);
        slots.resize(3);
        assert_eq!(free_now(&slots).await, Some(1));
        slots.resize(1);
        assert_eq!(free_now(&slots).await, None);
        slots.give_back();
        assert_eq!(free_now(&slots).await, None, "one is taken and one is allowed");
        slots.give_back();
        assert_eq!(free_now(&slots).await, Some(1));
    }

    #[tokio::test]
    async fn only_a_shrinking_takes_slots_back_that_were_asked_for() {
        let slots = Slots::new(2);
        slots.resize(4);
        tokio::select! {
            biased;
            () = slots.fewer_than(2) => panic!("there are more than before"),
            () = std::future::ready(()) => {}
        }
        slots.resize(1);
        slots.fewer_than(2).await;
    }
}
