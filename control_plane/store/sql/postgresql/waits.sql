-- What runs wait for. All of it is changed by whoever has locked the run.

-- name: due_timers
SELECT t.run_seq, t.kind, r.id, r.project_id, r.automation_id
FROM (SELECT * FROM run_timers WHERE due_at <= $1 ORDER BY due_at LIMIT $2) t JOIN runs r ON r.seq = t.run_seq
ORDER BY t.due_at

-- What is still due of them, once their runs are locked.
-- name: timers_still_due
SELECT run_seq, kind FROM run_timers WHERE run_seq = ANY($1::bigint[]) AND due_at <= $2

-- name: next_timer
SELECT min(due_at) FROM run_timers

-- name: put_timers_off
UPDATE run_timers SET due_at = $3
FROM unnest($1::bigint[], $2::text[]) AS asked (run_seq, kind)
WHERE run_timers.run_seq = asked.run_seq AND run_timers.kind = asked.kind

-- name: outcomes
SELECT run_seq, payload FROM run_timers WHERE run_seq = ANY($1::bigint[]) AND kind = 'cleanup'

-- name: kept_signals
{run_values_page_begin} JOIN run_signals s ON s.run_seq = asked.run_seq {run_values_page_end}

-- Who takes turns follows one another: the locks of these keys are taken before any run's. A sweep does not wait.
-- name: try_keys
SELECT key FROM unnest($1::bigint[]) AS asked (key) WHERE pg_try_advisory_xact_lock(key)

-- name: turn_of_run
SELECT (SELECT r.id FROM run_turns h JOIN runs r ON r.seq = h.run_seq
        WHERE h.automation_id = w.automation_id AND h.holds LIMIT 1),
    (SELECT count(*) FROM (SELECT 1 FROM run_turns b
        WHERE b.automation_id = w.automation_id AND NOT b.holds AND b.run_seq < w.run_seq LIMIT $1) counted)
FROM run_turns w WHERE w.run_seq = $2 AND NOT w.holds

-- name: lines
SELECT t.automation_id, t.holds, r.id, r.project_id, t.run_seq
FROM unnest($1::text[]) AS asked (automation_id)
CROSS JOIN LATERAL (
    (SELECT * FROM run_turns h WHERE h.automation_id = asked.automation_id AND h.holds)
    UNION ALL
    (SELECT * FROM run_turns w WHERE w.automation_id = asked.automation_id AND NOT w.holds ORDER BY w.run_seq LIMIT $2)
) t
JOIN runs r ON r.seq = t.run_seq
ORDER BY t.run_seq
