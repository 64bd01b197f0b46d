"""A process with a pipe on MOLD_FD: `process.py BEHAVIOUR`. What it does is one function below."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from wire import pipe

PIPE = socket.socket(fileno=pipe.MOLD_FD)


def say(message: pipe.Message) -> None:
    PIPE.send(pipe.encode(message))


def tell(text: str) -> None:
    """One line on standard output, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def hello() -> None:
    say(pipe.Hello(slot="any", incarnation=1, pid=os.getpid(), build="build"))


def obedient() -> None:
    """Boots, is ready, prints, and drains when it is told to over the pipe."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hello()
    say(pipe.Ready(slot="any", incarnation=1))
    tell("at work")
    order = pipe.decode_to_child(PIPE.recv(pipe.MAX_MESSAGE))
    tell(f"drain {order.grace:g}")
    say(pipe.Bye(slot="any", incarnation=1, reason="drained", finished=2))


def chatty_at_its_end() -> None:
    """Says and prints a lot, and is gone before anybody can have read it."""
    hello()
    for number in range(200):
        say(pipe.Beat(slot="any", incarnation=1, source="loop", completed=number + 1))
    tell("\n".join(f"line {number}" for number in range(150)))
    sys.stdout.write("last line without an end")
    sys.stdout.flush()
    os._exit(3)


def beating() -> None:
    """Beats before it is ready and after, says how often, and waits."""
    hello()
    for number in range(int(sys.argv[2])):
        say(pipe.Beat(slot="any", incarnation=1, source="loop", completed=number + 1))
    say(pipe.Ready(slot="any", incarnation=1))
    for number in range(3):
        say(pipe.Beat(slot="any", incarnation=1, source="loop", completed=number + 1))
    tell("three more")
    PIPE.recv(pipe.MAX_MESSAGE)


def late_announcement() -> None:
    """A mold whose child has spoken long before it is announced."""
    say(pipe.MoldReady(build="build", actions=[]))
    data, descriptors, _, _ = socket.recv_fds(PIPE, pipe.MAX_MESSAGE, 8)
    spawn = pipe.decode_to_mold(data)
    assert isinstance(spawn, pipe.Spawn)
    reader, writer = os.pipe()
    if os.fork() == 0:
        child = os.fork()
        if child == 0:
            time.sleep(600)
        os.write(writer, str(child).encode())
        os._exit(0)
    os.wait()
    first_words = pipe.Hello(slot=spawn.slot, incarnation=spawn.incarnation, pid=1, build="build")
    socket.socket(fileno=descriptors[0]).send(pipe.encode(first_words))
    tell("has spoken")
    PIPE.recv(pipe.MAX_MESSAGE)
    say(pipe.Spawned(slot=spawn.slot, incarnation=spawn.incarnation, pid=int(os.read(reader, 16))))
    PIPE.recv(pipe.MAX_MESSAGE)


def flooding_its_pipe() -> None:
    """Says without end what nobody wants to hear, from its whole group."""
    hello()
    say(pipe.Ready(slot="any", incarnation=1))
    tell("begins")
    while True:
        say(pipe.Beat(slot="any", incarnation=1, source="loop"))


def nonsense() -> None:
    """Sends what is no message, then a message."""
    PIPE.send(b"\xc1nonsense")
    hello()
    PIPE.recv(1)


def waiting() -> None:
    """Boots and waits."""
    hello()
    PIPE.recv(pipe.MAX_MESSAGE)


def deaf() -> None:
    """Boots, ignores every request."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hello()
    while True:
        time.sleep(60)


def with_grandchild() -> None:
    """Starts a process of its own, says its number, and waits."""
    hello()
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    tell(str(grandchild.pid))
    PIPE.recv(pipe.MAX_MESSAGE)


def with_daemon() -> None:
    """Starts a process in a session of its own (out of reach of its group), says its number, and waits."""
    hello()
    daemon = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    tell(str(daemon.pid))
    PIPE.recv(pipe.MAX_MESSAGE)


def flooding() -> None:
    """Prints far more than a pipe holds before it says that it is there: it blocks unless it is read."""
    for _ in range(300):
        sys.stdout.write("x" * 1000 + "\n")
    sys.stdout.write("y" * 80_000 + "\n")
    sys.stdout.flush()
    hello()
    PIPE.recv(pipe.MAX_MESSAGE)


def environment() -> None:
    """Prints the names of its environment, its open files, and whether it leads a session with default signals."""
    tell(" ".join(sorted(os.environ)))
    tell(" ".join(sorted(str(Path(f"/proc/self/fd/{fd}").readlink()).partition(":")[0] for fd in range(4))))
    tell(" ".join(str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()))
    tell(f"{signal.getsignal(signal.SIGINT) is signal.default_int_handler} {os.getsid(0) == os.getpid()}")


if __name__ == "__main__":
    globals()[sys.argv[1]]()
