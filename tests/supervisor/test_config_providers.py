"""Model servers in the pool file: what is meant when little is said, and what is refused."""

from pathlib import Path

import pytest

from supervisor import config
from supervisor.child_settings import child_settings, mold_settings
from supervisor.config import Config, ModelServer, load
from supervisor.errors import ConfigurationError
from wire.pipe import ModelProvider

ENVIRON = {"MOBIUS_API_KEY": "mbx_0123456789", "HOME": "/home/nobody"}


def loaded(tmp_path: Path, text: str, **environ: str) -> Config:
    (tmp_path / "pool.toml").write_text(f"[[pool]]\n{text}")
    return load(tmp_path / "pool.toml", ENVIRON | environ)


def problems(tmp_path: Path, text: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigurationError) as raised:
        loaded(tmp_path, text, **environ)
    return raised.value.problems


def providers(tmp_path: Path, text: str, **environ: str) -> dict[str, ModelServer]:
    return loaded(tmp_path, text, **environ).pool[0].providers


def test_without_models_there_is_no_model_server(tmp_path: Path) -> None:
    assert providers(tmp_path, "") == {}
    assert mold_settings(loaded(tmp_path, ""), loaded(tmp_path, "").pool[0]).model_servers is False


def test_ollama_is_where_it_usually_is(tmp_path: Path) -> None:
    expected = ModelServer(api="ollama", base_url="http://127.0.0.1:11434")
    assert providers(tmp_path, "models = ['ollama/llama3', 'mine/x']") == {"ollama": expected}
    assert providers(tmp_path, "[pool.providers.ollama]") == {"ollama": expected}
    elsewhere = providers(tmp_path, "models = ['ollama/*']\n[pool.providers.ollama]\nbase_url = 'http://gpu-box:1/'")
    assert elsewhere["ollama"].base_url == "http://gpu-box:1"


def test_a_provider_of_any_name_says_what_it_speaks_and_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "lab-key").write_text("secret")
    text = """
    models = ["lab/*"]
    [pool.providers.lab]
    api = "openai"
    base_url = "https://models.example.com/v1/"
    api_key_file = "lab-key"
    silence = "90s"
    """
    settings = loaded(tmp_path, text)
    told = child_settings(settings, settings.pool[0], "default-1", "box", None)
    assert told.models == ["lab/*"]
    assert told.providers == [
        ModelProvider(
            name="lab",
            api="openai",
            base_url="https://models.example.com/v1",
            api_key_file=str(tmp_path / "lab-key"),
            silence=90.0,
        )
    ]
    assert mold_settings(settings, settings.pool[0]).model_servers is True


@pytest.mark.parametrize(
    ("name", "base_url"), [("openai", "https://api.openai.com/v1"), ("anthropic", "https://api.anthropic.com")]
)
def test_the_hosted_ones_want_a_key(tmp_path: Path, name: str, base_url: str) -> None:
    (sentence,) = problems(tmp_path, f"[pool.providers.{name}]")
    assert sentence == (
        f"pool[0].providers.{name}.api_key_file: expected a file with the key for {base_url}, got none; name the file, "
        f"or give a systemd credential {name}-api-key"
    )
    (tmp_path / "key").write_text("secret")
    (server,) = providers(tmp_path, f"[pool.providers.{name}]\napi_key_file = 'key'").values()
    assert (server.api, server.base_url, server.api_key_file) == (name, base_url, str(tmp_path / "key"))


def test_a_systemd_credential_is_a_key_too_and_goes_before_the_file(tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "openai-api-key").write_text("secret")
    text = "[pool.providers.openai]\napi_key_file = 'nowhere'"
    (server,) = providers(tmp_path, text, CREDENTIALS_DIRECTORY=str(credentials)).values()
    assert server.api_key_file == str(credentials / "openai-api-key")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "[pool.providers.lab]",
            (
                'pool[0].providers.lab.api: expected one of "ollama", "openai", "anthropic", got nothing; '
                'write for example api = "openai"'
            ),
        ),
        (
            "[pool.providers.lab]\napi = 'grpc'",
            (
                'pool[0].providers.lab.api: expected one of "ollama", "openai", "anthropic", got "grpc"; '
                'write for example api = "openai"'
            ),
        ),
        (
            "[pool.providers.ollama]\nbase_url = 'gpu-box:11434'",
            (
                "pool[0].providers.ollama.base_url: expected a URL of http:// or https://, host and optional port "
                'and path, without user, query or fragment; write for example base_url = "http://127.0.0.1:11434"'
            ),
        ),
        (
            "[pool.providers.ollama]\napi_key_file = 'nowhere'",
            "pool[0].providers.ollama.api_key_file: expected a readable file with the key, but {0}/nowhere is not one",
        ),
        ("[pool.providers.lab]\nurl = 'x'", "pool[0].providers.lab.url: unknown key; did you mean `base_url`?"),
        ("providers = 7", "pool[0].providers: expected tables, got 7; write [pool.providers.NAME] above keys"),
        (
            "[pool.providers]\nlab = 7",
            "pool[0].providers: expected tables, got a table; write [pool.providers.NAME] above",
        ),
        (
            "[pool.providers.'a/b']\napi = 'openai'\nbase_url = 'http://127.0.0.1'",
            'pool[0].providers: expected names as those of pools, got "a/b"; rename it',
        ),
        (
            "[pool.providers.ollama]\nsilence = '0s'",
            'pool[0].providers.ollama.silence: expected a duration above zero in quotes, got "0s"',
        ),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    (found,) = problems(tmp_path, text)
    assert found.startswith(sentence.format(tmp_path))


def test_a_key_goes_in_clear_text_to_this_machine_alone(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret")
    text = "[pool.providers.lab]\napi = 'openai'\napi_key_file = 'key'\nbase_url = '{}'"
    (sentence,) = problems(tmp_path, text.format("http://gpu-box/v1"))
    assert "base_url: expected https:// for a host that is not this machine" in sentence
    for url in ("http://127.0.0.1:8000/v1", "http://localhost/v1", "https://gpu-box/v1"):
        assert providers(tmp_path, text.format(url))["lab"].base_url == url


@pytest.mark.parametrize("url", ["http://u:p4ss@h", "http://h?key=p4ss", "http://h:p4ss", "p4ss"])
def test_a_url_that_is_refused_is_not_repeated(tmp_path: Path, url: str) -> None:
    (sentence,) = problems(tmp_path, f"[pool.providers.ollama]\nbase_url = '{url}'")
    assert "p4ss" not in sentence


def test_several_providers_of_several_pools(tmp_path: Path) -> None:
    text = """
    name = "a"
    [pool.providers.one]
    api = "ollama"
    [pool.providers.two]
    api = "openai"
    base_url = "http://127.0.0.1:8000/v1"
    [[pool]]
    name = "b"
    """
    pools = loaded(tmp_path, text).pool
    assert [list(pool.providers) for pool in pools] == [["one", "two"], []]


def test_a_change_of_a_provider_is_a_change_of_the_pool(tmp_path: Path) -> None:
    one, other = (loaded(tmp_path, f"[pool.providers.ollama]\nsilence = '{time}'").pool[0] for time in ("1m", "2m"))
    assert one != other
    assert config.ModelServer() == config.ModelServer()
