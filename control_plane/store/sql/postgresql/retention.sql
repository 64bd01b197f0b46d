-- A look goes through 200 (retired_tables.LOOKS), said as a number: the planner must know how few they are.
-- What may go is found by a short read, and looked at again by the transaction that deletes it.

-- One replica at a time: the others pass.
-- name: retire_alone
SELECT pg_try_advisory_xact_lock(7234017283807667)

-- A job that has not ended, asked for run by run: a LIMIT keeps it from becoming a join of whole tables.
-- name: open_job_tables
LEFT JOIN LATERAL (
    SELECT j.seq FROM steps s JOIN jobs j ON j.id = s.job_id LEFT JOIN jobs_finished f ON f.seq = j.seq
    WHERE s.run_seq = r.seq AND f.seq IS NULL LIMIT 1
) open_job ON true

-- name: past_runs
SELECT r.seq, r.created_at,
    CASE WHEN open_job.seq IS NULL AND r.status IN ('completed', 'failed', 'cancelled') THEN r.completed_at END,
    coalesce((SELECT max(e.sequence) FROM events e WHERE e.run_seq = r.seq), 0)
FROM (SELECT seq, created_at, status, completed_at FROM runs WHERE seq > $1 ORDER BY seq LIMIT 200) r
{open_job_tables}
ORDER BY r.seq

-- Jobs whose run has gone are left over from nothing that we do, and go too.
-- name: past_jobs
SELECT j.seq, j.created_at, CASE
        WHEN (SELECT r.seq FROM runs r WHERE r.seq = j.run_seq) IS NULL
        THEN (SELECT f.completed_at FROM jobs_finished f WHERE f.seq = j.seq)
    END, 0
FROM (SELECT seq, created_at, run_seq FROM jobs WHERE seq > $1 ORDER BY seq LIMIT 200) j
ORDER BY j.seq

-- name: past_deltas
SELECT d.job_seq FROM (SELECT DISTINCT job_seq FROM deltas) d
WHERE (SELECT f.completed_at FROM jobs_finished f WHERE f.seq = d.job_seq) < $1 LIMIT $2

-- name: past_sessions
SELECT id FROM sessions WHERE ended_at < $1 AND id NOT IN (SELECT session_id FROM jobs_claimed) LIMIT $2

-- name: delete_drains_of_nobody
DELETE FROM drains WHERE kind = 'session' AND NOT EXISTS (SELECT 1 FROM sessions s WHERE s.id = drains.target)

-- name: finished_runs
SELECT r.seq FROM runs r {open_job_tables}
WHERE r.seq = ANY($1::bigint[]) AND r.status IN ('completed', 'failed', 'cancelled') AND open_job.seq IS NULL
ORDER BY r.seq FOR UPDATE OF r SKIP LOCKED

-- name: jobs_of_runs
SELECT j.seq FROM steps s JOIN jobs j ON j.id = s.job_id WHERE s.run_seq = ANY($1::bigint[])

-- name: delete_last_events
DELETE FROM events WHERE run_seq = $1
    AND sequence > (SELECT max(sequence) FROM events WHERE run_seq = $1) - $2

-- name: delete_deltas
DELETE FROM deltas WHERE ctid = ANY(ARRAY(SELECT ctid FROM deltas WHERE job_seq = ANY($1::bigint[]) LIMIT $2))

-- name: delete_sessions
DELETE FROM sessions WHERE id = ANY(ARRAY(
    SELECT id FROM sessions WHERE id = ANY($1::text[]) AND ended_at IS NOT NULL ORDER BY id FOR UPDATE SKIP LOCKED
))
