-- name: action_columns
id, project_id, name, title, description, annotations, input_schema, output_schema, tags, only_once, max_running,
created_at, updated_at

-- name: insert_action
INSERT INTO actions (
    id, project_id, name, title, description, annotations, input_schema, output_schema, tags, only_once, max_running,
    created_at, updated_at
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: update_action
UPDATE actions SET title = ?, description = ?, annotations = ?, input_schema = ?, output_schema = ?, tags = ?,
    only_once = ?, max_running = ?, updated_at = ?
WHERE id = ?

-- name: delete_action
DELETE FROM actions WHERE project_id = ? AND name = ?

-- name: action_by_name
SELECT {action_columns} FROM actions WHERE project_id = ? AND name = ?

-- name: actions_of_project
SELECT seq, {action_columns}, coalesce(octet_length(input_schema), 0) + coalesce(octet_length(output_schema), 0)
FROM actions WHERE project_id = ? AND seq < ? ORDER BY seq DESC LIMIT ?

-- name: only_once
SELECT only_once FROM actions WHERE project_id = ? AND name = ?
