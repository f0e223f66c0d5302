//! Files that cannot be used, files that are in use, and a medium that fails.

use std::path::Path;
use std::sync::Arc;

use rusqlite::Connection;
use tidewire_core::event::Event;
use tidewire_core::store::{Claim, Follower};
use tidewire_core::time::ManualClock;
use tidewire_core::{Error, Kind};
use tidewire_store::{Sqlite, SqliteOptions};

use crate::disk::Disk;
use crate::world::{HOUR, START, any, clock_and_ids, code, commit, tenant, within};

/// Why a store cannot be opened: its code, and that people can read it on one line that names the file.
fn refused(path: &Path) -> &'static str {
    let (clock, ids) = clock_and_ids(START);
    let clock: Arc<ManualClock> = clock;
    let options = SqliteOptions { path: path.to_owned(), synced: true, on_fatal: Box::new(|_: &Error| {}) };
    let error = Sqlite::open(options, clock, ids).err().expect("it cannot be opened");
    assert!(!error.to_string().contains('\n'), "{error}");
    assert!(error.detail().contains(&path.display().to_string()), "{error}");
    assert_eq!(error.kind(), Kind::Unavailable);
    error.code()
}

#[tokio::test]
async fn a_file_in_use_is_locked() {
    let disk = Disk::new();
    let opened = disk.open();
    assert_eq!(refused(&disk.path()), "store.locked");
    // The one that has it is not disturbed, and closing makes room even for who still holds the closed one.
    opened.world.enqueue_one(&tenant("a")).await;
    within(opened.world.store.close()).await.expect("close");
    let next = disk.open();
    assert_eq!(next.world.claim(any()).await.len(), 1);
    assert_eq!(code(within(opened.world.store.head(&tenant("a"))).await), "unavailable");
}

#[tokio::test]
async fn a_directory_that_cannot_be_used_is_said() {
    let directory = tempfile::tempdir().expect("directory");
    let file = directory.path().join("file");
    std::fs::write(&file, "not a directory").expect("write");
    assert_eq!(refused(&file.join("tidewire.db")), "store.failed");
    assert_eq!(refused(&file.join("deeper/tidewire.db")), "store.failed");
    let taken = directory.path().join("taken.db");
    std::fs::create_dir(&taken).expect("directory");
    assert_eq!(refused(&taken), "store.failed");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_read_only_directory_is_said() {
    use std::os::unix::fs::PermissionsExt;
    // Nobody can write here, the superuser neither.
    assert_eq!(refused(Path::new("/proc/self/tidewire.db")), "store.failed");
    assert_eq!(refused(Path::new("/proc/tidewire/tidewire.db")), "store.failed");
    let directory = tempfile::tempdir().expect("directory");
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o555)).expect("permissions");
    // The superuser may write in spite of the mode; everybody else is told.
    if std::fs::write(directory.path().join("probe"), "").is_err() {
        assert_eq!(refused(&directory.path().join("tidewire.db")), "store.failed");
    }
}

#[tokio::test]
async fn a_directory_that_is_missing_is_made() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("one/two/tidewire.db");
    let (clock, ids) = clock_and_ids(START);
    let options = SqliteOptions { path: path.clone(), synced: true, on_fatal: Box::new(|_: &Error| {}) };
    let sqlite = Sqlite::open(options, clock, ids).expect("open");
    assert!(path.exists());
    within(sqlite.store().close()).await.expect("close");
}

#[tokio::test]
async fn a_file_of_a_later_version_is_left_alone() {
    let disk = Disk::new();
    let opened = disk.open();
    opened.world.append(&tenant("a"), vec![opened.world.event("x")]).await;
    opened.close().await;
    let set = |version: i64| {
        let connection = Connection::open(disk.path()).expect("open");
        connection.pragma_update(None, "user_version", version).expect("pragma");
    };
    set(6);
    assert_eq!(refused(&disk.path()), "store.version");
    set(5);
    assert_eq!(disk.open().world.head(&tenant("a")).await, 1);
}

#[tokio::test]
async fn a_file_that_is_no_database_is_left_alone() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("tidewire.db");
    let text = "these are the notes of somebody else\n".repeat(500);
    std::fs::write(&path, &text).expect("write");
    assert_eq!(refused(&path), "store.failed");
    assert_eq!(std::fs::read_to_string(&path).expect("read"), text);
}

#[tokio::test]
async fn a_damaged_file_is_said() {
    let disk = Disk::new();
    let opened = disk.open();
    opened.world.enqueue(&tenant("a"), (0..200).map(|_| opened.world.job("work")).collect()).await;
    opened.close().await;
    let mut bytes = std::fs::read(disk.path()).expect("read");
    bytes[4_096..].fill(0xA5);
    std::fs::write(disk.path(), bytes).expect("write");
    assert_eq!(refused(&disk.path()), "store.failed");
}

#[tokio::test]
async fn a_database_of_another_program_is_left_alone() {
    for their_version in [0, 1] {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("tidewire.db");
        let other = Connection::open(&path).expect("open");
        let schema = format!("CREATE TABLE notes (text); PRAGMA user_version = {their_version};");
        other.execute_batch(&schema).expect("their schema");
        drop(other);
        assert_eq!(refused(&path), "store.failed", "version {their_version}");
        let other = Connection::open(&path).expect("open");
        let tables: i64 = other.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).expect("tables");
        assert_eq!(tables, 1, "version {their_version}");
    }
}

/// The medium stops taking writes: whoever waits is told, nothing more is answered as done, and what was acknowledged stays.
#[cfg(unix)]
#[tokio::test]
async fn the_file_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let disk = Disk::new();
    let opened = disk.open();
    opened.world.enqueue_one(&tenant("a")).await;
    for suffix in ["", "-wal", "-shm"] {
        let file = format!("{}{suffix}", disk.path().display());
        let mode = std::fs::metadata(&file).expect(&file).permissions().mode();
        assert_eq!(mode & 0o077, 0, "{file} is {mode:o}");
    }
}

#[tokio::test]
async fn a_failed_write_ends_the_store() {
    let disk = Disk::new();
    let a = tenant("a");
    let mut opened = disk.open();
    opened.world.append(&a, vec![opened.world.event("acknowledged")]).await;
    let parked = opened.world.store.claim(Claim { wait: HOUR, ..any() });
    let broken = opened.sqlite.commit_with(|connection| {
        connection.pragma_update(None, "query_only", true).expect("pragma");
        Err(Error::unavailable("this is where the disk breaks"))
    });
    assert_eq!(code(within(broken).await), "unavailable");
    let lost = commit(&a, vec![opened.world.event("lost")], vec![opened.world.job("lost")]);
    assert_eq!(code(opened.world.try_commit(lost.clone()).await), "unavailable");
    assert_eq!(code(within(parked).await), "unavailable");
    let said = within(opened.fatal.recv()).await.expect("told");
    assert!(said.contains("read-only"), "{said}");
    assert_eq!(code(opened.world.try_commit(lost).await), "unavailable");
    assert_eq!(within(opened.fatal.recv()).await, None, "told once");
    assert_eq!(opened.world.head(&a).await, 1);

    let image = disk.killed();
    assert_eq!(image.open().world.head(&a).await, 1);
}

struct Clumsy;

impl Follower for Clumsy {
    fn committed(&self, _events: &[Arc<Event>]) {
        panic!("a follower with a bug");
    }
}

/// Nobody hangs on a writer that is gone.
#[tokio::test]
async fn a_follower_that_panics_ends_the_store() {
    let disk = Disk::new();
    let mut opened = disk.open();
    let world = &opened.world;
    let parked = world.store.claim(Claim { wait: HOUR, ..any() });
    world.store.follow(Arc::new(Clumsy));
    world.append(&tenant("a"), vec![world.event("acknowledged")]).await;
    assert_eq!(code(within(parked).await), "unavailable");
    let said = within(opened.fatal.recv()).await.expect("told");
    assert!(said.contains("a follower with a bug"), "{said}");
    assert_eq!(code(opened.world.try_commit(commit(&tenant("a"), Vec::new(), Vec::new())).await), "unavailable");
    let image = disk.killed();
    assert_eq!(image.open().world.head(&tenant("a")).await, 1);
}

#[tokio::test]
async fn people_can_read_the_file() {
    let disk = Disk::new();
    let opened = disk.open();
    let world = &opened.world;
    world.commit(commit(&tenant("a"), vec![world.event("order.placed")], vec![world.job("send")])).await;
    let people = Connection::open(disk.path()).expect("open");
    let event: (String, i64, String, String) = people
        .query_row("SELECT tenant, position, type, time FROM event_log", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })
        .expect("event_log");
    assert_eq!(event, ("a".to_owned(), 1, "order.placed".to_owned(), "2025-06-15T15:06:40.000Z".to_owned()));
    let job: (String, String, String, String) = people
        .query_row("SELECT tenant, queue, type, state FROM job_list", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })
        .expect("job_list");
    assert_eq!(job, ("a".to_owned(), "q".to_owned(), "send".to_owned(), "pending".to_owned()));
}
