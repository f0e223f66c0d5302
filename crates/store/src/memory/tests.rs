use tidewire_core::id::UuidV7;
use tidewire_core::time::ManualClock;

use super::*;

/// Who knows the epoch could run the generator it came from.
#[test]
fn the_secret_does_not_follow_from_the_ids() {
    let open = || {
        let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1)));
        Memory::open(clock.clone(), Arc::new(UuidV7::new(clock, 7))).expect("memory opens")
    };
    let (one, other) = (open(), open());
    assert_eq!(one.epoch(), other.epoch());
    assert_ne!(one.secret(), other.secret());
}
