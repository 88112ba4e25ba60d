"""The server of a simulated fleet: the real application and the real database, called in place, without a network."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections.abc import Callable, Coroutine, Mapping
from contextlib import closing
from datetime import datetime
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, TypeVar

from litestar import Litestar

from tallystick_server import backups, operations, recovery, rotating
from tallystick_server.app import create_app
from tallystick_server.settings import Settings
from tests.proof.fleet_chance import FUSE, Killed, seeded

T = TypeVar("T")
_SUFFIXES = ("", "-wal", "-shm")


class Gone(Exception):
    """The server did not answer: it is down, or went down with this request."""


@cache
def _template(made_at: datetime) -> Path:
    """A new server's directory, made once in a process: the migrations take longer than a simulated week."""
    work = Path(mkdtemp(prefix="tallystick-fleet-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    with seeded("template"):
        key = asyncio.run(operations.initialise(Settings(data=work / "server"), now=made_at))
    (work / "server" / "operator").write_text(key)
    return work / "server"


class FleetServer:
    """`clock` is the time of the world. One request at a time, as SQLite has one writer."""

    def __init__(self, data: Path, clock: Callable[[], datetime], **settings: Any) -> None:
        shutil.copytree(_template(clock()), data)
        self.settings = Settings(data=data, default_currency="EUR", **settings)
        self.clock = clock
        self.operator_key = (data / "operator").read_text()
        self._loop = asyncio.new_event_loop()
        self._app: Litestar | None = None
        self._over = asyncio.Event()
        self._life: asyncio.Task[None]
        self.start()

    @property
    def file(self) -> Path:
        assert self.settings.sqlite_file is not None
        return self.settings.sqlite_file

    @property
    def is_up(self) -> bool:
        return self._app is not None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)

    def start(self) -> None:
        app = create_app(self.settings, clock=self.clock)
        self._over = asyncio.Event()
        begun = asyncio.Event()

        async def live() -> None:  # one task from its beginning to its end: the framework asks for that
            async with app.lifespan():
                begun.set()
                await self._over.wait()

        self._life = self._loop.create_task(live())
        self.run(asyncio.wait_for(begun.wait(), 5))
        self._app = app

    def start_again(self) -> None:
        """Where it is not running: whoever watches over it starts it."""
        if self._app is None:
            self.start()

    def stop(self) -> None:
        if self._app is not None:
            self._app = None
            self._over.set()
            self.run(asyncio.wait_for(self._life, 5))

    def close(self) -> None:
        self.stop()
        self._loop.close()

    # -- requests

    def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body. Raises `Gone`."""
        if self._app is None:
            raise Gone
        try:
            return self.run(self._ask(self._app, method, path, headers, body))
        except Killed:
            self.stop()
            raise Gone from None
        finally:
            FUSE.clear()

    async def _ask(
        self, app: Litestar, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        said: dict[str, Any] = {"status": 0, "headers": []}
        parts: list[bytes] = []
        told = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            return told.pop() if told else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                said.update(status=message["status"], headers=message["headers"])
            else:
                parts.append(message.get("body", b""))

        named = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        scope: Any = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": path.partition("?")[0], "raw_path": path.partition("?")[0].encode(), "root_path": "",
            "query_string": path.partition("?")[2].encode(),
            "headers": [*named, (b"host", b"tallystick.test"), (b"content-length", str(len(body)).encode())],
            "client": ("10.0.0.1", 1), "server": ("tallystick.test", 80),
        }  # fmt: skip
        await app(scope, receive, send)
        answered = {name.decode().lower(): value.decode() for name, value in said["headers"]}
        return said["status"], answered, b"".join(parts)

    def operate(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        """What an operator asks: the status, and the answer's JSON."""
        headers = {"authorization": f"Bearer {self.operator_key}", "content-type": "application/json"}
        raw = b"" if body is None else json.dumps(body).encode()
        status, _, answered = self.ask(method, f"/v1/{path}", headers, raw)
        return status, json.loads(answered) if answered else {}

    # -- an operator at the server's machine

    def token(self, store: str, scope: str = "main") -> str:
        return str(self.operate("POST", "tokens", {"store_id": store, "scope": scope})[1]["token"])

    def back_up(self, file: Path) -> None:
        self.run(backups.back_up(self.settings, file, now=self.clock()))

    def restore(self, file: Path) -> None:
        """Stops, puts the copy in the place of the database, starts."""
        self.stop()
        for suffix in _SUFFIXES:
            self.file.with_name(self.file.name + suffix).unlink(missing_ok=True)
        shutil.copy(file, self.file)
        self.start()

    def declare(self, *, all_known: bool) -> None:
        async def begin() -> None:
            async with operations.opened(self.settings, self.clock()) as server:
                await server.database.write(lambda t: recovery.begin(t, now=self.clock(), all_known=all_known))

        self.run(begin())

    def rotate(self, *, bundle: bool, receipt: bool) -> None:
        change = rotating.Change(bundle=bundle, receipt=receipt, root=None, threshold=None)
        rotating.begin(self.settings, change, [self.settings.keys / "root.jwk"], now=self.clock())

    def read(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Of the database as it is on the disk."""
        with closing(sqlite3.connect(self.file)) as connection:
            return connection.execute(query, values).fetchall()

    def write(self, *statements: str) -> None:
        """Past the application: only for what is broken on purpose."""
        with closing(sqlite3.connect(self.file)) as connection, connection:
            for statement in statements:
                connection.execute(statement)

    def fuse(self, statements: int, *, kill: bool) -> None:
        FUSE.set(statements, kill=kill)
