"""Why something waits, for people: the reasons in order, what would help, and what earlier attempts died of."""

from mobius_cli import text
from mobius_cli.http import Record
from mobius_cli.output import Column, Output

ATTEMPTS: list[Column] = [
    ("ATTEMPT", lambda attempt: text.plain(attempt.get("attempt"))),
    ("DIED OF", lambda attempt: text.plain(attempt.get("error_type"))),
    ("MESSAGE", lambda attempt: text.plain(attempt.get("error_message"))),
    ("WORKER", lambda attempt: text.plain(attempt.get("worker_instance_id"))),
    ("STARTED", lambda attempt: text.date_and_time(attempt.get("started_at"))),
    ("TOOK", lambda attempt: text.took(attempt.get("started_at"), attempt.get("ended_at"))),
]


def show(output: Output, answer: Record) -> None:
    """The answer of a server to why a job or a run waits."""
    if output.is_json:
        output.json(answer)
        return
    reasons = answer.get("reasons") or []
    job = answer.get("job") or answer
    if not reasons or job is not answer:
        output.line(text.plain(answer.get("summary")))
    for number, reason in enumerate(reasons, 1):
        output.line(f"{number}. {text.plain(reason.get('message'))}")
        output.line(f"   what helps: {text.plain(reason.get('remedy'))}")
    miss = job.get("nearest_miss")
    if miss:
        differences = "; ".join(text.plain(each) for each in miss.get("differences") or [])
        output.line(f"nearest: {text.plain(miss.get('worker_instance_id'))} ({differences})")
    if job.get("attempts"):
        output.records(ATTEMPTS, job["attempts"], nothing="")
