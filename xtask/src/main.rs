//! The chores of the project: `cargo xtask test`, `cargo xtask tidy`, `cargo xtask bench`.
//!
//! Only what cargo and npm cannot say in one line lives here. It depends on nothing but `anyhow`, so that the first chore on a fresh
//! machine starts within seconds.

mod steps;
mod test;
mod tidy;

use std::path::Path;
use std::process::{ExitCode, Stdio};

use anyhow::{Context as _, Result};

const USAGE: &str = "\
Usage: cargo xtask COMMAND

  test [--skip-install]  all tests: Rust, then the real binary with stock clients and a browser; installs what is missing
  tidy                   the rules of the house that need no compiler
  bench [ARGS...]        the load tools, optimised; `cargo xtask bench --help` lists them
";

fn main() -> Result<ExitCode> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lives in a folder of the workspace")?;
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["test"] => test::run(root, test::Install::Missing),
        ["test", "--skip-install"] => test::run(root, test::Install::Nothing),
        ["tidy"] => tidy::run(root),
        ["bench", args @ ..] => bench(root, args),
        ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        _ => {
            eprint!("{USAGE}");
            Ok(ExitCode::from(2))
        }
    }
}

fn bench(root: &Path, args: &[&str]) -> Result<ExitCode> {
    let mut cargo = steps::cargo(root);
    cargo.args(["run", "--release", "--package", "tidewire-bench", "--"]).args(args).stdin(Stdio::inherit());
    Ok(steps::run(&mut cargo)?.into())
}
