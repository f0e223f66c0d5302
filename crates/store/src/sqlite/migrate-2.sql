-- From version 1 to 2: jobs that expire, share a key, are unique, wait for each other or have a log; counters, settings, schedules.
-- `schema.sql` says what each of these is for.
ALTER TABLE jobs ADD COLUMN expires_at INTEGER;
ALTER TABLE jobs ADD COLUMN key TEXT;
ALTER TABLE jobs ADD COLUMN rare TEXT;
CREATE INDEX jobs_expiry ON jobs (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX jobs_key ON jobs (queue, tenant, key, priority, run_at) WHERE state = 3 AND key IS NOT NULL;

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
CREATE INDEX edges_parent ON edges (parent) WHERE state IS NULL;

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

CREATE TABLE queue_settings (queue INTEGER PRIMARY KEY, settings TEXT NOT NULL);

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

INSERT INTO counts SELECT queue, tenant, state, count(*) FROM jobs GROUP BY queue, tenant, state;
