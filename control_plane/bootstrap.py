"""The first start on an empty store: project `default` and one API key, so that somebody can come in."""

import os
from pathlib import Path

import structlog

from control_plane.config import BOOTSTRAP_PROJECT, ConfigurationError, parse_api_key
from control_plane.domain.store import Store
from control_plane.errors import Conflict
from control_plane.keys import hash_secret, new_api_key
from service_manager.credentials import credential, others_can_read

BOOTSTRAP_KEY_VARIABLE = "MOBIUS_BOOTSTRAP_API_KEY"
CREDENTIAL_NAME = "bootstrap-key"
"""Name of the systemd credential that holds the first key."""

KEY_NAME = "bootstrap"

_log = structlog.get_logger(__name__)


async def ensure_key(store: Store, key_file: Path | None) -> None:
    """Make sure that the store has an API key. Raises ConfigurationError, StoreUnavailable.

    A key that was given (by the variable, or as a credential) is taken, else one is made. The variable leaves the
    environment, so that no child and no dump of it shows the key. A key file is written before the store is, and a key
    that is in the file already is taken: a crash between the two leaves nothing to repair.
    """
    given, origin = _given()
    if await store.has_keys():
        await _check_given(store, given, origin)
        return
    if given is not None:
        key = parse_api_key(given, origin)
    elif key_file is not None:
        key = _key_in(key_file)
    else:
        raise ConfigurationError(
            "the store has no API key yet, so nobody could use this control plane: pass --bootstrap-key-file FILE "
            f"to have one written there, set {BOOTSTRAP_KEY_VARIABLE}, or give the credential {CREDENTIAL_NAME}"
        )
    try:
        await store.create_project(BOOTSTRAP_PROJECT, BOOTSTRAP_PROJECT.capitalize())
    except Conflict:
        _log.debug("project exists", project=BOOTSTRAP_PROJECT)
    try:
        await store.create_key(BOOTSTRAP_PROJECT, KEY_NAME, hash_secret(key))
    except Conflict:
        # Another replica, started at the same time and given the same key, was first.
        return
    _log.info("first API key created", project=BOOTSTRAP_PROJECT, key_file=None if given else str(key_file))


def _given() -> tuple[str | None, str]:
    """The key that somebody chose, and where: the variable before the credential."""
    variable = os.environ.pop(BOOTSTRAP_KEY_VARIABLE, None)
    path = credential(CREDENTIAL_NAME)
    if variable is not None or path is None:
        return variable, BOOTSTRAP_KEY_VARIABLE
    origin = f"the credential {CREDENTIAL_NAME}"
    try:
        return path.read_text().strip(), origin
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{origin} cannot be read: {error}") from error


async def _check_given(store: Store, given: str | None, origin: str) -> None:
    if given is not None and await store.key(hash_secret(given)) is None:
        _log.warning(
            "bootstrap key ignored",
            reason=f"the store has API keys already and the one in {origin} is not among them",
        )


def _key_in(path: Path) -> str:
    key = new_api_key()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return _key_left_in(path)
    except OSError as error:
        raise ConfigurationError(f"--bootstrap-key-file {path} cannot be written: {error.strerror}") from error
    with os.fdopen(descriptor, "w") as file:
        file.write(key + "\n")
        file.flush()
        os.fsync(file.fileno())
    return key


def _key_left_in(path: Path) -> str:
    try:
        if others_can_read(path):
            raise ConfigurationError(f"--bootstrap-key-file {path} can be read by others: chmod 600 it, or remove it")
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--bootstrap-key-file {path} exists and cannot be read: {error}") from error
    return parse_api_key(text.strip(), f"--bootstrap-key-file {path}")
