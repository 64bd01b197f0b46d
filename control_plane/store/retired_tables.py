"""Which tables hold what belongs to a run, and to a job: what deletes one deletes its rows there."""

OF_RUN = ("events", "steps", "run_timers", "run_signals", "run_turns")
"""By `run_seq`."""

OF_JOB = ("job_attempts", "deltas")
"""By `job_seq`."""

LOOKS = 200
"""Runs or jobs that one look goes through: the LIMIT of past_runs and past_jobs."""
