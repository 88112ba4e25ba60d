"""The application: `create_app(settings, clock=...)` is all that a program needs to serve Tallystick by itself.

`tallystick_server.operations` makes a new server, fills it and lets devices in, without one running.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from litestar import Litestar, Request
from litestar.exceptions import HTTPException
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from tallystick_server import __version__, problems
from tallystick_server.documents import body_schemas
from tallystick_server.logs import LOG
from tallystick_server.routes import HANDLERS
from tallystick_server.server import Clock, open_server
from tallystick_server.settings import Settings
from tallystick_shared.errors import TallystickError


def create_app(settings: Settings, *, clock: Clock) -> Litestar:
    """The ASGI application. `clock` gives the time now, with an offset.

    Raises `CallerError` (`NO_KEYS`) where `initialise` was not run; the database is checked at startup.
    """
    server = open_server(settings, clock)

    async def refresh_keys(_: Request[Any, Any, Any]) -> None:
        server.keys.refresh()

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        app.state.server = server
        try:
            await server.database.must_be_ready()
            yield
        finally:
            await server.database.close()

    app = Litestar(
        HANDLERS,
        lifespan=[lifespan],
        before_request=refresh_keys,
        request_max_body_size=settings.body_bytes_max,
        exception_handlers={
            TallystickError: problems.answer_tallystick_error,
            HTTPException: problems.answer_http_exception,
            Exception: problems.answer_unexpected,
        },
        openapi_config=OpenAPIConfig(
            title="Tallystick",
            version=__version__,
            path="/schema",
            render_plugins=[JsonRenderPlugin()],
        ),
        logging_config=None,
    )
    # around everything: middleware of the framework does not see requests to unknown addresses
    app.asgi_handler = _log_requests(app.asgi_handler)
    components = app.openapi_schema.components
    if isinstance(components, Components) and components.schemas is not None:
        components.schemas.update(body_schemas())  # given to the config, they would be overwritten
    return app


def _log_requests(app: ASGIApp) -> ASGIApp:
    """One line a request: never a body, a header or a path with an id in it. Gives every request its id."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        request_id, started, status = uuid.uuid4().hex, time.perf_counter(), 0
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers: Any = message.setdefault("headers", [])
                message["headers"] = [*headers, (b"x-request-id", request_id.encode())]
            await send(message)

        await app(scope, receive, send_with_id)
        LOG.info(
            "request",
            request_id=request_id,
            method=scope.get("method", ""),
            route=scope.get("path_template", ""),
            status=status,
            ms=round((time.perf_counter() - started) * 1000, 1),
        )

    return middleware
