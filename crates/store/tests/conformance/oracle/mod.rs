//! Random programs on every engine and on an oracle of the whole job machine, which says beforehand which job each claim gets and where
//! every job is after every step: its state, attempt and time, its flow, and what became of those that wait for it.
//!
//! The oracle scans lists and knows nothing of windows, indexes, transactions or engines. A program is shrunk when the two part, and
//! printed with its seed. `TIDEWIRE_SEED` chooses other programs, `TIDEWIRE_CASES` how many.

mod bench;
mod line;
mod machine;
mod program;
mod ties;

use std::cell::RefCell;
use std::collections::BTreeSet;

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use crate::world::World;

/// The programs of every run that does not ask for others.
const SEED: u64 = 20_261_121;

/// How many there are then.
const CASES: u64 = 100;

/// What has to happen in the programs of a run for it to prove anything. Other programs than the usual ones may be too few for all of it.
const EXPECTED: [&str; 33] = [
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
    "flow completed",
    "flow failed",
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

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}: expected a number, got {text:?}")))
}

fn agrees(world: impl Fn() -> World) {
    let seed = number("TIDEWIRE_SEED", SEED);
    let cases = number("TIDEWIRE_CASES", CASES);
    let config = Config {
        cases: u32::try_from(cases).expect("cases"),
        max_shrink_iters: 3_000,
        failure_persistence: None,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
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
