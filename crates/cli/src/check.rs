//! `tidewire check`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use tidewire::catalog::{lint, load};

/// The arguments of `tidewire check`.
#[derive(Args)]
pub(crate) struct Check {
    /// The folder with the app.toml.
    dir: PathBuf,
}

impl Check {
    /// Prints what is wrong. Exit code 1 when the catalog cannot be used, 0 otherwise.
    pub(crate) fn run(self) -> ExitCode {
        let catalog = match load(&self.dir) {
            Ok(catalog) => catalog,
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::FAILURE;
            }
        };
        for finding in lint(&catalog) {
            println!("{finding}");
        }
        println!(
            "{}: ok, {} events, {} rooms, {} queues, {} jobs, {} schedules, {} rules",
            catalog.app.name,
            catalog.events.len(),
            catalog.rooms.len(),
            catalog.queues.len(),
            catalog.jobs.len(),
            catalog.schedules.len(),
            catalog.rules.len(),
        );
        ExitCode::SUCCESS
    }
}
