"""Handlers that run in a process of their own, and what can go wrong in one."""

import asyncio
import ctypes
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any

from msgspec import Struct

from worker_child import Context, action


class Gate(Struct):
    """Where the test listens."""

    port: int


def knock(port: int, **says: Any) -> socket.socket:
    """Tell the test who runs. The connection shows when the process ends."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(json.dumps({"pid": os.getpid(), **says}).encode() + b"\n")
    return connection


@action("isolated.echo", isolation="process")
async def echo(params: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """What came, and where it ran."""
    says = {"pid": os.getpid(), "attempt": ctx.attempt, "key": ctx.idempotency_key, "worker": ctx.worker_instance_id}
    leads = os.getpid() == os.getsid(0) == os.getpgrp()
    return {"params": params, "leads": leads, "deadline": ctx.deadline is not None, "parent": os.getppid(), **says}


@action("isolated.echo_sync", isolation="process", timeout="1m")
def echo_sync(params: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """The same, as a plain function."""
    return {"params": params, "deadline": ctx.deadline is not None}


@action("isolated.noop", isolation="process", idempotent=True)
async def noop() -> None:
    """Nothing."""


@action("isolated.big", isolation="process")
def big(params: dict[str, int]) -> str:
    """So many bytes."""
    return "x" * params["bytes"]


@action("isolated.segfault", isolation="process")
def segfault() -> None:
    """A fault of native code."""
    ctypes.string_at(0)


@action("isolated.exit", isolation="process")
def leave(params: dict[str, int]) -> None:
    """Ends the process under the worker's hands."""
    os._exit(params["code"])


@action("isolated.leave_properly", isolation="process")
def leave_properly() -> None:
    """What a script would do."""
    sys.exit("no licence")


@action("isolated.hog", isolation="process")
def hog(params: dict[str, int]) -> int:
    """Takes so many bytes of memory."""
    return len(bytearray(os.urandom(1024) * (params["bytes"] // 1024)))


@action("isolated.talk", isolation="process")
def talk(ctx: Context) -> None:
    """Every way in which a handler may write."""
    ctx.log.info("through the context", step=1)
    logging.getLogger("library").warning("through a library")
    print("printed")  # noqa: T201 - what a handler does
    os.write(2, b"written without an end")


@action("isolated.flood", isolation="process")
def flood(params: dict[str, int]) -> None:
    """So many lines."""
    for number in range(params["lines"]):
        print(number)  # noqa: T201


@action("isolated.wait", isolation="process")
async def wait(params: Gate, ctx: Context) -> dict[str, Any]:
    """Until it is told to stop; says what it saw of it."""
    with knock(params.port):
        try:
            await ctx.cancelled.wait()
        except asyncio.CancelledError:
            print("told to stop", ctx.cancelled.is_set())  # noqa: T201
            raise
    return {}


@action("isolated.wait_sync", isolation="process", timeout="1s")
def wait_sync(params: Gate, ctx: Context) -> None:
    """The same, as a plain function, and with a timeout."""
    with knock(params.port):
        while True:
            ctx.raise_if_cancelled()
            ctx.cancelled.wait_in_thread()


@action("isolated.stubborn", isolation="process", timeout="1s")
async def stubborn(params: Gate) -> None:
    """Blocks its loop, deaf to SIGTERM, with a process below it that is deaf as well."""
    program = "import signal; signal.signal(15, 1); signal.pause()"
    child = subprocess.Popen([sys.executable, "-c", program])  # noqa: ASYNC220
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    connection = knock(params.port, child=child.pid)
    time.sleep(600)  # noqa: ASYNC251 - the fault that is tested
    connection.close()


@action("isolated.hold_the_gil", isolation="process")
def hold_the_gil(params: Gate) -> None:
    """The interpreter does not get a turn any more."""
    connection = knock(params.port)
    ctypes.PyDLL(None).sleep(600)
    connection.close()


@action("isolated.leave_behind", isolation="process")
def leave_behind(params: Gate) -> int:
    """Leaves a process behind that has cut its ties, and has knocked: it is ended when this one has returned."""
    program = f"""
import json, os, signal, socket
connection = socket.create_connection(("127.0.0.1", {params.port}))
connection.sendall(json.dumps({{"pid": os.getpid()}}).encode() + b"\\n")
os.close(1)
signal.pause()
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    process.stdout.read()
    return process.pid


@action("isolated.sees_its_lease", isolation="process", idempotent=True)
async def sees_its_lease(params: Gate, ctx: Context) -> bool:
    """Waits for the test; then whether the lease is gone."""
    reader, writer = await asyncio.open_connection("127.0.0.1", params.port)
    writer.write(json.dumps({"pid": os.getpid()}).encode() + b"\n")
    await reader.readline()
    writer.close()
    return ctx.lease_lost
