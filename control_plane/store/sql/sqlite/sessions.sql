-- name: session_columns
id, project_id, worker_instance_id, token_hash, concurrency_limit, selector, created_at, last_seen_at, name, version,
capabilities, api_key_id, draining, drain_requested, superseded, ended_at, end_reason

-- name: session_by_id
SELECT {session_columns}, last_job_seq FROM sessions WHERE id = ?

-- name: session_by_token
SELECT {session_columns}, last_job_seq FROM sessions WHERE token_hash = ? AND project_id = ?

-- name: session_of_instance
SELECT {session_columns}, last_job_seq FROM sessions
WHERE project_id = ? AND worker_instance_id = ? AND ended_at IS NULL ORDER BY id DESC LIMIT 1

-- name: sessions_of_project
SELECT {session_columns}, last_job_seq FROM sessions
WHERE project_id = ?1 AND (
    ended_at IS NULL
    OR id IN (SELECT c.session_id FROM jobs_claimed c CROSS JOIN jobs j USING (seq) WHERE j.project_id = ?1)
)
ORDER BY id DESC

-- name: insert_session
INSERT INTO sessions (
    id, project_id, worker_instance_id, token_hash, concurrency_limit, selector, created_at, last_seen_at, name,
    version, capabilities, api_key_id, draining, drain_requested, superseded, ended_at, end_reason
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: renew_session
UPDATE sessions SET
    concurrency_limit = ?, selector = ?, last_seen_at = ?, name = ?, version = ?, capabilities = ?, api_key_id = ?,
    draining = ?, drain_requested = ?, ended_at = NULL, end_reason = NULL
WHERE id = ?

-- name: supersede_sessions
UPDATE sessions SET superseded = 1, ended_at = coalesce(ended_at, ?), end_reason = coalesce(end_reason, 'superseded')
WHERE project_id = ? AND worker_instance_id = ? AND id <> ? AND draining = 0 AND superseded = 0

-- name: session_seen
UPDATE sessions SET last_seen_at = max(last_seen_at, min(?1, coalesce(ended_at, ?1))) WHERE id = ?2

-- name: set_draining
UPDATE sessions SET draining = ? WHERE id = ?

-- name: set_ended
UPDATE sessions SET ended_at = ?, end_reason = ? WHERE id = ?

-- name: set_selector
UPDATE sessions SET selector = ? WHERE id = ?

-- name: stale_sessions
SELECT id FROM sessions WHERE ended_at IS NULL AND last_seen_at < ?

-- name: set_last_job
UPDATE sessions SET last_job_seq = ? WHERE id = ?
