-- Jobs that this process has leased, and whose reports it may take without reading what it remembers. What was
-- remembered stands only if the row still says so: the same lease, and nobody has asked to cancel.
-- name: finish_held
WITH asked AS MATERIALIZED (
    SELECT (n->>0)::bigint AS seq, (n->>1)::bytea AS lease_token_hash, n->>2 AS status, (n->>3)::bigint AS completed_at,
        n->>4 AS result
    FROM jsonb_array_elements($1::jsonb) AS rows (n)
), held AS (
    DELETE FROM jobs_claimed
    WHERE seq = ANY(ARRAY(SELECT seq FROM asked))
        AND lease_token_hash = ANY(ARRAY(SELECT lease_token_hash FROM asked)) AND cancel_requested_at IS NULL
    RETURNING seq, available_at, execution_deadline_at, claim_attempt, attempts_charged, hand_backs, lease_token_hash,
        session_id, worker_instance_id, claimed_at, heartbeat_at
), finished AS (
    INSERT INTO jobs_finished (
        seq, status, available_at, execution_deadline_at, claim_attempt, attempts_charged, hand_backs, lease_token_hash,
        reported_token_hash, session_id, worker_instance_id, claimed_at, heartbeat_at, completed_at, result
    )
    SELECT
        seq, asked.status, available_at, execution_deadline_at, claim_attempt, attempts_charged, hand_backs,
        held.lease_token_hash, held.lease_token_hash, session_id, worker_instance_id, claimed_at, heartbeat_at,
        asked.completed_at, asked.result
    FROM held JOIN asked USING (seq)
)
SELECT pg_current_xact_id()::text, ARRAY(SELECT seq FROM held)
