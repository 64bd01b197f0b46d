"""Whom a TLS connection trusts, and as whom it comes: files -> a context."""

import ssl
from pathlib import Path

from msgspec import Struct


class TlsFiles(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Paths of PEM files; empty: none.

    `ca_file`: the authorities to trust, instead of the system's (which SSL_CERT_FILE and SSL_CERT_DIR name).
    `client_certificate_file` with its `client_key_file` (or the key in the same file): as whom to come.
    """

    ca_file: str = ""
    client_certificate_file: str = ""
    client_key_file: str = ""


class TlsFilesError(ValueError):
    """Files that cannot be used. `key` is the name of the field at fault."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """A context that verifies its peer's certificate and name. Reads the files, each time. Raises TlsFilesError."""
    for key in TlsFiles.__struct_fields__:
        _check_readable(key, getattr(files, key))
    try:
        context = ssl.create_default_context(cafile=files.ca_file or None)
    except (OSError, ValueError) as error:
        raise TlsFilesError("ca_file", f"{files.ca_file} holds no certificates in PEM format") from error
    if not files.client_certificate_file:
        if files.client_key_file:
            raise TlsFilesError("client_key_file", "there is no client_certificate_file that it could belong to")
        return context
    try:
        context.load_cert_chain(
            files.client_certificate_file, files.client_key_file or None, password=_refuse_to_ask_for_a_password
        )
    except (OSError, ValueError) as error:
        where = f"{files.client_certificate_file} and {files.client_key_file or 'itself'}"
        raise TlsFilesError(
            "client_certificate_file",
            f"{where} hold no certificate with its key, unencrypted, in PEM format ({_reason(error)})",
        ) from error
    return context


def _check_readable(key: str, path: str) -> None:
    """OpenSSL names no file in its errors."""
    if not path:
        return
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except OSError as error:
        raise TlsFilesError(key, f"{path} cannot be read ({error.strerror})") from error


def _refuse_to_ask_for_a_password() -> str:
    """OpenSSL would ask at the terminal, and wait."""
    raise ValueError("the key is encrypted")


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", "") or error).replace("_", " ").lower()
