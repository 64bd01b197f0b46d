-- name: queue_columns
project_id, name, paused_at, max_running, updated_at

-- name: queues_of_project
SELECT {queue_columns} FROM queues WHERE project_id = ? ORDER BY name

-- name: queue_by_name
SELECT {queue_columns} FROM queues WHERE project_id = ? AND name = ?

-- name: put_queue
INSERT INTO queues (project_id, name, paused_at, max_running, updated_at) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (project_id, name) DO UPDATE
SET paused_at = excluded.paused_at, max_running = excluded.max_running, updated_at = excluded.updated_at

-- name: rules_of_project
SELECT 'queue', name, paused_at IS NOT NULL, max_running FROM queues
WHERE project_id = ?1 AND (paused_at IS NOT NULL OR max_running IS NOT NULL)
UNION ALL
SELECT 'action', name, 0, max_running FROM actions
WHERE project_id = ?1 AND max_running IS NOT NULL

-- name: heads_of_lanes
SELECT p.seq, p.available_at FROM jobs_pending p WHERE p.lane_id = ? AND p.available_at <= ?
ORDER BY p.available_at, p.seq LIMIT ?

-- name: running_of_queue
SELECT count(*) FROM jobs_claimed c CROSS JOIN jobs j USING (seq) WHERE j.project_id = ? AND j.queue = ?

-- name: running_of_action
SELECT count(*) FROM jobs_claimed c CROSS JOIN jobs j USING (seq) WHERE j.project_id = ? AND j.action_name = ?

-- name: pending_in_lane
SELECT
    (SELECT count(*) FROM (SELECT 1 FROM jobs_pending WHERE lane_id = ?1 LIMIT ?2)),
    (SELECT min(available_at) FROM jobs_pending WHERE lane_id = ?1 AND available_at <= ?3)

-- name: claimed_by_queue
SELECT j.queue, count(*) FROM jobs_claimed c CROSS JOIN jobs j USING (seq) WHERE j.project_id = ? GROUP BY j.queue
