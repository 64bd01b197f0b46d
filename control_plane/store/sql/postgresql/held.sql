-- Jobs that this process has leased, and whose reports it may take without reading what it remembers. What was
-- remembered stands only if the row still says so: the same lease, and nobody has asked to cancel. $4 has the results
-- by key, those that are not NULL. It is looked up and not joined: a plan that takes the table for empty compares every
-- row of one side with every row of the other.
-- name: finish_held
WITH held AS (
    DELETE FROM jobs_claimed
    WHERE seq = ANY($1::bigint[]) AND lease_token_hash = ANY($2::bytea[]) AND cancel_requested_at IS NULL
    RETURNING seq, available_at, execution_deadline_at, claim_attempt, attempts_charged, hand_backs, lease_token_hash,
        session_id, worker_instance_id, claimed_at, heartbeat_at
), finished AS (
    INSERT INTO jobs_finished (
        seq, status, available_at, execution_deadline_at, claim_attempt, attempts_charged, hand_backs, lease_token_hash,
        reported_token_hash, session_id, worker_instance_id, claimed_at, heartbeat_at, completed_at, result
    )
    SELECT
        seq, 'completed', available_at, execution_deadline_at, claim_attempt, attempts_charged, hand_backs,
        lease_token_hash, lease_token_hash, session_id, worker_instance_id, claimed_at, heartbeat_at, $3::bigint,
        $4::jsonb->>(seq::text)
    FROM held
)
SELECT pg_current_xact_id()::text, ARRAY(SELECT seq FROM held)
