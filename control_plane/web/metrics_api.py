"""Metrics over HTTP: for a key on the API's own port, or for anybody on a loopback port of their own."""

import asyncio
import socket

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute
from uvicorn.config import Config
from uvicorn.server import ServerState

from control_plane.metrics import CONTENT_TYPE, Metrics
from control_plane.web import shapes
from control_plane.web.http_protocol import HttpProtocol
from control_plane.web.routes import Call


class MetricsPage(Response):
    """The text exposition format."""

    media_type = CONTENT_TYPE
    charset = ""


async def read_metrics(call: Call[shapes.NoQuery, None]) -> Response:
    """Metrics for Prometheus, in its text format.

    Of jobs, queues and worker sessions only what belongs to the key's project; the rest is the server's.
    """
    return MetricsPage(await call.services.metrics.render(call.project_id))


async def serve_metrics(metrics: Metrics, listening: socket.socket) -> asyncio.Server:
    """The same of all projects and without a key, on a bound socket; close it to end."""

    async def page(_: Request) -> Response:
        return MetricsPage(await metrics.render())

    config = Config(
        Starlette(routes=[StarletteRoute("/metrics", page)]),
        http=HttpProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=5,
    )
    config.load()
    state = ServerState()
    return await asyncio.get_running_loop().create_server(
        lambda: HttpProtocol(config=config, server_state=state, app_state={}), sock=listening
    )
