"""Where the control plane is, and by which way."""

from pathlib import Path

import pytest

from wire.tls import TlsFiles
from worker_child.endpoint import Proxy, endpoint
from worker_child.errors import ConfigurationError

SOCKET = "/v1/projects/default/workers/socket"

# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("api_url", "project", "key_project", "url"),
    [
        ("https://api.example.com", "acme", "", "wss://api.example.com/v1/projects/acme/workers/socket"),
        ("https://api.example.com/base/", "a b", "", "wss://api.example.com/base/v1/projects/a%20b/workers/socket"),
        ("https://api.example.com", "", "", "wss://api.example.com/v1/workers/socket"),
        ("https://api.example.com", "default", "acme", "wss://api.example.com/v1/projects/acme/workers/socket"),
        ("https://api.example.com", "", "acme", "wss://api.example.com/v1/projects/acme/workers/socket"),
        ("http://127.0.0.1:8780", "default", "", "ws://127.0.0.1:8780" + SOCKET),
        ("http://[::1]:8780", "default", "", "ws://[::1]:8780" + SOCKET),
        ("http://localhost", "default", "", "ws://localhost" + SOCKET),
    ],
)
def test_the_socket_of_a_project(api_url: str, project: str, key_project: str, url: str) -> None:
    assert endpoint(api_url, project, key_project).url == url


@pytest.mark.parametrize(
    ("api_url", "project", "key_project", "sentence"),
    [
        ("http://api.example.com", "p", "", "clear text: use https"),
        ("http://10.0.0.1", "p", "", "clear text: use https"),
        ("http://127.0.0.1.example.com", "p", "", "clear text"),
        ("ftp://api.example.com", "p", "", "not of the form"),
        ("api.example.com", "p", "", "not of the form"),
        ("https://user:secret@host", "p", "", "not of the form"),
        ("https://host:port", "p", "", "is not a URL"),
        ("https://host", "mine", "theirs", "'mine' is not the project of the API key, which is 'theirs'"),
    ],
)
def test_an_address_that_cannot_be_meant_names_the_key(
    api_url: str, project: str, key_project: str, sentence: str
) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        endpoint(api_url, project, key_project)


# --- proxies ----------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def proxy_for(api_url: str = "https://api.example.com") -> Proxy | None:
    return endpoint(api_url, "default", "").proxy()


@pytest.mark.parametrize("variable", ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])
def test_the_environment_names_the_proxy(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    assert proxy_for() is None
    monkeypatch.setenv(variable, "http://user:p%40ss@proxy.example.com:3128")
    assert proxy_for() == Proxy(url="http://user:p%40ss@proxy.example.com:3128", shown="proxy.example.com:3128")


def test_the_more_exact_name_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://all:1")
    monkeypatch.setenv("HTTPS_PROXY", "https://exact")
    assert proxy_for() == Proxy(url="https://exact", shown="exact:443")


def test_a_scheme_may_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "proxy.example.com:3128")
    assert proxy_for() == Proxy(url="http://proxy.example.com:3128", shown="proxy.example.com:3128")


def test_a_proxy_for_plain_http_is_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example.com:3128")
    assert proxy_for() is None


@pytest.mark.parametrize("local", ["http://127.0.0.1:8780", "http://localhost:8780", "https://localhost:8780"])
def test_no_proxy_leads_to_this_machine(monkeypatch: pytest.MonkeyPatch, local: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.com:3128")
    assert proxy_for(local) is None


@pytest.mark.parametrize(
    ("excepted", "api_url", "proxied"),
    [
        ("api.example.com", "https://api.example.com", False),
        (".example.com", "https://api.example.com", False),
        ("example.com", "https://api.example.com", False),
        ("*", "https://api.example.com", False),
        ("other.com, api.example.com", "https://api.example.com", False),
        ("api.example.com:8443", "https://api.example.com:8443", False),
        ("api.example.com:8443", "https://api.example.com", True),
        ("ample.com", "https://api.example.com", True),
    ],
)
def test_exceptions(monkeypatch: pytest.MonkeyPatch, excepted: str, api_url: str, proxied: bool) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.com:3128")
    monkeypatch.setenv("NO_PROXY", excepted)
    assert (proxy_for(api_url) is not None) is proxied


@pytest.mark.parametrize(
    "url",
    [
        "socks5://user:secret@proxy:1080",
        "http://user:secret@",
        "http://user:secret@proxy:port",
        "http://user:secret@proxy/path",
        "http://user:secret@proxy?query",
        "http://secret@proxy",
        "ftp://user:secret@proxy",
    ],
)
def test_a_proxy_that_cannot_be_meant_is_named_by_its_variable_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", url)
    with pytest.raises(ConfigurationError, match="HTTPS_PROXY: ") as caught:
        endpoint("https://api.example.com", "default", "")
    assert "secret" not in str(caught.value)


# --- trust ------------------------------------------------------------------------------------------------------------


def test_files_that_cannot_be_used_are_named_with_their_key(tmp_path: Path) -> None:
    files = TlsFiles(ca_file=str(tmp_path / "ca.pem"))
    with pytest.raises(ConfigurationError, match=r"control_plane.ca_file: .*ca.pem cannot be read"):
        endpoint("https://api.example.com", "default", "", files)
    assert not endpoint("http://127.0.0.1:8780", "default", "", files).is_encrypted, "nobody needs them there"
