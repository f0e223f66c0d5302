use std::time::Duration;

use tidewire_core::job::{Job, State};
use tidewire_core::retry::Backoff;
use tidewire_core::{Id, Json, TenantId};

use super::*;
use crate::rows::{Holder, Keys};

const START: Timestamp = Timestamp::from_millis(1_750_000_000_000);
const LONG: Duration = Duration::from_secs(12 * 3600);

fn lease(seq: Seq, until: Timestamp) -> Lease {
    let job = Job {
        tenant: TenantId::new("a").expect("tenant"),
        id: Id::parse(&format!("j{seq}")).expect("id"),
        kind: "work".into(),
        queue: "q".into(),
        state: State::Processing,
        priority: 3,
        data: Json::empty_object(),
        attempt: 1,
        attempts: 3,
        backoff: Backoff::default(),
        timeout: Duration::from_secs(60),
        created_at: START,
        run_at: START,
        started_at: Some(START),
        finished_at: None,
        result: None,
        error: None,
        user_id: None,
        correlation_id: None,
        causation_id: None,
        depth: 0,
        rare: None,
        held: None,
    };
    let holder = Holder { nonce: 7, until, local: false, worker: "worker-1".into(), cancelled: false };
    let row = JobRow { seq, keys: Keys { tenant: 1, queue: 1, kind: 1 }, job, holder: Some(holder) };
    Lease { row, nonce: 7, until, batch: 1 }
}

#[test]
fn ends_of_settled_and_renewed_leases_do_not_gather() {
    let mut leases = Leases::default();
    leases.insert(lease(1, START + LONG));
    leases.insert(lease(2, START + LONG));
    for round in 0..10_000 {
        leases.insert(lease(3 + round, START + LONG));
        assert!(leases.remove(3 + round).is_some());
        leases.extend(1, START + LONG + Duration::from_secs(round.unsigned_abs()));
        let bound = 2 * leases.held.len() + ENDS_SLACK + 1;
        assert!(leases.ends.len() <= bound, "{} ends of 2 leases", leases.ends.len());
    }
    // Those that are held still end, each at its own time.
    assert_eq!(leases.pop_expired(START + LONG), Some(2));
    assert_eq!(leases.pop_expired(START + LONG), None);
    assert_eq!(leases.pop_expired(START + LONG * 2), Some(1));
}
