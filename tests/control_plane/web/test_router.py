"""Which application answers at a path."""

from typing import Any
from urllib.parse import unquote

import pytest
from starlette.types import Receive, Scope, Send

from control_plane.web.router import Router


class App:
    """Remembers what it was asked with."""

    def __init__(self) -> None:
        self.asked: list[dict[str, str]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append(scope["path_params"])


PATHS = ("/", "/a", "/a/{one}", "/a/b", "/a/{one}/c", "/a/{one}/{two}", "/a/{one}/c/d.e")


async def answered(path: str) -> tuple[str | None, dict[str, str]]:
    apps: dict[str, App] = {each: App() for each in PATHS}
    nowhere = App()
    scope: dict[str, Any] = {"type": "http", "path": path}
    await Router(apps, nowhere)(scope, None, None)  # type: ignore[arg-type]
    found = [(each, app.asked[0]) for each, app in apps.items() if app.asked]
    ((where, params),) = found or [(None, nowhere.asked[0])]
    return where, params


@pytest.mark.parametrize(
    ("path", "where", "params"),
    [
        ("/", "/", {}),
        ("/a", "/a", {}),
        ("/a/b", "/a/b", {}),
        ("/a/x", "/a/{one}", {"one": "x"}),
        ("/a/x.y z", "/a/{one}", {"one": "x.y z"}),
        ("/a/x/c", "/a/{one}/c", {"one": "x"}),
        ("/a/x/y", "/a/{one}/{two}", {"one": "x", "two": "y"}),
        ("/a/x/c/d.e", "/a/{one}/c/d.e", {"one": "x"}),
    ],
)
async def test_a_path_leads_to_its_application(path: str, where: str, params: dict[str, str]) -> None:
    assert await answered(path) == (where, params)


async def test_a_quoted_slash_is_no_slash() -> None:
    app, nowhere = App(), App()
    for quoted in (b"/a/x%2Fy%20z", b"/%61/x/y"):
        scope: dict[str, Any] = {"type": "http", "path": unquote(quoted.decode()), "raw_path": quoted}
        await Router({"/a/{one}": app}, nowhere)(scope, None, None)  # type: ignore[arg-type]
    assert (app.asked, nowhere.asked) == ([{"one": "x/y z"}], [{}])


@pytest.mark.parametrize("path", ["", "b", "*", "/b", "/a/", "//a", "/a//c", "/a/x/", "/a/x/y/z", "/a/x/c/d", "/A"])
async def test_any_other_leads_nowhere(path: str) -> None:
    assert await answered(path) == (None, {})
