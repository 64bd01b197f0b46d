-- name: session_columns
id, project_id, worker_instance_id, token_hash, concurrency_limit, selector, created_at, last_seen_at, name, version,
capabilities, api_key_id, draining, drain_requested, superseded, ended_at, end_reason

-- name: lock_session
SELECT {session_columns} FROM sessions WHERE id = $1 FOR UPDATE

-- name: session_by_token
SELECT {session_columns} FROM sessions WHERE token_hash = $1 AND project_id = $2

-- name: session_of_instance
SELECT {session_columns} FROM sessions
WHERE project_id = $1 AND worker_instance_id = $2 AND ended_at IS NULL ORDER BY id DESC LIMIT 1

-- name: sessions_of_project
SELECT {session_columns}, last_job_seq FROM sessions
WHERE project_id = $1 AND (
    ended_at IS NULL
    OR id IN (SELECT c.session_id FROM jobs_claimed c JOIN jobs j USING (seq) WHERE j.project_id = $1)
)
ORDER BY id DESC

-- name: insert_session
INSERT INTO sessions (
    id, project_id, worker_instance_id, token_hash, concurrency_limit, selector, created_at, last_seen_at, name,
    version, capabilities, api_key_id, draining, drain_requested, superseded, ended_at, end_reason, replica_id,
    connected_at
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)

-- name: renew_session
UPDATE sessions SET
    concurrency_limit = $2, selector = $3, last_seen_at = $4, name = $5, version = $6, capabilities = $7,
    api_key_id = $8, draining = $9, drain_requested = $10, ended_at = NULL, end_reason = NULL, replica_id = $11,
    connected_at = $12
WHERE id = $1

-- name: supersede_sessions
UPDATE sessions SET
    superseded = true, ended_at = coalesce(ended_at, $1), end_reason = coalesce(end_reason, 'superseded')
WHERE id = ANY(ARRAY(
    SELECT id FROM sessions
    WHERE project_id = $2 AND worker_instance_id = $3 AND id <> $4 AND NOT draining AND NOT superseded
    ORDER BY id FOR UPDATE
))
RETURNING id

-- Answers those that are ours: no other replica has taken them over, and no other process their identity.
-- name: sessions_seen
UPDATE sessions s SET last_seen_at = greatest(s.last_seen_at, least(seen.at, s.ended_at))
FROM (
    SELECT l.id, asked.at FROM unnest($1::text[], $2::bigint[]) AS asked (id, at) JOIN sessions l USING (id)
    WHERE l.replica_id = $3 AND NOT l.superseded
    ORDER BY l.id FOR UPDATE OF l
) seen
WHERE s.id = seen.id
RETURNING s.id

-- name: set_last_jobs
UPDATE sessions s SET last_job_seq = done.job_seq
FROM (
    SELECT l.id, j.seq AS job_seq FROM unnest($1::text[], $2::text[]) AS asked (id, job_id)
    JOIN sessions l USING (id)
    JOIN jobs j ON j.id = asked.job_id
    ORDER BY l.id FOR UPDATE OF l
) done
WHERE s.id = done.id

-- name: update_session
UPDATE sessions SET
    draining = coalesce($2, draining),
    ended_at = CASE WHEN $3::boolean IS NULL THEN ended_at WHEN $3 THEN $4::bigint END,
    end_reason = CASE WHEN $3::boolean IS NULL THEN end_reason WHEN $3 THEN 'drained' END,
    selector = coalesce($5, selector)
WHERE id = $1

-- Each replica ends its own, and those of replicas that are gone.
-- name: end_sessions
UPDATE sessions SET ended_at = $1, end_reason = 'unseen'
WHERE id = ANY(ARRAY(
    SELECT id FROM sessions
    WHERE ended_at IS NULL AND last_seen_at < $2 AND id <> ALL($3::text[]) AND (
        replica_id = $4 OR replica_id IS NULL OR NOT EXISTS (
            SELECT 1 FROM replicas r WHERE r.id = sessions.replica_id AND r.stopped_at IS NULL AND r.beat_at > $5
        )
    )
    ORDER BY id FOR UPDATE SKIP LOCKED
))
