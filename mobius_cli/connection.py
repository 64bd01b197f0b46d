"""Which Mobius, which project, which key: options and environment become one frozen Connection. No I/O."""

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from msgspec import Struct

from mobius_cli.errors import CommandError, CredentialError, SettingError, UsageError
from wire.address import is_loopback
from wire.tls import TlsFiles

DEFAULT_API_URL = "https://api.mobiusops.ai"
DEFAULT_PROJECT = "default"
_LONGEST_KEY = 512


class Connection(Struct, frozen=True, kw_only=True):
    """Where to ask and as whom. `api_url` has no trailing slash. The key is kept out of every representation."""

    api_url: str
    api_key: str
    project: str
    tls: TlsFiles = TlsFiles()

    def __repr__(self) -> str:
        return f"Connection(api_url={self.api_url!r}, project={self.project!r})"


def resolve(
    environ: Mapping[str, str],
    *,
    api_url: str | None,
    api_key: str | None,
    project: str | None,
    ca_file: str | None = None,
) -> Connection:
    """Join options (which win) with MOBIUS_API_URL, MOBIUS_API_KEY, MOBIUS_PROJECT and MOBIUS_CA_FILE;
    MOBIUS_CLIENT_CERTIFICATE_FILE and MOBIUS_CLIENT_KEY_FILE have no options.

    `api_key` is the content of --api-key-file. Raises UsageError for a wrong option, SettingError for a wrong
    variable, CredentialError for a text that cannot be a key.
    """
    url = checked_url(api_url, "--api-url", UsageError) if api_url else None
    if url is None:
        url = checked_url(environ.get("MOBIUS_API_URL") or DEFAULT_API_URL, "MOBIUS_API_URL", SettingError)
    key = checked_key(api_key if api_key is not None else environ.get("MOBIUS_API_KEY", ""))
    tls = TlsFiles(
        ca_file=ca_file or environ.get("MOBIUS_CA_FILE", ""),
        client_certificate_file=environ.get("MOBIUS_CLIENT_CERTIFICATE_FILE", ""),
        client_key_file=environ.get("MOBIUS_CLIENT_KEY_FILE", ""),
    )
    return Connection(api_url=url, api_key=key, project=project_of(environ, key, project), tls=tls)


def project_of(environ: Mapping[str, str], key: str, option: str | None) -> str:
    """The explicit project, else the key's `.project` suffix, else `default`. They must not contradict each other."""
    of_key = key.partition(".")[2]
    fault: type[CommandError] = UsageError if option else SettingError
    source = "--project" if option else "MOBIUS_PROJECT"
    explicit = option or environ.get("MOBIUS_PROJECT", "")
    for handle in (explicit, of_key):
        if handle and ("/" in handle or not handle.isprintable() or handle in {".", ".."}):
            raise fault(f"{source}: {handle!r} is no project handle; expected letters, digits and dashes")
    if explicit and of_key and explicit != of_key:
        raise fault(
            f"{source} is {explicit!r}, but the API key belongs to project {of_key!r}; "
            f"leave {source} out, or use a key of {explicit!r}"
        )
    return explicit or of_key or DEFAULT_PROJECT


def checked_key(key: str) -> str:
    """The key without surrounding white space. Raises SettingError (none), CredentialError (not a key)."""
    key = key.strip()
    if not key:
        raise SettingError("no API key: set MOBIUS_API_KEY, or name a file that holds one with --api-key-file")
    if len(key) > _LONGEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise CredentialError(
            "the API key is not one line of printable ASCII; expected mbx_... or mbc_... as it was issued"
        )
    return key


def checked_url(url: str, source: str, fault: type[CommandError]) -> str:
    """`url` without trailing slash, when a key may be sent there. Raises `fault`, naming `source`."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise fault(f"{source}: {url!r} is no URL ({error}); expected something like {DEFAULT_API_URL}") from error
    if parts.scheme not in {"http", "https"} or not host or not url.isprintable():
        raise fault(f"{source}: {url!r} is no HTTP address; expected something like {DEFAULT_API_URL}")
    if parts.username is not None or parts.password is not None:
        raise fault(f"{source}: put no user or password into the address; the API key is the credential")
    if parts.query or parts.fragment:
        raise fault(f"{source}: {url!r} has a query or fragment; expected only the address of the API")
    if parts.scheme == "http" and not is_loopback(host):
        raise fault(
            f"{source}: {url!r} would send the API key in clear text; use https:// (http:// is for this machine)"
        )
    return url.rstrip("/")


def is_private(host: str) -> bool:
    """Whether `host` is this machine, an address of a private network, or a name without a domain."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host
