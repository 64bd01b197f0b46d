-- name: key_columns
k.id, k.project_id, p.handle, k.name, k.created_at, k.scopes, k.expires_at, k.revoked_at, k.replaced_by, k.last_used_at

-- name: insert_key
INSERT INTO api_keys (id, project_id, name, secret_hash, created_at, scopes, expires_at, changed_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)

-- name: key_by_hash
SELECT {key_columns} FROM api_keys k JOIN projects p ON p.id = k.project_id WHERE k.secret_hash = ?

-- name: key_by_id
SELECT {key_columns} FROM api_keys k JOIN projects p ON p.id = k.project_id
WHERE k.project_id = ? AND k.id = ?

-- name: keys_of_project
SELECT {key_columns} FROM api_keys k JOIN projects p ON p.id = k.project_id WHERE k.project_id = ? ORDER BY k.id DESC

-- name: changed_keys
SELECT {key_columns} FROM api_keys k JOIN projects p ON p.id = k.project_id WHERE k.changed_at > ?

-- name: end_key
UPDATE api_keys SET expires_at = ?, revoked_at = ?, replaced_by = ?, changed_at = ? WHERE id = ?

-- name: keys_used
UPDATE api_keys SET last_used_at = max(coalesce(last_used_at, 0), ?) WHERE id = ?

-- name: any_key
SELECT 1 FROM api_keys LIMIT 1
