-- name: drain_names
(d.kind = 'session' AND d.target = s.id OR d.kind = 'worker_instance_id' AND d.target = s.worker_instance_id
 OR d.kind = 'version' AND d.target = s.version)

-- name: standing_drain
SELECT 1 FROM drains WHERE project_id = ? AND (kind, target) IN (VALUES ('session', ?), ('worker_instance_id', ?), ('version', ?))
LIMIT 1

-- name: insert_drain
INSERT INTO drains (project_id, kind, target, created_at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING

-- name: delete_drain
DELETE FROM drains WHERE project_id = ? AND kind = ? AND target = ?

-- name: drains
SELECT kind, target, created_at FROM drains WHERE project_id = ? ORDER BY created_at DESC, kind, target

-- name: session_is_open
SELECT 1 FROM sessions WHERE project_id = ? AND id = ? AND ended_at IS NULL

-- Those that a drain names and that have not been asked yet.
-- name: request_drains
UPDATE sessions AS s SET drain_requested = 1
WHERE s.project_id = ? AND s.ended_at IS NULL AND s.drain_requested = 0
    AND EXISTS (SELECT 1 FROM drains d WHERE d.project_id = s.project_id AND {drain_names})
RETURNING id

-- Those that no drain names any more; what they said of themselves they will say again.
-- name: lift_drains
UPDATE sessions AS s SET drain_requested = 0, draining = 0
WHERE s.project_id = ? AND s.ended_at IS NULL AND s.drain_requested = 1
    AND NOT EXISTS (SELECT 1 FROM drains d WHERE d.project_id = s.project_id AND {drain_names})
RETURNING id

-- name: open_sessions_page
SELECT {session_columns}, last_job_seq FROM sessions
WHERE project_id = ?1 AND ended_at IS NULL AND id < ?2 AND CASE ?3
    WHEN 'live' THEN last_seen_at >= ?4 WHEN 'stale' THEN last_seen_at < ?4 ELSE draining OR drain_requested END
ORDER BY id DESC LIMIT ?5

-- name: sessions_page
SELECT {session_columns}, last_job_seq FROM sessions
WHERE project_id = ?1 AND id < ?2 AND (?3 = 'all' OR ended_at IS NOT NULL)
ORDER BY id DESC LIMIT ?4
