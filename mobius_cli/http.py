"""HTTP client of any Mobius: one method per operation that the command offers, and a run's events as they happen.

Records are the server's JSON objects, untouched, so that `--output json` loses nothing that a newer server says.
Every answer is bounded in size and time, redirects are not followed (the key would go with them), and whatever goes
wrong comes out as one class of mobius_cli.errors.
"""

import asyncio
import os
import random
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx
import msgspec

from mobius_cli.connection import Connection, is_private
from mobius_cli.errors import (
    CannotCreateError,
    CommandError,
    CredentialError,
    InputError,
    NotFoundError,
    SettingError,
    UnavailableError,
)
from mobius_cli.event_stream import RUN_ENDED, EventStreamError, EventStreamReader
from wire.build import package_version
from wire.tls import TlsFiles, TlsFilesError, client_context

Record = dict[str, Any]
"""One JSON object as the server sent it."""

Dropped = Callable[[str, float], None]
"""Told when a stream dropped: why, and in how many seconds it is resumed."""

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0
STREAM_SILENCE_SECONDS = 45.0
"""Three of the 15 s heartbeats; after so long without a byte the connection is taken for dead."""
RESUME_SECONDS = 300.0
"""How long a dropped stream is resumed before the command gives up."""
BACKOFF_SECONDS = (0.25, 10.0)
LONGEST_WAIT_SECONDS = 60.0
"""However long a Retry-After asks for."""
MAX_ANSWER_BYTES = 64 * 1024 * 1024
PAGE_SIZE = 200

_ANSWER_LIMITS = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
_STREAM_LIMITS = httpx.Timeout(STREAM_SILENCE_SECONDS, connect=CONNECT_SECONDS)

_BY_STATUS: dict[int, type[CommandError]] = {
    HTTPStatus.UNAUTHORIZED: CredentialError,
    HTTPStatus.FORBIDDEN: CredentialError,
    HTTPStatus.NOT_FOUND: NotFoundError,
    HTTPStatus.CONFLICT: CannotCreateError,
}
_BY_CODE: dict[str, type[CommandError]] = {
    "run_ended": InputError,
    "job_not_failed": InputError,
    "job_of_a_run": InputError,
    "already_signalled": InputError,
    "invalid_version": InputError,
}


class Mobius:
    """An open connection to one project of one Mobius. Use it as an async context manager."""

    def __init__(self, connection: Connection) -> None:
        self.project = connection.project
        self.api_url = connection.api_url
        self._client = httpx.AsyncClient(
            base_url=f"{connection.api_url}/v1/projects/{quote(connection.project, safe='')}",
            headers={
                "Authorization": f"Bearer {connection.api_key}",
                "Accept": "application/json",
                "User-Agent": f"mobius/{package_version()}",
            },
            timeout=_ANSWER_LIMITS,
            follow_redirects=False,
            verify=_trusted(connection.tls),
            # A proxy of the environment is for the world outside.
            trust_env=not is_private(httpx.URL(connection.api_url).host),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._client.aclose()

    # --- automations

    async def create_automation(self, fields: Record) -> Record:
        """`fields`: handle, name and the optional fields of an automation."""
        return await self._ask("POST", "/automations", body=fields)

    async def automations(self, *, status: str | None, limit: int) -> tuple[list[Record], bool]:
        """At most `limit`, and whether there are more."""
        return await self._listing("/automations", {"status": status}, limit)

    async def automation(self, handle: str) -> Record:
        """Raises NotFoundError."""
        return await self._ask("GET", f"/automations/{_segment(handle)}")

    async def versions(self, handle: str) -> list[Record]:
        """The newest first, as many as the server tells at once."""
        return _items(await self._ask("GET", f"/automations/{_segment(handle)}/versions"))

    async def create_version(self, handle: str, spec: Record) -> Record:
        """A new draft version. An invalid spec is told in its `validation`."""
        return await self._ask("POST", f"/automations/{_segment(handle)}/versions", body={"spec": spec})

    async def publish(self, handle: str, version: int) -> Record:
        """The automation, with `published_version` set. Raises InputError for an invalid version."""
        return await self._ask("POST", f"/automations/{_segment(handle)}/versions/{version}/publication")

    async def start_run(self, handle: str, *, inputs: Record, external_id: str | None) -> Record:
        """The new run, or the live one of the same `external_id`."""
        body: Record = {"inputs": inputs, "source": {"type": "api", "label": "mobius"}}
        if external_id is not None:
            body["external_id"] = external_id
        return await self._ask("POST", f"/automations/{_segment(handle)}/runs", body=body)

    # --- runs

    async def runs(self, *, limit: int = PAGE_SIZE, **asked: str | None) -> tuple[list[Record], bool]:
        """At most `limit`, newest first, and whether there are more. `asked`: the parameters of the listing (status,
        automation_id, external_id, parent_run_id, created_after, created_before)."""
        return await self._listing("/runs", asked, limit)

    async def run(self, run_id: str) -> Record:
        """Raises NotFoundError."""
        return await self._ask("GET", f"/runs/{_segment(run_id)}")

    async def steps(self, run_id: str) -> list[Record]:
        """In order of their `seq`."""
        return _items(await self._ask("GET", f"/runs/{_segment(run_id)}/steps"))

    async def cancel(self, run_id: str, reason: str | None) -> Record:
        """The run; one that has ended is returned as it is."""
        return await self._ask(
            "POST", f"/runs/{_segment(run_id)}/cancellations", body={"reason": reason} if reason else {}
        )

    async def signal(self, run_id: str, step_key: str, result: Record) -> Record:
        """The run. Raises InputError when the step has had its signal or does not take this one, or the run is over."""
        body = {"step_key": step_key, "result": result}
        return await self._ask("POST", f"/runs/{_segment(run_id)}/signals", body=body)

    async def worker_sessions(self) -> Record:
        """`items` (presence rows) and `totals`."""
        return await self._ask("GET", "/worker-sessions")

    async def worker_session_history(self, state: str, *, limit: int) -> tuple[list[Record], bool]:
        """At most `limit` rows in this state, newest first, and whether there are more."""
        return await self._listing("/worker-sessions", {"state": state}, limit)

    async def drains(self) -> list[Record]:
        """Every drain that stands, with its sessions and the jobs that they have left."""
        return _items(await self._ask("GET", "/worker-sessions/drain"))

    async def drain(self, target: Record) -> Record:
        """Begin it. `target` has one of worker_session_id, worker_instance_id and version."""
        session_id = target.get("worker_session_id")
        if session_id is not None:
            return await self._ask("POST", f"/worker-sessions/{_segment(session_id)}/drain")
        return await self._ask("POST", "/worker-sessions/drain", body=target)

    async def undrain(self, target: Record) -> Record:
        """Undo it. Raises NotFoundError when it does not stand."""
        session_id = target.get("worker_session_id")
        if session_id is not None:
            return await self._ask("DELETE", f"/worker-sessions/{_segment(session_id)}/drain")
        return await self._ask("DELETE", "/worker-sessions/drain", params=target)

    # --- jobs, queues, actions

    async def enqueue(self, jobs: list[Record]) -> Record:
        """`ids` in order, and `existing` that were there before. All of them or none."""
        return await self._ask("POST", "/jobs", body={"jobs": jobs})

    async def jobs(self, *, limit: int, **asked: str | None) -> tuple[list[Record], bool]:
        """At most `limit`, newest first, and whether there are more. `asked`: status, queue, action_name."""
        return await self._listing("/jobs", asked, limit)

    async def job(self, job_id: str) -> Record:
        """Raises NotFoundError."""
        return await self._ask("GET", f"/jobs/{_segment(job_id)}")

    async def why(self, job_id: str) -> Record:
        """`summary` and `reasons`. Raises NotFoundError."""
        return await self._ask("GET", f"/jobs/{_segment(job_id)}/why")

    async def why_run(self, run_id: str) -> Record:
        """The same of a run, with the `job` that it waits for. Raises NotFoundError."""
        return await self._ask("GET", f"/runs/{_segment(run_id)}/why")

    async def cancel_job(self, job_id: str, reason: str | None) -> Record:
        """The job; one that has ended is returned as it is."""
        body = {"reason": reason} if reason else {}
        return await self._ask("POST", f"/jobs/{_segment(job_id)}/cancellations", body=body)

    async def retry_job(self, job_id: str) -> Record:
        """The job. Raises InputError when it has not failed, or belongs to a run."""
        return await self._ask("POST", f"/jobs/{_segment(job_id)}/retries")

    async def queues(self) -> list[Record]:
        """Every queue, by name."""
        return _items(await self._ask("GET", "/queues"))

    async def update_queue(self, name: str, changes: Record) -> Record:
        """`changes`: paused, max_running."""
        return await self._ask("PATCH", f"/queues/{_segment(name)}", body=changes)

    async def actions(self, *, limit: int) -> tuple[list[Record], bool]:
        """At most `limit` records, and whether there are more."""
        return await self._listing("/actions", {}, limit)

    async def action(self, name: str) -> Record:
        """Raises NotFoundError."""
        return await self._ask("GET", f"/actions/{_segment(name)}")

    async def record_action(self, name: str, fields: Record) -> Record:
        """The record, made if there is none, with these fields changed."""
        try:
            return await self._ask("PATCH", f"/actions/{_segment(name)}", body=fields)
        except NotFoundError:
            return await self._ask("POST", "/actions", body={"name": name, "endpoint_kind": "worker", **fields})

    async def forget_action(self, name: str) -> None:
        """Raises NotFoundError."""
        async with self._response("DELETE", f"/actions/{_segment(name)}") as response:
            await self._content(response)

    async def invoke_action(self, name: str, body: Record) -> Record:
        """`status` (active, completed, failed), and `output`, `error` or the `job_id` of what goes on."""
        return await self._ask("POST", f"/actions/{_segment(name)}/invocations", body=body)

    # --- API keys

    async def keys(self) -> list[Record]:
        """All keys of the project, newest first, without secrets."""
        return _items(await self._ask("GET", "/keys"))

    async def create_key(self, fields: Record) -> Record:
        """`fields`: name, scopes and perhaps expires_at. The answer has `key` and, this once, its `secret`."""
        return await self._ask("POST", "/keys", body=fields)

    async def rotate_key(self, key_id: str, fields: Record) -> Record:
        """`fields`: overlap_seconds and perhaps expires_at. The answer has `key`, `secret` and `replaced`."""
        return await self._ask("POST", f"/keys/{_segment(key_id)}/rotations", body=fields)

    async def revoke_key(self, key_id: str) -> Record:
        """The key, which opens nothing any more."""
        return await self._ask("POST", f"/keys/{_segment(key_id)}/revocations")

    # --- events

    async def events(self, run_id: str, since: int = 0, dropped: Dropped | None = None) -> AsyncGenerator[Record]:
        """The run's events after sequence `since`, as they happen, each once; ends after the run's last.

        A dropped connection is resumed where it was, with back-off, for RESUME_SECONDS without progress. Raises
        NotFoundError, CredentialError; UnavailableError when the first connection fails or resuming was in vain.
        """
        connected = False
        delay, give_up_at = BACKOFF_SECONDS[0], 0.0
        while True:
            progressed = False
            why = "the connection ended"
            wait: float | None = None
            try:
                async with aclosing(self._connection_events(run_id, since)) as received:
                    async for event in received:
                        connected = True
                        if event is None or event["sequence"] <= since:
                            continue
                        progressed, since = True, event["sequence"]
                        yield event
                        if event["event_type"] in RUN_ENDED:
                            return
                if not progressed and (await self.run(run_id)).get("status") in RUN_ENDED.values():
                    return
            except UnavailableError as error:
                if not connected:
                    raise
                why, wait = str(error), error.retry_after
            now = time.monotonic()
            if progressed or not give_up_at:
                delay, give_up_at = BACKOFF_SECONDS[0], now + RESUME_SECONDS
            if now >= give_up_at:
                raise UnavailableError(f"the event stream of {run_id} could not be resumed: {why}")
            # Not for cryptography: it only spreads the reconnects of many clients.
            wait = max(min(wait or 0.0, LONGEST_WAIT_SECONDS), delay * random.uniform(0.5, 1.0))  # noqa: S311
            if dropped is not None:
                dropped(why, wait)
            await asyncio.sleep(wait)
            delay = min(delay * 2, BACKOFF_SECONDS[1])

    async def _connection_events(self, run_id: str, since: int) -> AsyncGenerator[Record | None]:
        """Events of one connection; the first item is None: it stands. Raises UnavailableError when it drops."""
        reader = EventStreamReader()
        path = f"/runs/{_segment(run_id)}/events.stream"
        async with self._response(
            "GET", path, params={"since_sequence": since}, limits=_STREAM_LIMITS, accept="text/event-stream"
        ) as response:
            if "text/event-stream" not in response.headers.get("content-type", ""):
                raise UnavailableError(f"{self.api_url} answered no event stream; is the address of the API right?")
            yield None
            try:
                async for chunk in response.aiter_bytes():
                    for event in reader.feed(chunk):
                        yield event
            except EventStreamError as error:
                raise UnavailableError(f"{self.api_url} sent no stream of run events: {error}") from error

    # --- requests

    async def _listing(self, path: str, filters: dict[str, str | None], limit: int) -> tuple[list[Record], bool]:
        items: list[Record] = []
        params: dict[str, Any] = {name: value for name, value in filters.items() if value is not None}
        seen: set[str] = set()
        while True:
            page = await self._ask("GET", path, params={**params, "limit": min(limit - len(items), PAGE_SIZE)})
            items += _items(page)
            cursor = page.get("next_cursor")
            # A server that hands out the same cursor twice would keep us here for ever.
            if not isinstance(cursor, str) or not cursor or cursor in seen:
                return items[:limit], len(items) > limit
            if len(items) >= limit:
                return items[:limit], True
            seen.add(cursor)
            params["cursor"] = cursor

    async def _ask(
        self, method: str, path: str, *, body: Record | None = None, params: dict[str, Any] | None = None
    ) -> Record:
        try:
            async with (
                asyncio.timeout(ANSWER_SECONDS),
                self._response(method, path, params=params, body=body) as response,
            ):
                content = await self._content(response)
        except TimeoutError as error:
            raise UnavailableError(f"{self.api_url} did not answer within {ANSWER_SECONDS:g} s") from error
        answer = _decoded(content)
        if not isinstance(answer, dict):
            raise UnavailableError(f"{self.api_url} answered no JSON object; is the address of the API right?")
        return answer

    @asynccontextmanager
    async def _response(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, Any] | None = None,
        body: Record | None = None,
        limits: httpx.Timeout = _ANSWER_LIMITS,
        accept: str = "application/json",
    ) -> AsyncIterator[httpx.Response]:
        """A successful response, its body unread. Raises the CommandError that stands for anything else."""
        headers = {"Accept": accept}
        if body is not None:
            headers["Content-Type"] = "application/json"
        content = None if body is None else _encoded(body)
        answered = False
        try:
            async with self._client.stream(
                method, path, params=params, content=content, headers=headers, timeout=limits
            ) as response:
                answered = True
                if not response.is_success:
                    raise self._refusal(response, await self._content(response))
                yield response
        except httpx.TimeoutException as error:
            raise UnavailableError(f"{self.api_url} did not answer in time ({_reason(error)})") from error
        except httpx.HTTPError as error:
            remedy = "" if answered else self._remedy(error)
            raise UnavailableError(f"cannot reach {self.api_url}: {_reason(error)}{remedy}") from error

    def _remedy(self, error: httpx.HTTPError) -> str:
        """What a connection that ends without an answer is often for."""
        if not isinstance(error, httpx.ReadError | httpx.WriteError | httpx.RemoteProtocolError):
            return ""
        if self.api_url.startswith("https:"):
            return "; the server may ask for a client certificate (MOBIUS_CLIENT_CERTIFICATE_FILE)"
        return "; if the server speaks TLS, its address begins with https://"

    async def _content(self, response: httpx.Response) -> bytes:
        content = bytearray()
        async for chunk in response.aiter_bytes():
            content += chunk
            if len(content) > MAX_ANSWER_BYTES:
                raise UnavailableError(f"{self.api_url} answered more than {MAX_ANSWER_BYTES} bytes")
        return bytes(content)

    def _refusal(self, response: httpx.Response, content: bytes) -> CommandError:
        status = response.status_code
        answer = _decoded(content)
        error = answer.get("error") if isinstance(answer, dict) else None
        if response.is_redirect:
            target = response.headers.get("location", "elsewhere")
            return UnavailableError(f"{self.api_url} redirects to {target!r}: set MOBIUS_API_URL to the final address")
        if not isinstance(error, dict):
            if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
                return CredentialError(f"{self.api_url} refused the API key ({status})")
            return UnavailableError(
                f"{self.api_url} answered {status} without a Mobius error; is the address of the API right?"
            )
        code, sentence = str(error.get("code", "")), str(error.get("message", "")) or f"status {status}"
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            return CredentialError(
                f"{self.api_url} refused the API key for project {self.project!r}: {sentence} ({code}); "
                "check MOBIUS_API_KEY or --api-key-file"
            )
        if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return UnavailableError(
                f"{self.api_url} cannot answer now: {sentence} ({code})", _seconds(response.headers.get("retry-after"))
            )
        kind = _BY_CODE.get(code) or _BY_STATUS.get(status) or InputError
        return kind(f"{sentence} ({code})")


def _trusted(tls: TlsFiles) -> ssl.SSLContext | bool:
    """Whom to trust: files of one's own, or what the environment names (also for this machine), or the usual."""
    if tls == TlsFiles() and not (os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")):
        return True
    try:
        return client_context(tls)
    except TlsFilesError as error:
        raise SettingError(f"{_TLS_SOURCES[error.key]}: {error}") from error


_TLS_SOURCES = {
    "ca_file": "--ca-file or MOBIUS_CA_FILE",
    "client_certificate_file": "MOBIUS_CLIENT_CERTIFICATE_FILE",
    "client_key_file": "MOBIUS_CLIENT_KEY_FILE",
}


def _segment(text: str) -> str:
    """One path segment. A dot segment would be resolved away by the URL library, and ask for something else."""
    if text in {"", ".", ".."}:
        raise InputError(f"{text!r} is no id or handle")
    return quote(text, safe="")


def _items(answer: Record) -> list[Record]:
    items = answer.get("items")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise UnavailableError("the answer has no list of items; is the address of the API right?")
    return items


def _encoded(body: Record) -> bytes:
    try:
        return msgspec.json.encode(body)
    except RecursionError as error:
        raise InputError("the input is nested too deeply to be sent as JSON") from error


def _decoded(content: bytes) -> Any:
    try:
        return msgspec.json.decode(content)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 6 else None


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
