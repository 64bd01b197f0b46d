-- name: lease_of_job
SELECT c.seq, c.claim_attempt FROM jobs j JOIN jobs_claimed c USING (seq)
WHERE j.id = ? AND j.project_id = ? AND c.lease_token_hash = ?

-- name: insert_deltas
INSERT INTO deltas (job_seq, attempt, last_sequence, created_at, items) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING

-- name: deltas_of_job
SELECT attempt, items FROM deltas
WHERE job_seq = ?1 AND (attempt, last_sequence) > (?2, ?3) ORDER BY attempt, last_sequence LIMIT ?4

-- name: newest_delta
SELECT attempt, last_sequence FROM deltas WHERE job_seq = ? ORDER BY attempt DESC, last_sequence DESC LIMIT 1
