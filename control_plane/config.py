"""Command line -> one frozen Struct, judged as a whole before anything is opened."""

import ipaddress
import re
from pathlib import Path
from typing import Literal, cast, get_args

from msgspec import Struct, field

from control_plane.errors import ControlPlaneError
from control_plane.keys import DEFAULT_PROJECT, project_of_key
from wire.address import is_loopback
from wire.duration import seconds_of

_API_KEY = re.compile(r"mb[xc]_[0-9A-Za-z]{32,128}(\.[a-z0-9-]+)?")
_HANDLE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")

ProjectDialect = Literal["automations", "loops"]
"""What a project's worker socket may speak; the third dialect has a path of its own."""

BOOTSTRAP_PROJECT = DEFAULT_PROJECT
"""The project that the first start on an empty store creates."""


class ConfigurationError(ControlPlaneError):
    """A setting cannot be used; the sentence names it, what was expected, and what to do."""


class PortInUse(ControlPlaneError):  # noqa: N818 - what it says is what it is
    """Another process listens at the address."""


class Address(Struct, frozen=True, kw_only=True):
    """Where to listen. Port 0: any free port."""

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        """Only processes of this machine can connect."""
        return is_loopback(self.host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class ServeConfig(Struct, frozen=True, kw_only=True):
    """All that `serve` needs. Durations are seconds; `dialects` overrides the dialect of single projects."""

    listen: Address
    store: str
    store_password_file: Path | None = None
    bootstrap_key_file: Path | None = None
    dialect: ProjectDialect = "automations"
    dialects: dict[str, ProjectDialect] = field(default_factory=dict)
    lease_duration: float = 60.0
    heartbeat_cadence: float = 20.0
    insecure_listen: bool = False
    tls_certificate_file: Path | None = None
    tls_key_file: Path | None = None
    tls_client_ca_file: Path | None = None
    metrics_listen: Address | None = None
    rate_limit: int = 2000
    connections_per_key: int = 2000
    trusted_proxies: frozenset[str] = frozenset()
    keep_finished: float | None = 30 * 86_400.0
    keep_deltas: float | None = 600.0

    def __post_init__(self) -> None:
        self._check_tls()
        self._check_limits()
        if self.metrics_listen is not None and not self.metrics_listen.loopback:
            raise ConfigurationError(
                f"--metrics-listen {self.metrics_listen} is reachable from other machines, and metrics are served "
                "there without a key: name a loopback address, or scrape /metrics of --listen with a reader key"
            )
        # The contract counts both in whole seconds, and a lease must outlive two lost heartbeats.
        for name, value in (("lease-duration", self.lease_duration), ("heartbeat-cadence", self.heartbeat_cadence)):
            if value < 1 or value != int(value):
                raise ConfigurationError(f"--{name} must be a whole number of seconds, 1s or more, not {value:g}s")
        if self.lease_duration < 2 * self.heartbeat_cadence:
            raise ConfigurationError(
                f"--lease-duration {self.lease_duration:g}s must be at least twice --heartbeat-cadence "
                f"{self.heartbeat_cadence:g}s, or one late heartbeat loses a job"
            )

    def _check_limits(self) -> None:
        if self.rate_limit < 0 or self.connections_per_key < 1:
            raise ConfigurationError(
                "--rate-limit must be 0 or more requests a second (0: no limit), --connections-per-key 1 or more"
            )
        for address in self.trusted_proxies:
            if not _is_address(address):
                raise ConfigurationError(f"--trusted-proxy is {address!r}; expected an IP address such as 10.0.0.7")

    def _check_tls(self) -> None:
        if self.tls_certificate_file is None:
            for name, value in (("tls-key-file", self.tls_key_file), ("tls-client-ca-file", self.tls_client_ca_file)):
                if value is not None:
                    raise ConfigurationError(f"--{name} says nothing without --tls-certificate-file: name both")
            if not (self.listen.loopback or self.insecure_listen):
                raise ConfigurationError(
                    f"--listen {self.listen} is reachable from other machines, and API keys would cross the network "
                    "unencrypted: name a certificate with --tls-certificate-file, or listen on 127.0.0.1 behind a "
                    "proxy that ends TLS, or say --insecure-listen if the way from such a proxy is private"
                )
        elif self.insecure_listen:
            raise ConfigurationError("--insecure-listen contradicts --tls-certificate-file: leave one of them out")


def parse_address(text: str, option: str = "--listen") -> Address:
    """`127.0.0.1:8780`, `[::1]:8780` or `localhost:8780`. Raises ConfigurationError naming the option."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigurationError(f"{option} is {text!r}; expected host:port, such as 127.0.0.1:8780 or [::1]:8780")
    return Address(host=host, port=int(port))


def parse_duration(text: str, option: str) -> float:
    """`500ms`, `60s`, `5m`, `2h` in seconds. Raises ConfigurationError naming the option."""
    seconds = seconds_of(text)
    if seconds is None:
        raise ConfigurationError(f"{option} is {text!r}; expected a duration such as 500ms, 60s, 5m or 2h")
    return seconds


def parse_keep(text: str, option: str) -> float | None:
    """How long what is past is kept: a duration, or `off` for ever (None). Raises ConfigurationError."""
    if text == "off":
        return None
    seconds = seconds_of(text)
    if seconds is None or seconds <= 0:
        raise ConfigurationError(
            f"{option} is {text!r}; expected a duration such as 12h or 30d, or off to keep for ever"
        )
    return seconds


def parse_handle(text: str, option: str) -> str:
    """A project handle: lower-case words joined by dashes. Raises ConfigurationError naming the option."""
    if not _HANDLE.fullmatch(text) or len(text) > 64:
        raise ConfigurationError(f"{option} is {text!r}; expected lower-case letters, digits and single dashes")
    return text


def parse_api_key(text: str, origin: str) -> str:
    """An API key that somebody chose. Raises ConfigurationError naming where it came from, never the key."""
    project = project_of_key(text)
    if not _API_KEY.fullmatch(text) or (project is not None and project != BOOTSTRAP_PROJECT):
        raise ConfigurationError(
            f"{origin} holds no API key for project {BOOTSTRAP_PROJECT}: expected mbx_ and at least 32 letters or "
            f"digits, optionally followed by .{BOOTSTRAP_PROJECT}"
        )
    return text


def parse_project_dialects(pairs: tuple[str, ...]) -> dict[str, ProjectDialect]:
    """`NAME=loops` pairs. Raises ConfigurationError."""
    dialects: dict[str, ProjectDialect] = {}
    for pair in pairs:
        name, _, dialect = pair.partition("=")
        if dialect not in get_args(ProjectDialect):
            raise ConfigurationError(f"--project-dialect is {pair!r}; expected PROJECT=automations or PROJECT=loops")
        dialects[parse_handle(name, "--project-dialect")] = cast(ProjectDialect, dialect)
    return dialects


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
