//! A SQLite store that can be closed, killed and opened again.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tempfile::TempDir;
use tidewire_core::id::UuidV7;
use tidewire_core::time::ManualClock;
use tidewire_core::{Error, Result};
use tidewire_store::{Sqlite, SqliteOptions};
use tokio::sync::mpsc;

use crate::world::{START, World, within};

pub(crate) struct Disk {
    directory: TempDir,
    clock: Arc<ManualClock>,
    is_synced: bool,
}

/// An open store on a disk.
pub(crate) struct Opened {
    pub(crate) sqlite: Sqlite,
    pub(crate) world: World,
    /// What the medium's failure said, once.
    pub(crate) fatal: mpsc::UnboundedReceiver<String>,
}

impl Disk {
    pub(crate) fn new() -> Self {
        Self::begun(true)
    }

    /// One whose commits are handed to the operating system and not synced.
    pub(crate) fn unsynced() -> Self {
        Self::begun(false)
    }

    fn begun(is_synced: bool) -> Self {
        let clock = Arc::new(ManualClock::new(START));
        Self { directory: tempfile::tempdir().expect("directory"), clock, is_synced }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("tidewire.db")
    }

    pub(crate) fn open(&self) -> Opened {
        self.try_open().expect("sqlite opens")
    }

    pub(crate) fn try_open(&self) -> Result<Opened> {
        let ids = Arc::new(UuidV7::new(self.clock.clone(), seed()));
        let (told, fatal) = mpsc::unbounded_channel();
        let on_fatal = Box::new(move |error: &Error| told.send(error.to_string()).expect("the test listens"));
        let options = SqliteOptions { path: self.path(), synced: self.is_synced, on_fatal };
        let sqlite = Sqlite::open(options, self.clock.clone(), ids.clone())?;
        let world = World::of(sqlite.store(), self.clock.clone(), ids);
        Ok(Opened { sqlite, world, fatal })
    }

    /// What a kill -9 at this moment leaves: the files as they are, on another disk.
    pub(crate) fn killed(&self) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let left = Self { directory, clock: self.clock.clone(), is_synced: self.is_synced };
        for suffix in ["db", "db-wal"] {
            let name = format!("tidewire.{suffix}");
            // A store that has ended by itself has folded its log into the file.
            if self.directory.path().join(&name).exists() {
                std::fs::copy(self.directory.path().join(&name), left.directory.path().join(&name)).expect("copy");
            }
        }
        left
    }
}

impl Opened {
    pub(crate) async fn close(self) {
        within(self.world.store.close()).await.expect("close");
    }
}

/// Another randomness for each process, so that no lease of one is a lease of the next by chance.
fn seed() -> u64 {
    static PROCESSES: AtomicU64 = AtomicU64::new(1);
    PROCESSES.fetch_add(1, Ordering::Relaxed) << 32
}
