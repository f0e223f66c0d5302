//! Random programs on every engine and on an oracle of the whole job machine, which says beforehand which job each claim gets and where
//! every job is after every step: its state, attempt and time, its flow, and what became of those that wait for it.
//!
//! The oracle scans lists and knows nothing of windows, indexes, transactions or engines. A program is shrunk when the two part, and
//! printed with its seed. `TIDEWIRE_SEED` chooses other programs, `TIDEWIRE_CASES` how many.

mod bench;
mod flows;
mod line;
mod machine;
mod program;
mod ties;

use std::cell::RefCell;
use std::collections::BTreeSet;

use proptest::test_runner::{TestCaseError, TestError};

use crate::seeded;
use crate::world::World;

/// The programs of every run that does not ask for others.
const SEED: u64 = 20_261_121;

/// How many there are then.
const CASES: u64 = 100;

/// What has to happen in the programs of a run for it to prove anything. Other programs than the usual ones may be too few for all of it.
const EXPECTED: [&str; 35] = [
    "aged",
    "blocked",
    "cancelled",
    "compensated",
    "completed",
    "dead",
    "deleted",
    "expired",
    "extended",
    "failed",
    "fired",
    "flow cancelled",
    "flow completed",
    "flow failed",
    "flow retried",
    "flow running",
    "flow undoing",
    "held by its key",
    "kept",
    "late",
    "lease lost",
    "lost",
    "overlapped",
    "paced",
    "pending",
    "poison",
    "processing",
    "queued",
    "redriven",
    "replaced",
    "scheduled",
    "stale",
    "superseded",
    "timed out",
    "waiting",
];

fn agrees(world: impl Fn() -> World) {
    let (seed, cases, mut runner) = seeded::runner(SEED, CASES);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let seen = RefCell::new(BTreeSet::new());
    let outcome = runner.run(&program::any(), |program| {
        runtime.block_on(bench::run(world(), &program, &mut seen.borrow_mut())).map_err(TestCaseError::fail)
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(why, program)) => {
            let steps: Vec<_> = program.steps.iter().map(|step| format!("  {step:?}")).collect();
            panic!(
                "with TIDEWIRE_SEED={seed}: {why}\nwith {:?}\nafter the steps\n{}",
                program.bounds,
                steps.join("\n")
            );
        }
        Err(TestError::Abort(why)) => panic!("with TIDEWIRE_SEED={seed}: {why}"),
    }
    let seen = seen.into_inner();
    let missing: Vec<_> = EXPECTED.into_iter().filter(|what| !seen.contains(what)).collect();
    assert!((seed, cases) != (SEED, CASES) || missing.is_empty(), "no program came to {missing:?}");
}

#[test]
fn memory_does_what_the_oracle_says() {
    agrees(World::memory);
}

#[cfg(feature = "sqlite")]
#[test]
fn sqlite_does_what_the_oracle_says() {
    agrees(World::unsynced);
}
