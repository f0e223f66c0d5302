//! Which connections are woken next to write what was fanned out to them: those of each tenant in turn, a few at a time.
//!
//! The async runtime takes tasks in the order in which they are woken. Were all sockets of a large room woken at once, whatever else is
//! to be done would stand behind their writes. So they wait here, and gather more frames for one write meanwhile.

use std::collections::{HashMap, VecDeque};
use std::task::Waker;

use tidewire_core::TenantId;

/// How many connections of a tenant are woken before it is the next one's turn.
const IN_A_ROW: usize = 8;

/// Connections that wait to be woken, by tenant. All are woken at the latest when this is dropped. A connection stands here once at a
/// time, and is woken for any other reason meanwhile, so there are no more than it has wakes.
#[derive(Default)]
pub(super) struct Writers {
    tenants: HashMap<TenantId, VecDeque<Waker>>,
    /// Every tenant that has some, once; the first one's turn it is.
    order: VecDeque<TenantId>,
    /// How many of the first one's were woken in its turn.
    row: usize,
}

impl Writers {
    /// Takes those that got something of a tenant.
    pub(super) fn add(&mut self, tenant: &TenantId, writers: Vec<Waker>) {
        if writers.is_empty() {
            return;
        }
        match self.tenants.get_mut(tenant) {
            Some(waiting) => waiting.extend(writers),
            None => {
                self.order.push_back(tenant.clone());
                self.tenants.insert(tenant.clone(), writers.into());
            }
        }
    }

    /// Wakes the next one. Answers whether there was one.
    pub(super) fn wake_next(&mut self) -> bool {
        let Some(tenant) = self.order.front() else { return false };
        let waiting = self.tenants.get_mut(tenant);
        let (next, is_empty) = waiting.map_or((None, true), |waiting| (waiting.pop_front(), waiting.is_empty()));
        self.row += 1;
        if is_empty {
            self.tenants.remove(tenant);
            self.order.pop_front();
            self.row = 0;
        } else if self.row >= IN_A_ROW {
            self.order.rotate_left(1);
            self.row = 0;
        }
        let is_there = next.is_some();
        next.into_iter().for_each(Waker::wake);
        is_there
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        while self.wake_next() {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::task::Wake;

    use super::*;

    /// Writes its name down when it is woken.
    struct Named(&'static str, Arc<Mutex<Vec<&'static str>>>);

    impl Wake for Named {
        fn wake(self: Arc<Self>) {
            self.1.lock().expect("the names").push(self.0);
        }
    }

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).expect("a tenant")
    }

    #[test]
    fn a_few_of_each_tenant_are_woken_in_turn_and_all_in_the_end() {
        let woken = Arc::default();
        let some = |name, count| (0..count).map(|_| Waker::from(Arc::new(Named(name, Arc::clone(&woken))))).collect();
        let names = || std::mem::take(&mut *woken.lock().expect("the names"));
        let mut writers = Writers::default();
        assert!(!writers.wake_next());
        writers.add(&tenant("loud"), some("loud", 100));
        assert!((0..3).all(|_| writers.wake_next()));
        writers.add(&tenant("quiet"), some("quiet", 10));
        assert!((0..2 * IN_A_ROW).all(|_| writers.wake_next()));
        let first = names();
        assert_eq!(first.iter().filter(|name| **name == "quiet").count(), IN_A_ROW, "{first:?}");
        writers.add(&tenant("loud"), some("loud", 5));
        drop(writers);
        assert_eq!(names().len(), 115 - 3 - 2 * IN_A_ROW);
    }
}
