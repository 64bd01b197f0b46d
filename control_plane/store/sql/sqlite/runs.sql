-- name: run_columns
seq, id, project_id, automation_id, automation_name, version_id, version, status, depth, created_at, updated_at,
started_at, completed_at, wall_clock_deadline_at, external_id, parent_run_id, parent_automation_id, parent_step_key,
error_type, error_message, source, inputs

-- name: run_by_id
SELECT {run_columns} FROM runs WHERE id = ? AND project_id = ?

-- name: run_by_seq
SELECT {run_columns} FROM runs WHERE seq = ?

-- name: run_by_external_id
SELECT {run_columns} FROM runs WHERE automation_id = ? AND external_id = ?

-- name: run_seq
SELECT seq FROM runs WHERE id = ? AND project_id = ?

-- What a listing may ask beside that by which it looks.
-- name: run_filter
seq < ?2 AND seq >= ?3 AND (?4 IS NULL OR +status = ?4) AND (?5 IS NULL OR +automation_id = ?5)
AND (?6 IS NULL OR +parent_run_id = ?6) AND (?7 IS NULL OR +external_id = ?7)
AND (?8 IS NULL OR created_at >= ?8) AND (?9 IS NULL OR created_at < ?9)

-- name: runs_of_project
SELECT {run_columns} FROM runs WHERE project_id = ?1 AND {run_filter} ORDER BY seq DESC LIMIT ?10

-- name: runs_by_status
SELECT {run_columns} FROM runs WHERE project_id = ?1 AND status = ?4 AND {run_filter} ORDER BY seq DESC LIMIT ?10

-- name: runs_of_automation
SELECT {run_columns} FROM runs WHERE +project_id = ?1 AND automation_id = ?5 AND {run_filter}
ORDER BY seq DESC LIMIT ?10

-- name: runs_of_parent
SELECT {run_columns} FROM runs WHERE +project_id = ?1 AND parent_run_id = ?6 AND {run_filter}
ORDER BY seq DESC LIMIT ?10

-- name: runs_of_external_id
SELECT {run_columns} FROM runs WHERE project_id = ?1 AND external_id = ?7 AND {run_filter}
ORDER BY seq DESC LIMIT ?10

-- name: run_ends
SELECT (SELECT min(seq) FROM runs), (SELECT max(seq) FROM runs)

-- name: run_at_or_before
SELECT seq, created_at FROM runs WHERE seq <= ? ORDER BY seq DESC LIMIT 1

-- name: insert_run
INSERT INTO runs (
    id, project_id, automation_id, automation_name, version_id, version, status, depth, created_at, updated_at,
    started_at, completed_at, wall_clock_deadline_at, external_id, parent_run_id, parent_automation_id,
    parent_step_key, error_type, error_message, source, inputs
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: update_run
UPDATE runs SET status = ?, updated_at = ?, completed_at = ?, error_type = ?, error_message = ? WHERE seq = ?

-- name: step_columns
id, project_id, run_id, step_key, step_name, save_as, kind, status, seq, attempt, job_id, created_at, updated_at, started_at,
completed_at, error_type, error_message, inputs, parameters, result

-- name: steps_of_run
SELECT {step_columns} FROM steps WHERE run_seq = ? ORDER BY seq

-- name: step
SELECT {step_columns} FROM steps WHERE run_seq = ? AND seq = ?

-- name: open_step
SELECT {step_columns} FROM steps WHERE run_seq = ? AND status IN ('pending', 'running', 'suspended')
ORDER BY seq DESC LIMIT 1

-- name: step_result
SELECT result FROM steps WHERE run_seq = ? AND step_key = ? AND status = 'completed'

-- name: step_results
SELECT save_as, result FROM steps WHERE run_seq = ? AND status = 'completed' AND kind <> 'cleanup' ORDER BY seq

-- name: kept_bytes
SELECT coalesce(sum(
    coalesce(octet_length(inputs), 0) + coalesce(octet_length(parameters), 0) + coalesce(octet_length(result), 0)
), 0) FROM steps WHERE run_seq = ?

-- name: step_name
SELECT coalesce(step_name, step_key) FROM steps WHERE run_seq = ? AND seq = ?

-- name: insert_step
INSERT INTO steps (
    run_seq, seq, id, project_id, run_id, step_key, step_name, save_as, kind, status, attempt, job_id, created_at,
    updated_at, started_at, completed_at, error_type, error_message, inputs, parameters, result
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: update_step
UPDATE steps SET status = ?, updated_at = ?, completed_at = ?, error_type = ?, error_message = ?, result = ?
WHERE run_seq = ? AND seq = ?

-- name: step_attempted
UPDATE steps SET attempt = ?, updated_at = ? WHERE run_seq = ? AND seq = ?

-- name: last_sequence
SELECT max(sequence) FROM events WHERE run_seq = ?

-- name: insert_event
INSERT INTO events (run_seq, sequence, id, event_type, created_at, step_id, step_key, payload)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)

-- name: events_of_run
SELECT id, sequence, event_type, created_at, step_id, step_key, payload FROM events
WHERE run_seq = ? AND sequence > ? ORDER BY sequence LIMIT ?
