//! Folding the write-ahead log into the database file (a checkpoint, in SQLite's words), beside the writer.
//!
//! Left to itself, SQLite does it inside the commit that finds the log long enough, and all who wait for that commit wait for the
//! database file as well. Here a thread of its own does it while the writer goes on writing. It never gets to the end of a log that
//! grows meanwhile, but only a log that is folded to its end can begin anew. So once the log has become long, the writer folds the
//! little that is left between two turns.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags};
use tidewire_core::{Error, Result};

use super::columns::fault;

/// Pages in the log that are worth folding, 4 MiB.
const WORTH: u32 = 1_000;

/// Pages in the log from which on the writer helps, so that it begins anew: 16 MiB.
const LONG: u32 = 4_000;

/// Pages in the log with which the writer waits until it is folded, 64 MiB: the thread or the disk does not keep up. Only a reader of
/// an old state can make it longer.
const MOST: u32 = 16_000;

/// How many turns the writer makes before it looks at the log again.
const LOOK_EVERY: u32 = 8;

/// How long the thread waits after the disk refused.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

const FOLD: &str = "PRAGMA wal_checkpoint = PASSIVE";
const LOOK: &str = "PRAGMA wal_checkpoint = NOOP";

/// The thread that folds, and what the writer knows of it. Dropping it waits for the thread.
pub(super) struct Folding {
    wake: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
    turns: u32,
}

#[derive(Default)]
struct Shared {
    /// The log is long and folded almost to its end.
    nearly: AtomicBool,
    /// Held by who folds. SQLite lets one at a time and turns the other away.
    pass: Mutex<()>,
}

/// How far a log is folded, in pages.
#[derive(Clone, Copy, Debug)]
struct Folded {
    log: u32,
    folded: u32,
}

impl Folding {
    /// Takes the folding over from SQLite for the writer's connection to the file at `path`.
    pub(super) fn start(path: &Path, writer: &Connection) -> Result<Self> {
        writer.pragma_update(None, "wal_autocheckpoint", 0).map_err(fault)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(fault)?;
        let (wake, woken) = sync_channel(1);
        let shared = Arc::new(Shared::default());
        let its = shared.clone();
        let thread = std::thread::Builder::new()
            .name("tidewire-fold".to_owned())
            .spawn(move || run(&connection, &woken, &its))
            .map_err(|error| Error::internal("the thread that folds the log cannot be started", error))?;
        Ok(Self { wake: Some(wake), thread: Some(thread), shared, turns: 0 })
    }

    /// Between two turns of the writer, on its connection.
    pub(super) fn tend(&mut self, writer: &Connection) -> Result<()> {
        self.turns += 1;
        if self.shared.nearly.swap(false, Ordering::Relaxed) {
            // Unless the thread is at it again.
            return self.shared.pass.try_lock().map_or(Ok(()), |_pass| go(writer, FOLD).map(drop)).map_err(fault);
        }
        if !self.turns.is_multiple_of(LOOK_EVERY) {
            return Ok(());
        }
        let Folded { log, folded } = go(writer, LOOK).map_err(fault)?;
        if log >= MOST {
            let _pass = self.shared.pass.lock();
            return go(writer, FOLD).map(drop).map_err(fault);
        }
        if let Some(wake) = self.wake.as_ref().filter(|_| log - folded >= WORTH) {
            // When it is full, the thread is told already.
            let _ = wake.try_send(());
        }
        Ok(())
    }
}

impl Drop for Folding {
    fn drop(&mut self) {
        self.wake = None;
        if let Some(thread) = self.thread.take() {
            // It ends after the pass that it is in. A panic has nothing to undo.
            drop(thread.join());
        }
    }
}

fn run(connection: &Connection, woken: &Receiver<()>, shared: &Shared) {
    while woken.recv().is_ok() {
        let pass = shared.pass.lock();
        let folded = go(connection, FOLD);
        drop(pass);
        match folded {
            Ok(Folded { log, .. }) if log >= LONG => shared.nearly.store(true, Ordering::Relaxed),
            Ok(_) => {}
            Err(error) => {
                // Nothing is lost: the log keeps what the file has not, and is folded again from there.
                tracing::warn!(%error, "the write-ahead log cannot be folded into the database; trying again");
                if woken.recv_timeout(AFTER_FAILURE) == Err(RecvTimeoutError::Disconnected) {
                    return;
                }
            }
        }
    }
}

/// Folds or looks, and answers how far the log is.
fn go(connection: &Connection, pragma: &str) -> rusqlite::Result<Folded> {
    connection.prepare_cached(pragma)?.query_row([], |row| {
        // Both are -1 when the log has never been opened.
        let pages = |column| row.get::<_, i64>(column).map(|pages| u32::try_from(pages).unwrap_or_default());
        Ok(Folded { log: pages(1)?, folded: pages(2)? })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE_BYTES: u64 = 4_096;

    fn open(path: &Path) -> Connection {
        let connection = Connection::open(path).expect("open");
        connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL").expect("set up");
        connection.execute_batch("CREATE TABLE t (n INTEGER PRIMARY KEY, data BLOB)").expect("a table");
        connection
    }

    /// One turn that writes about sixteen pages.
    fn write(connection: &Connection, turn: u32) {
        connection.execute("REPLACE INTO t VALUES (?1, zeroblob(65536))", [turn % 100]).expect("written");
    }

    #[test]
    fn a_log_that_is_written_without_a_pause_begins_anew_again_and_again() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("t.db");
        let writer = open(&path);
        let mut folding = Folding::start(&path, &writer).expect("started");
        let mut pages = 0;
        for turn in 0..4_000 {
            write(&writer, turn);
            folding.tend(&writer).expect("tended");
            pages += 16;
        }
        let bytes = std::fs::metadata(path.with_extension("db-wal")).expect("a log").len();
        // And the pages of the turns between two looks.
        assert!(bytes < u64::from(MOST + 2 * LOOK_EVERY * 17) * PAGE_BYTES, "{bytes} bytes after {pages} pages");
    }

    #[test]
    fn what_the_thread_does_is_no_work_of_the_writers() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("t.db");
        let writer = open(&path);
        let mut folding = Folding::start(&path, &writer).expect("started");
        for turn in 0..WORTH / 16 + 2 * LOOK_EVERY {
            write(&writer, turn);
            folding.tend(&writer).expect("tended");
        }
        let log = go(&writer, LOOK).expect("looked").log;
        assert!((WORTH..LONG).contains(&log), "{log}");
        // The thread ends after its pass.
        drop(folding);
        let Folded { log, folded } = go(&writer, LOOK).expect("looked");
        assert!(folded >= WORTH, "{folded} of {log} pages");
    }

    #[test]
    fn a_long_log_begins_anew_when_the_writer_has_done_the_rest() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("t.db");
        let writer = open(&path);
        let mut folding = Folding::start(&path, &writer).expect("started");
        for turn in 0..LONG / 16 {
            write(&writer, turn);
        }
        folding.wake.as_ref().expect("a thread").send(()).expect("woken");
        while !folding.shared.nearly.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        // What comes after the thread's pass is the writer's.
        write(&writer, 0);
        folding.tend(&writer).expect("tended");
        write(&writer, 1);
        let log = go(&writer, LOOK).expect("looked").log;
        assert!(log < 100, "{log} pages");
    }

    #[test]
    fn somebody_who_reads_an_old_state_keeps_it_and_the_writer_goes_on() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("t.db");
        let writer = open(&path);
        let reader = Connection::open(&path).expect("open");
        let count = || reader.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)).expect("read");
        write(&writer, 0);
        reader.execute_batch("BEGIN").expect("begun");
        assert_eq!(count(), 1);
        let mut folding = Folding::start(&path, &writer).expect("started");
        for turn in 1..1_100 {
            write(&writer, turn);
            folding.tend(&writer).expect("tended");
        }
        assert_eq!(count(), 1);
        reader.execute_batch("COMMIT").expect("ended");
        assert_eq!(count(), 100);
    }
}
