"""The pool file: what it accepts, and the one sentence that each mistake gets."""

import os
import re
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tomli

from supervisor import config
from supervisor.config import Config, load
from supervisor.errors import ConfigurationError
from supervisor.programs import control_plane_program
from tests.support.certificates import Certificates
from wire.tls import TlsFiles

EXAMPLE = Path(__file__).parents[2] / "configs" / "pool.example.toml"
ENVIRON = {"MOBIUS_API_KEY": "mbx_0123456789", "HOME": "/home/nobody"}


def loaded(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> Config:
    path = tmp_path / "pool.toml"
    path.write_text(text)
    return load(path, ENVIRON if environ is None else environ)


def problems(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        loaded(tmp_path, text, environ)
    assert caught.value.exit_code == 78
    return caught.value.problems


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[pool]]\ncuont = 2", "pool[0].cuont: unknown key; did you mean `workers`?"),
        ("[[pool]]\nconcurency = 2", "pool[0].concurency: unknown key; did you mean `concurrency`?"),
        ("[superviser]\n[[pool]]", "superviser: unknown key; did you mean `supervisor`?"),
        ("[[pool]]\n[pool.limits]\nboto = '1s'", "pool[0].limits.boto: unknown key; did you mean `boot`?"),
        (
            "[control_plane]\napi_key = 'mbx_secret'\n[[pool]]",
            (
                "control_plane.api_key: unknown key; a key never stands in this file: "
                "put it into the file that `api_key_file` names"
            ),
        ),
        (
            "[[pool]]\nworkers = 'two'",
            'pool[0].workers: expected a whole number from 1 to 1000, got "two"; write for example workers = 2',
        ),
        (
            "[[pool]]\nworkers = 0",
            "pool[0].workers: expected a whole number from 1 to 1000, got 0; write for example workers = 2",
        ),
        (
            "[[pool]]\nworkers = true",
            "pool[0].workers: expected a whole number from 1 to 1000, got true; write for example workers = 2",
        ),
        (
            "[[pool]]\npreload = 'yes'",
            'pool[0].preload: expected true or false, got "yes"; write for example preload = true',
        ),
        (
            "[supervisor]\ndrain_timeout = '30 seconds'\n[[pool]]",
            (
                'supervisor.drain_timeout: expected a duration above zero in quotes, got "30 seconds"; '
                'write for example drain_timeout = "30s"'
            ),
        ),
        (
            "[supervisor]\ndrain_timeout = 30\n[[pool]]",
            (
                "supervisor.drain_timeout: expected a duration above zero in quotes, got 30; "
                'write for example drain_timeout = "30s"'
            ),
        ),
        (
            "[[pool]]\n[pool.limits]\nkill_after = '0s'",
            (
                'pool[0].limits.kill_after: expected a duration above zero in quotes, got "0s"; '
                'write for example kill_after = "30s"'
            ),
        ),
        (
            "[[pool]]\n[pool.limits]\nmax_memory = '512MB'",
            (
                'pool[0].limits.max_memory: expected a size in quotes, got "512MB"; '
                'write for example max_memory = "512MiB"'
            ),
        ),
        (
            "[[pool]]\n[pool.restart]\nmax_unavailable = '0%'",
            (
                'pool[0].restart.max_unavailable: expected a percentage from 1 to 100 in quotes, got "0%"; '
                'write for example max_unavailable = "25%"'
            ),
        ),
        (
            "[[pool]]\nname = 'a'\n[[pool]]\nname = 'a'",
            'pool[1].name: expected a name of its own, got "a", which pool[0] has already; rename one of the two',
        ),
        (
            "[control_plane]\nembedded = true\nlisten = '127.0.0.1:9464'\n[[pool]]",
            (
                'supervisor.listen: expected an address of its own, got "127.0.0.1:9464", which control_plane.listen '
                "has already; change one of the two ports"
            ),
        ),
        (
            "[[pool]]\nworkspace = 'here'",
            (
                "pool[0].workspace: expected environment_actions = true, which this key is for; "
                "set it, or remove the key"
            ),
        ),
        (
            "[[pool]]\nenvironment_actions = true\nworkspace = '/nowhere/at/all'",
            ('pool[0].workspace: expected an existing directory, got "/nowhere/at/all"; create it or correct the path'),
        ),
        (
            "[[pool]]\nname = 'a b'",
            (
                "pool[0].name: expected at most 64 letters, digits, `-`, `_` or `.`, the first a letter or digit, "
                'got "a b"; write for example name = "default"'
            ),
        ),
        (
            "[[pool]]\nqueues = []",
            (
                "pool[0].queues: expected a list of one or more queue names, got []; "
                'write for example queues = ["default"]'
            ),
        ),
        (
            "[[pool]]\nmodels = ['llama3']",
            (
                'pool[0].models: expected a list of `provider/model` names, got ["llama3"]; '
                'write for example models = ["ollama/llama3"]'
            ),
        ),
        (
            "[[pool]]\nmodules = ['handlers.py ']",
            (
                "pool[0].modules: expected a list of Python modules, or of files that end in .py, "
                'got ["handlers.py "]; write for example modules = ["my_handlers"]'
            ),
        ),
        (
            "[control_plane]\napi_url = 'wss://mobius.example'\n[[pool]]",
            (
                'control_plane.api_url: expected a URL of http:// or https://, got the scheme "wss"; '
                'write for example api_url = "https://api.mobiusops.ai"'
            ),
        ),
        (
            "[control_plane]\napi_url = 'mobius.example'\n[[pool]]",
            (
                "control_plane.api_url: expected a URL of http:// or https://, got none of both; "
                'write for example api_url = "https://api.mobiusops.ai"'
            ),
        ),
        (
            "[control_plane]\napi_url = 'https://user:hidden@mobius.example'\n[[pool]]",
            (
                "control_plane.api_url: expected a URL of scheme, host and optional port and path, "
                'without user, query or fragment; write for example api_url = "https://api.mobiusops.ai"'
            ),
        ),
        (
            "[supervisor]\nlisten = '9464'\n[[pool]]",
            (
                'supervisor.listen: expected an address and a port from 0 to 65535, got "9464"; '
                'write for example listen = "127.0.0.1:8780"'
            ),
        ),
        (
            "[control_plane]\nembedded = true\nlisten = '127.0.0.1:0'\n[[pool]]",
            (
                'control_plane.listen: expected an address and a port from 1 to 65535, got "127.0.0.1:0"; '
                'write for example listen = "127.0.0.1:8780"'
            ),
        ),
        (
            "[control_plane]\nlease_duration = '10s'\n[[pool]]",
            (
                "control_plane.lease_duration: expected at least twice heartbeat_cadence (20s), got 10s; "
                "raise it or lower the cadence"
            ),
        ),
        (
            "[[pool]]\n[pool.limits]\nsilence = '1m'",
            "pool[0].limits.kill_after: expected more than silence (60s), got 45s; raise it or lower silence",
        ),
        (
            "[[pool]]\n[pool.restart]\nbackoff_min = '10m'",
            "pool[0].restart.backoff_min: expected at most backoff_max (300s), got 600s; lower it or raise backoff_max",
        ),
        (
            "[control_plane]\nembedded = true\nlisten = '0.0.0.0:8780'\n[[pool]]",
            (
                'control_plane.listen: expected an address of this machine alone, got "0.0.0.0:8780"; '
                "write 127.0.0.1 and put a proxy that ends TLS in front, or run mobius-control-plane by itself"
            ),
        ),
        (
            "[control_plane]\nembedded = true\nmetrics_listen = '0.0.0.0:9465'\n[[pool]]",
            (
                'control_plane.metrics_listen: expected an address of this machine alone, got "0.0.0.0:9465"; '
                "write 127.0.0.1 and scrape /metrics of `listen` with a key of scope reader from elsewhere"
            ),
        ),
        (
            "[control_plane]\nembedded = true\nmetrics_listen = '127.0.0.1:8780'\n[[pool]]",
            (
                'control_plane.metrics_listen: expected an address of its own, got "127.0.0.1:8780", which '
                "control_plane.listen has already; change one of the two ports"
            ),
        ),
        *(
            (
                f"[control_plane]\nkeep_finished = '{keep}'\n[[pool]]",
                (
                    'control_plane.keep_finished: expected a duration above zero in quotes, or "off", got '
                    f'"{keep}"; write for example keep_finished = "30d"'
                ),
            )
            for keep in ("0s", "soon", "30", "")
        ),
        (
            "[control_plane]\nstore = 'mysql://db'\n[[pool]]",
            (
                'control_plane.store: expected "sqlite:///absolute/path.db", "sqlite:path.db" (relative to this file) '
                'or "postgresql://user@host/database"; write for example store = "sqlite:control-plane.db"'
            ),
        ),
        *(
            (
                f"[control_plane]\nstore = '{store}'\n[[pool]]",
                (
                    "control_plane.store: holds a password, which every list of processes would show; put it into a "
                    "file of mode 0600 and name that by store_password_file"
                ),
            )
            for store in ("postgresql://me:secret@db/mobius", "postgresql://me@db/mobius?password=secret")
        ),
        (
            "[control_plane]\nstore_password_file = 'password'\n[[pool]]",
            (
                "control_plane.store_password_file: a SQLite file has no password; leave it out, or name a "
                "postgresql:// store"
            ),
        ),
        ("[supervisor]", "pool: expected at least one pool, got none; add a [[pool]] table"),
        (
            "[pool]\nname = 'a'",
            "pool: expected one or more tables; write [[pool]] (two brackets) above the keys of each",
        ),
        ("pool = 3", "pool: expected one or more tables; write [[pool]] (two brackets) above the keys of each"),
        (
            "control_plane = 'x'\n[[pool]]",
            'control_plane: expected a table, got "x"; write [control_plane] above its keys',
        ),
        (
            "[[pool]]\nlimits = 3",
            "pool[0].limits: expected a table, got 3; write [pool.limits] above its keys",
        ),
        (
            "[supervisor]\nlog_level = 'loud'\n[[pool]]",
            (
                'supervisor.log_level: expected one of "debug", "info", "warning", "error", got "loud"; '
                'write for example log_level = "debug"'
            ),
        ),
    ],
)
def test_a_mistake_gets_one_sentence_that_names_its_key(tmp_path: Path, text: str, problem: str) -> None:
    assert problems(tmp_path, text) == [problem]


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    found = problems(tmp_path, "[supervisor]\nlog_level = 3\n[[pool]]\nworkers = 0\nname = ''")
    assert [problem.partition(":")[0] for problem in found] == [
        "supervisor.log_level",
        "pool[0].workers",
        "pool[0].name",
    ]


def test_a_file_that_is_no_toml_or_not_there(tmp_path: Path) -> None:
    assert "expected a TOML file" in problems(tmp_path, "[[pool]\n")[0]
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load(tmp_path / "missing.toml", ENVIRON)


def test_only_a_regular_file_is_a_pool_file_or_a_key_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigurationError, match=r"the pool file cannot be read \(Not a regular file\)"):
        load(tmp_path / "fifo", ENVIRON)
    with pytest.raises(ConfigurationError, match=r"the pool file cannot be read \(Is a directory\)"):
        load(tmp_path, ENVIRON)
    (found,) = problems(tmp_path, "[control_plane]\napi_key_file = 'fifo'\n[[pool]]", {})
    assert found.startswith("control_plane.api_key_file: ")
    assert "(Not a regular file)" in found


def test_a_password_in_a_url_is_not_repeated(tmp_path: Path) -> None:
    assert "hidden" not in problems(tmp_path, "[control_plane]\napi_url = 'https://u:hidden@x'\n[[pool]]")[0]


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, "[[pool]]\nmodule_path = ['.', 'nowhere']")
    assert found.startswith(f'pool[0].module_path[1]: expected an existing directory, got "{tmp_path}/nowhere"')


def test_modules_may_be_files_and_a_missing_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "handlers.py").touch()
    text = "[[pool]]\nmodules = ['acme.images', './handlers.py']\nentry_points = ['sounds']"
    pool = loaded(tmp_path, text).pool[0]
    assert (pool.modules, pool.entry_points) == (["acme.images", f"{tmp_path}/handlers.py"], ["sounds"])
    (found,) = problems(tmp_path, "[[pool]]\nmodules = ['handlers.py', 'other/handlers.py']")
    assert found.startswith(
        f'pool[0].modules[1]: expected an existing file, or the name of a module, got "{tmp_path}/other/handlers.py"'
    )


def test_durations_and_sizes_become_numbers(tmp_path: Path) -> None:
    text = "[supervisor]\ndrain_timeout = '1.5m'\n[[pool]]\n[pool.restart]\nbackoff_min = '250ms'\nbackoff_max = '2h'"
    found = loaded(tmp_path, text)
    assert found.supervisor.drain_timeout == 90.0
    assert (found.pool[0].restart.backoff_min, found.pool[0].restart.backoff_max) == (0.25, 7200.0)
    assert config.Size.parse("512MiB") == 512 * 1024**2


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    text = "[control_plane]\nembedded = true\nstore = 'sqlite:data/plane.db'\napi_key_file = 'key'\n"
    found = loaded(tmp_path, text + "[supervisor]\nstate_dir = 'state'\n[[pool]]")
    assert found.control_plane.store == f"sqlite://{tmp_path}/data/plane.db"
    assert found.control_plane.api_key_file == f"{tmp_path}/key"
    assert found.supervisor.state_dir == f"{tmp_path}/state"
    assert found.pool[0].module_path == [str(tmp_path)]


def test_a_server_instead_of_a_file(tmp_path: Path) -> None:
    store = "postgresql://mobius@db.example.com/mobius?sslmode=verify-full"
    text = f"[control_plane]\nembedded = true\nstore = '{store}'\nstore_password_file = 'password'\n[[pool]]"
    found = loaded(tmp_path, text)
    assert found.control_plane.store == store
    assert found.control_plane.store_password_file == f"{tmp_path}/password"
    program = control_plane_program(found, {})
    assert program.arguments[-2:] == ["--store-password-file", f"{tmp_path}/password"]


def test_what_an_embedded_control_plane_keeps_and_where_it_shows_its_metrics(tmp_path: Path) -> None:
    text = "[control_plane]\nembedded = true\nkeep_finished = 'off'\nmetrics_listen = '127.0.0.1:9465'\n[[pool]]"
    arguments = control_plane_program(loaded(tmp_path, text), {}).arguments
    flags = dict(zip(arguments[6::2], arguments[7::2], strict=True))
    assert (flags["--keep-finished"], flags["--metrics-listen"]) == ("off", "127.0.0.1:9465")
    plain = control_plane_program(loaded(tmp_path, "[control_plane]\nembedded = true\n[[pool]]"), {}).arguments
    assert "--metrics-listen" not in plain
    assert plain[plain.index("--keep-finished") + 1] == "30d"


def test_state_directory_falls_back_to_what_the_system_says(tmp_path: Path) -> None:
    assert loaded(tmp_path, "[[pool]]").supervisor.state_dir == "/home/nobody/.local/state/mobius-supervisor"
    xdg = {**ENVIRON, "XDG_STATE_HOME": "/xdg"}
    assert loaded(tmp_path, "[[pool]]", xdg).supervisor.state_dir == "/xdg/mobius-supervisor"
    systemd = {**xdg, "STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}
    assert loaded(tmp_path, "[[pool]]", systemd).supervisor.state_dir == "/var/lib/a"


def test_embedded_listens_here_and_ignores_what_points_elsewhere(tmp_path: Path) -> None:
    elsewhere = {**ENVIRON, "MOBIUS_API_URL": "https://elsewhere", "MOBIUS_PROJECT": "other"}
    found = loaded(tmp_path, "[control_plane]\nembedded = true\nlisten = '127.0.0.1:4711'\n[[pool]]", elsewhere)
    assert found.control_plane.api_url == "http://127.0.0.1:4711"
    assert found.control_plane.project == "default"
    assert found.credential.key is None
    assert found.credential.key_file == f"{found.supervisor.state_dir}/api-key"
    assert found.control_plane.store == f"sqlite://{found.supervisor.state_dir}/control-plane.db"
    assert found.notes == ["MOBIUS_API_URL, MOBIUS_PROJECT, MOBIUS_API_KEY ignored: the control plane is embedded"]


def test_environment_overrides_the_file(tmp_path: Path) -> None:
    environ = {**ENVIRON, "MOBIUS_API_URL": "https://b/", "MOBIUS_PROJECT": "", "MOBIUS_LOG_LEVEL": "DEBUG"}
    found = loaded(tmp_path, "[control_plane]\napi_url = 'https://a'\nproject = 'p'\n[[pool]]", environ)
    assert (found.control_plane.api_url, found.control_plane.project) == ("https://b", "")
    assert found.supervisor.log_level == "debug"
    (bad,) = problems(tmp_path, "[[pool]]", {**ENVIRON, "MOBIUS_LOG_LEVEL": "loud"})
    assert bad.startswith("MOBIUS_LOG_LEVEL: expected one of")


def test_the_credential_is_searched_in_order(tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (tmp_path / "api-key").write_text("mbx_fromfile\n")
    assert loaded(tmp_path, "[[pool]]", {}).credential.key_file == f"{tmp_path}/api-key"
    (credentials / "api-key").write_text("mbx_fromsystemd")
    environ = {"CREDENTIALS_DIRECTORY": str(credentials)}
    assert loaded(tmp_path, "[[pool]]", environ).credential.key_file == f"{credentials}/api-key"
    found = loaded(tmp_path, "[[pool]]", {**environ, "MOBIUS_API_KEY": "mbx_fromenvironment"}).credential
    assert found.key is not None
    assert (found.key.reveal(), found.key_file) == ("mbx_fromenvironment", None)
    assert "mbx_fromenvironment" not in repr(found)


def test_a_missing_or_malformed_credential_says_where_it_was_looked_for(tmp_path: Path) -> None:
    (missing,) = problems(tmp_path, "[[pool]]", {})
    assert missing == (
        "control_plane.api_key_file: expected a readable file with the API key, but "
        f"{tmp_path}/api-key is not (No such file or directory); write the key into it or set MOBIUS_API_KEY"
    )
    (malformed,) = problems(tmp_path, "[[pool]]", {"MOBIUS_API_KEY": "sk-hidden"})
    assert malformed.startswith("MOBIUS_API_KEY: expected an API key, which begins with mbx_ or mbc_")
    assert "hidden" not in malformed


def test_a_workspace_is_the_pools_own_unless_it_is_named(tmp_path: Path) -> None:
    text = "[supervisor]\nstate_dir = 'state'\n[[pool]]\nname = 'rig'\nenvironment_actions = true\n"
    (pool,) = loaded(tmp_path, text).pool
    assert pool.workspace == str(tmp_path / "state" / "workspaces" / "rig")
    (tmp_path / "here").mkdir()
    assert loaded(tmp_path, f"{text}workspace = 'here'").pool[0].workspace == str(tmp_path / "here")
    assert loaded(tmp_path, "[[pool]]").pool[0].workspace == ""


@pytest.mark.parametrize(
    ("actions", "word"), [("[]", "run commands"), ("['environment.bash']", "run commands"), ("['print']", "may change")]
)
def test_whoever_turns_environment_actions_on_is_warned(tmp_path: Path, actions: str, word: str) -> None:
    (warning,) = loaded(tmp_path, f"[[pool]]\nenvironment_actions = true\nactions = {actions}").notes
    assert word in warning
    assert loaded(tmp_path, "[[pool]]").notes == []


def test_a_key_names_its_project(tmp_path: Path) -> None:
    environ = {"MOBIUS_API_KEY": "mbx_0123.rig"}
    assert loaded(tmp_path, "[[pool]]", environ).control_plane.project == "rig"
    (conflict,) = problems(tmp_path, "[control_plane]\nproject = 'other'\n[[pool]]", environ)
    assert conflict.startswith('control_plane.project: expected "rig", the project that the API key belongs to')
    same = loaded(tmp_path, "[control_plane]\nproject = 'rig'\n[[pool]]", environ)
    assert same.control_plane.project == "rig"


def test_workers_on_the_command_line_are_for_a_sole_pool(tmp_path: Path) -> None:
    assert config.with_workers(loaded(tmp_path, "[[pool]]"), 7).pool[0].workers == 7
    two = loaded(tmp_path, "[[pool]]\nname = 'a'\n[[pool]]\nname = 'b'")
    with pytest.raises(ConfigurationError, match="--workers: expected a pool file with one pool, but it has a, b"):
        config.with_workers(two, 7)


def fields_of(struct: type[Any]) -> dict[str, Any]:
    """Every key that a Struct takes; nested Structs as dicts."""
    keys: dict[str, Any] = {}
    for field in msgspec.structs.fields(struct):
        nested = isinstance(field.type, type) and issubclass(field.type, msgspec.Struct)
        named = typing.get_args(field.type)[1] if typing.get_origin(field.type) is dict else None
        keys[field.name] = fields_of(field.type) if nested else {"lab": fields_of(named)} if named else None
    return keys


def keys_of(table: dict[str, Any]) -> dict[str, Any]:
    return {key: keys_of(value) if isinstance(value, dict) else None for key, value in table.items()}


def test_the_example_has_every_key_and_loads_with_the_defaults(tmp_path: Path) -> None:
    # What is commented out has no space behind its sign.
    document = tomli.loads(re.sub(r"^#(?! )", "", EXAMPLE.read_text(), flags=re.MULTILINE))
    assert keys_of(document["control_plane"]) == fields_of(config.ControlPlane)
    assert keys_of(document["supervisor"]) == fields_of(config.Supervisor)
    assert [keys_of(pool) for pool in document["pool"]] == [fields_of(config.Pool)]
    example = load(EXAMPLE, ENVIRON)
    default = config.build({"pool": [{}]}, EXAMPLE.parent, ENVIRON)
    assert example.pool == default.pool
    same_but_for_paths = msgspec.structs.replace(
        example.supervisor, state_dir=default.supervisor.state_dir, runtime_dir=default.supervisor.runtime_dir
    )
    assert same_but_for_paths == default.supervisor
    store = default.control_plane.store
    assert msgspec.structs.replace(example.control_plane, store=store) == default.control_plane


@pytest.mark.parametrize(
    ("text", "environ", "expected"),
    [
        ('[supervisor]\nruntime_dir = "run"', {"RUNTIME_DIRECTORY": "/run/unit"}, "{directory}/run"),
        ("", {"RUNTIME_DIRECTORY": "/run/unit:/run/other"}, "/run/unit"),
        ("", {"XDG_RUNTIME_DIR": "/run/user/7"}, "/run/user/7/mobius-supervisor"),
        (None, {"HOME": "/home/ada"}, "/home/ada/.local/run/mobius-supervisor"),
        # Whatever else is wrong with the file: a command looks for one key.
        ("[supervisor]\nruntime_dir = 7\n[[pool]]\nworkers = -1", {"HOME": "/h"}, "/h/.local/run/mobius-supervisor"),
    ],
)
def test_where_commands_look_for_the_supervisor(
    tmp_path: Path, text: str | None, environ: dict[str, str], expected: str
) -> None:
    path = None
    if text is not None:
        path = tmp_path / "pool.toml"
        path.write_text(text)
    assert str(config.runtime_directory(path, environ)) == expected.format(directory=tmp_path)


# --- TLS --------------------------------------------------------------------------------------------------------------


def test_files_for_tls_are_found_beside_the_pool_file_and_read(tmp_path: Path) -> None:
    Certificates(tmp_path / "pki")
    keys = {
        "ca_file": "pki/ca.pem",
        "client_certificate_file": "pki/client.pem",
        "client_key_file": "pki/client-key.pem",
    }
    found = config.build({"control_plane": keys, "pool": [{}]}, tmp_path, {"MOBIUS_API_KEY": "mbx_test"})
    files = config.tls_files(found.control_plane)
    assert files == TlsFiles(**{key: str(tmp_path / path) for key, path in keys.items()})


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"ca_file": "pki/none.pem"}, "control_plane.ca_file: .*none.pem cannot be read"),
        ({"ca_file": "pki/client-key.pem"}, "control_plane.ca_file: .* holds no certificates"),
        (
            {"client_key_file": "pki/client-key.pem"},
            "control_plane.client_key_file: there is no client_certificate_file",
        ),
        (
            {"client_certificate_file": "pki/client.pem"},
            "control_plane.client_certificate_file: .* hold no certificate",
        ),
        ({"client_key_file": 7}, "control_plane.client_key_file: expected a path in quotes, got 7"),
    ],
)
def test_files_for_tls_that_cannot_be_used_are_refused(tmp_path: Path, keys: dict[str, object], sentence: str) -> None:
    Certificates(tmp_path / "pki")
    with pytest.raises(ConfigurationError, match=sentence):
        config.build({"control_plane": keys, "pool": [{}]}, tmp_path, {"MOBIUS_API_KEY": "mbx_test"})
