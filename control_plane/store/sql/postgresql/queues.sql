-- name: queue_columns
project_id, name, paused_at, max_running, updated_at

-- name: queues_of_project
SELECT {queue_columns} FROM queues WHERE project_id = $1 ORDER BY name

-- name: queue_by_name
SELECT {queue_columns} FROM queues WHERE project_id = $1 AND name = $2

-- name: make_queue
INSERT INTO queues (project_id, name, updated_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING

-- name: put_queue
INSERT INTO queues (project_id, name, paused_at, max_running, updated_at) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (project_id, name) DO UPDATE
SET paused_at = excluded.paused_at, max_running = excluded.max_running, updated_at = excluded.updated_at

-- name: rules_of_project
SELECT 'queue', name, paused_at IS NOT NULL, max_running FROM queues
WHERE project_id = $1 AND (paused_at IS NOT NULL OR max_running IS NOT NULL)
UNION ALL
SELECT 'action', name, false, max_running FROM actions
WHERE project_id = $1 AND max_running IS NOT NULL

-- name: heads_of_lanes
SELECT head.available_at, j.id, j.project_id, j.queue, j.action_name, j.provider, j.model, j.environment_id
FROM unnest($1::bigint[]) AS asked (lane_id)
CROSS JOIN LATERAL (
    SELECT p.seq, p.available_at FROM jobs_pending p WHERE p.lane_id = asked.lane_id AND p.available_at <= $2
    ORDER BY p.available_at, p.seq LIMIT $3
) head
JOIN jobs j ON j.seq = head.seq

-- A limit is kept by whoever has locked its row; one that another claim keeps is passed over without waiting.
-- name: lock_queue_limits
SELECT name, max_running FROM queues WHERE project_id = $1 AND name = ANY($2::text[]) AND max_running IS NOT NULL
ORDER BY name FOR UPDATE SKIP LOCKED

-- name: lock_action_limits
SELECT name, max_running FROM actions WHERE project_id = $1 AND name = ANY($2::text[]) AND max_running IS NOT NULL
ORDER BY name FOR UPDATE SKIP LOCKED

-- name: running_by_scope
SELECT j.queue, j.action_name, count(*) FROM jobs_claimed c JOIN jobs j ON j.seq = c.seq
WHERE j.project_id = $1 AND (j.queue = ANY($2::text[]) OR j.action_name = ANY($3::text[]))
GROUP BY j.queue, j.action_name

-- In the order of the index, so that it is read and not the table.
-- name: pending_by_queue
SELECT l.queue, sum(waiting.number)::bigint, min(due.at)
FROM lanes l
CROSS JOIN LATERAL (
    SELECT count(*) AS number FROM (
        SELECT 1 FROM jobs_pending p WHERE p.lane_id = l.id ORDER BY p.available_at LIMIT $2
    ) counted
) waiting
LEFT JOIN LATERAL (
    SELECT p.available_at AS at FROM jobs_pending p WHERE p.lane_id = l.id AND p.available_at <= $3
    ORDER BY p.available_at LIMIT 1
) due ON true
WHERE l.project_id = $1
GROUP BY l.queue

-- name: claimed_by_queue
SELECT j.queue, count(*) FROM jobs_claimed c JOIN jobs j ON j.seq = c.seq WHERE j.project_id = $1 GROUP BY j.queue
