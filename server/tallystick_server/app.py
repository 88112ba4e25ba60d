"""The application: `create_app(settings, clock=...)` is all that a program needs to serve Tallystick by itself.

`tallystick_server.operations` makes a new server, fills it and lets devices in, without one running.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any

from litestar import Litestar, Request, Response, Router
from litestar.exceptions import HTTPException, NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from tallystick_server import __version__, documents, problems
from tallystick_server.logs import LOG
from tallystick_server.routes import HANDLERS, operator
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
        [options({path for handler in HANDLERS for path in handler.paths})(allow), *HANDLERS],
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
            openapi_router=Router("/schema", route_handlers=[], after_request=no_page, include_in_schema=False),
        ),
        logging_config=None,
    )
    # around everything: middleware of the framework does not see requests to unknown addresses
    app.asgi_handler = _log_requests(app.asgi_handler)
    documents.complete(app, {operator: "operator"})
    return app


async def allow(request: Request[Any, Any, Any]) -> Response[None]:
    """What an address takes. The framework's own answer forgets the methods of all but the first route there."""
    here = request.scope["path_template"]
    methods = {method for route in request.app.routes if route.path_format == here for method in route.methods}
    return Response(None, status_code=204, headers={"Allow": ", ".join(sorted(methods))})


def options(paths: Collection[str]) -> HTTPRouteHandler:
    return HTTPRouteHandler(sorted(paths), http_method="OPTIONS", status_code=204, include_in_schema=False)


async def no_page(response: Response[Any]) -> Response[Any]:
    """Beside the OpenAPI document the framework has a page in HTML for what is not there; we have problem details."""
    if response.status_code == 404:
        raise NotFoundException
    return response


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
