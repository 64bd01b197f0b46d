"""The HTTP API as an OpenAPI 3.1 document, made from the route table and the Structs: nothing else has to be kept true.

An operation is named after its handler and described by the handler's docstring. Every answer that a route can give is
listed, which are its own, and those of the layers before it: admission, reading, decoding, the store.
"""

import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from control_plane.web.routes import Route
from control_plane.web.shapes import ErrorResponse, NoQuery
from wire.build import package_version

_PATH_PARAMETER = re.compile(r"\{(\w+)\}")
_PYTHON_END = re.compile(r"\\Z$")

PATH_PARAMETERS = {
    "project": "Handle of the project that the key belongs to.",
    "handle": "Handle of the automation.",
    "version": "Number of the version, from 1.",
    "id": "Identifier of the object.",
    "action_name": "Name of the action.",
    "queue": "Name of the queue.",
}

ERRORS = {
    400: "The request is wrong: the message names the field and says what was expected.",
    401: "No API key, or one that is unknown, expired or revoked.",
    403: "The key belongs to another project, or has not the scope.",
    404: "There is no such object in this project.",
    408: "The request did not arrive in time.",
    409: "The object is in a state that forbids the request; `code` says which.",
    413: "The request body is too large.",
    429: "The key, or the address, asks too often or for too much at once. Try again after `Retry-After` seconds.",
    426: "This path is a WebSocket: see the worker socket's own document.",
    503: "The store cannot serve requests now. Try again after `Retry-After` seconds.",
}

_STREAM = (
    "Server-sent events. A comment line every 15 seconds keeps the connection alive. "
    "A reader that comes back sends the id of the last event that it has as `Last-Event-ID`."
)
_ERROR = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}}
_RETRY_AFTER = {"schema": {"type": "integer", "minimum": 0}, "description": "Seconds to wait before the next try."}


def openapi_document(routes: Sequence[Route]) -> dict[str, Any]:
    """The document, as JSON values."""
    shapes = {shape for route in routes for shape in (route.query, route.body, route.response) if shape is not None}
    described = [ErrorResponse, *sorted(shapes, key=lambda shape: shape.__name__)]
    components = json_schemas(described)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        operations = paths.setdefault(route.path, {})
        if not operations and (parameters := list(_path_parameters(route.path))):
            operations["parameters"] = parameters
        operations[route.method.lower()] = _operation(route, components)
    for shape in {route.query for route in routes}:
        # They are parameters, and no body has them.
        components.pop(shape.__name__, None)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Mobius control plane",
            "version": package_version(),
            "description": "Automations, runs, jobs and workers of one project. Every request carries an API key: "
            "`Authorization: Bearer mbx_...`. Workers connect to the worker socket, which has a document of its own.",
        },
        "servers": [{"url": "/"}],
        "security": [{"apiKey": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"apiKey": {"type": "http", "scheme": "bearer", "bearerFormat": "mbx_..."}},
        },
    }


def json_schemas(shapes: Sequence[type[Struct]]) -> dict[str, Any]:
    """JSON Schema (2020-12) of each Struct by its name, those that they refer to included."""
    _, components = msgspec.json.schema_components(shapes, ref_template="#/components/schemas/{name}")
    schemas: dict[str, Any] = _portable(components)
    return schemas


def _portable(schema: Any) -> Any:
    """JSON Schema's regular expressions are ECMAScript's, where `\\Z` is not known and `$` is the end of the text."""
    if isinstance(schema, dict):
        return {
            key: _PYTHON_END.sub("$", value) if key == "pattern" and isinstance(value, str) else _portable(value)
            for key, value in schema.items()
        }
    return [_portable(item) for item in schema] if isinstance(schema, list) else schema


def _operation(route: Route, components: dict[str, Any]) -> dict[str, Any]:
    text = inspect.getdoc(route.handler) or ""
    summary, _, description = text.partition("\n\n")
    operation: dict[str, Any] = {
        "operationId": _camel_case(route.handler.__name__),
        "summary": " ".join(summary.split()),
        "tags": [tag_of(route.path)],
        "responses": _responses(route),
    }
    scope = f"Needs an API key with scope `{route.scope_needed}`." if route.key_needed else "Needs no API key."
    operation["description"] = f"{description}\n\n{scope}" if description else scope
    if parameters := list(_query_parameters(route, components)):
        operation["parameters"] = parameters
    if route.body is not None:
        schema = {"$ref": f"#/components/schemas/{route.body.__name__}"}
        required = bool(components[route.body.__name__].get("required"))
        operation["requestBody"] = {"required": required, "content": {"application/json": {"schema": schema}}}
    if not route.key_needed:
        operation["security"] = []
    return operation


def _responses(route: Route) -> dict[str, Any]:
    statuses = {400, 503}
    if route.key_needed:
        statuses |= {401, 403, 429}
    if "{" in route.path:
        statuses.add(404)
    if route.body is not None:
        statuses |= {408, 413}
    if route.method != "GET":
        statuses.add(409)
    responses = {}
    if route.path.endswith("/workers/socket"):
        statuses.add(426)
    else:
        responses[str(route.status)] = _success(route)
        if route.may_go_on:
            responses["202"] = {**_success(route), "description": "It goes on: ask again later."}
    for status in sorted(statuses):
        responses[str(status)] = {"description": ERRORS[status], "content": _ERROR}
        if status in (429, 503):
            responses[str(status)]["headers"] = {"Retry-After": _RETRY_AFTER}
    return responses


def _success(route: Route) -> dict[str, Any]:
    if route.media_type is not None:
        return {
            "description": "As its media type has it.",
            "content": {route.media_type: {"schema": {"type": "string"}}},
        }
    if route.response is None:
        return {"description": "Done."}
    shape = {"$ref": f"#/components/schemas/{route.response.__name__}"}
    if not route.path.endswith(".stream"):
        description = " ".join((inspect.getdoc(route.response) or "").split())
        return {"description": description, "content": {"application/json": {"schema": shape}}}
    event = {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "event": {"type": "string"},
            "data": {"type": "string", "contentMediaType": "application/json", "contentSchema": shape},
        },
        "required": ["data"],
    }
    return {"description": _STREAM, "content": {"text/event-stream": {"schema": event}}}


def _path_parameters(path: str) -> Iterator[dict[str, Any]]:
    for name in _PATH_PARAMETER.findall(path):
        yield {
            "name": name,
            "in": "path",
            "required": True,
            "description": PATH_PARAMETERS[name],
            "schema": {"type": "string", "minLength": 1},
        }


def _query_parameters(route: Route, components: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if route.query is NoQuery:
        return
    shape = components[route.query.__name__]
    for name, schema in shape["properties"].items():
        yield {"name": name, "in": "query", "required": name in shape.get("required", ()), "schema": schema}


def tag_of(path: str) -> str:
    """The group that an operation is shown in: what the path is about."""
    segments = path.strip("/").split("/")
    if segments[0] != "v1":
        return "server"
    return next((segment for segment in segments[2:] if not segment.startswith("{")), segments[1])


def _camel_case(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)
