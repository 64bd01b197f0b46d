import asyncio
import os
import signal
from pathlib import Path

import pytest

from mobius_cli import supervisor_process
from mobius_cli.errors import UnavailableError
from mobius_cli.supervisor_process import SupervisorEndedError, SupervisorProcess
from tests.support.tcp_faults import answering, listening

POOL = """
[control_plane]
api_url = "http://127.0.0.1:9"
[supervisor]
listen = "127.0.0.1:0"
state_dir = "state"
runtime_dir = "run"
log_format = "console"
drain_timeout = "5s"
[[pool]]
name = "alone"
workers = 1
"""


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pool whose control plane does not exist: it starts, and its child goes on trying to connect."""
    monkeypatch.setenv("MOBIUS_API_KEY", "mbx_" + "k" * 32)
    path = tmp_path / "pool.toml"
    path.write_text(POOL)
    return path


async def test_it_drains_when_asked(pool: Path, tmp_path: Path) -> None:
    process = await SupervisorProcess.start(pool, tmp_path / "log")
    assert await process.drain(5, asyncio.Event()) == 0
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


@pytest.fixture
def wrong_pool(pool: Path) -> Path:
    pool.write_text(POOL.replace("workers", "wrokers"))
    return pool


async def test_its_end_is_told_with_its_exit_code_and_last_words(wrong_pool: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("of an earlier one\n")
    process = await SupervisorProcess.start(wrong_pool, log)
    with pytest.raises(SupervisorEndedError, match="did you mean `workers`") as caught:
        await process.ready("http://127.0.0.1:9")
    assert caught.value.exit_code == 78
    assert "earlier" not in str(caught.value)
    with pytest.raises(SupervisorEndedError, match="exit code 78"):
        await process.ended()
    assert await process.drain(5, asyncio.Event()) == 78


def status(*, working: int, failures: int = 0) -> bytes:
    slot = b'{"slot":"one-1","state":"ready","failures":%d}' % failures
    body = b'{"control_plane":null,"pools":[{"workers":2,"working":%d,"mold":%s,"slots":[%s]}]}' % (working, slot, slot)
    return b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (status(working=1), "not ready within 0.2 s: 1 of 2 workers claim work"),
        (status(working=0, failures=5), "one-1 failed 5 times in a row"),
        (b"HTTP/1.1 500 No\r\nconnection: close\r\ncontent-length: 0\r\n\r\n", "not ready within 0.2 s"),
        (b"not http\r\n\r\n", "not ready within 0.2 s"),
    ],
)
async def test_what_it_waits_for(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes, says: str
) -> None:
    monkeypatch.setattr(supervisor_process, "READY_SECONDS", 0.2)
    process = await SupervisorProcess.start(pool, tmp_path / "log")
    async with listening(answering(answer)) as url:
        with pytest.raises(UnavailableError, match=says):
            await process.ready(url)
    async with listening(answering(status(working=2))) as url:
        await process.ready(url)
    await process.drain(5, asyncio.Event())


async def test_asked_in_vain_it_is_killed(pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_process, "STOP_MARGIN_SECONDS", 0.1)
    # A named pipe, so that its words can be waited for: a process of its own is up, so it listens to signals.
    os.mkfifo(tmp_path / "log")
    with os.fdopen(os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as log:
        process = await SupervisorProcess.start(pool, tmp_path / "log")
        os.set_blocking(log.fileno(), True)
        said = b""
        while b"mold:" not in said:
            chunk = await asyncio.to_thread(log.read, 65536)
            assert chunk, said
            said += chunk
    os.kill(process.pid, signal.SIGSTOP)
    assert await process.drain(0, asyncio.Event()) == -signal.SIGKILL
