-- Answers the places of those whose lease holds the job.
-- name: append_deltas
WITH held AS (
    SELECT asked.place, c.seq, c.claim_attempt, asked.last_sequence, asked.items
    FROM unnest($1::text[], $2::text[], $3::bytea[], $4::bigint[], $5::text[])
        WITH ORDINALITY AS asked (project_id, job_id, token_hash, last_sequence, items, place)
    JOIN jobs j ON j.id = asked.job_id AND j.project_id = asked.project_id
    JOIN jobs_claimed c ON c.seq = j.seq AND c.lease_token_hash = asked.token_hash
), written AS (
    INSERT INTO deltas (job_seq, attempt, last_sequence, created_at, items)
    SELECT seq, claim_attempt, last_sequence, $6, items FROM held
    ON CONFLICT DO NOTHING
)
SELECT place FROM held

-- name: seq_of_job
SELECT seq FROM jobs WHERE id = $1 AND project_id = $2

-- name: deltas_of_job
SELECT attempt, items FROM deltas
WHERE job_seq = $1 AND (attempt, last_sequence) > ($2, $3) ORDER BY attempt, last_sequence LIMIT $4

-- name: newest_delta
SELECT attempt, last_sequence FROM deltas WHERE job_seq = $1 ORDER BY attempt DESC, last_sequence DESC LIMIT 1
