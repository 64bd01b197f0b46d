"""TLS for the listening socket: files -> a context, taken up again when they are renewed on disk.

A handshake begins on one context that lives as long as the server, and goes on with the newest one that could be read:
what is half written, or does not belong together, changes nothing until it does.
"""

import ssl
from pathlib import Path

import structlog
from msgspec import Struct

from control_plane.certificate_dates import Validity, validity
from control_plane.config import ConfigurationError
from control_plane.domain.store import Store
from control_plane.domain.times import rfc3339, to_microseconds
from control_plane.handshakes import reason
from control_plane.services import Service
from service_manager.credentials import others_can_read

NOTICE = to_microseconds(14 * 86_400.0)
"""How long before its end a certificate is warned of."""

_DAY = to_microseconds(86_400.0)

_log = structlog.get_logger(__name__)


class CertificateFiles(Struct, frozen=True, kw_only=True):
    """PEM files. Without `key` the certificate's file has the key too. With `client_ca` only peers come in that have a
    certificate of one of these authorities."""

    certificate: Path
    key: Path | None = None
    client_ca: Path | None = None


class Certificates:
    """`context` is for the listening socket. Raises ConfigurationError when the files cannot be used."""

    def __init__(self, files: CertificateFiles) -> None:
        self._files = files
        self._stamps = self._stat()
        self._newest, self.validity = _read(files)
        self.context, _ = _read(files)
        self.context.sni_callback = self._take_newest

    def renew(self, now: int) -> bool:
        """Read the files if they have changed; whether they were taken up. Raises ConfigurationError, and goes on with
        what there was: also when that is valid now, and what is new is not."""
        stamps = self._stat()
        if stamps == self._stamps:
            return False
        newest, dates = _read(self._files)
        fault = dates.fault(now)
        if fault and not self.validity.fault(now):
            raise ConfigurationError(f"{self._files.certificate} {fault}, and the certificate in use is valid")
        self._newest, self.validity, self._stamps = newest, dates, stamps
        return True

    def warning(self, now: int) -> str:
        """What an operator should know of the certificate in use; empty: nothing."""
        fault = self.validity.fault(now)
        if not fault and now > self.validity.not_after - NOTICE:
            fault = f"expires at {rfc3339(self.validity.not_after)}"
        return fault and f"{self._files.certificate} {fault}"

    def _take_newest(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        # Called in every handshake, whether the peer names a host or not.
        connection.context = self._newest

    def _stat(self) -> list[tuple[int, ...]]:
        stamps: list[tuple[int, ...]] = []
        for path in _paths(self._files):
            try:
                found = path.stat()
            except OSError as error:
                raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
            stamps.append((found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode))
        return stamps


class CertificateWatchConfig(Struct, frozen=True, kw_only=True):
    """Seconds."""

    interval: float = 5.0


class CertificateWatch(Service):
    """Takes renewed files up. What is wrong with them is said once; that the certificate in use has expired, or soon
    will, once a day."""

    def __init__(self, store: Store, certificates: Certificates, config: CertificateWatchConfig) -> None:
        super().__init__(store, config.interval)
        self._certificates = certificates
        self._said = ""
        self._warned = ""
        self._warned_at = 0

    async def run_once(self, now: int) -> None:
        """One look."""
        self._take_up(now)
        warning = self._certificates.warning(now)
        if warning and (warning != self._warned or now - self._warned_at >= _DAY):
            _log.warning("renew the TLS certificate", reason=warning)
            self._warned_at = now
        self._warned = warning

    def _take_up(self, now: int) -> None:
        try:
            renewed = self._certificates.renew(now)
        except ConfigurationError as error:
            if str(error) != self._said:
                _log.warning("renewed certificate not taken up", reason=str(error))
            self._said = str(error)
            return
        self._said = ""
        if renewed:
            _log.info("renewed certificate taken up")


def _paths(files: CertificateFiles) -> list[Path]:
    return [path for path in (files.certificate, files.key, files.client_ca) if path is not None]


def _read(files: CertificateFiles) -> tuple[ssl.SSLContext, Validity]:
    for path in _paths(files):
        _check_readable(path)
    if files.key is None and b"PRIVATE KEY-----" not in files.certificate.read_bytes():
        raise ConfigurationError(f"{files.certificate} has no key in it: name the key's own file with --tls-key-file")
    secret = files.key or files.certificate
    if others_can_read(secret):
        raise ConfigurationError(f"{secret} has the key of the TLS certificate and can be read by others: chmod 600 it")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Nobody resumes with what an earlier certificate, or an authority that is gone, has let in.
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(files.certificate, files.key, password=_refuse_to_ask_for_a_password)
        dates = validity(files.certificate.read_text("latin-1"))
    except (OSError, ValueError) as error:
        where = f"{files.certificate} and {files.key or 'itself'}"
        raise ConfigurationError(
            f"{where} hold no TLS certificate with its key, unencrypted, in PEM format ({reason(error)})"
        ) from error
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{files.client_ca} holds no certificates in PEM format") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context, dates


def _check_readable(path: Path) -> None:
    """OpenSSL names no file in its errors."""
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error


def _refuse_to_ask_for_a_password() -> str:
    """OpenSSL would ask at the terminal, and wait."""
    raise ValueError("the key is encrypted")
