import pytest

from tests.support.mobius_command import MobiusCommand


def test_a_key_is_made_exchanged_and_revoked(command: MobiusCommand) -> None:
    made = command.run("keys", "create", "--name", "ci", "--scope", "reader", "--scope", "operator")
    assert made.returncode == 0, made.stderr
    secret = made.stdout.strip()
    assert secret.startswith("mbx_")
    key_id = made.stderr.split()[2].rstrip(";")
    assert made.stderr == f"this is {key_id}; it is not shown again\n"

    as_it = {"MOBIUS_API_KEY": secret}
    listed = command.run("keys", "list", env=as_it)
    assert key_id in listed.stdout
    assert "operator, reader" in listed.stdout
    assert secret not in listed.stdout

    rotated = command.run("keys", "rotate", key_id, "--overlap", "1h", "--expires-in", "90d", env=as_it)
    assert rotated.returncode == 0, rotated.stderr
    assert f"{key_id} is valid until 2" in rotated.stderr
    new = {"MOBIUS_API_KEY": rotated.stdout.strip()}
    assert command.run("runs", "list", env=new).returncode == 0
    records = {key["id"]: key for key in command.json("keys", "list")}
    assert records[key_id]["replaced_by"] in records

    revoked = command.run("keys", "revoke", key_id, env=new)
    assert revoked.stdout == f"{key_id} is revoked\n"
    refused = command.run("runs", "list", env=as_it)
    assert refused.returncode == 77
    assert "this API key was revoked" in refused.stderr
    assert secret not in refused.stderr


def test_a_reader_changes_nothing(command: MobiusCommand) -> None:
    secret = command.run("keys", "create", "--name", "r", "--scope", "reader").stdout.strip()
    env = {"MOBIUS_API_KEY": secret}
    assert command.run("runs", "list", env=env).returncode == 0
    refused = command.run("keys", "list", env=env)
    assert refused.returncode == 77
    assert "needs an API key with scope operator; this one has reader" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["keys", "create", "--name", "x"], 64, "--scope"),
        (["keys", "create", "--name", "x", "--scope", "admin"], 64, "admin"),
        (["keys", "create", "--name", "x", "--scope", "reader", "--expires-in", "soon"], 64, "--expires-in"),
        (["keys", "create", "--name", "x", "--scope", "reader", "--expires-in", "99999d"], 64, "36500d"),
        (["keys", "rotate", "key_none", "--overlap", "later"], 64, "--overlap"),
        (["keys", "rotate", "key_none"], 66, "no API key key_none"),
        (["keys", "revoke", "key_none"], 66, "no API key key_none"),
    ],
)
def test_what_cannot_be(command: MobiusCommand, arguments: list[str], code: int, word: str) -> None:
    done = command.run(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert word in done.stderr
