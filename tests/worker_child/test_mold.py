import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.child_process import MoldProcess, mold_process
from wire import build, pipe

HANDLERS = """
from worker_child import action
@action("mine")
async def mine(): ...
"""
WITH_THREAD = """
import threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
from worker_child import action
@action("threaded")
async def threaded(): ...
"""


@pytest.fixture
def mold(tmp_path: Path) -> Iterator[MoldProcess]:
    with mold_process(tmp_path) as mold:
        yield mold


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def open_files(pid: int) -> set[str]:
    """Sockets and pipes that a process has open."""
    targets = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]  # noqa: PTH115 - not a path
    return {target for target in targets if target.startswith(("socket:", "pipe:"))}


def test_it_says_what_it_imported_and_stays_single_threaded(mold: MoldProcess) -> None:
    (mold.home / "handlers.py").write_text(HANDLERS)
    ready = mold.settle(modules=["handlers"])
    assert isinstance(ready, pipe.MoldReady)
    assert ready.actions == ["fail", "json", "mine", "print", "random", "time"]
    assert ready.late_modules == []
    assert ready.build == build.build_id()
    assert status(mold.pid)["Threads"] == "1"


def test_files_and_entry_points_are_sources_too(mold: MoldProcess) -> None:
    (mold.home / "some").mkdir()
    (mold.home / "some" / "handlers.py").write_text(HANDLERS)
    (mold.home / "acme_images.py").write_text(HANDLERS.replace("mine", "images"))
    info = mold.home / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mobius.actions]\nimages = acme_images\n")
    ready = mold.settle(modules=[str(mold.home / "some" / "handlers.py"), "mobius.actions:*"], stock_actions=False)
    assert isinstance(ready, pipe.MoldReady), ready
    assert ready.actions == ["images", "mine"]


def test_one_action_of_two_sources_is_refused_with_both_places(mold: MoldProcess) -> None:
    for name in ("one", "other"):
        (mold.home / f"{name}.py").write_text(HANDLERS)
    failed = mold.settle(modules=["one", str(mold.home / "other.py")])
    assert isinstance(failed, pipe.MoldFailed)
    assert "action 'mine' is defined twice, by one.mine (one.py, line 3) and by other.mine (other.py" in failed.message


def test_stock_actions_are_left_out_on_request(mold: MoldProcess) -> None:
    (mold.home / "handlers.py").write_text(HANDLERS)
    ready = mold.settle(modules=["handlers"], stock_actions=False)
    assert isinstance(ready, pipe.MoldReady)
    assert ready.actions == ["mine"]


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (None, "modules: there is no module 'handlers'"),
        ("import not_there", "modules: 'handlers' needs the module 'not_there', which is not installed"),
        (
            "raise OSError('no licence')",
            "modules: importing 'handlers' raised OSError: no licence (handlers.py, line 1)",
        ),
        ("import sys; sys.exit(5)", "modules: importing 'handlers' raised SystemExit: 5"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_sentence_and_exit_78(
    mold: MoldProcess, source: str | None, sentence: str
) -> None:
    if source is not None:
        (mold.home / "handlers.py").write_text(source)
    failed = mold.settle(modules=["handlers"])
    assert isinstance(failed, pipe.MoldFailed)
    assert failed.message.startswith(sentence)
    assert "Traceback" in failed.traceback
    assert mold.exit_code(mold.pid) == 78


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("raise ValueError('x' * 5_000_000)", "modules: importing 'handlers' raised ValueError: xxx"),
        (
            "raise ValueError('\\N{GRINNING FACE}' * 100_000)",
            "modules: importing 'handlers' raised ValueError: \U0001f600",
        ),
        ("open(b'/not/there/caf\\xe9.csv')", "modules: importing 'handlers' raised FileNotFoundError: "),
        ("raise ValueError('caf\\udce9.csv')", "modules: importing 'handlers' raised ValueError: caf\\udce9.csv"),
        (
            "class E(Exception):\n    def __str__(self):\n        raise SystemExit(3)\nraise E",
            "modules: importing 'handlers' raised E (handlers.py, line 4)",
        ),
        (
            "from worker_child import action\nfor i in range(1000):\n    action(f'{i:0>100}')(lambda: None)",
            "modules: the names of their actions have 100",
        ),
        (
            "from worker_child import action\naction('x\\ud800')",
            "modules: 'handlers': @action: expected a name of 1 to 256 printable characters, got 'x\\ud800'",
        ),
    ],
)
def test_whatever_is_wrong_with_a_module_is_said_in_a_message_that_fits(
    mold: MoldProcess, source: str, sentence: str
) -> None:
    (mold.home / "handlers.py").write_text(source)
    failed = mold.settle(modules=["handlers"])
    assert isinstance(failed, pipe.MoldFailed)
    assert failed.message.startswith(sentence)
    assert mold.exit_code(mold.pid) == 78


def test_a_module_that_leaves_threads_behind_is_named_and_left_to_the_children(mold: MoldProcess) -> None:
    (mold.home / "handlers.py").write_text(HANDLERS)
    (mold.home / "threaded.py").write_text(WITH_THREAD)
    (mold.home / "uses_it.py").write_text("import threaded")
    ready = mold.settle(modules=["threaded", "handlers", "uses_it"], stock_actions=False)
    assert isinstance(ready, pipe.MoldReady)
    assert (ready.late_modules, ready.actions) == (["threaded", "uses_it"], ["mine"])
    assert status(mold.pid)["Threads"] == "1"
    child = mold.spawn()
    child.heard_until(pipe.Beat, source="loop")
    # Its own beat thread, the module's thread, and the loop's.
    assert int(status(child.pid)["Threads"]) >= 3


def test_a_thread_that_ends_with_the_import_is_no_reason(mold: MoldProcess) -> None:
    (mold.home / "brief.py").write_text("import threading\nthreading.Thread(target=lambda: None).start()")
    ready = mold.settle(modules=["brief"])
    assert isinstance(ready, pipe.MoldReady)
    assert ready.late_modules == []


def test_without_preload_the_children_import_the_modules(mold: MoldProcess) -> None:
    (mold.home / "handlers.py").write_text("import sys; sys.exit('imported in the child')")
    ready = mold.settle(modules=["handlers"], preload=False)
    assert isinstance(ready, pipe.MoldReady)
    assert ready.late_modules == ["handlers"]
    child = mold.spawn(modules=["handlers"])
    bye = child.heard_until(pipe.Bye)
    assert bye.reason == "modules: importing 'handlers' raised SystemExit: imported in the child (handlers.py, line 1)"
    assert mold.exit_code(child.pid) == 78


def test_a_child_belongs_to_the_supervisor_and_to_itself(mold: MoldProcess) -> None:
    ready = mold.settle()
    assert isinstance(ready, pipe.MoldReady)
    child = mold.spawn(incarnation=4)
    hello = child.heard()
    assert hello == pipe.Hello(slot="default-1", incarnation=4, pid=child.pid, build=ready.build)
    assert int(status(child.pid)["PPid"]) == mold.supervisor.pid
    assert os.getsid(child.pid) == os.getpgid(child.pid) == child.pid
    assert status(child.pid)["SigBlk"] == "0000000000000000"
    child.heard_until(pipe.Beat, source="loop")
    child.heard_until(pipe.Beat, source="thread")


def test_a_child_holds_nothing_of_the_mold_or_of_its_siblings(mold: MoldProcess) -> None:
    mold.settle()
    first, second = mold.spawn(), mold.spawn()
    first.heard_until(pipe.Hello)
    second.heard_until(pipe.Hello)
    of_mold, of_first, of_second = open_files(mold.pid), open_files(first.pid), open_files(second.pid)
    assert len(of_mold) == 1, "its own pipe, and nothing of its children's"
    assert not of_mold & of_first
    assert not of_first & of_second
    first.signal(signal.SIGKILL)
    while first.heard() is not None:
        pass
    assert mold.exit_code(first.pid) == -signal.SIGKILL


def test_the_supervisor_reaps_the_child_and_not_the_intermediate(mold: MoldProcess) -> None:
    mold.settle()
    child = mold.spawn()
    child.heard_until(pipe.Beat)
    child.signal(signal.SIGTERM)
    assert mold.exit_code(child.pid) == 0
    assert set(mold.exits) == {child.pid}


def test_a_child_whose_supervisor_is_another_does_not_start(mold: MoldProcess) -> None:
    mold.settle()
    child = mold.spawn(supervisor_pid=1)
    assert child.heard() is None
    assert mold.exit_code(child.pid) == 0


def test_the_mold_ends_with_its_pipe_and_its_children_live_on(mold: MoldProcess) -> None:
    mold.settle()
    child = mold.spawn()
    child.heard_until(pipe.Hello)
    mold.channel.shutdown(socket.SHUT_RDWR)
    assert mold.exit_code(mold.pid) == 0
    beats = [child.heard_until(pipe.Beat, source="loop") for _ in range(2)]
    assert len(beats) == 2


def test_the_children_of_one_mold_do_not_share_their_randomness(mold: MoldProcess) -> None:
    (mold.home / "draws.py").write_text("import random\nprint('at import', random.random(), flush=True)\n")
    (mold.home / "late.py").write_text("import random\nprint('drawn', random.random(), flush=True)\n")
    mold.settle(modules=["draws"])
    drawn = set()
    for _ in range(2):
        child = mold.spawn(modules=["late"])
        child.heard_until(pipe.Beat)
        drawn.add(next(line for line in child.output().splitlines() if line.startswith("drawn")))
    assert len(drawn) == 2


def test_what_a_module_did_to_signals_does_not_reach_the_child(mold: MoldProcess) -> None:
    (mold.home / "meddles.py").write_text(
        "import signal\nsignal.signal(signal.SIGHUP, lambda *_: None)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
    )
    mold.settle(modules=["meddles"])
    child = mold.spawn()
    child.heard_until(pipe.Beat)
    child.signal(signal.SIGHUP)
    assert mold.exit_code(child.pid) == -signal.SIGHUP


def test_words_that_make_no_sense_end_the_mold(mold: MoldProcess) -> None:
    mold.channel.send(b"\xc1")
    assert mold.exit_code(mold.pid) == 70
