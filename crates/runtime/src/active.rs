//! The runs of this process by their leases, so that each can be told to stop.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tidewire_core::event::Event;
use tidewire_core::store::Follower;

use crate::context::{JobContext, Stop};

/// How many cancelled leases are remembered whose runs have not begun: the store tells of a lease while its answer is on the way.
const MAX_EARLY: usize = 1_024;

/// The runs that are going on. At most as many as the workers hold leases.
#[derive(Default)]
pub(crate) struct Active(Mutex<Runs>);

#[derive(Default)]
struct Runs {
    by_lease: HashMap<Box<str>, JobContext>,
    /// Cancelled before they were known here. Some of them may have ended instead, and go when others come.
    early: VecDeque<Box<str>>,
    is_stopping: bool,
}

impl Active {
    /// A run begins; it is told at once what it missed.
    pub(crate) fn begin(&self, context: &JobContext) {
        let mut runs = self.0.lock();
        if let Some(index) = runs.early.iter().position(|early| **early == *context.lease()) {
            runs.early.remove(index);
            context.stop(Stop::Cancelled);
        }
        if runs.is_stopping {
            context.stop(Stop::Shutdown);
        }
        runs.by_lease.insert(context.lease().into(), context.clone());
    }

    /// A run has ended and is settled.
    pub(crate) fn end(&self, context: &JobContext) {
        self.0.lock().by_lease.remove(context.lease());
    }

    /// The process stops: all runs are told, and those that still begin.
    pub(crate) fn shut_down(&self) {
        let mut runs = self.0.lock();
        runs.is_stopping = true;
        for context in runs.by_lease.values() {
            context.stop(Stop::Shutdown);
        }
    }
}

impl Follower for Active {
    fn committed(&self, _: &[Arc<Event>]) {}

    fn cancelled(&self, leases: &[Box<str>]) {
        let mut runs = self.0.lock();
        for lease in leases {
            if let Some(context) = runs.by_lease.get(lease) {
                context.stop(Stop::Cancelled);
                continue;
            }
            if runs.early.len() >= MAX_EARLY {
                runs.early.pop_front();
            }
            runs.early.push_back(lease.clone());
        }
    }
}
