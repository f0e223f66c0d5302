//! `cargo xtask test`: every test of the project, on a machine that may have nothing but Rust and Node.
//!
//! All suites run, whatever became of the one before; the exit code is the first failure's. The last thing on the screen is the last
//! runner's own summary.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use anyhow::{Context as _, Result};

use crate::steps::{self, Outcome};

/// The oldest Node that runs the black-box tests, as `engines` of tests/package.json says.
const NODE: (u32, u32) = (20, 11);
/// Where the page test looks for its browser.
const CHROMIUM: &str = "/usr/bin/chromium";

/// What to do about a program or package that the tests need and the machine lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Install {
    /// Install it where that is possible.
    Missing,
    /// Only say what is missing.
    Nothing,
}

/// Runs all suites and answers with the exit code of the first that failed.
pub(crate) fn run(root: &Path, install: Install) -> Result<ExitCode> {
    let tests = root.join("tests");
    browser(root, install)?;
    let clients = clients(&tests, install)?;
    let (built, binary) = build(root)?;

    let rust = if built.passed() {
        steps::run(steps::cargo(root).args(["test", "--workspace", "--no-fail-fast", "--quiet"]))?
    } else {
        eprintln!("The Rust tests were not run: they do not compile.");
        built
    };
    if !rust.passed() {
        eprintln!("\nThe Rust tests failed, and so will this command, whatever the next suite says.");
    }

    let black_box = match (clients, binary) {
        (Err(problem), _) => blocked(&problem),
        (Ok(()), None) => blocked("there is no binary to test"),
        (Ok(()), Some(binary)) => {
            steps::run(steps::program(&tests, "npm").args(["test", "--silent"]).env("TIDEWIRE_BIN", binary))?
        }
    };
    Ok(rust.or(black_box).into())
}

fn blocked(problem: &str) -> Outcome {
    eprintln!("The black-box tests were not run: {problem}");
    Outcome::BLOCKED
}

/// Sees to the browser. Without one the tests go on: the page test skips itself, or fails where `CI` is `true`.
fn browser(root: &Path, install: Install) -> Result<()> {
    let there = || Path::new(CHROMIUM).exists();
    if there() {
        return Ok(());
    }
    let is_root = fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    if install == Install::Missing && is_root && Path::new("/usr/bin/apt-get").exists() {
        for args in [&["update"][..], &["install", "-y", "--no-install-recommends", "chromium"]] {
            steps::run(steps::program(root, "apt-get").args(args).env("DEBIAN_FRONTEND", "noninteractive"))?;
        }
    }
    if !there() {
        eprintln!(
            "{CHROMIUM} is missing, so the live page is not tested (with CI=true that is a failure). Install it with:\n  \
             sudo apt-get update && sudo apt-get install -y chromium"
        );
    }
    Ok(())
}

/// Sees to Node and the packages of the stock clients. The inner error is what to tell the user.
fn clients(tests: &Path, install: Install) -> Result<Result<(), String>> {
    let (major, minor) = NODE;
    let found = version(tests, "node");
    if found.as_deref().and_then(parse_version).is_none_or(|found| found < NODE) || version(tests, "npm").is_none() {
        let found = found.unwrap_or_else(|| "none".to_owned());
        return Ok(Err(format!(
            "they need node {major}.{minor} or newer and npm, found node {found}. Install them with:\n  \
             curl -fsSL https://deb.nodesource.com/setup_22.x | sudo bash - && sudo apt-get install -y nodejs"
        )));
    }
    if is_installed(tests) {
        return Ok(Ok(()));
    }
    if install == Install::Nothing {
        return Ok(Err("their packages are missing or old. Run `npm ci` in tests/.".to_owned()));
    }
    let outcome = steps::run(steps::program(tests, "npm").args(["ci", "--no-audit", "--no-fund", "--loglevel=error"]))?;
    Ok(if outcome.passed() { Ok(()) } else { Err("`npm ci` failed in tests/.".to_owned()) })
}

fn version(folder: &Path, name: &str) -> Option<String> {
    let output = steps::program(folder, name).arg("--version").stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Major and minor of what `node --version` prints: `v20.11.1`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.strip_prefix('v')?.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// Whether the packages are those of the lock file: npm writes its own copy of the lock at the end of an install.
fn is_installed(tests: &Path) -> bool {
    let modified = |path: &str| fs::metadata(tests.join(path)).and_then(|file| file.modified());
    match (modified("node_modules/.package-lock.json"), modified("package-lock.json")) {
        (Ok(installed), Ok(locked)) => installed >= locked,
        (Err(_), _) | (_, Err(_)) => false,
    }
}

/// Compiles the binary and the Rust tests and answers where the binary is.
///
/// In one call, because cargo chooses the features of the dependencies for everything that it is asked for together: a build of the
/// binary alone would compile SQLite and half of the tree a second time.
fn build(root: &Path) -> Result<(Outcome, Option<PathBuf>)> {
    let mut cargo = steps::cargo(root);
    cargo.args(["build", "--workspace", "--lib", "--bins", "--tests", "--examples", "--keep-going"]);
    cargo.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
    steps::announce(&cargo);
    let output = cargo.output().context("could not start cargo")?;
    let messages = String::from_utf8(output.stdout).context("cargo's messages are UTF-8")?;
    let binary = messages.lines().filter_map(executable).find(|path| path.ends_with("tidewire"));
    Ok((output.status.into(), binary))
}

/// The file that one of cargo's JSON messages says it linked.
fn executable(message: &str) -> Option<PathBuf> {
    let (_, rest) = message.split_once(r#""executable":""#)?;
    let mut path = String::new();
    let mut characters = rest.chars();
    loop {
        match characters.next()? {
            '"' => return Some(path.into()),
            '\\' => path.push(characters.next()?),
            character => path.push(character),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_is_where_cargo_says() {
        let message = r#"{"reason":"compiler-artifact","filenames":["/a"],"executable":"/my \"own\"/debug/tidewire","fresh":true}"#;
        assert_eq!(executable(message), Some(PathBuf::from(r#"/my "own"/debug/tidewire"#)));
        assert_eq!(executable(r#"{"reason":"compiler-artifact","executable":null,"fresh":true}"#), None);
    }

    #[test]
    fn node_is_compared_by_number() {
        assert_eq!(parse_version("v20.9.0"), Some((20, 9)));
        assert!(parse_version("v20.9.0").is_some_and(|found| found < NODE));
        assert!(parse_version("v100.0.0").is_some_and(|found| found >= NODE));
        assert_eq!(parse_version("20"), None);
    }

    #[test]
    fn the_packages_ask_for_the_same_node() {
        let (major, minor) = NODE;
        let package = include_str!("../../tests/package.json");
        assert!(
            package.contains(&format!(r#""node": ">={major}.{minor}""#)),
            "NODE and engines in tests/package.json differ"
        );
    }
}
