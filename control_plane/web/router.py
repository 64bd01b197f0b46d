"""Which application answers at a path: found part by part, so that it costs as much as the path is long, however many
there are."""

from collections.abc import Mapping, Sequence
from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send


class _Branch:
    """Where a path may go on, and what answers if it does not."""

    __slots__ = ("app", "literal", "named", "names")

    def __init__(self) -> None:
        self.literal: dict[str, _Branch] = {}
        self.named: _Branch | None = None
        self.app: ASGIApp | None = None
        self.names: list[str] = []


class Router:
    """An ASGI application of others: each of `apps` at its path, whose parts are literal or `{name}`, and `nowhere` at
    any other path.

    Where both would do, the literal part is meant. A name stands for any text but an empty one, also for one with a
    quoted slash; the application finds it in its scope's `path_params`."""

    def __init__(self, apps: Mapping[str, ASGIApp], nowhere: ASGIApp) -> None:
        self.apps = apps
        self._nowhere = nowhere
        self._root = _Branch()
        for path, app in apps.items():
            branch = self._root
            names: list[str] = []
            for part in path.split("/")[1:]:
                if part.startswith("{"):
                    names.append(part[1:-1])
                    branch.named = branch = branch.named or _Branch()
                else:
                    branch = branch.literal.setdefault(part, _Branch())
            branch.app, branch.names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have it answered."""
        quoted: bytes = scope.get("raw_path") or b""
        if b"%" in quoted:
            parts = [unquote(part) for part in quoted.decode("ascii", "replace").split("/")[1:]]
        else:
            parts = scope["path"].split("/")[1:]
        app, scope["path_params"] = self._find(parts)
        await app(scope, receive, send)

    def _find(self, parts: Sequence[str]) -> tuple[ASGIApp, dict[str, str]]:
        branch = self._root
        values: list[str] = []
        for part in parts:
            following = branch.literal.get(part)
            if following is None:
                following = branch.named
                if following is None or not part:
                    return self._nowhere, {}
                values.append(part)
            branch = following
        if branch.app is None:
            return self._nowhere, {}
        return branch.app, dict(zip(branch.names, values, strict=True))
