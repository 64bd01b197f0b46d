from collections.abc import Callable

import pytest

from mobius_cli.connection import Connection, checked_key, checked_url, is_private, project_of, resolve
from mobius_cli.errors import CommandError, CredentialError, SettingError, UsageError

KEY = "mbx_" + "k" * 32


def ask(
    environ: dict[str, str] | None = None,
    *,
    api_url: str | None = None,
    api_key: str | None = KEY,
    project: str | None = None,
) -> Connection:
    return resolve(environ or {}, api_url=api_url, api_key=api_key, project=project)


def test_without_settings_it_is_the_hosted_service_and_the_default_project() -> None:
    connection = ask()
    assert (connection.api_url, connection.project) == ("https://api.mobiusops.ai", "default")


def test_variables_are_read_and_options_win() -> None:
    environ = {"MOBIUS_API_URL": "https://a.example/", "MOBIUS_API_KEY": KEY, "MOBIUS_PROJECT": "of-variable"}
    connection = ask(environ, api_key=None)
    assert (connection.api_url, connection.api_key, connection.project) == ("https://a.example", KEY, "of-variable")
    connection = ask(environ, api_url="http://127.0.0.1:1/x/", api_key="mbc_other", project="of-option")
    assert (connection.api_url, connection.api_key, connection.project) == (
        "http://127.0.0.1:1/x",
        "mbc_other",
        "of-option",
    )


def test_the_project_is_taken_from_the_key() -> None:
    assert ask(api_key=f"{KEY}.lab").project == "lab"
    assert ask({"MOBIUS_PROJECT": "lab"}, api_key=f"{KEY}.lab").project == "lab"


def test_another_project_than_the_keys_is_an_error_that_names_both() -> None:
    with pytest.raises(SettingError, match=r"MOBIUS_PROJECT is 'home'.*'lab'"):
        ask({"MOBIUS_PROJECT": "home"}, api_key=f"{KEY}.lab")
    with pytest.raises(UsageError, match=r"--project is 'home'.*'lab'"):
        project_of({}, f"{KEY}.lab", "home")


@pytest.mark.parametrize("handle", ["a/b", "..", "a\nb"])
def test_a_project_that_would_change_the_path_is_refused(handle: str) -> None:
    with pytest.raises(UsageError, match="--project"):
        ask(project=handle)


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "ftp://host",
        "https://",
        "https://host:port",
        "https://host:99999",
        "https://user:secret@host",
        "https://host/?a=b",
        "https://host/#a",
        "https://ho\nst",
        "http://api.mobiusops.ai",
        "http://8.8.8.8",
        "http://10.0.0.5:8780",
    ],
)
@pytest.mark.parametrize(("as_option", "kind"), [(True, UsageError), (False, SettingError)])
def test_a_wrong_address_names_its_source_and_never_a_password(
    url: str, as_option: bool, kind: type[CommandError]
) -> None:
    source = "--api-url" if as_option else "MOBIUS_API_URL"
    with pytest.raises(kind, match=f"^{source}: ") as caught:
        ask({} if as_option else {"MOBIUS_API_URL": url}, api_url=url if as_option else None)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "private"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("::1", True),
        ("10.1.2.3", True),
        ("control-plane", True),
        ("8.8.8.8", False),
        ("api.mobiusops.ai", False),
    ],
)
def test_what_counts_as_private(host: str, private: bool) -> None:
    assert is_private(host) is private


def test_this_machine_needs_no_encryption() -> None:
    assert checked_url("http://127.0.0.1:8780/", "--api-url", UsageError) == "http://127.0.0.1:8780"


def test_no_key_says_where_to_put_one() -> None:
    with pytest.raises(SettingError, match=r"MOBIUS_API_KEY.*--api-key-file"):
        ask(api_key=None)


@pytest.mark.parametrize("key", ["mbx_\x00", "mbx_ä", "mbx_a b", "mbx_a\nmbx_b", "m" * 600])
def test_what_cannot_be_a_key_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(CredentialError) as caught:
        checked_key(key)
    assert key not in str(caught.value)


@pytest.mark.parametrize("show", [repr, str])
def test_the_key_is_in_no_representation(show: Callable[[object], str]) -> None:
    assert KEY not in show(ask())
