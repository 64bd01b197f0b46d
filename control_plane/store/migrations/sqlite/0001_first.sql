-- A job's body is written once; its state is the small row in jobs_pending, jobs_claimed or jobs_finished.
-- Integer keys (`seq`) order rows by creation and keep indexes small; the text ids are what the API shows.

CREATE TABLE store_clock (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    latest INTEGER NOT NULL
);
INSERT INTO store_clock VALUES (1, 0);

CREATE TABLE projects (
    id TEXT PRIMARY KEY,
    handle TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    description TEXT,
    dialect TEXT,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE api_keys (
    id TEXT PRIMARY KEY,
    project_id TEXT NOT NULL REFERENCES projects,
    name TEXT NOT NULL,
    secret_hash BLOB NOT NULL UNIQUE,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER
) WITHOUT ROWID;

CREATE TABLE automations (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    project_id TEXT NOT NULL REFERENCES projects,
    handle TEXT NOT NULL,
    name TEXT NOT NULL,
    status TEXT NOT NULL,
    latest_version INTEGER NOT NULL,
    published_version INTEGER,
    description TEXT,
    default_agent_id TEXT,
    default_inputs TEXT,
    settings TEXT,
    tags TEXT,
    last_run_at INTEGER,
    archived_at INTEGER,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    UNIQUE (project_id, handle)
);

CREATE TABLE versions (
    id TEXT NOT NULL UNIQUE,
    project_id TEXT NOT NULL,
    automation_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    status TEXT NOT NULL,
    spec TEXT NOT NULL,
    validation TEXT NOT NULL,
    compiled_plan TEXT,
    created_at INTEGER NOT NULL,
    UNIQUE (automation_id, version)
);

CREATE TABLE runs (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    project_id TEXT NOT NULL,
    automation_id TEXT NOT NULL,
    automation_name TEXT NOT NULL,
    version_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    status TEXT NOT NULL,
    depth INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    started_at INTEGER,
    completed_at INTEGER,
    wall_clock_deadline_at INTEGER,
    external_id TEXT,
    parent_run_id TEXT,
    parent_automation_id TEXT,
    parent_step_key TEXT,
    error_type TEXT,
    error_message TEXT,
    source TEXT,
    inputs TEXT NOT NULL
);
CREATE INDEX runs_of_project ON runs (project_id, seq);
CREATE INDEX runs_by_status ON runs (project_id, status, seq);
CREATE INDEX runs_of_automation ON runs (automation_id, seq);
CREATE UNIQUE INDEX runs_by_external_id ON runs (automation_id, external_id) WHERE external_id IS NOT NULL;

CREATE TABLE steps (
    run_seq INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    id TEXT NOT NULL,
    project_id TEXT NOT NULL,
    run_id TEXT NOT NULL,
    step_key TEXT NOT NULL,
    step_name TEXT,
    save_as TEXT NOT NULL,
    kind TEXT NOT NULL,
    status TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    job_id TEXT,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    started_at INTEGER,
    completed_at INTEGER,
    error_type TEXT,
    error_message TEXT,
    inputs TEXT,
    parameters TEXT,
    result TEXT,
    UNIQUE (run_seq, seq)
);

CREATE TABLE events (
    run_seq INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    step_id TEXT,
    step_key TEXT,
    payload TEXT NOT NULL,
    UNIQUE (run_seq, sequence)
);

CREATE TABLE sessions (
    id TEXT PRIMARY KEY,
    project_id TEXT NOT NULL,
    worker_instance_id TEXT NOT NULL,
    token_hash BLOB NOT NULL UNIQUE,
    concurrency_limit INTEGER NOT NULL,
    selector TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    last_seen_at INTEGER NOT NULL,
    name TEXT,
    version TEXT,
    capabilities TEXT NOT NULL,
    api_key_id TEXT,
    draining INTEGER NOT NULL,
    drain_requested INTEGER NOT NULL,
    superseded INTEGER NOT NULL,
    ended_at INTEGER,
    last_job_seq INTEGER
) WITHOUT ROWID;
CREATE INDEX sessions_of_instance ON sessions (project_id, worker_instance_id);
CREATE INDEX sessions_live ON sessions (last_seen_at) WHERE ended_at IS NULL;

-- What a claim selects by: one row for every combination of queue, environment and work that ever had a job.
CREATE TABLE lanes (
    id INTEGER PRIMARY KEY,
    project_id TEXT NOT NULL,
    queue TEXT NOT NULL,
    environment_id TEXT,
    action_name TEXT,
    provider TEXT,
    model TEXT
);
CREATE INDEX lanes_of_project ON lanes (project_id);

CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    project_id TEXT NOT NULL,
    lane_id INTEGER NOT NULL REFERENCES lanes,
    kind TEXT NOT NULL,
    origin TEXT NOT NULL,
    queue TEXT NOT NULL,
    action_name TEXT,
    provider TEXT,
    model TEXT,
    environment_id TEXT,
    run_seq INTEGER,
    step_seq INTEGER,
    run_id TEXT,
    step_id TEXT,
    step_key TEXT,
    max_attempts INTEGER NOT NULL,
    retry_delay REAL NOT NULL,
    non_retryable TEXT NOT NULL,
    execution_timeout REAL NOT NULL,
    created_at INTEGER NOT NULL,
    spec TEXT NOT NULL
);

CREATE TABLE jobs_pending (
    seq INTEGER PRIMARY KEY,
    lane_id INTEGER NOT NULL,
    available_at INTEGER NOT NULL,
    pending_deadline_at INTEGER NOT NULL,
    deadline_at INTEGER NOT NULL,
    execution_deadline_at INTEGER,
    claim_attempt INTEGER NOT NULL,
    attempts_charged INTEGER NOT NULL,
    hand_backs INTEGER NOT NULL,
    lease_token_hash BLOB,
    reported_token_hash BLOB,
    session_id TEXT,
    worker_instance_id TEXT,
    claimed_at INTEGER,
    updated_at INTEGER NOT NULL
);
CREATE INDEX jobs_pending_in_lane ON jobs_pending (lane_id, available_at, seq);
CREATE INDEX jobs_pending_by_deadline ON jobs_pending (deadline_at);

CREATE TABLE jobs_claimed (
    seq INTEGER PRIMARY KEY,
    available_at INTEGER NOT NULL,
    execution_deadline_at INTEGER NOT NULL,
    claim_attempt INTEGER NOT NULL,
    attempts_charged INTEGER NOT NULL,
    hand_backs INTEGER NOT NULL,
    lease_token_hash BLOB NOT NULL,
    reported_token_hash BLOB,
    lease_expires_at INTEGER NOT NULL,
    session_id TEXT NOT NULL,
    worker_instance_id TEXT NOT NULL,
    claimed_at INTEGER NOT NULL,
    heartbeat_at INTEGER,
    cancel_requested_at INTEGER,
    cancel_reason TEXT,
    updated_at INTEGER NOT NULL
);

CREATE TABLE jobs_finished (
    seq INTEGER PRIMARY KEY,
    status TEXT NOT NULL,
    available_at INTEGER NOT NULL,
    execution_deadline_at INTEGER,
    claim_attempt INTEGER NOT NULL,
    attempts_charged INTEGER NOT NULL,
    hand_backs INTEGER NOT NULL,
    lease_token_hash BLOB,
    reported_token_hash BLOB,
    session_id TEXT,
    worker_instance_id TEXT,
    claimed_at INTEGER,
    heartbeat_at INTEGER,
    cancel_requested_at INTEGER,
    cancel_reason TEXT,
    completed_at INTEGER NOT NULL,
    error_type TEXT,
    error_message TEXT,
    result TEXT
);
