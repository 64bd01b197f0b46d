-- name: run_columns
r.seq, r.id, r.project_id, r.automation_id, r.automation_name, r.version_id, r.version, r.status, r.depth, r.created_at,
r.updated_at, r.started_at, r.completed_at, r.wall_clock_deadline_at, r.external_id, r.parent_run_id,
r.parent_automation_id, r.parent_step_key, r.error_type, r.error_message, r.source, r.inputs

-- name: run_by_id
SELECT {run_columns} FROM runs r WHERE r.id = $1 AND r.project_id = $2

-- name: saving_step
$3::boolean AND r.status = 'completed' AND s.run_seq = r.seq AND s.status = 'completed' AND s.kind <> 'cleanup'

-- name: run_with_results
SELECT {run_columns},
    ARRAY(SELECT s.save_as FROM steps s WHERE {saving_step} ORDER BY s.seq),
    ARRAY(SELECT s.result FROM steps s WHERE {saving_step} ORDER BY s.seq),
    (SELECT t.due_at FROM run_timers t WHERE t.run_seq = r.seq AND t.kind = 'step')
FROM runs r WHERE r.id = $1 AND r.project_id = $2

-- name: run_seq
SELECT seq FROM runs WHERE id = $1 AND project_id = $2

-- What a listing may ask beside that by which it looks.
-- name: run_filter
r.seq < $2 AND r.seq >= $3 AND ($4::text IS NULL OR r.status = $4) AND ($5::text IS NULL OR r.automation_id = $5)
AND ($6::text IS NULL OR r.parent_run_id = $6) AND ($7::text IS NULL OR r.external_id = $7)
AND ($8::bigint IS NULL OR r.created_at >= $8) AND ($9::bigint IS NULL OR r.created_at < $9)
ORDER BY r.seq DESC LIMIT $10

-- As many as fit into so many bytes of inputs, but one at least; the last column is how many there would be.
-- name: runs_page_begin
SELECT * FROM (
    SELECT *, sum(octet_length(inputs)) OVER (ORDER BY seq DESC) - octet_length(inputs) AS before,
        count(*) OVER () AS found
    FROM (

-- name: runs_page_end
    ) page
) measured
WHERE before = 0 OR before + octet_length(inputs) <= $11
ORDER BY seq DESC

-- name: runs_of_project
{runs_page_begin} SELECT {run_columns} FROM runs r WHERE r.project_id = $1 AND {run_filter} {runs_page_end}

-- name: runs_by_status
{runs_page_begin} SELECT {run_columns} FROM runs r WHERE r.project_id = $1 AND r.status = $4 AND {run_filter}
{runs_page_end}

-- name: runs_of_automation
{runs_page_begin} SELECT {run_columns} FROM runs r WHERE r.project_id = $1 AND r.automation_id = $5 AND {run_filter}
{runs_page_end}

-- name: runs_of_parent
{runs_page_begin} SELECT {run_columns} FROM runs r WHERE r.project_id = $1 AND r.parent_run_id = $6 AND {run_filter}
{runs_page_end}

-- name: runs_of_external_id
{runs_page_begin} SELECT {run_columns} FROM runs r WHERE r.project_id = $1 AND r.external_id = $7 AND {run_filter}
{runs_page_end}

-- name: run_ends
SELECT (SELECT min(seq) FROM runs), (SELECT max(seq) FROM runs)

-- name: run_at_or_before
SELECT seq, created_at FROM runs WHERE seq <= $1 ORDER BY seq DESC LIMIT 1

-- name: runs_by_external_id
SELECT {run_columns} FROM runs r
JOIN unnest($1::text[], $2::text[]) AS asked (automation_id, external_id)
    ON r.automation_id = asked.automation_id AND r.external_id = asked.external_id

-- name: step_columns
s.id, s.project_id, s.run_id, s.step_key, s.step_name, s.save_as, s.kind, s.status, s.seq, s.attempt, s.job_id,
s.created_at, s.updated_at, s.started_at, s.completed_at, s.error_type, s.error_message, s.inputs, s.parameters,
s.result

-- name: steps_of_run
SELECT {step_columns} FROM steps s WHERE s.run_seq = $1 ORDER BY s.seq

-- name: open_step
SELECT {step_columns} FROM steps s WHERE s.run_seq = $1 AND s.status IN ('pending', 'running', 'suspended')
ORDER BY s.seq DESC LIMIT 1

-- name: open_step_of_run
SELECT o.* FROM steps o WHERE o.run_seq = r.seq AND o.status IN ('pending', 'running', 'suspended')
ORDER BY o.seq DESC LIMIT 1

-- With what is asked for comes what else its run has, the smallest first, up to so many bytes: a decision that needs some
-- of it may need all, and each question is a round trip in which everybody else waits. $3 and $4 are what is known.
-- name: run_values_page_begin
SELECT run_seq, step_key, result FROM (
    SELECT s.run_seq, s.step_key, s.result, s.step_key = asked.step_key AS is_asked,
        sum(octet_length(s.result)) OVER (
            PARTITION BY asked.run_seq, asked.step_key ORDER BY octet_length(s.result), s.step_key
        ) AS so_far
    FROM unnest($1::bigint[], $2::text[]) AS asked (run_seq, step_key)

-- name: run_values_page_end
    WHERE NOT EXISTS (
        SELECT 1 FROM unnest($3::bigint[], $4::text[]) AS known (run_seq, step_key)
        WHERE known.run_seq = s.run_seq AND known.step_key = s.step_key
    )
) found
WHERE is_asked OR so_far <= $5

-- name: step_results
{run_values_page_begin} JOIN steps s ON s.run_seq = asked.run_seq AND s.status = 'completed' {run_values_page_end}

-- name: kept_bytes
SELECT s.run_seq, sum(
    coalesce(octet_length(s.inputs), 0) + coalesce(octet_length(s.parameters), 0) + coalesce(octet_length(s.result), 0)
)::bigint FROM steps s WHERE s.run_seq = ANY($1::bigint[]) GROUP BY s.run_seq

-- As many as fit into so many bytes, but one at least.
-- name: events_of_run
SELECT id, sequence, event_type, created_at, step_id, step_key, payload
FROM (
    SELECT *, sum(octet_length(payload)) OVER (ORDER BY sequence) - octet_length(payload) AS before
    FROM (
        SELECT * FROM events WHERE run_seq = $1 AND sequence > $2 ORDER BY sequence LIMIT $3
    ) page
) measured
WHERE before = 0 OR before + octet_length(payload) <= $4
ORDER BY sequence
