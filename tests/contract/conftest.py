"""A shop with the real commands: one server process, and tills that are directories."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.loopback import ServerProcess, server_command, till_command
from tests.contract.chain import Chain

CURRENCY = {"TALLYSTICK_DEFAULT_CURRENCY": "USD"}


class Shop:
    """Runs the installed commands; `key` is the operator key that `init` printed."""

    def __init__(self, work: Path) -> None:
        self.work, self.data = work, work / "server"
        self.server = ServerProcess(self.data, CURRENCY)
        self.key = ""

    def operator(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*server_command(), "--data", str(self.data), *arguments]
        return _run(command)

    def till(self, name: str, *arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
        return _run([*till_command(self.work / name), *arguments], given)

    def token(self, store: str) -> str:
        return self.operator("token", "--store", store).stdout.split()[-1]

    def enrol(self, name: str) -> None:
        assert self.till(name, "enroll", self.server.url, self.token(name)).returncode == 0
        assert self.till(name, "sync").returncode == 0

    def write(self, name: str, *documents: dict[str, Any] | str) -> str:
        """A file of one JSON document a line; a string goes in as it is. Returns its path."""
        path = self.work / name
        path.write_text("".join((d if isinstance(d, str) else json.dumps(d)) + "\n" for d in documents))
        return str(path)

    def status(self, name: str) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.till(name, "status", "--json").stdout)
        return status


def _run(command: Sequence[str], given: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | CURRENCY
    return subprocess.run(command, input=given, capture_output=True, text=True, env=environment, timeout=60)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    """An initialised, running server without vouchers."""
    shop = Shop(tmp_path)
    printed = shop.operator("init")
    assert printed.returncode == 0, printed.stderr
    shop.key = next(word for word in printed.stdout.split() if len(word) > 40)
    with shop.server:
        yield shop


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    chain = Chain(tmp_path)
    yield chain
    chain.close()
