-- Made whenever a file is opened that lacks them, so that files from before them get them, too.
CREATE INDEX IF NOT EXISTS dedup_until ON dedup (until);
CREATE INDEX IF NOT EXISTS idempotency_until ON idempotency (until);
CREATE INDEX IF NOT EXISTS sessions_until ON sessions (until);
-- What did not complete is kept by tenant: cancelled jobs apart from dead letters.
CREATE INDEX IF NOT EXISTS jobs_uncompleted ON jobs (queue, tenant, (state = 7), finished_at) WHERE state >= 5;
