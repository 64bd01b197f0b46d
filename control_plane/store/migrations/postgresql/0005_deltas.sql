-- What generations have said while they live: one row a chunk, a list of [sequence, delta].

CREATE TABLE deltas (
    job_seq bigint NOT NULL,
    attempt bigint NOT NULL,
    last_sequence bigint NOT NULL,
    created_at bigint NOT NULL,
    items text NOT NULL,
    PRIMARY KEY (job_seq, attempt, last_sequence)
);
