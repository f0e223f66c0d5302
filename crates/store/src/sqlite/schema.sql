-- Names are written once and referred to by number. Times are microseconds since 1970. Ids are 16-byte UUIDs or text.
-- The views at the end are for people: `sqlite3 tidewire.db 'SELECT * FROM job_list LIMIT 5'`.

CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;

CREATE TABLE tenants (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, head INTEGER NOT NULL DEFAULT 0);
CREATE TABLE names (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);

CREATE TABLE events (
  tenant INTEGER NOT NULL,
  position INTEGER NOT NULL,
  id NOT NULL,
  type INTEGER NOT NULL,
  time INTEGER NOT NULL,
  stream TEXT,
  version INTEGER,
  user_id TEXT,
  correlation_id TEXT,
  causation_id TEXT,
  rooms TEXT NOT NULL,
  data TEXT NOT NULL,
  PRIMARY KEY (tenant, position)
) WITHOUT ROWID;
CREATE UNIQUE INDEX events_id ON events (tenant, id);
CREATE UNIQUE INDEX events_stream ON events (tenant, stream, version) WHERE stream IS NOT NULL;

-- The events of all tenants that go to rooms which span tenants, in the order of their commits.
CREATE TABLE across (number INTEGER PRIMARY KEY, tenant INTEGER NOT NULL, position INTEGER NOT NULL);

CREATE TABLE jobs (
  seq INTEGER PRIMARY KEY,
  tenant INTEGER NOT NULL,
  id NOT NULL,
  type INTEGER NOT NULL,
  queue INTEGER NOT NULL,
  state INTEGER NOT NULL,
  priority INTEGER NOT NULL,
  run_at INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  attempts INTEGER NOT NULL,
  created_at INTEGER NOT NULL,
  started_at INTEGER,
  finished_at INTEGER,
  nonce INTEGER,
  lease_until INTEGER,
  local INTEGER,
  worker TEXT,
  cancelled INTEGER,
  timeout INTEGER NOT NULL,
  depth INTEGER NOT NULL,
  backoff TEXT NOT NULL,
  user_id TEXT,
  correlation_id TEXT,
  causation_id TEXT,
  data TEXT NOT NULL,
  result TEXT,
  error TEXT,
  -- Only while the job waits and has never begun.
  expires_at INTEGER,
  -- Only while it holds the job back.
  key TEXT,
  -- What few jobs have, as JSON.
  rare TEXT
);
CREATE UNIQUE INDEX jobs_id ON jobs (tenant, id);
-- Dispatch order. A job that is leased in the turn that enqueued it never enters this index.
CREATE INDEX jobs_pending ON jobs (queue, type, priority, tenant, run_at, seq) WHERE state = 1;
CREATE INDEX jobs_due ON jobs (run_at) WHERE state = 0;
CREATE INDEX jobs_final ON jobs (queue, state, finished_at) WHERE state >= 4;

CREATE INDEX jobs_expiry ON jobs (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX jobs_key ON jobs (queue, tenant, key, priority, run_at) WHERE state = 3 AND key IS NOT NULL;

-- How many jobs there are. Written once per turn for what changed.
CREATE TABLE counts (
  queue INTEGER NOT NULL, tenant INTEGER NOT NULL, state INTEGER NOT NULL, n INTEGER NOT NULL,
  PRIMARY KEY (queue, tenant, state)
) WITHOUT ROWID;

CREATE TABLE uniques (
  tenant INTEGER NOT NULL, type INTEGER NOT NULL, key TEXT NOT NULL, job INTEGER NOT NULL, id NOT NULL, until INTEGER,
  -- How the job ended, as soon as it is forgotten.
  state INTEGER,
  PRIMARY KEY (tenant, type, key)
) WITHOUT ROWID;
CREATE INDEX uniques_until ON uniques (until) WHERE until IS NOT NULL;

-- Who waits for whom. The outcome of the parent is kept here, so that its child can read it however long the parent itself is kept.
CREATE TABLE edges (
  child INTEGER NOT NULL,
  parent INTEGER NOT NULL,
  ignores_failure INTEGER NOT NULL,
  id,
  ref TEXT,
  type INTEGER,
  state INTEGER,
  result TEXT,
  error TEXT,
  PRIMARY KEY (child, parent)
) WITHOUT ROWID;
CREATE INDEX edges_parent ON edges (parent);

CREATE TABLE flows (
  number INTEGER PRIMARY KEY,
  tenant INTEGER NOT NULL,
  id NOT NULL,
  name TEXT,
  created_at INTEGER NOT NULL,
  finished_at INTEGER,
  unfinished INTEGER NOT NULL DEFAULT 0,
  failed INTEGER NOT NULL DEFAULT 0,
  undoing INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX flows_id ON flows (tenant, id);
-- With the number behind it, as in every index: the order in which they began.
CREATE INDEX flows_tenant ON flows (tenant);
CREATE INDEX flows_finished ON flows (finished_at) WHERE finished_at IS NOT NULL;
CREATE TABLE flow_jobs (
  flow INTEGER NOT NULL,
  seq INTEGER NOT NULL,
  id NOT NULL,
  ref TEXT,
  type INTEGER NOT NULL,
  compensates,
  state INTEGER,
  finished_at INTEGER,
  PRIMARY KEY (flow, seq)
) WITHOUT ROWID;

CREATE TABLE logs (job INTEGER NOT NULL, time INTEGER NOT NULL, attempt INTEGER NOT NULL, text TEXT NOT NULL);
CREATE INDEX logs_job ON logs (job);

-- What was changed about a queue while it ran, as JSON; the catalog has the rest.
CREATE TABLE queue_settings (queue INTEGER PRIMARY KEY, settings TEXT NOT NULL);

-- `slot` is the next slot, `next_at` when it is looked at: later when it waits for the job of the slot before. No user is ''.
CREATE TABLE schedules (
  tenant INTEGER NOT NULL,
  key TEXT NOT NULL,
  user_id TEXT NOT NULL,
  revision INTEGER NOT NULL,
  spec TEXT NOT NULL,
  paused INTEGER NOT NULL,
  error TEXT,
  slot INTEGER,
  next_at INTEGER,
  last_at INTEGER,
  last_job,
  runs INTEGER NOT NULL,
  created_at INTEGER NOT NULL,
  PRIMARY KEY (tenant, key, user_id)
) WITHOUT ROWID;
CREATE INDEX schedules_next ON schedules (next_at) WHERE next_at IS NOT NULL;

-- One row per writer turn that leased jobs: finds them after a restart without an index on the state.
CREATE TABLE claims (batch INTEGER PRIMARY KEY, seqs BLOB NOT NULL);

CREATE TABLE attempts (
  job INTEGER NOT NULL,
  ended_at INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  started_at INTEGER,
  error TEXT NOT NULL,
  worker TEXT NOT NULL
);
CREATE INDEX attempts_job ON attempts (job);

CREATE TABLE dedup (tenant INTEGER NOT NULL, key TEXT NOT NULL, until INTEGER NOT NULL, PRIMARY KEY (tenant, key)) WITHOUT ROWID;
CREATE TABLE idempotency (
  tenant INTEGER NOT NULL, key TEXT NOT NULL, until INTEGER NOT NULL, digest BLOB NOT NULL, answer TEXT NOT NULL,
  PRIMARY KEY (tenant, key)
) WITHOUT ROWID;
CREATE TABLE slots (
  tenant INTEGER NOT NULL, key TEXT NOT NULL, slot INTEGER NOT NULL, job, runs INTEGER NOT NULL, PRIMARY KEY (tenant, key)
) WITHOUT ROWID;
CREATE TABLE sessions (tenant INTEGER NOT NULL, sid TEXT NOT NULL, until INTEGER NOT NULL, state TEXT NOT NULL, PRIMARY KEY (tenant, sid)) WITHOUT ROWID;

CREATE VIEW event_log AS
SELECT t.name AS tenant, e.position, n.name AS type, strftime('%Y-%m-%dT%H:%M:%fZ', e.time / 1e6, 'unixepoch') AS time,
  e.data, e.rooms, e.stream, e.version, e.user_id, e.correlation_id, e.causation_id,
  CASE typeof(e.id) WHEN 'blob' THEN lower(hex(e.id)) ELSE e.id END AS id
FROM events e JOIN tenants t ON t.id = e.tenant JOIN names n ON n.id = e.type;

CREATE VIEW job_list AS
SELECT t.name AS tenant, q.name AS queue, n.name AS type,
  CASE j.state WHEN 0 THEN 'scheduled' WHEN 1 THEN 'pending' WHEN 2 THEN 'processing' WHEN 3 THEN 'blocked' WHEN 4 THEN 'completed'
    WHEN 5 THEN 'failed' WHEN 6 THEN 'dead' WHEN 7 THEN 'cancelled' END AS state,
  j.priority, j.attempt, j.attempts, strftime('%Y-%m-%dT%H:%M:%fZ', j.run_at / 1e6, 'unixepoch') AS run_at, j.data, j.result, j.error,
  CASE typeof(j.id) WHEN 'blob' THEN lower(hex(j.id)) ELSE j.id END AS id
FROM jobs j JOIN tenants t ON t.id = j.tenant JOIN names q ON q.id = j.queue JOIN names n ON n.id = j.type;
