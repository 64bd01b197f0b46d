-- name: census_projects
SELECT id, handle FROM projects

-- Each lane is read from its index, the oldest job first, and no further than the bound.
-- name: census_lanes
SELECT l.project_id, l.queue,
    (SELECT count(*) FROM (
        SELECT 1 FROM jobs_pending p WHERE p.lane_id = l.id AND p.available_at <= ?1
        ORDER BY p.available_at LIMIT ?2
    ) counted),
    (SELECT count(*) FROM (
        SELECT 1 FROM jobs_pending p WHERE p.lane_id = l.id AND p.available_at > ?1
        ORDER BY p.available_at LIMIT ?2
    ) counted),
    (SELECT min(available_at) FROM jobs_pending p WHERE p.lane_id = l.id AND p.available_at <= ?1),
    EXISTS (
        SELECT 1 FROM queues q WHERE q.project_id = l.project_id AND q.name = l.queue AND q.paused_at IS NOT NULL
    )
FROM lanes l

-- name: census_claimed
SELECT j.project_id, count(*) FROM (SELECT seq FROM jobs_claimed LIMIT ?1) c CROSS JOIN jobs j USING (seq)
GROUP BY j.project_id

-- name: census_sessions
SELECT project_id,
    CASE WHEN last_seen_at < ?1 THEN 'stale' WHEN draining OR drain_requested THEN 'draining' ELSE 'live' END, count(*)
FROM sessions WHERE ended_at IS NULL GROUP BY 1, 2
