-- Jobs without a run, and what people ask about any job.

-- name: insert_alike_jobs
INSERT INTO jobs (
    id, project_id, lane_id, kind, origin, queue, action_name, provider, model, environment_id, run_seq, step_seq,
    run_id, step_id, step_key, max_attempts, retry_delay, non_retryable, execution_timeout, priority, retry_backoff,
    retry_max_delay, external_id, created_at, spec
) SELECT
    substr(value, 1, ?2), ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22,
    ?23, ?24, ?25, substr(value, ?2 + 1)
FROM carray(?1)

-- name: insert_alike_pending
INSERT INTO jobs_pending (
    seq, lane_id, available_at, pending_deadline_at, deadline_at, execution_deadline_at, claim_attempt,
    attempts_charged, hand_backs, lease_token_hash, reported_token_hash, session_id, worker_instance_id, claimed_at,
    updated_at
) SELECT seq, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16 FROM jobs WHERE seq BETWEEN ?1 AND ?2

-- name: job_by_external_id
SELECT id FROM jobs WHERE project_id = ? AND external_id = ?

-- name: attempts_of_job
SELECT attempt, session_id, worker_instance_id, error_type, error_message, started_at, ended_at
FROM job_attempts WHERE job_seq = ? ORDER BY attempt

-- A page of a listing looks at so many rows of one table, the newest first, and takes what fits. It says how many it has
-- looked at, and the last of them, so that the next page begins behind it.
-- name: listed_columns
SELECT (SELECT count(*) FROM looked), (SELECT min(seq) FROM looked), found.seq
FROM (SELECT 1) one LEFT JOIN (
    SELECT j.seq FROM looked CROSS JOIN jobs j
    WHERE j.seq = looked.seq AND j.project_id = ?3
        AND (?4 IS NULL OR j.queue = ?4) AND (?5 IS NULL OR j.action_name = ?5)
    ORDER BY j.seq DESC LIMIT ?6
) found ON true

-- name: listed_jobs
WITH looked AS MATERIALIZED (
    SELECT seq FROM jobs WHERE seq < ?1 ORDER BY seq DESC LIMIT ?2
)
{listed_columns}

-- name: listed_pending
WITH looked AS MATERIALIZED (
    SELECT seq FROM jobs_pending WHERE seq < ?1 ORDER BY seq DESC LIMIT ?2
)
{listed_columns}

-- name: listed_claimed
WITH looked AS MATERIALIZED (
    SELECT seq FROM jobs_claimed WHERE seq < ?1 ORDER BY seq DESC LIMIT ?2
)
{listed_columns}

-- name: listed_completed
WITH looked AS MATERIALIZED (
    SELECT seq FROM jobs_finished WHERE seq < ?1 AND status = 'completed' ORDER BY seq DESC LIMIT ?2
)
{listed_columns}

-- name: listed_failed
WITH looked AS MATERIALIZED (
    SELECT seq FROM jobs_finished WHERE seq < ?1 AND status <> 'completed' AND status = 'failed' ORDER BY seq DESC LIMIT ?2
)
{listed_columns}

-- name: listed_cancelled
WITH looked AS MATERIALIZED (
    SELECT seq FROM jobs_finished WHERE seq < ?1 AND status <> 'completed' AND status = 'cancelled' ORDER BY seq DESC LIMIT ?2
)
{listed_columns}
