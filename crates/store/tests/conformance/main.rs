//! What every engine must do: the promises of `tidewire_core::store`, each as a test that runs on each engine.
//!
//! Time is virtual. The writer looks at its timers on every call, so after moving the clock any call makes due things happen; no test
//! sleeps. [`every_engine`] names the tests of a module once; one that is not named is dead code and the compiler says so.

/// Runs the named tests of a module on every engine.
macro_rules! every_engine {
    ($($test:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test] async fn $test() { super::$test(crate::world::World::memory()).await })*
        }
        #[cfg(feature = "sqlite")]
        mod sqlite {
            $(#[tokio::test] async fn $test() { super::$test(crate::world::World::sqlite()).await })*
        }
    };
}

mod bulk;
mod change;
mod commits;
mod control;
mod counted;
#[cfg(feature = "sqlite")]
mod disk;
mod dispatch;
mod expiry;
mod figures;
#[cfg(feature = "sqlite")]
mod files;
mod flow_control;
mod flows;
mod found;
mod keep;
mod keys;
mod leases;
mod limits;
mod log;
#[cfg(feature = "sqlite")]
mod model;
mod oracle;
mod progress;
mod queues;
#[cfg(feature = "sqlite")]
mod restart;
mod schedules;
mod seeded;
mod sessions;
mod settle;
mod stored_schedules;
mod tenants;
#[cfg(feature = "sqlite")]
mod together;
mod unique;
mod whole_flows;
mod world;
