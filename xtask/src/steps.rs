//! Running other programs: what was run is printed, and how it ended becomes an exit code.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use anyhow::{Context as _, Result};

/// How a step ended, as the shell would number it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome(u8);

impl Outcome {
    /// A step that could not even start.
    pub(crate) const BLOCKED: Self = Self(1);
    /// A step that did what it should.
    pub(crate) const PASSED: Self = Self(0);

    /// Whether the exit code was zero.
    pub(crate) fn passed(self) -> bool {
        self == Self::PASSED
    }

    /// This outcome, or the one of the `next` step when this one passed.
    pub(crate) fn or(self, next: Self) -> Self {
        if self.passed() { next } else { self }
    }
}

impl From<ExitStatus> for Outcome {
    fn from(status: ExitStatus) -> Self {
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        Self(u8::try_from(code).unwrap_or(u8::MAX))
    }
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(outcome.0)
    }
}

/// The cargo that runs this program, in the folder of the workspace.
pub(crate) fn cargo(root: &Path) -> Command {
    program(root, std::env::var("CARGO").as_deref().unwrap_or("cargo"))
}

/// A program that is started in `folder` and reads nothing: a step that waits for an answer would wait for ever on a build machine.
pub(crate) fn program(folder: &Path, name: &str) -> Command {
    let mut command = Command::new(name);
    command.current_dir(folder).stdin(Stdio::null());
    command
}

/// Prints the command, runs it to its end and lets its output through.
pub(crate) fn run(command: &mut Command) -> Result<Outcome> {
    announce(command);
    let status = command.status().with_context(|| format!("could not start {}", shown(command)))?;
    Ok(status.into())
}

/// Prints the command as one would type it. On stderr, so that stdout stays the runners' own.
pub(crate) fn announce(command: &Command) {
    eprintln!("\n$ {}", shown(command));
}

fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_is_the_one_that_counts() {
        let (third, ninth) = (Outcome(3), Outcome(9));
        assert_eq!(Outcome::PASSED.or(third).or(ninth).or(Outcome::PASSED), third);
        assert!(Outcome::PASSED.or(Outcome::PASSED).passed());
    }

    #[test]
    fn a_killed_step_ends_as_the_shell_would_say() {
        assert_eq!(Outcome::from(ExitStatus::from_raw(9)), Outcome(137));
        assert_eq!(Outcome::from(ExitStatus::from_raw(101 << 8)), Outcome(101));
    }
}
