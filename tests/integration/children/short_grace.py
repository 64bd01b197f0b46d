"""The worker's patience, cut to what a test has."""

from worker_child import runner

runner.STOP_GRACE = 0.3
