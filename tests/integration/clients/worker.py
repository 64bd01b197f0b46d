"""The public worker, unchanged, with four actions. It says what happens as one JSON line each, and ends with its input.

Run by the interpreter of each client's environment: worker.py CONCURRENCY INSTANCE_ID
"""

import asyncio
import json
import os
import sys
from typing import Any

from deepnoodle.mobius import Client, ClientOptions
from deepnoodle.mobius.worker import Worker, WorkerConfig


def say(event: str, **details: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **details}) + "\n")
    sys.stdout.flush()


def greet(params: dict[str, Any]) -> dict[str, str]:
    return {"greeting": f"hello {params['name']}"}


def count(params: dict[str, Any]) -> int:
    return len(params["items"])


def flaky(ctx: Any, params: dict[str, Any]) -> dict[str, int]:
    if ctx.attempt < params["succeed_at"]:
        raise RuntimeError(f"attempt {ctx.attempt} fails")
    return {"attempt": ctx.attempt}


async def endless(params: dict[str, Any]) -> None:
    say("endless started")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        say("endless cancelled")
        raise


async def main() -> None:
    # The newest client knows no projects: the key's own is meant.
    named = {"project": "default"} if hasattr(ClientOptions, "project") else {}
    client = Client(ClientOptions(api_key=os.environ["MOBIUS_API_KEY"], base_url=os.environ["MOBIUS_API_URL"], **named))
    concurrency, instance_id = int(sys.argv[1]), sys.argv[2]
    worker = Worker(client, WorkerConfig(worker_instance_id=instance_id, concurrency=concurrency, queues=["default"]))
    for action in (greet, count, flaky, endless):
        worker.register(action.__name__, action)
    running = asyncio.create_task(worker.run())
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await asyncio.wait({running, ended}, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        say("worker ended", error=repr(running.exception()))
    os._exit(0)  # the reading thread cannot be interrupted


asyncio.run(main())
