-- Made whenever a file is opened that lacks them, so that files from before them get them, too.
CREATE INDEX IF NOT EXISTS dedup_until ON dedup (until);
CREATE INDEX IF NOT EXISTS idempotency_until ON idempotency (until);
CREATE INDEX IF NOT EXISTS sessions_until ON sessions (until);
