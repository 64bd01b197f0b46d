-- name: key_columns
k.id, k.project_id, p.handle, k.name, k.created_at, k.scopes, k.expires_at, k.revoked_at, k.replaced_by, k.last_used_at

-- name: insert_key
INSERT INTO api_keys (id, project_id, name, secret_hash, created_at, scopes, expires_at, changed_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)

-- name: key_by_hash
SELECT {key_columns} FROM api_keys k JOIN projects p ON p.id = k.project_id WHERE k.secret_hash = $1

-- name: key_by_id
SELECT {key_columns} FROM api_keys k JOIN projects p ON p.id = k.project_id
WHERE k.project_id = $1 AND k.id = $2 FOR UPDATE OF k

-- name: keys_of_project
SELECT {key_columns} FROM api_keys k JOIN projects p ON p.id = k.project_id WHERE k.project_id = $1 ORDER BY k.id DESC

-- name: changed_keys
SELECT {key_columns} FROM api_keys k JOIN projects p ON p.id = k.project_id WHERE k.changed_at > $1

-- name: end_key
UPDATE api_keys SET expires_at = $1, revoked_at = $2, replaced_by = $3, changed_at = $4 WHERE id = $5

-- name: keys_used
UPDATE api_keys k SET last_used_at = greatest(k.last_used_at, used.at)
FROM (
    SELECT l.id, asked.at FROM unnest($1::text[], $2::bigint[]) AS asked (id, at) JOIN api_keys l USING (id)
    ORDER BY l.id FOR UPDATE OF l
) used
WHERE k.id = used.id

-- name: any_key
SELECT 1 FROM api_keys LIMIT 1
