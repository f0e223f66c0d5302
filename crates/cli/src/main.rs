//! The `tidewire` binary: `dev`, `serve`, `check`.

mod check;
mod conformance;
mod dev;
mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Durable events, background jobs, schedules and live sockets that commit together, per tenant.
#[derive(Parser)]
#[command(name = "tidewire", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Try it: an embedded store in ./.tidewire, loopback only, demo credentials and a live page.
    Dev(dev::Dev),
    /// Serve an app.
    Serve(serve::Serve),
    /// Check a catalog: errors with file and line, then what is legal but probably wrong.
    Check(check::Check),
    /// Serve what the protocols' own test suites expect. For the project's tests.
    #[command(hide = true)]
    Conformance(conformance::Conformance),
}

fn main() -> ExitCode {
    if let Err(wrong) = log() {
        eprintln!("tidewire: {wrong}");
        return ExitCode::FAILURE;
    }
    let done = match Cli::parse().command {
        Command::Dev(dev) => dev.run(),
        Command::Serve(serve) => serve.run(),
        Command::Check(check) => return check.run(),
        Command::Conformance(conformance) => conformance.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tidewire: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Logs to stderr what `TIDEWIRE_LOG` lets through, as lines for people or, with `TIDEWIRE_LOG_FORMAT=json`, as one JSON object a line.
fn log() -> Result<(), String> {
    let filter = tracing_subscriber::EnvFilter::try_from_env("TIDEWIRE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,audit=info"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match std::env::var("TIDEWIRE_LOG_FORMAT").as_deref() {
        Ok("json") => lines.json().flatten_event(true).init(),
        Ok("text" | "") | Err(std::env::VarError::NotPresent) => lines.init(),
        Ok(other) => return Err(format!("TIDEWIRE_LOG_FORMAT: expected text or json, got {other:?}")),
        Err(error) => return Err(format!("TIDEWIRE_LOG_FORMAT: {error}")),
    }
    Ok(())
}

/// A runtime for a server on all cores.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// Ends the process when the disk has failed: what was answered is safe, and a supervisor starts it again.
#[allow(clippy::exit, reason = "a store that cannot write must not go on serving")]
fn on_fatal(error: &tidewire::Error) {
    eprintln!("tidewire: the store failed, stopping: {error}");
    std::process::exit(1);
}
