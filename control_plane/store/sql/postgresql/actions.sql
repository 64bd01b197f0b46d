-- name: action_columns
id, project_id, name, title, description, annotations, input_schema, output_schema, tags, only_once, max_running,
created_at, updated_at

-- name: insert_action
INSERT INTO actions (
    id, project_id, name, title, description, annotations, input_schema, output_schema, tags, only_once, max_running,
    created_at, updated_at
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)

-- name: update_action
UPDATE actions SET title = $1, description = $2, annotations = $3, input_schema = $4, output_schema = $5, tags = $6,
    only_once = $7, max_running = $8, updated_at = $9
WHERE id = $10

-- name: delete_action
DELETE FROM actions WHERE project_id = $1 AND name = $2 RETURNING 1

-- name: action_by_name
SELECT {action_columns} FROM actions WHERE project_id = $1 AND name = $2

-- As many as fit into so many bytes, but one at least; the last column is how many there would be.
-- name: actions_of_project
SELECT * FROM (
    SELECT *, sum(size) OVER (ORDER BY seq DESC) - size AS before, count(*) OVER () AS found
    FROM (
        SELECT seq, {action_columns}, coalesce(octet_length(input_schema), 0) + coalesce(octet_length(output_schema), 0) AS size
        FROM actions WHERE project_id = $1 AND seq < $2 ORDER BY seq DESC LIMIT $3
    ) page
) measured
WHERE before = 0 OR before + size <= $4
ORDER BY seq DESC

-- name: only_once
SELECT a.project_id, a.name FROM unnest($1::text[], $2::text[]) AS asked (project_id, name)
JOIN actions a ON a.project_id = asked.project_id AND a.name = asked.name
WHERE a.only_once
