from pathlib import Path
from typing import Any

import pytest

from control_plane.config import (
    Address,
    ConfigurationError,
    ServeConfig,
    parse_address,
    parse_api_key,
    parse_duration,
    parse_handle,
    parse_keep,
    parse_project_dialects,
)

STORE = "sqlite:///tmp/x.db"


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:8780", "127.0.0.1", 8780), ("[::1]:0", "::1", 0), ("localhost:65535", "localhost", 65535)],
)
def test_addresses(text: str, host: str, port: int) -> None:
    address = parse_address(text)
    assert (address.host, address.port) == (host, port)
    assert str(address) == text


@pytest.mark.parametrize("text", ["", "8780", ":8780", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "h:65536", "::1:80"])
def test_what_is_no_address_is_shown_with_an_example(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--listen is .*expected host:port"):
        parse_address(text)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *[(host, True) for host in ("127.0.0.1", "127.8.9.1", "::1", "localhost")],
        *[(host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org")],
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert Address(host=host, port=1).loopback is loopback


@pytest.mark.parametrize(("text", "seconds"), [("500ms", 0.5), ("60s", 60.0), ("1.5m", 90.0), ("2h", 7200.0)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text, "--x") == seconds


@pytest.mark.parametrize("text", ["", "60", "s", "-1s", "1w", "1 s", "60s "])
def test_what_is_no_duration_names_the_option(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--lease-duration is .*such as 500ms, 60s, 5m or 2h"):
        parse_duration(text, "--lease-duration")


def test_listening_beyond_loopback_must_be_asked_for() -> None:
    wide = parse_address("0.0.0.0:80")
    with pytest.raises(ConfigurationError, match=r"--listen 0\.0\.0\.0:80 .*--insecure-listen"):
        ServeConfig(listen=wide, store=STORE)
    assert ServeConfig(listen=wide, store=STORE, insecure_listen=True).listen == wide


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"lease_duration": 0.5}, "--lease-duration"),
        ({"heartbeat_cadence": 1.5}, "--heartbeat-cadence"),
        ({"lease_duration": 30.0, "heartbeat_cadence": 20.0}, "at least twice"),
    ],
)
def test_lease_terms_that_the_contract_cannot_say(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        ServeConfig(listen=parse_address("127.0.0.1:1"), store=STORE, **settings)


def test_project_dialects() -> None:
    assert parse_project_dialects(("a=loops", "b-2=automations")) == {"a": "loops", "b-2": "automations"}
    for wrong in ("a", "a=", "a=klingon", "a=org", "A=loops", "=loops"):
        with pytest.raises(ConfigurationError, match="--project-dialect"):
            parse_project_dialects((wrong,))


def test_handles() -> None:
    assert parse_handle("team-1", "HANDLE") == "team-1"
    for wrong in ("", "Team", "-a", "a--b", "a/b", "a" * 65):
        with pytest.raises(ConfigurationError, match="HANDLE is"):
            parse_handle(wrong, "HANDLE")


def test_a_chosen_key_is_checked_and_never_shown() -> None:
    good = "mbx_" + "a1" * 16
    assert parse_api_key(good, "X") == good
    assert parse_api_key(good + ".default", "X") == good + ".default"
    for wrong in ("", "secret", "mbx_short", "mbx_" + "a-" * 16, good + ".other", good + "."):
        with pytest.raises(ConfigurationError, match="X holds no API key") as caught:
            parse_api_key(wrong, "X")
        assert not wrong or wrong not in str(caught.value)


def test_tls_makes_a_listener_beyond_loopback_safe() -> None:
    wide = parse_address("0.0.0.0:80")
    certificate = Path("server.pem")
    assert ServeConfig(listen=wide, store=STORE, tls_certificate_file=certificate).listen == wide
    with pytest.raises(ConfigurationError, match="--tls-certificate-file"):
        ServeConfig(listen=wide, store=STORE)
    with pytest.raises(ConfigurationError, match="--tls-key-file says nothing without --tls-certificate-file"):
        ServeConfig(listen=wide, store=STORE, tls_key_file=certificate)
    with pytest.raises(ConfigurationError, match="--tls-client-ca-file says nothing"):
        ServeConfig(listen=wide, store=STORE, tls_client_ca_file=certificate)
    with pytest.raises(ConfigurationError, match="--insecure-listen contradicts"):
        ServeConfig(listen=wide, store=STORE, tls_certificate_file=certificate, insecure_listen=True)


@pytest.mark.parametrize(("text", "seconds"), [("off", None), ("30d", 2_592_000.0), ("12h", 43_200.0)])
def test_how_long_the_past_is_kept(text: str, seconds: float | None) -> None:
    assert parse_keep(text, "--keep-finished") == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "never", "-1d"])
def test_what_says_nothing_about_keeping(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--keep-finished is .*off to keep for ever"):
        parse_keep(text, "--keep-finished")
