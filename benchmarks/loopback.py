"""A Tallystick server on loopback: in this process with an injected clock, or as a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import uvicorn

from tallystick_server.app import create_app
from tallystick_server.settings import Settings


class CountingApp:
    """Wraps an ASGI application and counts its HTTP requests, all and those made while `closed` is set."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.requests = 0
        self.requests_while_closed = 0
        self.closed = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self.requests += 1
            self.requests_while_closed += self.closed
        await self._app(scope, receive, send)


@contextmanager
def server_thread(settings: Settings, clock: Callable[[], datetime]) -> Iterator[tuple[str, CountingApp]]:
    """A real server over real HTTP, in a thread, so that its clock can be the data's. Yields its URL and counts."""
    app = CountingApp(create_app(settings, clock=clock))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", access_log=False))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), name="tallystick-server")
    thread.start()
    started = threading.Event()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the server did not start")
            started.wait(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", app
    finally:
        server.should_exit = True
        thread.join()


class ServerProcess:
    """`tallystick-server serve` as a process of its own, that can be stopped, killed and started again."""

    def __init__(self, data: Path, environment: dict[str, str] | None = None) -> None:
        self._data = data
        self._environment = os.environ | (environment or {})
        self._process: subprocess.Popen[str] | None = None
        self._port = 0
        self.url = ""

    @property
    def pid(self) -> int:
        """Of the process while it runs."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> str:
        """Starts it, on the same port as before if there was one, and returns its URL once it answers."""
        command = [
            *server_command(),
            "--data",
            str(self._data),
            "serve",
            "--host",
            "127.0.0.1",
            "--port",
            str(self._port),
        ]
        with (self._data.parent / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=self._environment
            )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if "listening on " in line:
                self.url = line.split("listening on ")[1].split()[0]
                self._port = int(self.url.rsplit(":", 1)[1])
                return self.url
        raise RuntimeError(f"the server did not start, see {self._data.parent / 'server.log'}")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def __enter__(self) -> ServerProcess:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


def server_command() -> list[str]:
    """The installed `tallystick-server`, of the environment this runs in."""
    return [str(Path(sys.executable).parent / "tallystick-server")]


def till_command(directory: Path) -> list[str]:
    """The installed `tallystick`, for one till's directory."""
    return [str(Path(sys.executable).parent / "tallystick"), "--dir", str(directory)]
