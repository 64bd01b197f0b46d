-- What generations have said while they live: one row a chunk, a list of [sequence, delta].

CREATE TABLE deltas (
    job_seq INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    last_sequence INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    items TEXT NOT NULL
);
CREATE UNIQUE INDEX deltas_of_job ON deltas (job_seq, attempt, last_sequence);
