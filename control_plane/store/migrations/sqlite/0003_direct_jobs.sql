-- Jobs that belong to no run, and what is kept of attempts that failed. A lane holds jobs of one priority, so that a
-- claim that goes by priority reads the same index.

ALTER TABLE lanes ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;

ALTER TABLE jobs ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN retry_backoff REAL NOT NULL DEFAULT 1.0;
ALTER TABLE jobs ADD COLUMN retry_max_delay REAL;
ALTER TABLE jobs ADD COLUMN external_id TEXT;
CREATE UNIQUE INDEX jobs_by_external_id ON jobs (project_id, external_id) WHERE external_id IS NOT NULL;

CREATE INDEX jobs_finished_badly ON jobs_finished (status, seq) WHERE status <> 'completed';

-- One row for an attempt that failed, none for any other.
CREATE TABLE job_attempts (
    job_seq INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    session_id TEXT,
    worker_instance_id TEXT,
    error_type TEXT NOT NULL,
    error_message TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    ended_at INTEGER NOT NULL,
    PRIMARY KEY (job_seq, attempt)
) WITHOUT ROWID;
