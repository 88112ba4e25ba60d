"""What the process of a case's server runs. Imported by the process it is forked from, so that all is warm there."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import uuid_utils
import uvicorn

from tallystick_server import placing, redemptions
from tallystick_server.app import create_app
from tests.proof.wire_server import Clock, settings_of


def serve(data: Path, posix_s: Any, port: int, broken: str, ready: Connection) -> None:
    """Until it is killed. `port` 0: any, which is told through `ready` when it answers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who ends the case kills it
    logging.basicConfig(filename=data / "errors.log", level=logging.ERROR)  # what no wire may lead to
    if broken:
        BREAKS[broken]()
    app = create_app(settings_of(data), clock=Clock(posix_s))
    config = uvicorn.Config(app, log_level="critical", access_log=False, timeout_keep_alive=600)
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        listening.listen(512)
        ready.send(listening.getsockname()[1])  # whoever connects now waits in its queue
        ready.close()
        asyncio.run(uvicorn.Server(config).serve(sockets=[listening]))


def _takes_a_repeat_for_news() -> None:
    """A sync without its idempotence: events that are stored are stored again."""

    async def place(*_: Any) -> placing.Place:
        return placing.Place(0, 0)

    placing.place = place  # type: ignore[assignment]


def _forgets_ids() -> None:
    """An online redemption without its idempotence: each is a new one, whatever its id."""
    real = redemptions._redeem

    async def redeem(server: Any, request: Any, device: Any) -> Any:
        other = msgspec.structs.replace(request, id=str(uuid_utils.uuid7()))
        return msgspec.structs.replace(await real(server, other, device), id=request.id)

    redemptions._redeem = redeem


BREAKS: dict[str, Callable[[], None]] = {
    "sync that takes a repeat for news": _takes_a_repeat_for_news,
    "online redemption that forgets its id": _forgets_ids,
}
"""What a control breaks in the product, in the process of its server."""
