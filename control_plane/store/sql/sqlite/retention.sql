-- What may go is found by a reader, and looked at again by the writer that deletes it.

-- name: past_runs
SELECT r.seq, r.created_at, CASE WHEN EXISTS (
        SELECT 1 FROM steps s JOIN jobs j ON j.id = s.job_id
        WHERE s.run_seq = r.seq AND NOT EXISTS (SELECT 1 FROM jobs_finished f WHERE f.seq = j.seq)
    ) THEN NULL WHEN r.status IN ('completed', 'failed', 'cancelled') THEN r.completed_at END,
    coalesce((SELECT max(e.sequence) FROM events e WHERE e.run_seq = r.seq), 0)
FROM runs r WHERE r.seq > ?1 ORDER BY r.seq LIMIT 200

-- Jobs whose run has gone are left over from nothing that we do, and go too.
-- name: past_jobs
SELECT j.seq, j.created_at, CASE WHEN r.seq IS NULL THEN f.completed_at END, 0
FROM jobs j LEFT JOIN jobs_finished f ON f.seq = j.seq LEFT JOIN runs r ON r.seq = j.run_seq
WHERE j.seq > ?1 ORDER BY j.seq LIMIT 200

-- name: past_deltas
SELECT f.seq FROM (SELECT DISTINCT job_seq FROM deltas) d JOIN jobs_finished f ON f.seq = d.job_seq
WHERE f.completed_at < ?1 LIMIT ?2

-- name: past_sessions
SELECT id FROM sessions WHERE ended_at < ?1 AND id NOT IN (SELECT session_id FROM jobs_claimed) LIMIT ?2

-- name: delete_drains_of_nobody
DELETE FROM drains WHERE kind = 'session' AND NOT EXISTS (SELECT 1 FROM sessions s WHERE s.id = drains.target)

-- name: finished_run
SELECT 1 FROM runs r WHERE r.seq = ?1 AND r.status IN ('completed', 'failed', 'cancelled') AND NOT EXISTS (
    SELECT 1 FROM steps s JOIN jobs j ON j.id = s.job_id
    WHERE s.run_seq = ?1 AND NOT EXISTS (SELECT 1 FROM jobs_finished f WHERE f.seq = j.seq)
)

-- name: jobs_of_run
SELECT j.seq FROM steps s JOIN jobs j ON j.id = s.job_id WHERE s.run_seq = ?

-- name: delete_last_events
DELETE FROM events WHERE run_seq = ?1
    AND sequence > (SELECT max(sequence) FROM events WHERE run_seq = ?1) - ?2

-- name: delete_deltas
DELETE FROM deltas WHERE rowid IN (SELECT rowid FROM deltas WHERE job_seq = ? LIMIT ?)

-- name: delete_session
DELETE FROM sessions WHERE id = ? AND ended_at IS NOT NULL
