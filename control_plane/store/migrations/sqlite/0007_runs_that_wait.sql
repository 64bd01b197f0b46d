-- What is to happen to a run at a time, one of each kind a run. What deletes a run deletes its rows here.
CREATE TABLE run_timers (
    run_seq INTEGER NOT NULL,
    kind TEXT NOT NULL,
    due_at INTEGER NOT NULL,
    payload TEXT,
    PRIMARY KEY (run_seq, kind)
) WITHOUT ROWID;
CREATE INDEX run_timers_due ON run_timers (due_at);

-- Signals that came before their step began to wait.
CREATE TABLE run_signals (
    run_seq INTEGER NOT NULL,
    step_key TEXT NOT NULL,
    result TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (run_seq, step_key)
) WITHOUT ROWID;

-- The runs of automations of which one goes on at a time: the one that does (`holds`), and those that wait for it.
CREATE TABLE run_turns (
    run_seq INTEGER PRIMARY KEY,
    automation_id TEXT NOT NULL,
    holds INTEGER NOT NULL
);
CREATE INDEX run_turns_of_automation ON run_turns (automation_id, holds, run_seq);

CREATE INDEX runs_of_parent ON runs (parent_run_id, seq) WHERE parent_run_id IS NOT NULL;
CREATE INDEX runs_of_external_id ON runs (project_id, external_id, seq) WHERE external_id IS NOT NULL;
