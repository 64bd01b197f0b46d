-- name: job_body
j.seq, j.run_seq, j.step_seq,
j.id, j.project_id, j.kind, j.origin, j.queue, j.action_name, j.provider, j.model, j.environment_id,
j.run_id, j.step_id, j.step_key, j.max_attempts, j.retry_delay, j.non_retryable, j.execution_timeout, j.priority,
j.retry_backoff, j.retry_max_delay, j.external_id, j.created_at

-- name: find_job
SELECT seq FROM jobs WHERE id = ? AND project_id = ?

-- name: pending_state
'pending', p.available_at, p.pending_deadline_at, p.execution_deadline_at, p.claim_attempt, p.attempts_charged,
p.hand_backs, p.lease_token_hash, p.reported_token_hash, NULL, p.session_id, p.worker_instance_id, p.claimed_at, NULL,
NULL, NULL, p.updated_at, NULL, NULL, NULL, NULL

-- name: pending_job
SELECT {job_body}, {pending_state} FROM jobs_pending p JOIN jobs j USING (seq) WHERE p.seq = ?

-- One row with all of them as JSON: each row is a step, and each step lets go of the interpreter's lock. What is behind
-- the spec are the columns of Job (rows.pending_jobs). A long spec is read by itself.
-- name: pending_jobs
SELECT json_group_array(json_array(
    j.seq, j.run_seq, j.step_seq, CASE WHEN octet_length(j.spec) <= 16384 THEN j.spec END, hex(p.reported_token_hash),
    json_array(NULL /* pending_job_fields */)
))
FROM carray(?) c CROSS JOIN jobs_pending p ON p.seq = c.value CROSS JOIN jobs j ON j.seq = c.value

-- name: claimed_job
SELECT {job_body}, 'claimed', c.available_at, NULL, c.execution_deadline_at, c.claim_attempt,
    c.attempts_charged, c.hand_backs, c.lease_token_hash, c.reported_token_hash, c.lease_expires_at, c.session_id,
    c.worker_instance_id, c.claimed_at, c.heartbeat_at, c.cancel_requested_at, c.cancel_reason, c.updated_at,
    NULL, NULL, NULL, NULL
FROM jobs_claimed c JOIN jobs j USING (seq)
WHERE c.seq = ?

-- name: finished_job_columns
{job_body}, f.status, f.available_at, NULL, f.execution_deadline_at, f.claim_attempt,
    f.attempts_charged, f.hand_backs, f.lease_token_hash, f.reported_token_hash, NULL, f.session_id,
    f.worker_instance_id, f.claimed_at, f.heartbeat_at, f.cancel_requested_at, f.cancel_reason, f.completed_at,
    f.completed_at, f.error_type, f.error_message

-- name: finished_job
SELECT {finished_job_columns}, f.result FROM jobs_finished f JOIN jobs j USING (seq) WHERE f.seq = ?

-- name: finished_job_without_result
SELECT {finished_job_columns}, NULL FROM jobs_finished f JOIN jobs j USING (seq) WHERE f.seq = ?

-- name: insert_job
INSERT INTO jobs (
    id, project_id, lane_id, kind, origin, queue, action_name, provider, model, environment_id, run_seq, step_seq,
    run_id, step_id, step_key, max_attempts, retry_delay, non_retryable, execution_timeout, priority, retry_backoff,
    retry_max_delay, external_id, created_at, spec
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: insert_attempt
INSERT INTO job_attempts (
    job_seq, attempt, session_id, worker_instance_id, error_type, error_message, started_at, ended_at
) VALUES (?, ?, ?, ?, ?, ?, ?, ?)

-- name: insert_pending
INSERT INTO jobs_pending (
    seq, lane_id, available_at, pending_deadline_at, deadline_at, execution_deadline_at, claim_attempt,
    attempts_charged, hand_backs, lease_token_hash, reported_token_hash, session_id, worker_instance_id, claimed_at,
    updated_at
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: insert_claimed
INSERT INTO jobs_claimed (
    seq, available_at, execution_deadline_at, claim_attempt, attempts_charged, hand_backs, lease_token_hash,
    reported_token_hash, lease_expires_at, session_id, worker_instance_id, claimed_at, heartbeat_at,
    cancel_requested_at, cancel_reason, updated_at
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: insert_finished
INSERT INTO jobs_finished (
    seq, status, available_at, execution_deadline_at, claim_attempt, attempts_charged, hand_backs, lease_token_hash,
    reported_token_hash, session_id, worker_instance_id, claimed_at, heartbeat_at, cancel_requested_at, cancel_reason,
    completed_at, error_type, error_message, result
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: leave_pending
DELETE FROM jobs_pending WHERE seq = ?

-- name: leave_finished
DELETE FROM jobs_finished WHERE seq = ?

-- name: leave_all_pending
DELETE FROM jobs_pending WHERE seq IN (SELECT value FROM carray(?))

-- name: leave_all_claimed
DELETE FROM jobs_claimed
WHERE seq IN (SELECT value FROM carray(?)) AND lease_token_hash IN (SELECT value FROM carray(?))

-- name: leave_claimed
DELETE FROM jobs_claimed WHERE seq = ? AND lease_token_hash = ?

-- name: update_pending
UPDATE jobs_pending SET pending_deadline_at = ?, deadline_at = ?, reported_token_hash = ?, updated_at = ? WHERE seq = ?

-- name: request_cancel
UPDATE jobs_claimed SET cancel_requested_at = ?, cancel_reason = ?, updated_at = ?
WHERE seq = ? AND lease_token_hash = ?

-- name: extend_lease
UPDATE jobs_claimed SET lease_expires_at = ?, heartbeat_at = ? WHERE seq = ? AND lease_token_hash = ?

-- name: claimed_by_id
SELECT c.seq, c.lease_token_hash, c.cancel_requested_at, c.cancel_reason
FROM jobs j JOIN jobs_claimed c USING (seq)
WHERE j.id = ? AND j.project_id = ?

-- name: lanes_of_project
SELECT id, queue, environment_id, action_name, provider, model, priority FROM lanes WHERE project_id = ?

-- name: insert_lane
INSERT INTO lanes (project_id, queue, environment_id, action_name, provider, model, priority)
VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING id

-- name: lane_head
SELECT json_group_array(json_array(available_at, seq)) FROM (
    SELECT available_at, seq FROM jobs_pending WHERE lane_id = ? AND available_at <= ? ORDER BY available_at, seq LIMIT ?
)

-- name: lane_next
SELECT min(available_at) FROM jobs_pending WHERE lane_id = ?

-- name: spec_of_job
SELECT spec FROM jobs WHERE seq = ?

-- name: lapsed_leases
SELECT seq FROM jobs_claimed WHERE lease_expires_at <= ? ORDER BY seq LIMIT ?

-- name: overrun_claims
SELECT seq FROM jobs_claimed WHERE execution_deadline_at <= ? ORDER BY seq LIMIT ?

-- name: lapsed_pending
SELECT seq, execution_deadline_at FROM jobs_pending WHERE deadline_at <= ? ORDER BY deadline_at LIMIT ?

-- name: next_available
SELECT min(next) FROM (
    SELECT (SELECT min(available_at) FROM jobs_pending p WHERE p.lane_id = lanes.id AND p.available_at > ?) AS next
    FROM lanes
)

-- Those that had to wait for their time: of all others it was said when they came, by this very process.
-- name: claimable
SELECT p.available_at, p.seq FROM lanes CROSS JOIN jobs_pending p ON p.lane_id = lanes.id
WHERE p.available_at > ? AND p.available_at <= ? AND p.available_at > p.updated_at
ORDER BY p.available_at, p.seq LIMIT ?

-- name: claimable_job
SELECT id, project_id, queue, action_name, provider, model, environment_id FROM jobs WHERE seq = ?

-- name: jobs_of_sessions
SELECT c.session_id, c.seq FROM jobs_claimed c CROSS JOIN jobs j USING (seq) WHERE j.project_id = ? ORDER BY c.claimed_at, c.seq

-- name: load
SELECT
    (SELECT count(*) FROM (SELECT 1 FROM jobs_pending LIMIT ?)),
    (SELECT count(*) FROM (SELECT 1 FROM jobs_claimed LIMIT ?)),
    (SELECT count(*) FROM (
        SELECT 1 FROM projects CROSS JOIN runs ON runs.project_id = projects.id
        WHERE runs.status IN ('queued', 'running', 'suspended') LIMIT ?
    ))
