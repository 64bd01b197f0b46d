"""What a service manager is told over NOTIFY_SOCKET (sd_notify(3)). Without one, nothing happens."""

import os
import socket
from collections.abc import MutableMapping

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "MAINPID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
"""Environment variables that are between the service manager and the process that it started alone."""


class Notifier:
    """Sends datagrams, never blocks, never raises. `watchdog_interval` is in seconds, None without a watchdog."""

    def __init__(self, address: str, watchdog_interval: float | None) -> None:
        self.watchdog_interval = watchdog_interval
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.settimeout(0)

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> "Notifier":
        """Takes the variables out of the environment: no child may speak for its parent."""
        found = {name: environ.pop(name, "") for name in VARIABLES}
        interval = None
        if found["WATCHDOG_USEC"].isdigit() and found["WATCHDOG_PID"] in ("", str(os.getpid())):
            # Twice as often as asked, as sd_watchdog_enabled(3) advises.
            interval = int(found["WATCHDOG_USEC"]) / 1e6 / 2
        return cls(found["NOTIFY_SOCKET"], interval)

    @property
    def is_heard(self) -> bool:
        """There is a service manager that wants to know."""
        return self._socket is not None

    def ready(self, status: str = "") -> None:
        """The configuration is valid and the sockets listen."""
        self._say(status, "READY=1")

    def status(self, status: str) -> None:
        """One line for `systemctl status`."""
        self._say(status)

    def stopping(self, status: str) -> None:
        """The end has begun."""
        self._say(status, "STOPPING=1")

    def watchdog(self) -> None:
        """The work that the program is there for has really got on."""
        if self.watchdog_interval is not None:
            self._send("WATCHDOG=1")

    def close(self) -> None:
        """Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _say(self, status: str, *more: str) -> None:
        # One line, because the next one would be an order to the manager.
        self._send("\n".join([*more, f"STATUS={' '.join(status.splitlines())}"] if status else more))

    def _send(self, text: str) -> None:
        if self._socket is not None:
            try:
                self._socket.sendto(text.encode(), self._address)
            except OSError:
                return  # the manager is busy or gone; the next message says the same
