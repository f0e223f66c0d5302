//! Load tools: what Tidewire does per second, and what each operation costs.
//!
//! Every bench prints the machine and the durability mode beside each figure, runs several times, and measures a peer in the same run
//! where there is one. Run them on a quiet machine, in a release build: `cargo xtask bench`.

mod fanout;
mod http;
mod inprocess;
mod jobs;
mod load;
mod report;
mod server;
mod startup;

use std::time::Duration;

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long a timed measurement takes when `--seconds` is not given.
const TIME: Duration = Duration::from_secs(5);

#[derive(Parser)]
#[command(name = "tidewire-bench")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How often each measurement is made.
    #[arg(long, global = true, default_value_t = 3)]
    runs: usize,
    /// Only measurements whose name contains this text.
    #[arg(long, global = true)]
    only: Option<String>,
    /// Seconds of each timed measurement; 5, and 20 for the noisy neighbour.
    #[arg(long, global = true)]
    seconds: Option<u64>,
}

#[derive(Subcommand)]
enum Command {
    /// Durable publishes inside one process.
    Inprocess,
    /// Durable publishes over HTTP keep-alive.
    Http,
    /// Jobs in process and over HTTP, beside BullMQ on Redis.
    Jobs(jobs::Jobs),
    /// Socket.IO sockets: fan-out, idle, disturbed, back after a crash; beside Node.js socket.io and socketioxide.
    Fanout(fanout::Fanout),
    /// Cold start, and what an idle server uses.
    Startup,
    /// Everything above, without `jobs --big`.
    All,
    /// The server that the others measure.
    #[command(hide = true)]
    Serve(server::Serve),
}

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Serve(serve) => serve.run(),
        command => {
            let runs = report::Runs { count: cli.runs.max(1), only: cli.only };
            measure(command, &runs, cli.seconds.map(|seconds| Duration::from_secs(seconds.max(1))))
        }
    };
    match done {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tidewire-bench: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

/// `seconds` is the time of each timed measurement where the caller gave one.
fn measure(command: Command, runs: &report::Runs, seconds: Option<Duration>) -> anyhow::Result<()> {
    println!("{}", report::machine());
    let time = seconds.unwrap_or(TIME);
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        match command {
            Command::Inprocess => inprocess::run(runs, time).await,
            Command::Http => http::run(runs, time).await,
            Command::Jobs(jobs) => jobs.run(runs, seconds).await,
            Command::Fanout(fanout) => fanout.run(runs, time).await,
            Command::Startup => startup::run(runs).await,
            Command::All => {
                inprocess::run(runs, time).await?;
                http::run(runs, time).await?;
                jobs::Jobs::default().run(runs, seconds).await?;
                startup::run(runs).await?;
                fanout::Fanout::default().run(runs, time).await
            }
            Command::Serve(_) => Ok(()),
        }
    })
}
