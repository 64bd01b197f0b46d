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

-- name: runs_of_project
SELECT {run_columns} FROM runs WHERE project_id = ? AND seq < ? ORDER BY seq DESC LIMIT ?

-- name: runs_by_status
SELECT {run_columns} FROM runs WHERE project_id = ? AND status = ? AND seq < ? ORDER BY seq DESC LIMIT ?

-- name: runs_of_automation
SELECT {run_columns} FROM runs WHERE automation_id = ? AND project_id = ? AND seq < ? ORDER BY seq DESC LIMIT ?

-- name: runs_of_automation_by_status
SELECT {run_columns} FROM runs WHERE automation_id = ? AND project_id = ? AND +status = ? AND seq < ?
ORDER BY seq DESC LIMIT ?

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
SELECT save_as, result FROM steps WHERE run_seq = ? AND status = 'completed' ORDER BY seq

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
