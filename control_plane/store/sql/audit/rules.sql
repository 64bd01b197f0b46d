-- What must be true of any store, as both databases understand it: each counts what breaks the rule.

-- name: jobs_not_in_one_state
SELECT count(*) FROM jobs j WHERE 1 <>
    (SELECT count(*) FROM jobs_pending s WHERE s.seq = j.seq)
    + (SELECT count(*) FROM jobs_claimed s WHERE s.seq = j.seq)
    + (SELECT count(*) FROM jobs_finished s WHERE s.seq = j.seq)

-- name: states_without_job
SELECT (SELECT count(*) FROM jobs_pending s WHERE NOT EXISTS (SELECT 1 FROM jobs j WHERE j.seq = s.seq))
    + (SELECT count(*) FROM jobs_claimed s WHERE NOT EXISTS (SELECT 1 FROM jobs j WHERE j.seq = s.seq))
    + (SELECT count(*) FROM jobs_finished s WHERE NOT EXISTS (SELECT 1 FROM jobs j WHERE j.seq = s.seq))

-- name: streams_with_gaps
SELECT count(*) FROM (
    SELECT run_seq FROM events GROUP BY run_seq HAVING count(*) <> max(sequence) OR min(sequence) <> 1
) gaps

-- name: attempts_without_job
SELECT count(*) FROM job_attempts a WHERE NOT EXISTS (SELECT 1 FROM jobs j WHERE j.seq = a.job_seq)

-- name: parts_without_run
SELECT (SELECT count(*) FROM steps s WHERE NOT EXISTS (SELECT 1 FROM runs r WHERE r.seq = s.run_seq))
    + (SELECT count(*) FROM events e WHERE NOT EXISTS (SELECT 1 FROM runs r WHERE r.seq = e.run_seq))
    + (SELECT count(*) FROM jobs j WHERE j.run_seq IS NOT NULL
       AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.seq = j.run_seq))
    + (SELECT count(*) FROM run_timers t WHERE NOT EXISTS (SELECT 1 FROM runs r WHERE r.seq = t.run_seq))
    + (SELECT count(*) FROM run_signals k WHERE NOT EXISTS (SELECT 1 FROM runs r WHERE r.seq = k.run_seq))
    + (SELECT count(*) FROM run_turns w WHERE NOT EXISTS (SELECT 1 FROM runs r WHERE r.seq = w.run_seq))

-- name: open_runs_without_job
SELECT count(*) FROM runs r WHERE r.status NOT IN ('completed', 'failed', 'cancelled') AND NOT EXISTS (
    SELECT 1 FROM steps s JOIN jobs j ON j.id = s.job_id WHERE s.run_seq = r.seq AND s.status = 'suspended'
    AND NOT EXISTS (SELECT 1 FROM jobs_finished f WHERE f.seq = j.seq)
) AND NOT EXISTS (SELECT 1 FROM run_timers t WHERE t.run_seq = r.seq AND t.kind = 'step')
AND NOT EXISTS (SELECT 1 FROM run_turns w WHERE w.run_seq = r.seq AND NOT w.holds)

-- name: turns_held_twice
SELECT count(*) FROM (SELECT automation_id FROM run_turns WHERE holds GROUP BY automation_id HAVING count(*) > 1) held

-- name: projects
SELECT count(*) FROM projects

-- name: automations
SELECT count(*) FROM automations

-- name: runs
SELECT count(*) FROM runs

-- name: open_runs
SELECT count(*) FROM runs WHERE status NOT IN ('completed', 'failed', 'cancelled')

-- name: pending_jobs
SELECT count(*) FROM jobs_pending

-- name: claimed_jobs
SELECT count(*) FROM jobs_claimed

-- name: finished_jobs
SELECT count(*) FROM jobs_finished

-- name: events
SELECT count(*) FROM events
