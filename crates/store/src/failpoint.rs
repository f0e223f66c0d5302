//! Points at which a test can end the process: where a crash would hurt most, and where a kill from outside rarely hits.
//!
//! `TIDEWIRE_FAILPOINT=NAME:N` aborts the process when it reaches the point `NAME` for the `N`-th time. Only builds with debug
//! assertions know the variable; in others there is no point to reach.

/// A moment in the writer's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    /// All rows of a turn are written, none is committed.
    BeforeCommit,
    /// A turn is synced, and nobody has been answered.
    AfterCommit,
    /// The row of a job says that it is leased, and its transaction goes on.
    DuringClaim,
}

/// Ends the process here if it was asked to. Panics when the variable names no point: a test that kills nothing proves nothing.
#[cfg(debug_assertions)]
pub(crate) fn reach(point: Point) {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static ASKED: LazyLock<Option<(Point, u64)>> =
        LazyLock::new(|| std::env::var("TIDEWIRE_FAILPOINT").ok().map(|asked| parse(&asked)));
    static REACHED: AtomicU64 = AtomicU64::new(0);

    if let Some((asked, nth)) = *ASKED
        && asked == point
        && REACHED.fetch_add(1, Ordering::Relaxed) + 1 == nth
    {
        std::process::abort();
    }
}

/// Does nothing: this build has no failpoints.
#[cfg(not(debug_assertions))]
#[inline]
pub(crate) fn reach(_: Point) {}

#[cfg(debug_assertions)]
fn parse(asked: &str) -> (Point, u64) {
    let known = |name| match name {
        "before_commit" => Some(Point::BeforeCommit),
        "after_commit" => Some(Point::AfterCommit),
        "during_claim" => Some(Point::DuringClaim),
        _ => None,
    };
    asked
        .split_once(':')
        .and_then(|(name, nth)| Some((known(name)?, nth.parse().ok().filter(|nth| *nth > 0)?)))
        .unwrap_or_else(|| {
            let expected = "before_commit:N, after_commit:N or during_claim:N with N from 1";
            panic!("TIDEWIRE_FAILPOINT: expected {expected}, found {asked:?}")
        })
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_asked_for_by_name_and_number() {
        assert_eq!(parse("before_commit:1"), (Point::BeforeCommit, 1));
        assert_eq!(parse("after_commit:20"), (Point::AfterCommit, 20));
        assert_eq!(parse("during_claim:300"), (Point::DuringClaim, 300));
    }

    #[test]
    fn what_names_no_point_is_said_and_not_passed_over() {
        for asked in ["", "before_commit", "before_commit:0", "before_commit:x", "later:1"] {
            let said = std::panic::catch_unwind(|| parse(asked)).expect_err(asked);
            assert!(said.downcast_ref::<String>().is_some_and(|said| said.contains("during_claim:N")), "{asked}");
        }
    }
}
