"""The worker socket as an AsyncAPI 3.0 document, made from the Structs of its frames.

The document takes the worker's side, for whom it is written: a worker *sends* what goes to the server.
"""

import inspect
from typing import Any

from msgspec import Struct

from control_plane.web.openapi import json_schemas
from wire.build import package_version
from wire.frames import FROM_SERVER, FROM_WORKER, frame_type

_CHANNELS = {
    "workerSocket": ("/v1/projects/{project}/workers/socket", "The worker socket of a project."),
    "ownWorkerSocket": ("/v1/workers/socket", "The worker socket of the key's own project."),
}


def asyncapi_document() -> dict[str, Any]:
    """The document, as JSON values."""
    frames = {frame_type(shape): shape for shape in (*FROM_WORKER, *FROM_SERVER)}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Mobius worker socket",
            "version": package_version(),
            "description": "One outbound WebSocket for each worker. Every frame is a JSON text message with a `type`. "
            "The API key is sent on the upgrade: `Authorization: Bearer mbx_...`.",
        },
        "defaultContentType": "application/json",
        "channels": {name: _channel(address, text, frames) for name, (address, text) in _CHANNELS.items()},
        "operations": {
            "toServer": _operation("send", "What a worker sends.", FROM_WORKER),
            "toWorker": _operation("receive", "What a worker receives.", FROM_SERVER),
        },
        "components": {
            "messages": {name: _message(name, shape) for name, shape in frames.items()},
            "schemas": json_schemas(list(frames.values())),
        },
    }


def _channel(address: str, description: str, frames: dict[str, type[Struct]]) -> dict[str, Any]:
    channel: dict[str, Any] = {
        "address": address,
        "description": description,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in frames},
    }
    if "{project}" in address:
        channel["parameters"] = {"project": {"description": "Handle of the project that the key belongs to."}}
    return channel


def _operation(action: str, summary: str, shapes: tuple[type[Struct], ...]) -> dict[str, Any]:
    channel = "#/channels/workerSocket"
    messages = [{"$ref": f"{channel}/messages/{frame_type(shape)}"} for shape in shapes]
    return {"action": action, "channel": {"$ref": channel}, "summary": summary, "messages": messages}


def _message(name: str, shape: type[Struct]) -> dict[str, Any]:
    return {
        "name": name,
        "summary": " ".join((inspect.getdoc(shape) or "").split()),
        "payload": {"$ref": f"#/components/schemas/{shape.__name__}"},
    }
