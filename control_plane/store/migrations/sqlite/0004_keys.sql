-- What a key opens, by which key it was replaced, and when it was last used. Keys that exist keep opening everything.
-- `changed_at` is what processes that do not hear each other look for.

ALTER TABLE api_keys ADD COLUMN scopes TEXT NOT NULL DEFAULT '["operator","reader","worker"]';
ALTER TABLE api_keys ADD COLUMN replaced_by TEXT;
ALTER TABLE api_keys ADD COLUMN last_used_at INTEGER;
ALTER TABLE api_keys ADD COLUMN changed_at INTEGER NOT NULL DEFAULT 0;
CREATE INDEX api_keys_by_change ON api_keys (changed_at);
CREATE INDEX api_keys_by_project ON api_keys (project_id, id);
