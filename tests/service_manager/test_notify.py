"""Messages to a service manager over a real datagram socket."""

import os
import socket
from pathlib import Path

from service_manager.notify import Notifier


def listening(address: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(address)
    listener.settimeout(10)
    return listener


def test_what_is_said(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid()), "OTHER": "x"}
    with listening(address) as listener:
        notifier = Notifier.from_environment(environ)
        assert environ == {"OTHER": "x"}
        assert notifier.watchdog_interval == 15.0
        notifier.ready("starting")
        notifier.watchdog()
        notifier.status("2 of 2")
        notifier.stopping("draining")
        heard = [listener.recv(4096) for _ in range(4)]
    assert heard == [b"READY=1\nSTATUS=starting", b"WATCHDOG=1", b"STATUS=2 of 2", b"STOPPING=1\nSTATUS=draining"]
    notifier.status("to nobody")
    notifier.close()
    notifier.close()


def test_a_status_is_no_order(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with listening(address) as listener:
        notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
        notifier.status("it says: no\nMAINPID=1\r\nSTOPPING=1")
        notifier.ready()
        heard = [listener.recv(4096) for _ in range(2)]
        notifier.close()
    assert heard == [b"STATUS=it says: no MAINPID=1 STOPPING=1", b"READY=1"]


def test_an_abstract_address() -> None:
    name = f"mobius-test-{os.getpid()}"
    with listening(f"\0{name}") as listener:
        notifier = Notifier.from_environment({"NOTIFY_SOCKET": f"@{name}"})
        notifier.watchdog()
        notifier.status("here")
        assert listener.recv(4096) == b"STATUS=here"
    notifier.close()


def test_a_watchdog_that_is_meant_for_another_process() -> None:
    notifier = Notifier.from_environment({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"})
    assert notifier.watchdog_interval is None


def test_without_a_manager_nothing_happens() -> None:
    notifier = Notifier.from_environment({})
    notifier.ready("starting")
    notifier.watchdog()
    notifier.close()
