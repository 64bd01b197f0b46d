"""The handlers of the quickstart: what a job's action runs, in one of the two worker processes.

Copy this file to begin with your own: a function, typed parameters, a plain result. Whatever a handler raises fails its
attempt; the step's retry policy decides whether there is another.
"""

import collections
import time
from typing import Annotated

from msgspec import Meta, Struct

from worker_child import Context, action


class Hiccup(Exception):  # noqa: N818 - it is what the event stream shows
    """What the first attempt of `quickstart.unreliable` meets."""


class Text(Struct):
    """Parameters of `quickstart.count_words`. A job whose parameters do not fit fails at once, naming the field."""

    text: Annotated[str, Meta(max_length=100_000)]
    top: Annotated[int, Meta(ge=1, le=50)] = 3


class Load(Struct):
    """Parameters of `quickstart.work`."""

    label: str
    milliseconds: Annotated[int, Meta(ge=0, le=60_000)] = 300


@action("quickstart.unreliable")
def unreliable(ctx: Context) -> dict[str, object]:
    """Like a service that is restarting: the first attempt fails, the next one finds it up."""
    if ctx.attempt == 1:
        raise Hiccup("the service is not up yet")
    return {"succeeded_on_attempt": ctx.attempt, "worker": ctx.worker_instance_id}


@action("quickstart.count_words", idempotent=True)
async def count_words(params: Text, ctx: Context) -> dict[str, object]:
    """How many words, and which are the most frequent."""
    words = params.text.lower().split()
    most_frequent = dict(collections.Counter(words).most_common(params.top))
    return {"words": len(words), "most_frequent": most_frequent, "worker": ctx.worker_instance_id}


@action("quickstart.work")
def work(params: Load, ctx: Context) -> dict[str, object]:
    """Take a while, in a thread of the worker; a cancelled run ends it early."""
    started = time.monotonic()
    ctx.cancelled.wait_in_thread(params.milliseconds / 1000)
    took = round((time.monotonic() - started) * 1000)
    return {"label": params.label, "worker": ctx.worker_instance_id, "milliseconds": took}
