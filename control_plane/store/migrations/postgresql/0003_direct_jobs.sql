-- Jobs that belong to no run, and what is kept of attempts that failed. A lane holds jobs of one priority, so that a
-- claim that goes by priority reads the same index.

ALTER TABLE lanes ADD COLUMN priority bigint NOT NULL DEFAULT 0;
ALTER TABLE lanes DROP CONSTRAINT lanes_project_id_queue_environment_id_action_name_provider__key;
ALTER TABLE lanes ADD UNIQUE NULLS NOT DISTINCT
    (project_id, queue, environment_id, action_name, provider, model, priority);

ALTER TABLE jobs ADD COLUMN priority bigint NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN retry_backoff double precision NOT NULL DEFAULT 1.0;
ALTER TABLE jobs ADD COLUMN retry_max_delay double precision;
ALTER TABLE jobs ADD COLUMN external_id text;
CREATE UNIQUE INDEX jobs_by_external_id ON jobs (project_id, external_id) WHERE external_id IS NOT NULL;

CREATE INDEX jobs_finished_badly ON jobs_finished (status, seq) WHERE status <> 'completed';

-- One row for an attempt that failed, none for any other.
CREATE TABLE job_attempts (
    job_seq bigint NOT NULL,
    attempt bigint NOT NULL,
    session_id text,
    worker_instance_id text,
    error_type text NOT NULL,
    error_message text NOT NULL,
    started_at bigint NOT NULL,
    ended_at bigint NOT NULL,
    PRIMARY KEY (job_seq, attempt)
);
