-- Jobs that this process has leased, and whose reports it may take without reading what it remembers. What was
-- remembered stands only if the row still says so: the same lease, and nobody has asked to cancel. $8 has the results
-- by key, those that are not NULL. It is looked up and not joined: a plan that takes the table for empty compares every
-- row of one side with every row of the other.
-- A worker that reports mostly claims again, and that is asked with it, since an answer costs both processes as much as
-- several jobs do: the first row says what has finished, the others are those of claim_candidates.
-- name: finish_held
WITH held AS (
    DELETE FROM jobs_claimed
    WHERE seq = ANY($5::bigint[]) AND lease_token_hash = ANY($6::bytea[]) AND cancel_requested_at IS NULL
    RETURNING seq, available_at, execution_deadline_at, claim_attempt, attempts_charged, hand_backs, lease_token_hash,
        session_id, worker_instance_id, claimed_at, heartbeat_at
), finished AS (
    INSERT INTO jobs_finished (
        seq, status, available_at, execution_deadline_at, claim_attempt, attempts_charged, hand_backs, lease_token_hash,
        reported_token_hash, session_id, worker_instance_id, claimed_at, heartbeat_at, completed_at, result
    )
    SELECT
        seq, 'completed', available_at, execution_deadline_at, claim_attempt, attempts_charged, hand_backs,
        lease_token_hash, lease_token_hash, session_id, worker_instance_id, claimed_at, heartbeat_at, $7::bigint,
        $8::jsonb->>(seq::text)
    FROM held
), {picking_body}
SELECT
    NULL::bigint AS lane_id, NULL::bigint AS available_at, NULL::bigint AS seq, NULL::bigint AS run_seq,
    NULL::tid AS place, NULL::boolean AS is_new, pg_current_xact_id()::text AS xid, ARRAY(SELECT seq FROM held) AS gone
UNION ALL
SELECT picked.*, NULL, NULL FROM (SELECT {picked_columns}) picked
