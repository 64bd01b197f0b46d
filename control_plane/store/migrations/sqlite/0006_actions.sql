-- What is recorded of actions, and how their jobs and those of queues are held back. `only_once`: a job whose worker was
-- lost is not run again. A queue has a row only when something was said of it.

CREATE TABLE actions (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    project_id TEXT NOT NULL,
    name TEXT NOT NULL,
    title TEXT,
    description TEXT,
    annotations TEXT,
    input_schema TEXT,
    output_schema TEXT,
    tags TEXT,
    only_once INTEGER NOT NULL,
    max_running INTEGER,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    UNIQUE (project_id, name)
);

CREATE TABLE queues (
    project_id TEXT NOT NULL,
    name TEXT NOT NULL,
    paused_at INTEGER,
    max_running INTEGER,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (project_id, name)
) WITHOUT ROWID;
