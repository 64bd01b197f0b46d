-- Why sessions ended, their history, and the drains that stand: sessions that register meanwhile drain too.

ALTER TABLE sessions ADD COLUMN end_reason text;
CREATE INDEX sessions_of_project ON sessions (project_id, id);
CREATE INDEX sessions_ended ON sessions (ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE drains (
    project_id text NOT NULL,
    kind text NOT NULL,
    target text NOT NULL,
    created_at bigint NOT NULL,
    PRIMARY KEY (project_id, kind, target)
);
