"""A thread that outlives its timeout. The worker's patience is cut to what a test has."""

import threading

from worker_child import action, runner

runner.STOP_GRACE = 0.2
runner.OVERDUE_AFTER = 0.2


@action("test.run_on", timeout="100ms")
def run_on() -> None:
    """Looks at nothing that could tell it to stop."""
    threading.Event().wait()
