"""The control plane's worker socket: its address, whom to trust there, and the proxy on the way."""

import ssl
import urllib.parse
import urllib.request

from msgspec import Struct

from wire.address import is_loopback
from wire.tls import TlsFiles, TlsFilesError, client_context
from worker_child.errors import ConfigurationError

PROXY_VARIABLES = ("https_proxy", "all_proxy")
"""Names, in lower or upper case. `http_proxy` is none of them: plain HTTP goes to this machine alone."""


class Proxy(Struct, frozen=True, kw_only=True):
    """An HTTP proxy that connects through to where it is told. `url` may hold a password; `shown` does not."""

    url: str
    shown: str


class Endpoint(Struct, frozen=True, kw_only=True):
    """Where the worker's socket is. `local`: on this machine, which is the only place that is reached without TLS."""

    url: str
    local: bool
    tls: TlsFiles = TlsFiles()

    @property
    def is_encrypted(self) -> bool:
        """Whether TLS is spoken."""
        return self.url.startswith("wss:")

    def context(self) -> ssl.SSLContext:
        """Whom to trust, from the files as they are now. Raises ConfigurationError that names the key."""
        try:
            return client_context(self.tls)
        except TlsFilesError as error:
            raise ConfigurationError(f"control_plane.{error.key}: {error}") from error

    def proxy(self) -> Proxy | None:
        """The proxy that the environment names for this address, now. Raises ConfigurationError."""
        parts = urllib.parse.urlsplit(self.url)
        if self.local or urllib.request.proxy_bypass(f"{parts.hostname}:{parts.port or 443}"):
            return None
        found = urllib.request.getproxies()
        for variable in PROXY_VARIABLES:
            if url := found.get(variable.removesuffix("_proxy")):
                return _proxy(url, variable.upper())
        return None


def _proxy(url: str, variable: str) -> Proxy:
    """The URL stands in no error: it may hold a password."""
    parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if parts.scheme not in ("http", "https") or not host or parts.path not in ("", "/") or parts.query:
        raise ConfigurationError(
            f"{variable}: expected http://[user:password@]host:port of an HTTP proxy; correct it, or put the control "
            "plane's host into NO_PROXY"
        )
    if parts.username is not None and parts.password is None:
        raise ConfigurationError(f"{variable}: there is a user without a password; write http://user:password@host")
    return Proxy(url=parts.geturl(), shown=f"{host}:{port or (443 if parts.scheme == 'https' else 80)}")


def endpoint(api_url: str, project: str, key_project: str, tls: TlsFiles = TlsFiles()) -> Endpoint:  # noqa: B008 - frozen
    """Where to connect to. Raises ConfigurationError that names the key.

    A key's own project wins over the default one; against any other it is an error (contract, "Dialects").
    """
    if key_project and project not in ("", "default", key_project):
        raise ConfigurationError(f"project: {project!r} is not the project of the API key, which is {key_project!r}")
    try:
        parts = urllib.parse.urlsplit(api_url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise ConfigurationError(f"api_url: {api_url!r} is not a URL: {error}") from error
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment or parts.username:
        raise ConfigurationError(f"api_url: {api_url!r} is not of the form https://host[:port][/path]")
    local = is_loopback(host)
    if parts.scheme == "http" and not local:
        raise ConfigurationError(
            f"api_url: {api_url!r} would send the API key in clear text: use https (http is for this machine alone)"
        )
    named = key_project or project
    path = f"/v1/projects/{urllib.parse.quote(named, safe='')}/workers/socket" if named else "/v1/workers/socket"
    scheme = "wss" if parts.scheme == "https" else "ws"
    url = f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}{path}"
    found = Endpoint(url=url, local=local, tls=tls)
    # What cannot work is better said now than at every attempt to connect.
    if found.is_encrypted and tls != TlsFiles():
        found.context()
    found.proxy()
    return found
