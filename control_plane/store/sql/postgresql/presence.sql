-- name: drain_names
(d.kind = 'session' AND d.target = s.id OR d.kind = 'worker_instance_id' AND d.target = s.worker_instance_id
 OR d.kind = 'version' AND d.target = s.version)

-- A registration and a drain follow each other: the later one sees the earlier.
-- name: share_drains
SELECT pg_advisory_xact_lock_shared($1)

-- name: standing_drain
SELECT 1 FROM drains
WHERE project_id = $1
    AND (kind, target) IN (('session', $2::text), ('worker_instance_id', $3::text), ('version', $4::text))
LIMIT 1

-- name: insert_drain
INSERT INTO drains (project_id, kind, target, created_at) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING

-- name: delete_drain
DELETE FROM drains WHERE project_id = $1 AND kind = $2 AND target = $3 RETURNING 1

-- name: drains
SELECT kind, target, created_at FROM drains WHERE project_id = $1 ORDER BY created_at DESC, kind, target

-- name: session_is_open
SELECT 1 FROM sessions WHERE project_id = $1 AND id = $2 AND ended_at IS NULL

-- Those that a drain names and that have not been asked yet.
-- name: request_drains
UPDATE sessions SET drain_requested = true
WHERE id = ANY(ARRAY(
    SELECT s.id FROM sessions s
    WHERE s.project_id = $1 AND s.ended_at IS NULL AND NOT s.drain_requested
        AND EXISTS (SELECT 1 FROM drains d WHERE d.project_id = s.project_id AND {drain_names})
    ORDER BY s.id FOR UPDATE
))
RETURNING id

-- Those that no drain names any more; what they said of themselves they will say again.
-- name: lift_drains
UPDATE sessions SET drain_requested = false, draining = false
WHERE id = ANY(ARRAY(
    SELECT s.id FROM sessions s
    WHERE s.project_id = $1 AND s.ended_at IS NULL AND s.drain_requested
        AND NOT EXISTS (SELECT 1 FROM drains d WHERE d.project_id = s.project_id AND {drain_names})
    ORDER BY s.id FOR UPDATE
))
RETURNING id

-- name: open_sessions_page
SELECT {session_columns}, last_job_seq FROM sessions
WHERE project_id = $1 AND ended_at IS NULL AND id < $2 AND CASE $3::text
    WHEN 'live' THEN last_seen_at >= $4 WHEN 'stale' THEN last_seen_at < $4 ELSE draining OR drain_requested END
ORDER BY id DESC LIMIT $5

-- name: sessions_page
SELECT {session_columns}, last_job_seq FROM sessions
WHERE project_id = $1 AND id < $2 AND ($3::text = 'all' OR ended_at IS NOT NULL)
ORDER BY id DESC LIMIT $4
