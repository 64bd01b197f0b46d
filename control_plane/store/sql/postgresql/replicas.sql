-- A sign of life, and a look at the database's clock and at the other replicas.
-- name: beat
WITH beaten AS (
    INSERT INTO replicas (id, name, started_at, beat_at) VALUES ($1, $2, $3, $3)
    ON CONFLICT (id) DO UPDATE SET beat_at = greatest(replicas.beat_at, excluded.beat_at)
), kept AS (
    UPDATE store_clock SET latest = greatest(latest, $3)
)
SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
    ARRAY(SELECT id FROM replicas WHERE id <> $1 AND stopped_at IS NULL AND beat_at > $4)

-- name: stop_beating
UPDATE replicas SET stopped_at = $2 WHERE id = $1

-- name: forget_replicas
DELETE FROM replicas WHERE id = ANY(ARRAY(
    SELECT id FROM replicas WHERE beat_at < $1 ORDER BY id FOR UPDATE SKIP LOCKED
))

-- name: replicas
SELECT id, name, started_at, beat_at, stopped_at FROM replicas ORDER BY started_at, id

-- Who has the worker's socket; only one that lives can be asked.
-- name: rival
SELECT s.id, s.replica_id FROM sessions s JOIN replicas r ON r.id = s.replica_id
WHERE s.project_id = $1 AND s.worker_instance_id = $2 AND s.ended_at IS NULL AND NOT s.draining AND NOT s.superseded
    AND s.replica_id <> $3 AND r.stopped_at IS NULL AND r.beat_at > $4
ORDER BY s.id DESC LIMIT 1

-- What a replica was perhaps not told: its workers' jobs that are to be cancelled, and its workers that are to drain.
-- name: missed_cancels
SELECT j.project_id, j.id, c.session_id, c.cancel_reason, c.cancel_requested_at
FROM jobs_claimed c JOIN sessions s ON s.id = c.session_id JOIN jobs j ON j.seq = c.seq
WHERE c.cancel_requested_at > $2 AND s.replica_id = $1

-- name: missed_drains
SELECT id FROM sessions WHERE ended_at IS NULL AND drain_requested AND replica_id = $1
