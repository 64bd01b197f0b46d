"""What a failure costs, and whether another attempt follows (contract, "Words on the wire")."""

from typing import Literal

from control_plane.domain.model import Job
from wire.verdicts import LOST, NON_RETRYABLE, OVER_CAPACITY

LEASE_LAPSED = "LeaseLapsed"
"""Error type of an attempt whose worker was not heard of for a lease duration."""

EXECUTION_DEADLINE_EXCEEDED = "ExecutionDeadlineExceeded"
"""Error type of a job that ran, with all its attempts, longer than its step allows."""

MAX_ATTEMPTS = 10
MOST_BACKOFF = 100.0
DEFAULT_ATTEMPTS = 1
DEFAULT_EXECUTION_TIMEOUT = 86_400.0

LONGEST_DELAY = 30 * 86_400.0
"""Seconds between two attempts at the most, whatever the policy's numbers come to."""

Next = Literal["hand_back", "retry", "retry_at_once", "fail", "withhold"]


def may_have_run(error_type: str) -> bool:
    """Whether the worker was lost: nobody knows how far the attempt came."""
    return error_type in LOST or error_type == LEASE_LAPSED


def delay_before_next(job: Job) -> float:
    """Seconds until the attempt that follows the last one charged."""
    longest = LONGEST_DELAY if job.retry_max_delay is None else min(job.retry_max_delay, LONGEST_DELAY)
    return min(longest, job.retry_delay * job.retry_backoff ** max(0, job.attempts_charged - 1))


def after_failure(job: Job, error_type: str, *, already_charged: bool = False, only_once: bool = False) -> Next:
    """What follows a failed attempt. `already_charged`: the attempts charged include this one. `only_once`: the action
    is recorded as not idempotent, so that an attempt of which nobody knows how far it came is the last."""
    if error_type == OVER_CAPACITY:
        return "hand_back"
    if error_type in NON_RETRYABLE or error_type in job.non_retryable:
        return "fail"
    if job.cancel_requested_at is not None:
        return "fail"
    charged = job.attempts_charged if already_charged else job.attempts_charged + 1
    if charged >= job.max_attempts:
        return "fail"
    if not may_have_run(error_type):
        return "retry"
    return "withhold" if only_once else "retry_at_once"
