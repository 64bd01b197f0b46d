-- name: project_columns
id, handle, name, description, dialect, created_at, updated_at

-- name: insert_project
INSERT INTO projects (id, handle, name, description, dialect, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?)

-- name: projects
SELECT {project_columns} FROM projects ORDER BY id

-- name: project_by_handle
SELECT {project_columns} FROM projects WHERE handle = ?

-- name: automation_columns
id, project_id, handle, name, status, latest_version, published_version, description, default_agent_id,
default_inputs, settings, tags, last_run_at, archived_at, created_at, updated_at

-- name: insert_automation
INSERT INTO automations (
    id, project_id, handle, name, status, latest_version, published_version, description, default_agent_id,
    default_inputs, settings, tags, last_run_at, archived_at, created_at, updated_at
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: update_automation
UPDATE automations SET
    name = ?, status = ?, latest_version = ?, published_version = ?, description = ?, default_agent_id = ?,
    default_inputs = ?, settings = ?, tags = ?, archived_at = ?, updated_at = ?
WHERE id = ?

-- name: automation_ran
UPDATE automations SET last_run_at = ? WHERE id = ?

-- name: automation_by_handle
SELECT {automation_columns} FROM automations WHERE project_id = ? AND handle = ?

-- name: automation_by_id
SELECT {automation_columns} FROM automations WHERE id = ?

-- name: automations_of_project
SELECT seq, {automation_columns}, coalesce(octet_length(default_inputs), 0) + coalesce(octet_length(settings), 0)
FROM automations
WHERE project_id = ? AND seq < ? AND CASE WHEN ?3 IS NULL THEN status <> 'archived' ELSE status = ?3 END
ORDER BY seq DESC LIMIT ?4

-- name: version_columns
id, project_id, automation_id, version, status, spec, validation, compiled_plan, created_at

-- name: insert_version
INSERT INTO versions (id, project_id, automation_id, version, status, spec, validation, compiled_plan, created_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: version
SELECT {version_columns} FROM versions WHERE automation_id = ? AND version = ?

-- name: version_by_id
SELECT {version_columns} FROM versions WHERE id = ?

-- name: versions
SELECT {version_columns}, octet_length(spec) + coalesce(octet_length(compiled_plan), 0) FROM versions
WHERE automation_id = ? AND version < ? ORDER BY version DESC LIMIT ?

-- name: set_version_status
UPDATE versions SET status = ? WHERE automation_id = ? AND version = ?
