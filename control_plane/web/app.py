"""The route table as an application: find the route, admit, decode, call, encode; every error in the envelope."""

import asyncio
import functools
from collections import defaultdict
from typing import Any

import msgspec
import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from control_plane.domain.model import ApiKey
from control_plane.errors import ControlPlaneError
from control_plane.rate_limits import Verdict
from control_plane.turnstile import LARGE
from control_plane.web.allowed_values import with_allowed
from control_plane.web.api import ROUTES
from control_plane.web.authentication import Authenticator, rate_headers
from control_plane.web.error_status import HttpError, as_http_error, of_status
from control_plane.web.held_bytes import HeldBytes, Holding
from control_plane.web.http_protocol import ADMITTED
from control_plane.web.reference import reference_routes
from control_plane.web.router import Router
from control_plane.web.routes import Accepted, Call, Route, Services
from control_plane.web.shapes import Request as RequestShape
from control_plane.web.texts import refuse_nul
from wire.depth import MAX_DEPTH, MAX_ELEMENTS, has_more_elements, is_deeper

MAX_BODY = 4 * 1024 * 1024
"""Bytes of one request body."""

BODY_TIMEOUT = 30.0
"""Seconds that a caller has to send it."""

ANSWER_PIECE = 256 * 1024
"""Bytes of an answer that are written at once."""

HANDLER_TIMEOUT = 30.0
"""Seconds that a request may take once it is decoded; a stream may live longer, its start may not."""

_TOO_DEEP = f"the request body is nested too deeply, more than {MAX_DEPTH} levels"
_DISCARD_LIMIT = 64 * 1024 * 1024
_REPEATABLE = frozenset({"tag"})
_encoder = msgspec.json.Encoder()
_log = structlog.get_logger(__name__)


def create_app(services: Services, authenticator: Authenticator) -> Router:
    """The application that serves ROUTES, and their reference."""
    by_path: defaultdict[str, dict[str, Route]] = defaultdict(dict)
    for route in (*ROUTES, *reference_routes(ROUTES)):
        by_path[route.path][route.method] = route
    held = HeldBytes()
    endpoints = {path: Endpoint(methods, services, authenticator, held) for path, methods in by_path.items()}
    return Router(endpoints, _nowhere)


async def _nowhere(scope: Scope, receive: Receive, send: Send) -> None:
    error = HttpError(404, "not_found", "there is nothing at this path")
    await _error_response(error)(scope, receive, send)


class Endpoint:
    """All methods of one path, as an ASGI application."""

    def __init__(
        self, methods: dict[str, Route], services: Services, authenticator: Authenticator, held: HeldBytes
    ) -> None:
        self._methods = methods
        self._allow = ", ".join(sorted(methods))
        self._services = services
        self._authenticator = authenticator
        self._held = held
        self._decoders = {
            route.body: msgspec.json.Decoder(route.body) for route in methods.values() if route.body is not None
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens."""
        with Holding(self._held) as holding:
            await self._serve(Request(scope, receive), holding, send)

    async def _serve(self, request: Request, holding: Holding, send: Send) -> None:
        began = self._services.clock()
        try:
            response, status = await self._answer(request, holding)
        except ClientDisconnect:
            return  # in the middle of its body: nobody reads an answer
        except Exception as error:  # noqa: BLE001 - the last resort: one failed request harms nobody else
            refusal = as_http_error(error)
            status = refusal.status
            if status == 500:
                _log.error("request failed", method=request.method, path=request.url.path, exc_info=error)
            elif isinstance(error, ControlPlaneError) and status == 503:
                _log.warning("store unavailable", method=request.method, path=request.url.path, reason=str(error))
            response = _error_response(refusal)
            refusal.__traceback__ = None  # its frames, which hold the body or the answer, hold it: a circle
        await response(request.scope, request.receive, send)
        if _log.is_enabled_for(10):
            seconds = round(self._services.clock() - began, 6)
            _log.debug("request", method=request.method, path=request.url.path, status=status, seconds=seconds)

    async def _answer(self, request: Request, holding: Holding) -> tuple[ASGIApp, int]:
        route = self._methods.get("GET" if request.method == "HEAD" else request.method)
        if route is None:
            message = f"{request.method} is not possible here; possible: {self._allow}"
            raise HttpError(405, "method_not_allowed", message, headers={"allow": self._allow})
        async with asyncio.timeout(HANDLER_TIMEOUT) as limit:
            key, verdict = await self._admit(request, route)
            limit.reschedule(None)
            holding.key_id = None if key is None else key.id
            body = await _read_body(request, holding)
            query = _decode_query(request, route.query)
            read = functools.partial(self._read, request, query, body, route.body)
            large = key is not None and len(body) >= LARGE
            decoded = await self._services.turnstile.do(key.id, read) if key is not None and large else read()
            call = Call(
                services=self._services,
                path=request.path_params,
                query=query,
                body=decoded,
                key=key,
                last_event_id=request.headers.get("last-event-id"),
            )
            limit.reschedule(asyncio.get_running_loop().time() + (route.timeout or HANDLER_TIMEOUT))
            answer = await route.handler(call)
        if key is not None and route.timeout is not None:
            self._authenticator.check(key)  # it may have ended while it waited
        status, headers = route.status, None if verdict is None else rate_headers(verdict)
        if answer is None or (request.method == "HEAD" and not isinstance(answer, msgspec.Struct)):
            return Response(status_code=status, headers=headers), status
        if isinstance(answer, Accepted):
            status, answer = 202, answer.body
        if isinstance(answer, msgspec.Struct):
            content = _encoder.encode(answer)
            holding.hold(len(content), refused=route.method == "GET")
            return _Answer(content, status_code=status, headers=headers, media_type="application/json"), status
        return answer if key is None else HeldStream(answer, key, self._authenticator), route.status

    async def _admit(self, request: Request, route: Route) -> tuple[ApiKey | None, Verdict | None]:
        if not route.key_needed:
            return None, None
        peer = request.client.host if request.client is not None else ""
        limits = self._authenticator.limits
        forwarded = ",".join(request.headers.getlist("x-forwarded-for")) if limits.trusted_proxies else None
        authorization = request.headers.getlist("authorization")
        key, verdict = await self._authenticator.admit(
            authorization[0] if len(authorization) == 1 else None,
            request.path_params.get("project"),
            route.scope_needed,
            limits.address_of(peer, forwarded),
        )
        admitted = request.scope.get(ADMITTED)
        if admitted is not None:
            admitted()
        return key, verdict

    def _read(self, request: Request, query: Any, body: bytes, shape: type[RequestShape] | None) -> Any:
        decoded = self._decode_body(body, shape)
        refuse_nul(request.path_params, query, body, decoded)
        return decoded

    def _decode_body(self, body: bytes, shape: type[RequestShape] | None) -> Any:
        if shape is None:
            if body.strip():
                raise HttpError(400, "invalid_request", "this request takes no body")
            return None
        if has_more_elements(body, MAX_ELEMENTS):
            message = f"the request body has more than {MAX_ELEMENTS} values and keys"
            raise HttpError(413, "body_too_large", message)
        try:
            decoded = self._decoders[shape].decode(body or b"{}")
        except msgspec.ValidationError as error:
            raise HttpError(400, "invalid_request", f"request body: {with_allowed(error, shape)}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise HttpError(400, "invalid_json", f"the request body is not JSON: {error}") from error
        except RecursionError as error:
            raise HttpError(400, "invalid_json", _TOO_DEEP) from error
        if is_deeper(body, MAX_DEPTH):
            raise HttpError(400, "invalid_json", _TOO_DEEP)
        return decoded


class _Answer(Response):
    """Sent in pieces, each when the one before it has left: what is written at once would lie in the connection's
    buffer until it is read, and nobody would know."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = bytes(self.body)
        if len(body) <= ANSWER_PIECE:
            await super().__call__(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for place in range(0, len(body), ANSWER_PIECE):
            end = place + ANSWER_PIECE
            await send({"type": "http.response.body", "body": body[place:end], "more_body": end < len(body)})


class HeldStream:
    """A stream that ends when the key that opened it does. Made and called without waiting in between."""

    def __init__(self, stream: ASGIApp, key: ApiKey, authenticator: Authenticator) -> None:
        authenticator.check(key)
        authenticator.check_connections(key)
        self._stream = stream
        self._key = key
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run it."""
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        loop = asyncio.get_running_loop()
        holders = self._authenticator.holders
        ended = asyncio.timeout(None)
        try:
            async with ended:
                held = holders.hold(self._key, lambda: ended.reschedule(loop.time()))
                try:
                    await self._stream(scope, receive, noted)
                finally:
                    holders.release(held)
        except TimeoutError:
            if not ended.expired():
                raise
            # Its reader asks again, and is told then that the key has ended.
            if begun:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            else:
                await _error_response(of_status(401))(scope, receive, send)


def _decode_query(request: Request, shape: type[RequestShape]) -> Any:
    if not request.scope["query_string"]:
        return _without_query(shape)
    values: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        if name in _REPEATABLE:
            values.setdefault(name, []).append(value)
        elif name in values:
            raise HttpError(400, "invalid_request", f"query parameter `{name}` is given twice")
        else:
            values[name] = value
    return _query(values, shape)


def _query(values: dict[str, Any], shape: type[RequestShape]) -> Any:
    try:
        return msgspec.convert(values, shape, strict=False)
    except msgspec.ValidationError as error:
        raise HttpError(400, "invalid_request", f"query parameters: {with_allowed(error, shape)}") from error


@functools.lru_cache(maxsize=100)
def _without_query(shape: type[RequestShape]) -> Any:
    return _query({}, shape)


async def _read_body(request: Request, holding: Holding) -> bytes:
    """The body, of at most MAX_BODY bytes. Raises HttpError 413, 408, 429."""
    declared = request.headers.get("content-length", "")
    refusal = _too_large() if declared.isdigit() and int(declared) > MAX_BODY else None
    body = bytearray()
    received = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            more = True
            while more:
                event = await request.receive()
                if event["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunk, more = event.get("body", b""), event.get("more_body", False)
                received += len(chunk)
                refusal = refusal or _too_much(received, holding)
                if refusal is None:
                    body += chunk
                    continue
                body.clear()
                if received > _DISCARD_LIMIT:
                    break
    except TimeoutError as error:
        message = f"the request body did not arrive within {BODY_TIMEOUT:g} seconds"
        raise HttpError(408, "request_timeout", message, headers={"connection": "close"}) from error
    # What is refused is read and thrown away up to a limit, because a caller that is still writing when the connection
    # closes sees a reset and not the answer.
    if refusal is not None:
        raise refusal
    return bytes(body)


def _too_much(received: int, holding: Holding) -> HttpError | None:
    if received > MAX_BODY:
        return _too_large()
    try:
        holding.hold(received)
    except HttpError as error:
        holding.hold(0)  # what has come of it is thrown away
        return error
    return None


def _too_large() -> HttpError:
    message = f"the request body exceeds {MAX_BODY} bytes"
    return HttpError(413, "body_too_large", message, headers={"connection": "close"})


def _error_response(error: HttpError) -> Response:
    return Response(error.body(), status_code=error.status, media_type="application/json", headers=error.headers)
