-- name: project_columns
id, handle, name, description, dialect, created_at, updated_at

-- name: insert_project
INSERT INTO projects (id, handle, name, description, dialect, created_at, updated_at)
VALUES ($1, $2, $3, $4, $5, $6, $7)

-- name: projects
SELECT {project_columns} FROM projects ORDER BY id

-- name: project_by_handle
SELECT {project_columns} FROM projects WHERE handle = $1

-- name: automation_body
a.id, a.project_id, a.handle, a.name, a.status, a.latest_version, a.published_version, a.description,
a.default_agent_id, a.default_inputs, a.settings, a.tags

-- When an automation ran last is not written into its row: all that start it would wait for each other there.
-- name: automation_columns
{automation_body},
coalesce((SELECT r.created_at FROM runs r WHERE r.automation_id = a.id ORDER BY r.seq DESC LIMIT 1), a.last_run_at),
a.archived_at, a.created_at, a.updated_at

-- name: insert_automation
INSERT INTO automations (
    id, project_id, handle, name, status, latest_version, published_version, description, default_agent_id,
    default_inputs, settings, tags, last_run_at, archived_at, created_at, updated_at
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)

-- name: update_automation
UPDATE automations SET
    name = $2, status = $3, latest_version = $4, published_version = $5, description = $6, default_agent_id = $7,
    default_inputs = $8, settings = $9, tags = $10, archived_at = $11, updated_at = $12
WHERE id = $1

-- name: automation_by_handle
SELECT {automation_columns} FROM automations a WHERE a.project_id = $1 AND a.handle = $2

-- name: lock_automation
SELECT {automation_columns} FROM automations a WHERE a.project_id = $1 AND a.handle = $2 FOR UPDATE OF a

-- As many as fit into so many bytes, but one at least; the last column is how many there would be.
-- name: automations_of_project
SELECT * FROM (
    SELECT *, sum(size) OVER (ORDER BY seq DESC) - size AS before, count(*) OVER () AS found
    FROM (
        SELECT a.seq, {automation_columns},
            coalesce(octet_length(a.default_inputs), 0) + coalesce(octet_length(a.settings), 0) AS size
        FROM automations a
        WHERE a.project_id = $1 AND a.seq < $2
            AND CASE WHEN $3::text IS NULL THEN a.status <> 'archived' ELSE a.status = $3 END
        ORDER BY a.seq DESC LIMIT $4
    ) page
) measured
WHERE before = 0 OR before + size <= $5
ORDER BY seq DESC

-- name: version_columns
id, project_id, automation_id, version, status, spec, validation, compiled_plan, created_at

-- name: insert_version
INSERT INTO versions (id, project_id, automation_id, version, status, spec, validation, compiled_plan, created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)

-- name: version
SELECT {version_columns} FROM versions WHERE automation_id = $1 AND version = $2

-- As many as fit into so many bytes, but one at least; the last column is how many there would be.
-- name: versions
SELECT {version_columns}, found FROM (
    SELECT *, sum(size) OVER (ORDER BY version DESC) - size AS before, count(*) OVER () AS found
    FROM (
        SELECT *, octet_length(spec) + coalesce(octet_length(compiled_plan), 0) AS size FROM versions
        WHERE automation_id = $1 AND version < $2 ORDER BY version DESC LIMIT $3
    ) page
) measured
WHERE before = 0 OR before + size <= $4
ORDER BY version DESC

-- name: set_version_status
UPDATE versions SET status = $1 WHERE automation_id = $2 AND version = $3

-- name: versions_by_id
SELECT {version_columns} FROM versions WHERE id = ANY($1::text[])

-- name: published_versions
SELECT asked.project_id, asked.handle, {automation_body}, NULL::bigint, a.archived_at, a.created_at, a.updated_at, v.id
FROM unnest($1::text[], $2::text[]) AS asked (project_id, handle)
JOIN automations a ON a.project_id = asked.project_id AND a.handle = asked.handle
LEFT JOIN versions v ON v.automation_id = a.id AND v.version = a.published_version
