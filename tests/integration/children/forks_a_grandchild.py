"""Leaves a process behind, in a session of its own, that ignores what would end it politely."""

import subprocess

from worker_child import action


@action("test.leave_behind")
async def leave_behind() -> dict[str, int]:
    """Its number."""
    left = subprocess.Popen(  # noqa: ASYNC220 - started and left alone
        ["/bin/sh", "-c", "trap '' HUP TERM INT; while :; do sleep 600; done"], start_new_session=True
    )
    return {"pid": left.pid}
