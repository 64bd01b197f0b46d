-- name: job_body
j.seq, j.run_seq, j.step_seq,
j.id, j.project_id, j.kind, j.origin, j.queue, j.action_name, j.provider, j.model, j.environment_id,
j.run_id, j.step_id, j.step_key, j.max_attempts, j.retry_delay, j.non_retryable, j.execution_timeout, j.priority,
j.retry_backoff, j.retry_max_delay, j.external_id, j.created_at

-- name: job_state
CASE WHEN c.seq IS NOT NULL THEN 'claimed' WHEN p.seq IS NOT NULL THEN 'pending' ELSE f.status END,
coalesce(c.available_at, p.available_at, f.available_at), p.pending_deadline_at,
coalesce(c.execution_deadline_at, p.execution_deadline_at, f.execution_deadline_at),
coalesce(c.claim_attempt, p.claim_attempt, f.claim_attempt),
coalesce(c.attempts_charged, p.attempts_charged, f.attempts_charged),
coalesce(c.hand_backs, p.hand_backs, f.hand_backs),
coalesce(c.lease_token_hash, p.lease_token_hash, f.lease_token_hash),
coalesce(c.reported_token_hash, p.reported_token_hash, f.reported_token_hash), c.lease_expires_at,
coalesce(c.session_id, p.session_id, f.session_id),
coalesce(c.worker_instance_id, p.worker_instance_id, f.worker_instance_id),
coalesce(c.claimed_at, p.claimed_at, f.claimed_at), coalesce(c.heartbeat_at, f.heartbeat_at),
coalesce(c.cancel_requested_at, f.cancel_requested_at), coalesce(c.cancel_reason, f.cancel_reason),
coalesce(c.updated_at, p.updated_at, f.completed_at), f.completed_at, f.error_type, f.error_message

-- name: job_tables
jobs j
LEFT JOIN jobs_claimed c ON c.seq = j.seq
LEFT JOIN jobs_pending p ON p.seq = j.seq
LEFT JOIN jobs_finished f ON f.seq = j.seq

-- name: last_event
(SELECT e.sequence, e.created_at FROM events e WHERE e.run_seq = r.seq ORDER BY e.sequence DESC LIMIT 1)

-- What the writers' transactions begin with. The runs of all jobs concerned are locked in the order of their keys, then
-- what is claimed, then what is pending, in that order too: two transactions never wait for each other.
-- name: lock_jobs
WITH named AS MATERIALIZED (
    SELECT j.id, j.project_id, j.seq, j.run_seq FROM jobs j WHERE j.id = ANY($1::text[])
    UNION ALL
    SELECT j.id, j.project_id, j.seq, j.run_seq FROM runs r
    CROSS JOIN LATERAL ({open_step_of_run}) s
    JOIN jobs j ON j.id = s.job_id
    WHERE r.id = ANY($2::text[])
), runs_locked AS MATERIALIZED (
    SELECT r.seq FROM runs r
    WHERE r.seq = ANY(ARRAY(SELECT run_seq FROM named UNION SELECT seq FROM runs WHERE id = ANY($2)))
    ORDER BY r.seq FOR UPDATE
), claimed_locked AS MATERIALIZED (
    SELECT c.seq FROM jobs_claimed c
    WHERE (SELECT count(*) FROM runs_locked) >= 0 AND c.seq = ANY(ARRAY(SELECT seq FROM named))
    ORDER BY c.seq FOR UPDATE
), pending_locked AS MATERIALIZED (
    SELECT p.seq FROM jobs_pending p
    WHERE (SELECT count(*) FROM claimed_locked) >= 0 AND p.seq = ANY(ARRAY(SELECT seq FROM named))
    ORDER BY p.seq FOR UPDATE
)
SELECT id, project_id, seq FROM named WHERE (SELECT count(*) FROM pending_locked) >= 0

-- name: load_jobs
SELECT {job_body}, {job_state}, NULL::text, {run_columns}, {step_columns}, a.settings, last.sequence, last.created_at
FROM unnest($1::bigint[]) AS asked (seq)
JOIN {job_tables} ON j.seq = asked.seq
LEFT JOIN runs r ON r.seq = j.run_seq
LEFT JOIN steps s ON s.run_seq = j.run_seq AND s.seq = j.step_seq
LEFT JOIN automations a ON a.id = r.automation_id
LEFT JOIN LATERAL {last_event} last ON true

-- name: load_runs
SELECT {run_columns}, {step_columns}, last.sequence, last.created_at, j.seq, a.settings
FROM unnest($1::text[], $2::text[]) AS asked (project_id, id)
JOIN runs r ON r.id = asked.id AND r.project_id = asked.project_id
LEFT JOIN automations a ON a.id = r.automation_id
LEFT JOIN LATERAL ({open_step_of_run}) s ON true
LEFT JOIN jobs j ON j.id = s.job_id
LEFT JOIN LATERAL {last_event} last ON true

-- The oldest available jobs of every lane asked for. One that somebody else is moving, or whose run is, is passed over
-- without waiting; so is the limit counted. MATERIALIZED keeps the planner from taking more than it was asked for.
-- What follows in the same transaction finds the rows by their `place`, for which there is one plan. By key there are
-- two: when a vacuum had found nothing in jobs_pending, PostgreSQL took jobs_pending_in_lane, the whole of it for each
-- job, and a claim cost ten times the work until the next vacuum.
-- name: picking_body
picked AS MATERIALIZED (
    SELECT asked.lane_id, head.available_at, head.seq, head.run_seq, head.place, head.is_new
    FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[]) AS asked (lane_id, since, now, wanted)
    CROSS JOIN LATERAL (
        SELECT
            p.available_at, p.seq, p.run_seq, p.ctid AS place,
            p.run_seq IS NULL AND p.claim_attempt = 0 AND p.hand_backs = 0 AS is_new
        FROM jobs_pending p
        WHERE p.lane_id = asked.lane_id AND p.available_at >= asked.since AND p.available_at <= asked.now
        ORDER BY p.available_at, p.seq LIMIT asked.wanted FOR UPDATE SKIP LOCKED
    ) head
), runs_locked AS MATERIALIZED (
    SELECT r.seq FROM runs r WHERE r.seq = ANY(ARRAY(SELECT run_seq FROM picked)) FOR UPDATE SKIP LOCKED
)

-- name: picked_columns
lane_id, available_at, seq, run_seq, place, is_new FROM picked
WHERE run_seq IS NULL OR run_seq IN (SELECT seq FROM runs_locked)

-- name: claim_candidates
WITH {picking_body}
SELECT {picked_columns}

-- OFFSET keeps the planner from making another join of it.
-- name: load_candidates
SELECT {job_body}, 'pending', p.available_at, p.pending_deadline_at, p.execution_deadline_at, p.claim_attempt,
    p.attempts_charged, p.hand_backs, p.lease_token_hash, p.reported_token_hash, NULL::bigint, p.session_id,
    p.worker_instance_id, p.claimed_at, NULL::bigint, NULL::bigint, NULL::text, p.updated_at, NULL::bigint, NULL::text,
    NULL::text, NULL::text, j.spec, last.sequence, last.created_at
FROM unnest($1::tid[]) AS asked (place)
CROSS JOIN LATERAL (SELECT * FROM jobs_pending WHERE jobs_pending.ctid = asked.place OFFSET 0) p
CROSS JOIN LATERAL (SELECT * FROM jobs WHERE jobs.seq = p.seq OFFSET 0) j
LEFT JOIN LATERAL (
    SELECT e.sequence, e.created_at FROM events e WHERE e.run_seq = p.run_seq ORDER BY e.sequence DESC LIMIT 1
) last ON true

-- name: lanes_with_jobs
SELECT asked.lane_id FROM unnest($1::bigint[]) AS asked (lane_id)
WHERE EXISTS (SELECT 1 FROM jobs_pending p WHERE p.lane_id = asked.lane_id AND p.available_at <= $2)

-- name: extend_leases
WITH held AS MATERIALIZED (
    SELECT c.seq, j.id, asked.now, asked.expires_at
    FROM (
        SELECT n->>0 AS project_id, n->>1 AS job_id, (n->>2)::bytea AS token_hash, (n->>3)::bigint AS now,
            (n->>4)::bigint AS expires_at
        FROM jsonb_array_elements($1::jsonb) AS rows (n)
    ) AS asked
    JOIN jobs j ON j.id = asked.job_id AND j.project_id = asked.project_id
    JOIN jobs_claimed c ON c.seq = j.seq AND c.lease_token_hash = asked.token_hash
    ORDER BY c.seq FOR UPDATE OF c
)
UPDATE jobs_claimed c SET lease_expires_at = held.expires_at, heartbeat_at = held.now
FROM held WHERE c.seq = held.seq
RETURNING held.id, c.lease_token_hash, c.cancel_requested_at, c.cancel_reason

-- name: clock
SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, latest FROM store_clock

-- name: touch
UPDATE store_clock SET latest = greatest(latest, $1)

-- Transactions that start a run by the same external id follow each other.
-- name: lock_keys
SELECT pg_advisory_xact_lock(key) FROM unnest($1::bigint[]) AS asked (key)

-- name: new_keys
SELECT ARRAY(SELECT nextval('runs_seq_seq') FROM generate_series(1, $1)),
    ARRAY(SELECT nextval('jobs_seq_seq') FROM generate_series(1, $2))

-- The same as a transaction by itself, for a statement that comes next: whatever flushes that, flushes these too. On its
-- own it need not: a key that is forgotten in a crash was nobody's.
-- name: new_keys_ahead
SELECT ARRAY(SELECT nextval('runs_seq_seq') FROM generate_series(1, $1)),
    ARRAY(SELECT nextval('jobs_seq_seq') FROM generate_series(1, $2))
FROM set_config('synchronous_commit', 'off', true)

-- The deadlines that a sweep looks at. What is locked is being decided by somebody else.
-- name: overrun_claims
SELECT c.seq, j.run_seq FROM jobs_claimed c JOIN jobs j ON j.seq = c.seq WHERE c.execution_deadline_at <= $1
ORDER BY c.seq LIMIT $2 FOR UPDATE OF c SKIP LOCKED

-- A worker whose replica is gone ($4: which has not beaten since), or that has come back to another one since it last
-- said something about the job, gets one lease duration ($3) more: it could not heartbeat while it had no socket.
-- name: lapsed_leases
SELECT c.seq, j.run_seq FROM jobs_claimed c
JOIN jobs j ON j.seq = c.seq
LEFT JOIN sessions s ON s.id = c.session_id
LEFT JOIN replicas r ON r.id = s.replica_id
WHERE c.lease_expires_at <= $1 AND (
    c.lease_expires_at + $3 <= $1
    OR NOT coalesce(
        s.connected_at > c.lease_expires_at - $3 OR r.stopped_at IS NOT NULL OR r.beat_at <= $4, false
    )
)
ORDER BY c.seq LIMIT $2 FOR UPDATE OF c SKIP LOCKED

-- name: lapsed_pending
SELECT p.seq, p.run_seq FROM jobs_pending p WHERE p.deadline_at <= $1
ORDER BY p.deadline_at LIMIT $2 FOR UPDATE SKIP LOCKED

-- name: lock_runs_at_once
SELECT seq FROM runs WHERE seq = ANY($1::bigint[]) ORDER BY seq FOR UPDATE SKIP LOCKED

-- name: runs_of
SELECT seq FROM runs WHERE seq = ANY($1::bigint[])

-- name: lanes_of_project
SELECT id, queue, environment_id, action_name, provider, model, priority FROM lanes WHERE project_id = $1

-- name: insert_lane
INSERT INTO lanes (project_id, queue, environment_id, action_name, provider, model, priority)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT DO NOTHING

-- name: next_available
SELECT min(next.at) FROM lanes l CROSS JOIN LATERAL (
    SELECT p.available_at AS at FROM jobs_pending p WHERE p.lane_id = l.id AND p.available_at > $1
    ORDER BY p.available_at LIMIT 1
) next

-- One row for those of a lane that became available together, as jobs do that were handed in together: this looks at
-- every job that waits for longer than until the next look.
-- name: claimable
SELECT due.available_at, j.id, j.project_id, j.queue, j.action_name, j.provider, j.model, j.environment_id,
    due.number
FROM (
    SELECT lane_id, available_at, min(seq) AS seq, count(*) AS number
    FROM (
        SELECT l.id AS lane_id, head.available_at, head.seq FROM lanes l CROSS JOIN LATERAL (
            SELECT p.available_at, p.seq FROM jobs_pending p
            WHERE p.lane_id = l.id AND p.available_at > $1 AND p.available_at <= $2
            ORDER BY p.available_at, p.seq LIMIT $3
        ) head
        ORDER BY head.available_at, head.seq LIMIT $3
    ) heads
    GROUP BY lane_id, available_at
) due
JOIN jobs j ON j.seq = due.seq
ORDER BY due.available_at, due.seq

-- name: job
SELECT {job_body}, {job_state}, f.result, j.spec FROM {job_tables} WHERE j.id = $1 AND j.project_id = $2

-- name: jobs_of_sessions
SELECT {job_body}, {job_state}, NULL::text, coalesce(s.step_name, s.step_key)
FROM jobs_claimed held
JOIN {job_tables} ON j.seq = held.seq
LEFT JOIN steps s ON s.run_seq = j.run_seq AND s.seq = j.step_seq
WHERE j.project_id = $1
ORDER BY held.claimed_at, held.seq

-- name: finished_jobs
SELECT {job_body}, {job_state}, NULL::text, coalesce(s.step_name, s.step_key)
FROM unnest($1::bigint[]) AS asked (seq)
JOIN {job_tables} ON j.seq = asked.seq
LEFT JOIN steps s ON s.run_seq = j.run_seq AND s.seq = j.step_seq

-- name: load
SELECT
    (SELECT count(*) FROM (SELECT 1 FROM jobs_pending LIMIT $1) counted),
    (SELECT count(*) FROM (SELECT 1 FROM jobs_claimed LIMIT $1) counted),
    (SELECT count(*) FROM (
        SELECT 1 FROM projects JOIN runs ON runs.project_id = projects.id
        WHERE runs.status IN ('queued', 'running', 'suspended') LIMIT $1
    ) counted)
