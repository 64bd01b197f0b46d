-- name: set_timer
INSERT INTO run_timers (run_seq, kind, due_at, payload) VALUES (?, ?, ?, ?)
ON CONFLICT (run_seq, kind) DO UPDATE SET due_at = excluded.due_at, payload = excluded.payload

-- name: clear_timer
DELETE FROM run_timers WHERE run_seq = ? AND kind = ?

-- name: due_timers
SELECT run_seq, kind FROM run_timers WHERE due_at <= ? ORDER BY due_at LIMIT ?

-- name: next_timer
SELECT min(due_at) FROM run_timers

-- name: timer
SELECT due_at, payload FROM run_timers WHERE run_seq = ? AND kind = ?

-- name: put_timer_off
UPDATE run_timers SET due_at = ? WHERE run_seq = ? AND kind = ?

-- name: keep_signal
INSERT INTO run_signals (run_seq, step_key, result, created_at) VALUES (?, ?, ?, ?)

-- name: kept_signal
SELECT result FROM run_signals WHERE run_seq = ? AND step_key = ?

-- name: take_signal
DELETE FROM run_signals WHERE run_seq = ? AND step_key = ?

-- name: set_turn
INSERT INTO run_turns (run_seq, automation_id, holds) VALUES (?, ?, ?)
ON CONFLICT (run_seq) DO UPDATE SET holds = excluded.holds

-- name: leave_turn
DELETE FROM run_turns WHERE run_seq = ?

-- name: line
SELECT holds, run_seq FROM run_turns WHERE automation_id = ? AND holds = 1
UNION ALL
SELECT * FROM (SELECT holds, run_seq FROM run_turns WHERE automation_id = ? AND holds = 0 ORDER BY run_seq LIMIT ?)

-- name: turn_of_run
SELECT (SELECT r.id FROM run_turns h JOIN runs r ON r.seq = h.run_seq
        WHERE h.automation_id = w.automation_id AND h.holds = 1 LIMIT 1),
    (SELECT count(*) FROM (SELECT 1 FROM run_turns b
        WHERE b.automation_id = w.automation_id AND b.holds = 0 AND b.run_seq < w.run_seq LIMIT ?))
FROM run_turns w WHERE w.run_seq = ? AND w.holds = 0

-- name: begin_run
UPDATE runs SET status = ?, updated_at = ?, completed_at = ?, error_type = ?, error_message = ?, started_at = ?,
    wall_clock_deadline_at = ?
WHERE seq = ?
