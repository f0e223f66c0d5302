//! What the rules do not bind: a file and the reason. A reason that no longer holds is a line to delete.

use super::Violation;
use super::tree::Tree;

/// A path from the root, and why.
type Exceptions = &'static [(&'static str, &'static str)];

/// Files that nobody writes by hand. No rule about text binds them.
const NOT_OURS: Exceptions = &[
    ("Cargo.lock", "written by cargo"),
    ("bench/peers/socketio/package-lock.json", "written by npm"),
    ("crates/server/assets/socket.io.min.js", "the stock client as its project publishes it"),
    ("tests/package-lock.json", "written by npm"),
];

/// Files that may be longer than the others.
const LONG: Exceptions = &[];

/// Files with a name that says too little elsewhere.
const NAMED: Exceptions = &[];

/// Rust files that may use what the compiler cannot check.
const UNCHECKED: Exceptions = &[];

/// Whether somebody else writes the file.
pub(super) fn is_not_ours(path: &str) -> bool {
    contains(NOT_OURS, path)
}

/// Whether the file may be longer than the others.
pub(super) fn may_be_long(path: &str) -> bool {
    contains(LONG, path)
}

/// Whether the file may have a name that says too little elsewhere.
pub(super) fn may_be_named_so(path: &str) -> bool {
    contains(NAMED, path)
}

/// Whether the Rust file may use what the compiler cannot check.
pub(super) fn may_be_unchecked(path: &str) -> bool {
    contains(UNCHECKED, path)
}

fn contains(exceptions: Exceptions, path: &str) -> bool {
    exceptions.iter().any(|(excepted, _)| *excepted == path)
}

/// Exceptions for files that are gone.
pub(super) fn check(tree: &Tree) -> Vec<Violation> {
    let all = [NOT_OURS, LONG, NAMED, UNCHECKED].concat();
    let gone = all.iter().filter(|(path, _)| !tree.has(path));
    let here = "xtask/src/tidy/exceptions.rs";
    let line = |path: &str| {
        let quoted = format!("\"{path}\"");
        let text = tree.text(here).unwrap_or_default();
        text.lines().position(|line| line.contains(&quoted)).map_or(1, |index| index + 1)
    };
    gone.map(|(path, _)| Violation::new(here, line(path), format!("there is no {path}: remove the exception")))
        .collect()
}
