-- What a decision changes, for many decisions at once. Every block is one part of one statement (postgres_changes.py
-- joins those that are needed). Its rows come as one JSON document, an array of arrays: the driver needs a tenth of the
-- time for that which it needs for arrays of every column. Bytes are written as \x and hexadecimal digits.

-- What is changed is always named by = ANY(ARRAY(...)) too: a plan that was made while a table was small joined by
-- reading the whole index, and went on doing so when the table, or what was deleted from it, had grown.

-- name: insert_runs
INSERT INTO runs (
    seq, id, project_id, automation_id, automation_name, version_id, version, status, depth, created_at, updated_at,
    started_at, completed_at, wall_clock_deadline_at, external_id, parent_run_id, parent_automation_id,
    parent_step_key, error_type, error_message, source, inputs
)
SELECT
    (n->>0)::bigint, n->>1, n->>2, n->>3, n->>4, n->>5, (n->>6)::bigint, n->>7, (n->>8)::bigint, (n->>9)::bigint,
    (n->>10)::bigint, (n->>11)::bigint, (n->>12)::bigint, (n->>13)::bigint, n->>14, n->>15, n->>16, n->>17, n->>18,
    n->>19, n->>20, n->>21
FROM jsonb_array_elements($1::jsonb) AS rows (n)

-- name: update_runs
UPDATE runs SET status = n.status, updated_at = n.updated_at, completed_at = n.completed_at,
    error_type = n.error_type, error_message = n.error_message
FROM (
    SELECT
        (n->>0)::bigint AS seq, n->>1 AS status, (n->>2)::bigint AS updated_at, (n->>3)::bigint AS completed_at,
        n->>4 AS error_type, n->>5 AS error_message
    FROM jsonb_array_elements($1::jsonb) AS rows (n)
) AS n
WHERE runs.seq = ANY(ARRAY(SELECT (n->>0)::bigint FROM jsonb_array_elements($1::jsonb) AS rows (n)))
    AND runs.seq = n.seq

-- name: insert_steps
INSERT INTO steps (
    run_seq, seq, id, project_id, run_id, step_key, step_name, save_as, kind, status, attempt, job_id, created_at,
    updated_at, started_at, completed_at, error_type, error_message, inputs, parameters, result
)
SELECT
    (n->>0)::bigint, (n->>1)::bigint, n->>2, n->>3, n->>4, n->>5, n->>6, n->>7, n->>8, n->>9, (n->>10)::bigint,
    n->>11, (n->>12)::bigint, (n->>13)::bigint, (n->>14)::bigint, (n->>15)::bigint, n->>16, n->>17, n->>18, n->>19,
    n->>20
FROM jsonb_array_elements($1::jsonb) AS rows (n)

-- name: update_steps
UPDATE steps SET status = n.status, updated_at = n.updated_at, completed_at = n.completed_at,
    error_type = n.error_type, error_message = n.error_message, result = n.result
FROM (
    SELECT
        (n->>0)::bigint AS run_seq, (n->>1)::bigint AS seq, n->>2 AS status, (n->>3)::bigint AS updated_at,
        (n->>4)::bigint AS completed_at, n->>5 AS error_type, n->>6 AS error_message, n->>7 AS result
    FROM jsonb_array_elements($1::jsonb) AS rows (n)
) AS n
WHERE steps.run_seq = ANY(ARRAY(SELECT (n->>0)::bigint FROM jsonb_array_elements($1::jsonb) AS rows (n)))
    AND steps.run_seq = n.run_seq AND steps.seq = n.seq

-- name: attempt_steps
UPDATE steps SET attempt = n.attempt, updated_at = n.updated_at
FROM (
    SELECT
        (n->>0)::bigint AS run_seq, (n->>1)::bigint AS seq, (n->>2)::bigint AS attempt, (n->>3)::bigint AS updated_at
    FROM jsonb_array_elements($1::jsonb) AS rows (n)
) AS n
WHERE steps.run_seq = ANY(ARRAY(SELECT (n->>0)::bigint FROM jsonb_array_elements($1::jsonb) AS rows (n)))
    AND steps.run_seq = n.run_seq AND steps.seq = n.seq

-- Jobs that are made together are mostly alike: what they share comes once for each kind of them ($1->0), and their
-- rows ($1->1) begin with the number of their kind. Reading 26 values of every job took half of its insertion.
-- name: insert_jobs
WITH kinds AS MATERIALIZED (
    SELECT
        (number - 1)::int AS number, n->>0 AS project_id, (n->>1)::bigint AS lane_id, n->>2 AS kind, n->>3 AS origin,
        n->>4 AS queue, n->>5 AS action_name, n->>6 AS provider, n->>7 AS model, n->>8 AS environment_id,
        (n->>9)::bigint AS max_attempts, (n->>10)::float8 AS retry_delay, n->>11 AS non_retryable,
        (n->>12)::float8 AS execution_timeout, (n->>13)::bigint AS priority, (n->>14)::float8 AS retry_backoff,
        (n->>15)::float8 AS retry_max_delay, (n->>16)::bigint AS created_at
    FROM jsonb_array_elements($1::jsonb->0) WITH ORDINALITY AS rows (n, number)
)
INSERT INTO jobs (
    seq, id, run_seq, step_seq, run_id, step_id, step_key, external_id, spec, project_id, lane_id, kind, origin, queue,
    action_name, provider, model, environment_id, max_attempts, retry_delay, non_retryable, execution_timeout, priority,
    retry_backoff, retry_max_delay, created_at
)
SELECT
    (n->>1)::bigint, n->>2, (n->>4)::bigint, (n->>5)::bigint, n->>6, n->>7, n->>8, n->>9, n->>3, project_id, lane_id,
    kind, origin, queue, action_name, provider, model, environment_id, max_attempts, retry_delay, non_retryable,
    execution_timeout, priority, retry_backoff, retry_max_delay, created_at
FROM jsonb_array_elements($1::jsonb->1) AS rows (n) JOIN kinds ON kinds.number = (n->>0)::int

-- Jobs of no run that are handed in: three parts, of which the first has the rows, as arrays: reading them from JSON was
-- a fifth of the work. What those have in common that are alike comes once ($1), as above.
-- name: find_handed_in
WITH kinds AS MATERIALIZED (
    SELECT
        number, n->>0 AS project_id, (n->>1)::bigint AS lane_id, n->>2 AS kind, n->>3 AS origin, n->>4 AS queue,
        n->>5 AS action_name, n->>6 AS provider, n->>7 AS model, n->>8 AS environment_id,
        (n->>9)::bigint AS max_attempts, (n->>10)::float8 AS retry_delay, n->>11 AS non_retryable,
        (n->>12)::float8 AS execution_timeout, (n->>13)::bigint AS priority, (n->>14)::float8 AS retry_backoff,
        (n->>15)::float8 AS retry_max_delay, (n->>16)::bigint AS created_at, (n->>17)::bigint AS available_at,
        (n->>18)::bigint AS pending_deadline_at
    FROM jsonb_array_elements($1::jsonb) WITH ORDINALITY AS rows (n, number)
)
SELECT asked.seq, asked.id, asked.spec, asked.external_id, kinds.*
FROM unnest($2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::text[])
    AS asked (number, seq, id, spec, external_id)
JOIN kinds USING (number)

-- name: insert_handed_in
INSERT INTO jobs (
    seq, id, external_id, spec, project_id, lane_id, kind, origin, queue, action_name, provider, model, environment_id,
    max_attempts, retry_delay, non_retryable, execution_timeout, priority, retry_backoff, retry_max_delay, created_at
)
SELECT
    seq, id, external_id, spec, project_id, lane_id, kind, origin, queue, action_name, provider, model, environment_id,
    max_attempts, retry_delay, non_retryable, execution_timeout, priority, retry_backoff, retry_max_delay, created_at
FROM find_handed_in

-- name: insert_waiting
INSERT INTO jobs_pending (
    seq, lane_id, available_at, pending_deadline_at, deadline_at, updated_at, claim_attempt, attempts_charged, hand_backs
)
SELECT seq, lane_id, available_at, pending_deadline_at, pending_deadline_at, created_at, 0, 0, 0
FROM find_handed_in

-- name: insert_new
INSERT INTO jobs_pending (
    seq, lane_id, run_seq, available_at, pending_deadline_at, deadline_at, updated_at, claim_attempt, attempts_charged,
    hand_backs
)
SELECT
    (n->>0)::bigint, (n->>1)::bigint, (n->>2)::bigint, (n->>3)::bigint, (n->>4)::bigint, (n->>4)::bigint,
    (n->>5)::bigint, 0, 0, 0
FROM jsonb_array_elements($1::jsonb) AS rows (n)

-- name: leave_pending
DELETE FROM jobs_pending
WHERE seq = ANY(ARRAY(SELECT (n->>0)::bigint FROM jsonb_array_elements($1::jsonb) AS rows (n)))

-- Pending jobs that are claimed: three parts, of which the first has the rows. It finds them where the claim has locked
-- them (see claim_candidates). What a claim does not change goes from row to row; what the jobs of one claim share comes
-- once ($6 to $9), and each job has its claim's number there ($2). There is no join that a plan could get wrong: one that
-- was made while the table seemed empty compared every row with every other.
-- name: find_leased
SELECT
    waited.*, asked.execution_deadline_at, asked.claim_attempt, asked.lease_token_hash,
    ($6::text[])[asked.claim] AS session_id, ($7::text[])[asked.claim] AS worker_instance_id,
    ($8::bigint[])[asked.claim] AS claimed_at, ($9::bigint[])[asked.claim] AS lease_expires_at
FROM unnest($1::tid[], $2::int[], $3::bigint[], $4::bigint[], $5::bytea[])
    AS asked (place, claim, execution_deadline_at, claim_attempt, lease_token_hash)
CROSS JOIN LATERAL (
    SELECT p.seq, p.available_at, p.attempts_charged, p.hand_backs, p.reported_token_hash
    FROM jobs_pending p WHERE p.ctid = asked.place OFFSET 0
) waited

-- name: leave_leased
DELETE FROM jobs_pending WHERE ctid = ANY($1::tid[])

-- name: insert_leased
INSERT INTO jobs_claimed (
    seq, available_at, attempts_charged, hand_backs, reported_token_hash, execution_deadline_at, claim_attempt,
    lease_token_hash, session_id, worker_instance_id, claimed_at, lease_expires_at, updated_at
)
SELECT
    seq, available_at, attempts_charged, hand_backs, reported_token_hash, execution_deadline_at, claim_attempt,
    lease_token_hash, session_id, worker_instance_id, claimed_at, lease_expires_at, claimed_at
FROM find_leased

-- name: leave_claimed
DELETE FROM jobs_claimed
WHERE seq = ANY(ARRAY(SELECT (n->>0)::bigint FROM jsonb_array_elements($1::jsonb) AS rows (n)))
    AND lease_token_hash = ANY(ARRAY(SELECT (n->>1)::bytea FROM jsonb_array_elements($1::jsonb) AS rows (n)))

-- name: leave_finished
DELETE FROM jobs_finished
WHERE seq = ANY(ARRAY(SELECT (n->>0)::bigint FROM jsonb_array_elements($1::jsonb) AS rows (n)))

-- name: insert_pending
INSERT INTO jobs_pending (
    seq, lane_id, run_seq, available_at, pending_deadline_at, deadline_at, execution_deadline_at, claim_attempt,
    attempts_charged, hand_backs, lease_token_hash, reported_token_hash, session_id, worker_instance_id, claimed_at,
    updated_at
)
SELECT
    (n->>0)::bigint, (n->>1)::bigint, (n->>2)::bigint, (n->>3)::bigint, (n->>4)::bigint, (n->>5)::bigint,
    (n->>6)::bigint, (n->>7)::bigint, (n->>8)::bigint, (n->>9)::bigint, (n->>10)::bytea, (n->>11)::bytea, n->>12,
    n->>13, (n->>14)::bigint, (n->>15)::bigint
FROM jsonb_array_elements($1::jsonb) AS rows (n)

-- name: insert_claimed
INSERT INTO jobs_claimed (
    seq, available_at, execution_deadline_at, claim_attempt, attempts_charged, hand_backs, lease_token_hash,
    reported_token_hash, lease_expires_at, session_id, worker_instance_id, claimed_at, heartbeat_at,
    cancel_requested_at, cancel_reason, updated_at
)
SELECT
    (n->>0)::bigint, (n->>1)::bigint, (n->>2)::bigint, (n->>3)::bigint, (n->>4)::bigint, (n->>5)::bigint,
    (n->>6)::bytea, (n->>7)::bytea, (n->>8)::bigint, n->>9, n->>10, (n->>11)::bigint, (n->>12)::bigint,
    (n->>13)::bigint, n->>14, (n->>15)::bigint
FROM jsonb_array_elements($1::jsonb) AS rows (n)

-- name: insert_finished
INSERT INTO jobs_finished (
    seq, status, available_at, execution_deadline_at, claim_attempt, attempts_charged, hand_backs, lease_token_hash,
    reported_token_hash, session_id, worker_instance_id, claimed_at, heartbeat_at, cancel_requested_at, cancel_reason,
    completed_at, error_type, error_message, result
)
SELECT
    (n->>0)::bigint, n->>1, (n->>2)::bigint, (n->>3)::bigint, (n->>4)::bigint, (n->>5)::bigint, (n->>6)::bigint,
    (n->>7)::bytea, (n->>8)::bytea, n->>9, n->>10, (n->>11)::bigint, (n->>12)::bigint, (n->>13)::bigint, n->>14,
    (n->>15)::bigint, n->>16, n->>17, n->>18
FROM jsonb_array_elements($1::jsonb) AS rows (n)

-- name: update_pending
UPDATE jobs_pending SET pending_deadline_at = n.pending_deadline_at, deadline_at = n.deadline_at,
    reported_token_hash = n.reported_token_hash, updated_at = n.updated_at
FROM (
    SELECT
        (n->>0)::bigint AS seq, (n->>1)::bigint AS pending_deadline_at, (n->>2)::bigint AS deadline_at,
        (n->>3)::bytea AS reported_token_hash, (n->>4)::bigint AS updated_at
    FROM jsonb_array_elements($1::jsonb) AS rows (n)
) AS n
WHERE jobs_pending.seq = ANY(ARRAY(SELECT (n->>0)::bigint FROM jsonb_array_elements($1::jsonb) AS rows (n)))
    AND jobs_pending.seq = n.seq

-- name: request_cancel
UPDATE jobs_claimed SET cancel_requested_at = n.cancel_requested_at, cancel_reason = n.cancel_reason,
    updated_at = n.updated_at
FROM (
    SELECT
        (n->>0)::bigint AS seq, (n->>1)::bytea AS lease_token_hash, (n->>2)::bigint AS cancel_requested_at,
        n->>3 AS cancel_reason, (n->>4)::bigint AS updated_at
    FROM jsonb_array_elements($1::jsonb) AS rows (n)
) AS n
WHERE jobs_claimed.seq = ANY(ARRAY(SELECT (n->>0)::bigint FROM jsonb_array_elements($1::jsonb) AS rows (n)))
    AND jobs_claimed.seq = n.seq AND jobs_claimed.lease_token_hash = n.lease_token_hash

-- name: insert_attempts
INSERT INTO job_attempts (
    job_seq, attempt, session_id, worker_instance_id, error_type, error_message, started_at, ended_at
)
SELECT
    (n->>0)::bigint, (n->>1)::bigint, n->>2, n->>3, n->>4, n->>5, (n->>6)::bigint, (n->>7)::bigint
FROM jsonb_array_elements($1::jsonb) AS rows (n)

-- name: insert_events
INSERT INTO events (run_seq, sequence, id, event_type, created_at, step_id, step_key, payload)
SELECT
    (n->>0)::bigint, (n->>1)::bigint, n->>2, n->>3, (n->>4)::bigint, n->>5, n->>6, n->>7
FROM jsonb_array_elements($1::jsonb) AS rows (n)

-- name: begin_runs
UPDATE runs SET status = n.status, updated_at = n.updated_at, completed_at = n.completed_at,
    error_type = n.error_type, error_message = n.error_message, started_at = n.started_at,
    wall_clock_deadline_at = n.wall_clock_deadline_at
FROM (
    SELECT
        (n->>0)::bigint AS seq, n->>1 AS status, (n->>2)::bigint AS updated_at, (n->>3)::bigint AS completed_at,
        n->>4 AS error_type, n->>5 AS error_message, (n->>6)::bigint AS started_at,
        (n->>7)::bigint AS wall_clock_deadline_at
    FROM jsonb_array_elements($1::jsonb) AS rows (n)
) AS n
WHERE runs.seq = ANY(ARRAY(SELECT (n->>0)::bigint FROM jsonb_array_elements($1::jsonb) AS rows (n)))
    AND runs.seq = n.seq

-- name: set_timers
INSERT INTO run_timers (run_seq, kind, due_at, payload)
SELECT (n->>0)::bigint, n->>1, (n->>2)::bigint, n->>3 FROM jsonb_array_elements($1::jsonb) AS rows (n)
ON CONFLICT (run_seq, kind) DO UPDATE SET due_at = excluded.due_at, payload = excluded.payload

-- name: clear_timers
DELETE FROM run_timers USING (
    SELECT (n->>0)::bigint AS run_seq, n->>1 AS kind FROM jsonb_array_elements($1::jsonb) AS rows (n)
) AS n
WHERE run_timers.run_seq = ANY(ARRAY(SELECT (n->>0)::bigint FROM jsonb_array_elements($1::jsonb) AS rows (n)))
    AND run_timers.run_seq = n.run_seq AND run_timers.kind = n.kind

-- name: keep_signals
INSERT INTO run_signals (run_seq, step_key, result, created_at)
SELECT (n->>0)::bigint, n->>1, n->>2, (n->>3)::bigint FROM jsonb_array_elements($1::jsonb) AS rows (n)

-- name: take_signals
DELETE FROM run_signals USING (
    SELECT (n->>0)::bigint AS run_seq, n->>1 AS step_key FROM jsonb_array_elements($1::jsonb) AS rows (n)
) AS n
WHERE run_signals.run_seq = ANY(ARRAY(SELECT (n->>0)::bigint FROM jsonb_array_elements($1::jsonb) AS rows (n)))
    AND run_signals.run_seq = n.run_seq AND run_signals.step_key = n.step_key

-- name: set_turns
INSERT INTO run_turns (run_seq, automation_id, holds)
SELECT (n->>0)::bigint, n->>1, (n->>2)::boolean FROM jsonb_array_elements($1::jsonb) AS rows (n)
ON CONFLICT (run_seq) DO UPDATE SET holds = excluded.holds

-- name: leave_turns
DELETE FROM run_turns WHERE run_seq = ANY(ARRAY(SELECT (n->>0)::bigint FROM jsonb_array_elements($1::jsonb) AS rows (n)))
