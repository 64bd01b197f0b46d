-- Why sessions ended, their history, and the drains that stand: sessions that register meanwhile drain too.

ALTER TABLE sessions ADD COLUMN end_reason TEXT;
CREATE INDEX sessions_of_project ON sessions (project_id, id);
CREATE INDEX sessions_open ON sessions (project_id, id) WHERE ended_at IS NULL;
CREATE INDEX sessions_ended ON sessions (ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE drains (
    project_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    target TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (project_id, kind, target)
) WITHOUT ROWID;
