"""What is started by exec: arguments and environment of a pool's mold, and of the embedded control plane."""

import sys
from collections.abc import Mapping

from supervisor.children import Program
from supervisor.config import Config, is_postgres
from wire.pipe import MOLD_FD, PIPE_FD_VARIABLE

_SUPERVISORS_OWN = ("MOBIUS_API_KEY", "CREDENTIALS_DIRECTORY")
_CONTROL_PLANES_OWN = ("MOBIUS_BOOTSTRAP_API_KEY",)
_STORES_OWN = ("PGPASSWORD", "PGPASSFILE")
"""With an embedded control plane on PostgreSQL these open its store; otherwise they are the handlers' affair."""


def mold_program(config: Config, environ: Mapping[str, str]) -> Program:
    """A mold: `environ` is the supervisor's, of which handlers get no secret."""
    settings = config.control_plane
    withheld = [*_SUPERVISORS_OWN, *_CONTROL_PLANES_OWN]
    if settings.embedded and is_postgres(settings.store):
        withheld += _STORES_OWN
    return Program(arguments=_python("worker_child.mold"), environ=_without(environ, *withheld))


def control_plane_program(config: Config, environ: Mapping[str, str]) -> Program:
    """The embedded control plane."""
    settings = config.control_plane
    flags = {
        "--listen": settings.listen,
        "--store": settings.store,
        "--bootstrap-key-file": settings.api_key_file,
        "--lease-duration": f"{settings.lease_duration:g}s",
        "--heartbeat-cadence": f"{settings.heartbeat_cadence:g}s",
        "--keep-finished": settings.keep_finished,
        "--log-level": config.supervisor.log_level,
    }
    if settings.metrics_listen:
        flags["--metrics-listen"] = settings.metrics_listen
    if settings.store_password_file:
        flags["--store-password-file"] = settings.store_password_file
    arguments = [*_python("control_plane"), "serve", *(word for pair in flags.items() for word in pair)]
    return Program(
        arguments=arguments, environ={**_without(environ, *_SUPERVISORS_OWN), PIPE_FD_VARIABLE: str(MOLD_FD)}
    )


def _python(module: str) -> list[str]:
    """Unbuffered, so that a line is seen when it is written; and without the current directory on the module path."""
    return [sys.executable, "-P", "-u", "-m", module]


def _without(environ: Mapping[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name not in names}
