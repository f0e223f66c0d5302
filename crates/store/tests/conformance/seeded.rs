//! Random programs that can be repeated.

use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// How often a program that fails is made smaller.
const MAX_SHRINK_ITERS: u32 = 4_000;

/// A runner, and the seed and number of its programs: those given, or what `TIDEWIRE_SEED` and `TIDEWIRE_CASES` say.
pub(crate) fn runner(seed: u64, cases: u64) -> (u64, u64, TestRunner) {
    let (seed, cases) = (number("TIDEWIRE_SEED", seed), number("TIDEWIRE_CASES", cases));
    let config = Config {
        cases: u32::try_from(cases).expect("cases"),
        max_shrink_iters: MAX_SHRINK_ITERS,
        failure_persistence: None,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    (seed, cases, TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes)))
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}: expected a number, got {text:?}")))
}
