"""One model server over HTTP: its address, its key, its deadlines, and what its faults are called."""

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
import msgspec

from wire.address import is_loopback
from wire.build import package_version
from wire.pipe import ModelProvider
from worker_child.errors import CredentialError, ModelServerError, RequestRefused
from worker_child.providers.lines import EventReader, LineSplitter, LineTooLongError

CONNECT_TIMEOUT = 10.0
WRITE_TIMEOUT = 30.0
LIST_TIMEOUT = 10.0
MAX_LIST = 4 * 1024 * 1024
"""Bytes of a list of models."""
MAX_ANSWER = 64 * 1024 * 1024
"""Bytes of one streamed answer: what it says is a small part of how it is written."""
MAX_COMPLAINT = 16 * 1024
"""Bytes that are read of an answer which is an error."""
MAX_KEY = 4096
_SHOWN = 500

REFUSALS = frozenset({400, 404, 405, 413, 415, 422})
"""The request is at fault: it would be refused again."""
_KEY_REFUSED = frozenset({401, 403})

AnswerT = TypeVar("AnswerT")


class Key:
    """A server's key, in a file. Its text appears in no log line and no error. Raises CredentialError."""

    def __init__(self, name: str, path: str | None) -> None:
        self._name = name
        self._path = Path(path) if path else None
        self.text = self._read()

    def read_again(self) -> bool:
        """Whether the file has another key than before."""
        try:
            before, self.text = self.text, self._read()
        except CredentialError:
            return False
        return self.text != before

    def scrubbed(self, text: str) -> str:
        """The text without the key, should a server repeat it."""
        return text.replace(self.text, "[key]") if self.text else text

    def _read(self) -> str:
        if self._path is None:
            return ""
        where = f"providers.{self._name}.api_key_file {self._path}"
        try:
            with self._path.open("rb") as file:
                key = file.read(MAX_KEY + 1).decode("utf-8", "replace").strip()
        except OSError as error:
            raise CredentialError(f"{where}: {error.strerror}") from error
        if not key or len(key) > MAX_KEY or not key.isascii() or not key.isprintable() or " " in key:
            raise CredentialError(f"{where}: this is not a key (one line of at most {MAX_KEY} ASCII characters)")
        return key


class Server:
    """`authorization` makes the headers of a key, `headers` are those of every request. Raises CredentialError."""

    def __init__(
        self,
        settings: ModelProvider,
        authorization: Callable[[str], dict[str, str]],
        headers: dict[str, str] | None = None,
    ) -> None:
        self.name = settings.name
        self.base_url = settings.base_url.rstrip("/")
        self._key = Key(settings.name, settings.api_key_file)
        self._authorization = authorization
        self._headers = {"accept-encoding": "identity", "user-agent": f"mobius-worker/{package_version()}"}
        self._headers |= headers or {}
        self._timeout = httpx.Timeout(
            connect=CONNECT_TIMEOUT, read=settings.silence, write=WRITE_TIMEOUT, pool=CONNECT_TIMEOUT
        )
        self._opened: httpx.AsyncClient | None = None

    async def close(self) -> None:
        """Ends all connections."""
        if self._opened is not None:
            await self._opened.aclose()

    async def get(self, path: str, kind: type[AnswerT]) -> AnswerT | None:
        """The JSON at `path`; None when there is nothing of that path. Raises ModelServerError or RequestRefused."""
        data = bytearray()
        try:
            async with asyncio.timeout(LIST_TIMEOUT), self._answer("GET", path, None) as response:
                if response.status_code == 404:
                    return None
                async for chunk in response.aiter_raw():
                    data += chunk
                    if len(data) > MAX_LIST:
                        raise self.broken(f"has more than {MAX_LIST} bytes at {path}")
        except TimeoutError as error:
            raise self.broken(f"at {self.base_url} did not answer {path} within {LIST_TIMEOUT:g} s") from error
        return self.decoded(bytes(data), msgspec.json.Decoder(kind))

    @asynccontextmanager
    async def lines(self, path: str, body: dict[str, Any]) -> AsyncIterator[AsyncIterator[bytes]]:
        """The lines of the answer to a POST, as they come. Raises ModelServerError or RequestRefused.

        Leaving the block ends the connection if the answer was not read to its end.
        """
        async with self._answer("POST", path, body) as response:
            if response.status_code == 404:
                await self._complain(response)
            async with aclosing(self._lines(response)) as lines:
                yield lines

    @asynccontextmanager
    async def events(self, path: str, body: dict[str, Any]) -> AsyncIterator[AsyncIterator[bytes]]:
        """The data of the server-sent events of the answer to a POST, as they come. Raises as `lines` does."""
        async with self.lines(path, body) as lines, aclosing(self._events(lines)) as events:
            yield events

    def decoded(self, data: bytes, decoder: "msgspec.json.Decoder[AnswerT]") -> AnswerT:
        """JSON of the server. Raises ModelServerError."""
        try:
            return decoder.decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise self.broken(f"said what its API does not have ({error}): {_shown(data)}") from error

    def broken(self, text: str) -> ModelServerError:
        """An error that begins with the server's name, and has no key in it."""
        return ModelServerError(self._says(text))

    def failed(self, said: bytes) -> ModelServerError:
        """What the server said within its answer is an error."""
        return self.broken(f"failed: {_shown(said)}")

    def _says(self, text: str) -> str:
        return self._key.scrubbed(f"model server {self.name!r} {text}")

    async def _lines(self, response: httpx.Response) -> AsyncGenerator[bytes, None]:
        splitter = LineSplitter()
        total = 0
        try:
            async for chunk in response.aiter_raw():
                total += len(chunk)
                if total > MAX_ANSWER:
                    raise self.broken(f"answers with more than {MAX_ANSWER} bytes")
                for line in splitter.feed(chunk):
                    yield line
            for line in splitter.end():
                yield line
        except LineTooLongError as error:
            raise self.broken(f"said what cannot be read: {error}") from error

    async def _events(self, lines: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        reader = EventReader()
        clock, patience = asyncio.get_running_loop().time, self._timeout.read or math.inf
        heard_at = clock()
        try:
            async for line in lines:
                data = reader.feed(line)
                if data is not None:
                    yield data
                    heard_at = clock()
                elif clock() - heard_at >= patience:
                    # Comments keep a connection alive, and may do so for ever with nothing behind them.
                    raise self.broken(f"at {self.base_url} said nothing but comments for {patience:g} s")
            data = reader.end()
            if data is not None:
                yield data
        except LineTooLongError as error:
            raise self.broken(f"said what cannot be read: {error}") from error

    @asynccontextmanager
    async def _answer(self, method: str, path: str, body: dict[str, Any] | None) -> AsyncIterator[httpx.Response]:
        """A response with status 200 or 404. A key that is refused is read again, and tried once more if it is new."""
        try:
            async with self._request(method, path, body) as response:
                if response.status_code not in _KEY_REFUSED or not self._key.read_again():
                    await self._check(response)
                    yield response
                    return
            async with self._request(method, path, body) as response:
                await self._check(response)
                yield response
        except httpx.TimeoutException as error:
            raise self.broken(f"at {self.base_url} {self._waited(error)}") from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            fault = str(error) or type(error).__name__
            raise self.broken(f"at {self.base_url} cannot be reached, or broke off: {fault}") from error

    @asynccontextmanager
    async def _request(self, method: str, path: str, body: dict[str, Any] | None) -> AsyncIterator[httpx.Response]:
        headers = dict(self._headers)
        if self._key.text:
            headers |= self._authorization(self._key.text)
        content = None
        if body is not None:
            headers["content-type"] = "application/json"
            content = msgspec.json.encode(body)
        async with self._client().stream(method, self.base_url + path, content=content, headers=headers) as response:
            yield response

    def _client(self) -> httpx.AsyncClient:
        """Made by the process that uses it: connections do not survive a fork."""
        if self._opened is None:
            parts = urlsplit(self.base_url)
            self._opened = httpx.AsyncClient(
                # Without TLS there is nothing to verify, and reading the authorities' certificates costs 30 ms.
                verify=parts.scheme == "https",
                # Proxies of the environment are for elsewhere, never for this machine.
                trust_env=not is_loopback(parts.hostname or ""),
                follow_redirects=False,
                timeout=self._timeout,
                # A connection for each answer: one that is kept may be closed by the server just as it is used again.
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            )
        return self._opened

    async def _check(self, response: httpx.Response) -> None:
        """Raises for anything but an answer that can be read, or none at all (404)."""
        if response.status_code not in (200, 404):
            await self._complain(response)
        if response.headers.get("content-encoding", "identity") != "identity":
            raise self.broken("compresses its answer although it was asked not to")

    async def _complain(self, response: httpx.Response) -> None:
        data = bytearray()
        with suppress(TimeoutError):
            async with asyncio.timeout(LIST_TIMEOUT):
                async for chunk in response.aiter_raw():
                    data += chunk
                    if len(data) > MAX_COMPLAINT:
                        break
        status = response.status_code
        text = self._says(f"answers {status} {response.reason_phrase}: {_shown(bytes(data))}".rstrip(": "))
        raise RequestRefused(text) if status in REFUSALS else ModelServerError(text)

    def _waited(self, error: httpx.TimeoutException) -> str:
        if isinstance(error, httpx.ConnectTimeout):
            return f"could not be connected to within {CONNECT_TIMEOUT:g} s"
        if isinstance(error, httpx.ReadTimeout):
            return f"said nothing for {self._timeout.read:g} s"
        return f"did not take the request within {WRITE_TIMEOUT:g} s"


def _shown(data: bytes) -> str:
    """What a server wrote, as a short piece of a sentence: of a JSON error the message alone."""
    text = data.decode("utf-8", "replace")
    try:
        error = msgspec.json.decode(data)
        error = error.get("error", error) if isinstance(error, dict) else error
        message = error.get("message") if isinstance(error, dict) else error
        text = message if isinstance(message, str) else text
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
