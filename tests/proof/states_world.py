"""A server and three tills in one process, for the state machine: no socket, one clock for true time, every request
through a line that can fail. Everything is built once a process and copied back before each example.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2

from tallystick_client import Till
from tallystick_server import operations
from tallystick_server.app import create_app
from tallystick_server.server import open_server
from tallystick_server.settings import DAY_S, Settings
from tests.client.fake_clock import START, FakeClock

URL = "https://server.test"
NAMES = ("a", "b", "c")
MANIFEST_TTL_S, OFFLINE_S, LEASE_TTL_S = 2 * DAY_S, DAY_S, 4 * DAY_S
WAITING_MAX, WAITING_MINOR_MAX, LEASE_UNITS_MAX, RETRY_AFTER_S = 12, 6_000, 6, 90
"""`RETRY_AFTER_S`: what a refusal with 429 asks for."""


@dataclass
class Exchange:
    """One request that a till made. `heard`: whether it got the answer; `answer` None: it never came to the server."""

    kind: str
    asked: dict[str, Any]
    status: int = 0
    answer: dict[str, Any] | None = None
    heard: bool = False


def payload(token: bytes) -> dict[str, Any]:
    """What a compact JWS says; nothing is verified."""
    part = token.split(b".")[1]
    said = json.loads(base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4)))
    assert isinstance(said, dict)
    return said


@dataclass
class Faulty(httpx2.BaseTransport):
    """The line of all tills. `plan`: by kind of request and its number within a call, `down`, `lost` or `busy`."""

    world: World
    plan: dict[tuple[str, int], str] = field(default_factory=dict)
    log: list[Exchange] = field(default_factory=list)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        body, path = request.read(), request.url.path
        kind = next(kind for kind in ("sync", "redemptions", "manifest", "blobs", "devices", "roots") if kind in path)
        asked = payload(body.partition(b"\n")[0]) if kind in ("sync", "redemptions") else {}
        one = Exchange(kind, asked)
        fault = self.plan.get((kind, sum(other.kind == kind for other in self.log)), "")
        self.log.append(one)
        if fault == "down":
            raise httpx2.ConnectError("nobody answers")
        if fault == "busy":
            return _busy(one)
        headers = [(name.lower(), value) for name, value in request.headers.raw]
        status, answered, content = self.world.ask(request.method, path, request.url.query, headers, body)
        one.status = status
        one.answer = payload(content) if kind in ("sync", "redemptions") and status == 200 else {}
        if fault == "lost":
            raise httpx2.ReadError("the line broke")
        one.heard = True
        return httpx2.Response(status, headers=answered, stream=httpx2.ByteStream(content))


def _busy(one: Exchange) -> httpx2.Response:
    """As a rate limiter in front of the server answers."""
    one.status, one.heard = 429, True
    problem = json.dumps({"type": "about:blank", "title": "busy", "status": 429, "code": "BUSY", "detail": "too many"})
    headers = {"content-type": "application/problem+json", "retry-after": str(RETRY_AFTER_S)}
    return httpx2.Response(429, headers=headers, stream=httpx2.ByteStream(problem.encode()))


class World:
    """`at` is true time, and the server's. `clocks` are the tills', by name."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(
            dir="/dev/shm" if Path("/dev/shm").is_dir() else None, prefix="tallystick-states-"
        )
        self.base = Path(self._folder.name)
        self._kept = self.base / "kept"
        self._loop = asyncio.new_event_loop()
        self.at = START
        self.line = Faulty(self)
        self.settings = Settings(
            data=self.base / "server", default_currency="EUR", manifest_ttl_s=MANIFEST_TTL_S, offline_s=OFFLINE_S,
            lease_ttl_s=LEASE_TTL_S, lease_units_max=LEASE_UNITS_MAX, body_retention_s=2 * DAY_S,
            waiting_redemptions_max=WAITING_MAX, waiting_minor_max=WAITING_MINOR_MAX,
        )  # fmt: skip
        key = self.run(operations.initialise(self.settings, now=self.at))
        self._operator = [(b"authorization", b"Bearer " + key.encode()), (b"content-type", b"application/json")]
        self._app = create_app(self.settings, clock=lambda: self.at)
        self._app.state.server = open_server(self.settings, lambda: self.at)
        self.tills: dict[str, Till] = {}
        self.clocks = {name: FakeClock() for name in NAMES}
        self.devices = {name: self._enrol(name) for name in NAMES}

    def _enrol(self, name: str) -> str:
        token = self.operate("POST", "/v1/tokens", {"store_id": name})["token"]
        with Till.enroll(self.base / name, URL, token, clock=self.clocks[name], transport=self.line) as till:
            return str(till.status().device)

    def run(self, work: Any) -> Any:
        return self._loop.run_until_complete(work)

    # ---- the same world again

    def keep(self) -> None:
        """What `again` goes back to."""
        self.close()
        shutil.rmtree(self._kept, ignore_errors=True)
        for name in (*NAMES, "server"):
            shutil.copytree(self.base / name, self._kept / name)

    def again(self) -> None:
        self.close()
        for name in (*NAMES, "server"):
            shutil.rmtree(self.base / name)
            shutil.copytree(self._kept / name, self.base / name)
        for left in self.base.glob("backup-*"):
            left.unlink()
        self.at = START
        self.clocks = {name: FakeClock() for name in NAMES}
        self.line = Faulty(self)

    def close(self) -> None:
        """Ends what is open; all of it opens again by itself."""
        for till in self.tills.values():
            till.close()
        self.tills.clear()
        self.restart()

    def till(self, name: str) -> Till:
        if name not in self.tills:
            self.tills[name] = Till.open(self.base / name, clock=self.clocks[name], transport=self.line)
        return self.tills[name]

    def reopen(self, name: str) -> None:
        if name in self.tills:
            self.tills.pop(name).close()

    def restart(self) -> None:
        """The server's memory is gone, and its connections; only its disk stays."""
        self.run(self._app.state.server.database.close())
        self._app.state.server = open_server(self.settings, lambda: self.at)

    def pass_time(self, seconds: int) -> None:
        self.at += timedelta(seconds=seconds)
        for clock in self.clocks.values():
            clock.run(seconds=seconds)

    # ---- the server

    def operate(self, method: str, path: str, document: Any = None) -> Any:
        """What an operator's request gives. Raises `Refused`."""
        path, _, query = path.partition("?")
        body = b"" if document is None else json.dumps(document).encode()
        status, _, content = self.ask(method, path, query.encode(), self._operator, body)
        said = json.loads(content)
        if status >= 400:
            raise Refused(status, said)
        return said

    def ask(
        self, method: str, path: str, query: bytes, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """One request to the application, as a server of ASGI would hand it over: status, headers, content."""
        said: dict[str, Any] = {"content": b""}
        waiting: list[Mapping[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Mapping[str, Any]:
            return waiting.pop() if waiting else {"type": "http.disconnect"}

        async def send(message: Mapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                said["status"], said["headers"] = message["status"], message["headers"]
            else:
                said["content"] += message.get("body", b"")

        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
            "raw_path": path.encode(), "query_string": query, "headers": headers, "scheme": "https", "root_path": "",
            "server": ("server.test", 443), "client": ("127.0.0.1", 1),
        }  # fmt: skip
        app: Any = self._app
        self.run(app(scope, receive, send))
        return said["status"], said["headers"], said["content"]


class Refused(Exception):
    """An operator's request that was not done: `status` of HTTP, `code` of the problem."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(f"{status} {problem}")
        self.status, self.code = status, str(problem.get("code"))


def at_of(text: str) -> datetime:
    """A time of the wire."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
