//! The calls that wait for the writer. Taken all at once, so that a busy writer pays one lock for a whole batch.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tidewire_core::measure::Counter;
use tidewire_core::{Error, Kind, Result};

/// The most calls that may wait. Beyond it callers are refused at once, so that memory stays bounded.
pub(crate) const MAX_WAITING: usize = 65_536;

/// A queue from many callers to the one writer.
pub(crate) struct Inbox<T> {
    state: Mutex<State<T>>,
    wake: Condvar,
    refused: Counter,
}

struct State<T> {
    calls: Vec<T>,
    sleeping: bool,
    closed: bool,
}

impl<T> Inbox<T> {
    pub(crate) fn new() -> Self {
        let state = State { calls: Vec::new(), sleeping: false, closed: false };
        Self { state: Mutex::new(state), wake: Condvar::new(), refused: Counter::default() }
    }

    /// How many calls wait.
    pub(crate) fn len(&self) -> usize {
        self.state.lock().calls.len()
    }

    /// How many calls were refused because too many waited.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.get()
    }

    /// Hands a call to the writer. Codes `unavailable` when the store is closed, `store.busy` when too many calls wait.
    pub(crate) fn send(&self, call: T) -> Result<()> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(closed());
        }
        if state.calls.len() >= MAX_WAITING {
            self.refused.up();
            let detail = format!("{MAX_WAITING} calls already wait for the store");
            return Err(Error::new(Kind::Limited, "store.busy", detail).with_retry_after(Duration::from_millis(100)));
        }
        state.calls.push(call);
        if state.sleeping {
            state.sleeping = false;
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Takes up to `most` waiting calls into `batch`, waiting up to `timeout` for a first one. Answers false when the inbox is closed and empty.
    pub(crate) fn take(&self, batch: &mut Vec<T>, most: usize, timeout: Option<Duration>) -> bool {
        let mut state = self.state.lock();
        if state.calls.is_empty() && !state.closed {
            state.sleeping = true;
            match timeout {
                Some(timeout) => {
                    self.wake.wait_for(&mut state, timeout);
                }
                None => self.wake.wait(&mut state),
            }
            state.sleeping = false;
        }
        if state.calls.len() <= most {
            std::mem::swap(&mut state.calls, batch);
        } else {
            batch.extend(state.calls.drain(..most));
        }
        !(state.closed && batch.is_empty())
    }

    /// Refuses calls from now on; the writer still takes those that wait.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.wake.notify_one();
    }

    /// Refuses calls from now on and drops those that wait: there is no writer any more.
    pub(crate) fn abandon(&self) {
        self.close();
        let waiting = std::mem::take(&mut self.state.lock().calls);
        drop(waiting);
    }
}

/// The answer of a store that takes no more calls.
pub(crate) fn closed() -> Error {
    Error::unavailable("the store is closed")
}
