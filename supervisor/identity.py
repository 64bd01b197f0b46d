"""Which worker_instance_id this box uses, and where that comes from. Acts: reads environment, /proc and network.

Order: explicit; Cloud Run; HOSTNAME (Kubernetes, containers); Fly; Railway; Render; the system's host name with
eight characters that are the same until the next boot; an id per boot.
"""

import contextlib
import hashlib
import http.client
import re
import socket
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path

METADATA_HOST = "metadata.google.internal"
METADATA_PATH = "/computeMetadata/v1/instance/id"
METADATA_PATIENCE = 1.0
"""Seconds, name resolution included."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_FORBIDDEN = re.compile(r"[^A-Za-z0-9_.:-]+")
_MAX_LENGTH = 200


def detect(explicit: str, environ: Mapping[str, str], state_dir: str) -> tuple[str, str]:
    """The id (a prefix, where several workers share it) and the name of its source."""
    if explicit:
        return explicit, "supervisor.instance_id"
    if environ.get("K_REVISION"):
        instance = _cloud_run_instance()
        if instance:
            return _clean(f"{environ['K_REVISION']}-{instance[-12:]}"), "Cloud Run (K_REVISION and metadata)"
    for variable in ("HOSTNAME", "FLY_MACHINE_ID", "RAILWAY_REPLICA_ID", "RENDER_INSTANCE_ID"):
        if cleaned := _clean(environ.get(variable, "")):
            return cleaned, variable
    boot = _boot_id()
    # Two supervisors of one box have different state directories, and a restart keeps its own.
    suffix = hashlib.sha256(f"{boot} {state_dir}".encode()).hexdigest()[:8]
    host = _clean(socket.gethostname())
    if host and host != "localhost":
        return f"{host}-{suffix}", "host name and boot"
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{boot} {state_dir}")), "boot"


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("-", text).strip("-.:_")[:_MAX_LENGTH]


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return str(uuid.uuid4())


def _cloud_run_instance() -> str:
    """Empty when the metadata server does not answer in time. In a thread, because name resolution has no deadline."""
    answer: list[str] = []

    def ask() -> None:
        connection = http.client.HTTPConnection(METADATA_HOST, timeout=METADATA_PATIENCE)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", METADATA_PATH, headers={"Metadata-Flavor": "Google"})
            response = connection.getresponse()
            if response.status == http.HTTPStatus.OK:
                answer.append(_clean(response.read(1024).decode("ascii", "replace")))

    thread = threading.Thread(target=ask, name="metadata", daemon=True)
    thread.start()
    thread.join(METADATA_PATIENCE)
    return answer[0] if answer else ""
