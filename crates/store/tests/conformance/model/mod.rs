//! Random programs on both engines and on a model of the job machine: after every step all three must agree.
//!
//! A program is a list of [`Step`]s. The SQLite engine is killed and opened again in between; the memory engine, which cannot be, is
//! told instead what a restart does to the jobs of the process. `TIDEWIRE_SEED` chooses other programs, `TIDEWIRE_CASES` how many.

mod machine;
mod run;

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any};
use proptest::prop_oneof;
use proptest::test_runner::{TestCaseError, TestError};

use crate::seeded;

/// The programs of every run that does not ask for others.
const SEED: u64 = 20_260_131;

/// One step of a program. Numbers that name a job or a lease are taken modulo what there is.
#[derive(Clone, Debug)]
enum Step {
    Commit { tenant: usize, events: Vec<NewEvent>, jobs: Vec<NewJob> },
    Claim { tenant: Option<usize>, kind: Option<usize>, max: u32, seconds: u32, local: bool },
    Settle { lease: usize, end: End },
    Renew { lease: usize, seconds: u32 },
    Control { job: usize, control: tidewire_core::store::Control },
    Advance { seconds: u32 },
    Kill,
}

#[derive(Clone, Debug)]
struct NewEvent {
    /// One of few ids, so that they meet.
    given: Option<u8>,
    stream: Option<u8>,
    /// How far the expected version is from the true one; mostly not at all.
    expects: Option<u64>,
}

#[derive(Clone, Debug)]
struct NewJob {
    given: Option<u8>,
    kind: usize,
    priority: u8,
    delay_seconds: u32,
    attempts: u16,
}

/// How a run ends.
#[derive(Clone, Debug)]
enum End {
    Done { effects: Option<NewEvent> },
    Retry { delay_seconds: Option<u32> },
    Fail,
    Snooze { delay_seconds: u32 },
    Release,
    Cancel,
}

fn event() -> impl Strategy<Value = NewEvent> {
    let given = proptest::option::weighted(0.4, 0..6_u8);
    let stream = proptest::option::weighted(0.5, 0..2_u8);
    let expects = proptest::option::weighted(0.5, prop_oneof![4 => Just(0), 1 => 1..3_u64]);
    (given, stream, expects).prop_map(|(given, stream, expects)| NewEvent { given, stream, expects })
}

fn job() -> impl Strategy<Value = NewJob> {
    let given = proptest::option::weighted(0.3, 0..8_u8);
    let delay = prop_oneof![3 => Just(0), 1 => 1..40_u32];
    (given, 0..2_usize, 1..=5_u8, delay, 1..=3_u16).prop_map(|(given, kind, priority, delay_seconds, attempts)| {
        NewJob { given, kind, priority, delay_seconds, attempts }
    })
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![
        3 => proptest::option::of(event()).prop_map(|effects| End::Done { effects }),
        3 => proptest::option::of(0..20_u32).prop_map(|delay_seconds| End::Retry { delay_seconds }),
        1 => Just(End::Fail),
        1 => (1..20_u32).prop_map(|delay_seconds| End::Snooze { delay_seconds }),
        1 => Just(End::Release),
        1 => Just(End::Cancel),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    use tidewire_core::store::Control;
    let tenant = proptest::option::weighted(0.7, 0..2_usize);
    let kind = proptest::option::weighted(0.4, 0..2_usize);
    let control = prop_oneof![Just(Control::Redrive), Just(Control::Cancel), Just(Control::Promote)];
    prop_oneof![
        6 => (0..2_usize, vec(event(), 0..3), vec(job(), 0..4))
            .prop_map(|(tenant, events, jobs)| Step::Commit { tenant, events, jobs }),
        6 => (tenant, kind, 1..4_u32, 3..40_u32, any::<bool>())
            .prop_map(|(tenant, kind, max, seconds, local)| Step::Claim { tenant, kind, max, seconds, local }),
        6 => (0..1000_usize, end()).prop_map(|(lease, end)| Step::Settle { lease, end }),
        2 => (0..1000_usize, 1..60_u32).prop_map(|(lease, seconds)| Step::Renew { lease, seconds }),
        3 => (0..1000_usize, control).prop_map(|(job, control)| Step::Control { job, control }),
        4 => (1..25_u32).prop_map(|seconds| Step::Advance { seconds }),
        1 => Just(Step::Kill),
    ]
}

#[test]
fn both_engines_and_the_model_agree() {
    let (seed, _, mut runner) = seeded::runner(SEED, 200);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let outcome =
        runner.run(&vec(step(), 1..120), |program| runtime.block_on(run::run(&program)).map_err(TestCaseError::fail));
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(why, program)) => {
            let steps: Vec<_> = program.iter().map(|step| format!("  {step:?}")).collect();
            panic!("with TIDEWIRE_SEED={seed}: {why}\nafter the steps\n{}", steps.join("\n"));
        }
        Err(TestError::Abort(why)) => panic!("with TIDEWIRE_SEED={seed}: {why}"),
    }
}
