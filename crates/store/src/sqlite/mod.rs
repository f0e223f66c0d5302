//! The SQLite engine: one file, write-ahead log, synced before every answer.

mod bonds;
mod columns;
mod finished;
mod flows;
mod fold;
mod operate;
mod read;
mod rows;
mod schedules;
mod search;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use tidewire_core::catalog::QueueSettings;
use tidewire_core::commit::{Commit, Committed};
use tidewire_core::event::{Epoch, Event, Position};
use tidewire_core::id::Ids;
use tidewire_core::job::{FailedAttempt, Job, LogLine};
use tidewire_core::schedule::Stored;
use tidewire_core::store::{
    Answer, Counts, Durability, Flow, FlowQuery, JobQuery, LogQuery, Page, Parent, QueueTenant, ScheduleQuery, Store,
};
use tidewire_core::time::Clock;
use tidewire_core::{Error, Id, Kind, Result, TenantId, Timestamp};

use self::columns::{fault, meta};
use self::fold::Folding;
use self::read::Readers;
use self::rows::SqliteRows;
use crate::answer::{Call, Work, ask};
use crate::embedded::{Embedded, Identity, Reader, Size};
use crate::rows::{Found, read_cursor};
use crate::writer::OnFatal;

/// The version of `schema.sql`. A file of an older one is brought to it, a file of a newer one is refused.
const SCHEMA_VERSION: i64 = 5;

/// What leads from each version to the next: the first from 1 to 2. They never change once they are released.
const MIGRATIONS: [&str; 4] = [
    include_str!("migrate-2.sql"),
    include_str!("migrate-3.sql"),
    include_str!("migrate-4.sql"),
    include_str!("migrate-5.sql"),
];

/// Where and how to open a SQLite store.
pub struct Options {
    /// The database file; its directory is created when it is missing.
    pub path: PathBuf,
    /// Whether every commit is synced to the disk before it is answered. Without, an end of power can lose the last answers; the
    /// file stays whole, because its checkpoints are synced either way.
    pub synced: bool,
    /// Told once when the medium has failed and the store takes no more calls.
    pub on_fatal: Box<dyn FnOnce(&Error) + Send>,
}

/// A store in one SQLite file, used by one process at a time.
pub struct Sqlite {
    engine: Arc<Embedded<SqliteRows, SqliteReader>>,
}

impl Sqlite {
    /// Opens or creates the file. Codes `store.locked` when another process has it, `store.failed` when it cannot be used,
    /// `store.version` when another version of Tidewire wrote it.
    pub fn open(options: Options, clock: Arc<dyn Clock>, ids: Arc<dyn Ids>) -> Result<Self> {
        let lock = lock(&options.path)?;
        create_private(&options.path)?;
        // One thread uses the connection, so SQLite need not lock it.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection =
            Connection::open_with_flags(&options.path, flags).map_err(|error| at(&options.path, fault(error)))?;
        let identity = prepare(&connection, &options, &*ids).map_err(|error| at(&options.path, error))?;
        let reader = SqliteReader { readers: Arc::new(Readers::new(&options.path)), clock: clock.clone() };
        let on_fatal: OnFatal = options.on_fatal;
        let folding = Folding::start(&options.path, &connection).map_err(|error| at(&options.path, error))?;
        let rows = SqliteRows::new(connection, Some(folding), lock);
        let engine = Embedded::start(rows, reader, identity, clock, ids, on_fatal)?;
        Ok(Self { engine: Arc::new(engine) })
    }

    /// The store.
    pub fn store(&self) -> Arc<dyn Store> {
        self.engine.clone()
    }

    /// Runs the caller's own SQL and the commit that it leads to in one transaction: both are written or neither is.
    ///
    /// `work` runs on the writer's thread while every other write waits: keep it to a few statements, do no IO of another kind, and
    /// leave transactions and the tables of Tidewire alone. Returning an error undoes what it wrote, and so does a commit whose dedup
    /// or idempotency key is known: it is answered as the repetition that it is.
    pub fn commit_with(
        &self,
        work: impl FnOnce(&Connection) -> Result<Commit> + Send + 'static,
    ) -> Answer<'static, Committed> {
        let work: Work<SqliteRows> = Box::new(move |rows| work(&rows.connection));
        ask(self.engine.inbox(), |reply| Call::With(work, reply))
    }
}

/// Creates the file for its owner alone; SQLite gives the files beside it the same rights. One that exists keeps its own.
fn create_private(path: &Path) -> Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => {
            let detail = format!("{}: the database file cannot be created: {error}", path.display());
            Err(Error::new(Kind::Unavailable, "store.failed", detail))
        }
    }
}

fn at(path: &Path, error: Error) -> Error {
    let kind = error.kind();
    let code = error.code();
    Error::new(kind, code, format!("{}: {error}", path.display()))
}

/// Makes the directory and takes the lock beside the file, held as long as the value lives: until the writer has closed.
fn lock(path: &Path) -> Result<File> {
    let unusable = |what: &str, error: std::io::Error| {
        Error::new(Kind::Unavailable, "store.failed", format!("{}: {what}: {error}", path.display()))
    };
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(|error| unusable("the data directory cannot be created", error))?;
    }
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path.with_extension("lock"))
        .map_err(|error| unusable("the data directory cannot be written", error))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(Error::new(
            Kind::Unavailable,
            "store.locked",
            format!(
                "{}: another Tidewire process is using this data directory; stop it or choose another --data",
                path.display()
            ),
        )),
        Err(TryLockError::Error(error)) => Err(unusable("the data directory cannot be locked", error)),
    }
}

/// Sets the connection up, creates the schema when the file is new, and reads who the store is.
fn prepare(connection: &Connection, options: &Options, ids: &dyn Ids) -> Result<Identity> {
    let pragma = |name: &str, value: &dyn rusqlite::ToSql| connection.pragma_update(None, name, value).map_err(fault);
    pragma("journal_mode", &"WAL")?;
    pragma("synchronous", &if options.synced { "FULL" } else { "NORMAL" })?;
    pragma("cache_size", &-65_536)?;
    pragma("temp_store", &"MEMORY")?;

    keep_plans(connection)?;

    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(fault)?;
    match version {
        SCHEMA_VERSION => {}
        0 => {
            let has_tables = "SELECT EXISTS (SELECT 1 FROM sqlite_schema)";
            if connection.query_row(has_tables, [], |row| row.get(0)).map_err(fault)? {
                let detail = "the file is a SQLite database of somebody else; choose another one";
                return Err(Error::new(Kind::Unavailable, "store.failed", detail));
            }
            create(connection, ids)?;
        }
        older @ 1..SCHEMA_VERSION => migrate(connection, older)?,
        other => {
            let detail =
                format!("the database has schema version {other}, this Tidewire reads version {SCHEMA_VERSION}");
            return Err(Error::new(Kind::Unavailable, "store.version", detail));
        }
    }
    connection.execute_batch(include_str!("indexes.sql")).map_err(fault)?;
    let broken = || Error::new(Kind::Unavailable, "store.failed", "the database does not say which store it is");
    let epoch: String = meta(connection, "epoch")?.ok_or_else(broken)?;
    let secret: Vec<u8> = meta(connection, "secret")?.ok_or_else(broken)?;
    Ok(Identity {
        epoch: Epoch::new(&epoch)?,
        secret: secret.try_into().map_err(|_| broken())?,
        durability: if options.synced { Durability::Synced } else { Durability::Written },
    })
}

/// Plans statements once. Otherwise SQLite looks at the bound values and prepares a statement anew whenever they change.
fn keep_plans(connection: &Connection) -> Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(drop).map_err(fault)
}

fn migrate(connection: &Connection, from: i64) -> Result<()> {
    let steps: String = MIGRATIONS.into_iter().skip(usize::try_from(from - 1).unwrap_or_default()).collect();
    tracing::info!(from, to = SCHEMA_VERSION, "bringing the database to this version");
    connection
        .execute_batch(&format!("BEGIN IMMEDIATE; {steps} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"))
        .map_err(fault)
}

fn create(connection: &Connection, ids: &dyn Ids) -> Result<()> {
    let schema = include_str!("schema.sql");
    let epoch = Epoch::from_random(ids.random());
    // SQLite's randomblob comes from a generator that is seeded by the operating system.
    connection
        .execute_batch(&format!(
            "BEGIN IMMEDIATE; {schema} INSERT INTO meta (key, value) VALUES ('epoch', '{}'), ('secret', randomblob(32)); \
             PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;",
            epoch.as_str()
        ))
        .map_err(fault)
}

/// The read side of a SQLite store.
struct SqliteReader {
    readers: Arc<Readers>,
    clock: Arc<dyn Clock>,
}

impl Reader for SqliteReader {
    fn head(&self, tenant: &TenantId) -> Answer<'_, Position> {
        let tenant = tenant.clone();
        Box::pin(self.readers.read(move |connection| read::head(connection, &tenant)))
    }

    fn log(&self, tenant: &TenantId, query: LogQuery) -> Answer<'_, Vec<Arc<Event>>> {
        let tenant = tenant.clone();
        Box::pin(self.readers.read(move |connection| read::log(connection, &tenant, &query)))
    }

    fn event(&self, tenant: &TenantId, id: &Id) -> Answer<'_, Option<Arc<Event>>> {
        let (tenant, id) = (tenant.clone(), id.clone());
        Box::pin(self.readers.read(move |connection| read::event_by_id(connection, &tenant, &id)))
    }

    fn job(&self, tenant: &TenantId, id: &Id) -> Answer<'_, Option<(Job, Vec<FailedAttempt>)>> {
        let (tenant, id) = (tenant.clone(), id.clone());
        Box::pin(self.readers.read(move |connection| read::job(connection, &tenant, &id)))
    }

    fn jobs(&self, query: JobQuery) -> Answer<'_, Page<Job>> {
        Box::pin(self.readers.read(move |connection| search::jobs(connection, &query)))
    }

    fn find(&self, query: JobQuery) -> Answer<'_, Found> {
        Box::pin(self.readers.read(move |connection| search::find(connection, &query)))
    }

    fn logs(
        &self,
        tenant: &TenantId,
        id: &Id,
        cursor: Option<String>,
        limit: usize,
    ) -> Answer<'_, Option<Page<LogLine>>> {
        let (tenant, id) = (tenant.clone(), id.clone());
        Box::pin(self.readers.read(move |connection| {
            let after = read_cursor(cursor.as_deref(), 0)?;
            operate::logs(connection, &tenant, &id, after, limit)
        }))
    }

    fn queue_settings(&self) -> Answer<'_, BTreeMap<Arc<str>, QueueSettings>> {
        Box::pin(self.readers.read(operate::queue_settings))
    }

    fn queue_tenants(&self, queue: &str, limit: u32) -> Answer<'_, Vec<QueueTenant>> {
        let queue = queue.to_owned();
        Box::pin(self.readers.read(move |connection| operate::queue_tenants(connection, &queue, limit)))
    }

    fn counts(&self, tenant: Option<&TenantId>) -> Answer<'_, Counts> {
        let tenant = tenant.cloned();
        Box::pin(self.readers.read(move |connection| read::counts(connection, tenant.as_ref())))
    }

    fn flow(&self, tenant: &TenantId, id: &Id) -> Answer<'_, Option<Flow>> {
        let (tenant, id) = (tenant.clone(), id.clone());
        Box::pin(self.readers.read(move |connection| flows::flow(connection, &tenant, &id)))
    }

    fn parents(
        &self,
        tenant: &TenantId,
        id: &Id,
        cursor: Option<String>,
        limit: usize,
    ) -> Answer<'_, Option<Page<Parent>>> {
        let (tenant, id) = (tenant.clone(), id.clone());
        Box::pin(self.readers.read(move |connection| {
            let after = read_cursor(cursor.as_deref(), 0)?;
            flows::parents(connection, &tenant, &id, after, limit)
        }))
    }

    fn flows(&self, query: FlowQuery) -> Answer<'_, Page<Flow>> {
        Box::pin(self.readers.read(move |connection| flows::flows(connection, &query)))
    }

    fn due(&self, now: Timestamp, limit: u32) -> Answer<'_, Vec<Stored>> {
        Box::pin(self.readers.read(move |connection| schedules::due(connection, now, limit)))
    }

    fn tenants(&self, after: Option<&TenantId>, limit: u32) -> Answer<'_, Vec<TenantId>> {
        let after = after.cloned();
        Box::pin(self.readers.read(move |connection| schedules::tenants(connection, after.as_ref(), limit)))
    }

    fn next_due(&self) -> Answer<'_, Option<Timestamp>> {
        Box::pin(self.readers.read(schedules::next_due))
    }

    fn schedule(&self, tenant: &TenantId, key: &str, user_id: Option<&str>) -> Answer<'_, Option<Stored>> {
        let (tenant, key, user) = (tenant.clone(), key.to_owned(), user_id.unwrap_or_default().to_owned());
        Box::pin(self.readers.read(move |connection| schedules::one(connection, tenant, &key, &user)))
    }

    fn schedules(&self, query: ScheduleQuery) -> Answer<'_, Page<Stored>> {
        Box::pin(self.readers.read(move |connection| schedules::page(connection, &query)))
    }

    fn session(&self, tenant: &TenantId, sid: &str) -> Answer<'_, Option<String>> {
        let (tenant, sid, now) = (tenant.clone(), sid.to_owned(), self.clock.now());
        Box::pin(self.readers.read(move |connection| read::session(connection, &tenant, &sid, now)))
    }

    fn size(&self) -> Answer<'_, Size> {
        let path = self.readers.path().to_owned();
        Box::pin(self.readers.read(move |connection| operate::size(connection, &path)))
    }

    fn close(&self) {
        self.readers.close();
    }
}
