-- What a decision changes, for many decisions at once: every parameter is a column, every block one part of one
-- statement (postgres_changes.py joins those that are needed). A part that must find its rows is counted.

-- name: insert_runs
INSERT INTO runs (
    seq, id, project_id, automation_id, automation_name, version_id, version, status, depth, created_at, updated_at,
    started_at, completed_at, wall_clock_deadline_at, external_id, parent_run_id, parent_automation_id,
    parent_step_key, error_type, error_message, source, inputs
)
SELECT * FROM unnest(
    $1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::text[], $9::bigint[],
    $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[], $15::text[], $16::text[], $17::text[],
    $18::text[], $19::text[], $20::text[], $21::text[], $22::text[]
)

-- name: update_runs
UPDATE runs SET status = n.status, updated_at = n.updated_at, completed_at = n.completed_at,
    error_type = n.error_type, error_message = n.error_message
FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::bigint[], $5::text[], $6::text[])
    AS n (seq, status, updated_at, completed_at, error_type, error_message)
WHERE runs.seq = n.seq

-- name: insert_steps
INSERT INTO steps (
    run_seq, seq, id, project_id, run_id, step_key, step_name, save_as, kind, status, attempt, job_id, created_at,
    updated_at, started_at, completed_at, error_type, error_message, inputs, parameters, result
)
SELECT * FROM unnest(
    $1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
    $10::text[], $11::bigint[], $12::text[], $13::bigint[], $14::bigint[], $15::bigint[], $16::bigint[], $17::text[],
    $18::text[], $19::text[], $20::text[], $21::text[]
)

-- name: update_steps
UPDATE steps SET status = n.status, updated_at = n.updated_at, completed_at = n.completed_at,
    error_type = n.error_type, error_message = n.error_message, result = n.result
FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::bigint[], $5::bigint[], $6::text[], $7::text[], $8::text[])
    AS n (run_seq, seq, status, updated_at, completed_at, error_type, error_message, result)
WHERE steps.run_seq = n.run_seq AND steps.seq = n.seq

-- name: attempt_steps
UPDATE steps SET attempt = n.attempt, updated_at = n.updated_at
FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[]) AS n (run_seq, seq, attempt, updated_at)
WHERE steps.run_seq = n.run_seq AND steps.seq = n.seq

-- name: insert_jobs
INSERT INTO jobs (
    seq, id, project_id, lane_id, kind, origin, queue, action_name, provider, model, environment_id, run_seq, step_seq,
    run_id, step_id, step_key, max_attempts, retry_delay, non_retryable, execution_timeout, created_at, spec
)
SELECT * FROM unnest(
    $1::bigint[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
    $10::text[], $11::text[], $12::bigint[], $13::bigint[], $14::text[], $15::text[], $16::text[], $17::bigint[],
    $18::float8[], $19::text[], $20::float8[], $21::bigint[], $22::text[]
)

-- name: leave_pending
DELETE FROM jobs_pending USING unnest($1::bigint[]) AS n (seq) WHERE jobs_pending.seq = n.seq

-- name: leave_claimed
DELETE FROM jobs_claimed USING unnest($1::bigint[], $2::bytea[]) AS n (seq, lease_token_hash)
WHERE jobs_claimed.seq = n.seq AND jobs_claimed.lease_token_hash = n.lease_token_hash

-- name: insert_pending
INSERT INTO jobs_pending (
    seq, lane_id, run_seq, available_at, pending_deadline_at, deadline_at, execution_deadline_at, claim_attempt,
    attempts_charged, hand_backs, lease_token_hash, reported_token_hash, session_id, worker_instance_id, claimed_at,
    updated_at
)
SELECT * FROM unnest(
    $1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[],
    $9::bigint[], $10::bigint[], $11::bytea[], $12::bytea[], $13::text[], $14::text[], $15::bigint[], $16::bigint[]
)

-- name: insert_claimed
INSERT INTO jobs_claimed (
    seq, available_at, execution_deadline_at, claim_attempt, attempts_charged, hand_backs, lease_token_hash,
    reported_token_hash, lease_expires_at, session_id, worker_instance_id, claimed_at, heartbeat_at,
    cancel_requested_at, cancel_reason, updated_at
)
SELECT * FROM unnest(
    $1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bytea[], $8::bytea[],
    $9::bigint[], $10::text[], $11::text[], $12::bigint[], $13::bigint[], $14::bigint[], $15::text[], $16::bigint[]
)

-- name: insert_finished
INSERT INTO jobs_finished (
    seq, status, available_at, execution_deadline_at, claim_attempt, attempts_charged, hand_backs, lease_token_hash,
    reported_token_hash, session_id, worker_instance_id, claimed_at, heartbeat_at, cancel_requested_at, cancel_reason,
    completed_at, error_type, error_message, result
)
SELECT * FROM unnest(
    $1::bigint[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bytea[],
    $9::bytea[], $10::text[], $11::text[], $12::bigint[], $13::bigint[], $14::bigint[], $15::text[], $16::bigint[],
    $17::text[], $18::text[], $19::text[]
)

-- name: update_pending
UPDATE jobs_pending SET pending_deadline_at = n.pending_deadline_at, deadline_at = n.deadline_at,
    reported_token_hash = n.reported_token_hash, updated_at = n.updated_at
FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bytea[], $5::bigint[])
    AS n (seq, pending_deadline_at, deadline_at, reported_token_hash, updated_at)
WHERE jobs_pending.seq = n.seq

-- name: request_cancel
UPDATE jobs_claimed SET cancel_requested_at = n.cancel_requested_at, cancel_reason = n.cancel_reason,
    updated_at = n.updated_at
FROM unnest($1::bigint[], $2::bytea[], $3::bigint[], $4::text[], $5::bigint[])
    AS n (seq, lease_token_hash, cancel_requested_at, cancel_reason, updated_at)
WHERE jobs_claimed.seq = n.seq AND jobs_claimed.lease_token_hash = n.lease_token_hash

-- name: insert_events
INSERT INTO events (run_seq, sequence, id, event_type, created_at, step_id, step_key, payload)
SELECT * FROM unnest(
    $1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::text[], $7::text[], $8::text[]
)
