"""The words of `error_type` that decide what follows a failed job (contract, "Words on the wire")."""

RESULT_TOO_LARGE = "ResultTooLarge"

NON_RETRYABLE = frozenset({"NonRetryableError", "ValidationError", "UnknownAction", "PoisonJob", RESULT_TOO_LARGE})
"""Error types after which no attempt follows, whatever the step's policy says."""

WORKER_SHUTDOWN = "WorkerShutdown"

LOST = frozenset({"WorkerCrashed", WORKER_SHUTDOWN})
"""Error types of a worker that could not go on: like a lapsed lease, only sooner. The next attempt follows at once."""

OVER_CAPACITY = "WorkerOverCapacity"
"""The job was not started: it goes back at once, at no cost."""
