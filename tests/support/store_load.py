"""A program that loads a store and prints what it was acknowledged, one line each, until it is killed.

`python -m tests.support.store_load URL`: prints `run <id>`, `job <id> <lease token>` and `report <id>` after the store
has acknowledged the start, the claim and the report.
"""

import asyncio
import sys

from control_plane.domain.model import Selector, Session
from control_plane.domain.store import ClaimOrder, LeaseTerms
from control_plane.keys import hash_secret, new_lease_tokens
from control_plane.store import store_at
from wire.frames import Report

LONGEST = 60
"""Seconds after which the load ends by itself, if nobody kills it."""

SPEC = {"steps": [{"key": "one", "kind": "action", "config": {"action_name": "print"}}]}


def say(*words):
    sys.stdout.write(" ".join(words) + "\n")
    sys.stdout.flush()


async def main(url):
    store = store_at(url, LeaseTerms())
    await store.open(lambda facts: None)
    project = await store.create_project("default", "Default")
    await store.create_automation(project.id, "a", "A", {})
    await store.create_version(project.id, "a", SPEC, None)
    await store.publish_version(project.id, "a", 1)
    session = await store.register_session(
        Session(
            id="",
            project_id=project.id,
            worker_instance_id="w",
            token_hash=hash_secret("token"),
            concurrency_limit=1,
            selector=Selector(),
            created_at=0,
            last_seen_at=0,
        )
    )
    say("project", project.id)

    async def start():
        while True:
            run = await store.start_run(project.id, "a")
            say("run", run.id)

    async def work():
        while True:
            order = ClaimOrder(
                project_id=project.id,
                session_id=session.id,
                worker_instance_id="w",
                selector=Selector(),
                limit=3,
                lease_tokens=new_lease_tokens(3),
            )
            for lease in await store.claim(order):
                say("job", lease.job.id, lease.lease_token)
                done = Report(job_id=lease.job.id, lease_token=lease.lease_token, result={"done": lease.job.id})
                (outcome,) = await store.reports(project.id, [done])
                assert outcome.verdict == "accepted"
                say("report", lease.job.id)

    async with asyncio.timeout(LONGEST):
        await asyncio.gather(*(start() for _ in range(4)), *(work() for _ in range(3)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
