"""The days that are recorded for the power cuts: lives of `till_day`, one after the other or two at once.

`python -m tests.proof.power_day SPEC` does what the JSON of a `Spec` says. All that is said goes to one file, in one
`write` a line. Between two rounds it says `round` on standard output and waits for a line.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from pathlib import Path

import httpx2
import msgspec

from tallystick_client import schema
from tests.proof import till_day
from tests.proof.till_day import Day, Life, Said, Step, Switch, attempt, live, to_descriptor


class Spec(msgspec.Struct, frozen=True):
    """`rounds`: lives at the same time, in a process each; only the first of them may sync. `told`: the file where all
    is said; `server`: its folder, copied into `copies` after each request that may have changed it. `pages`: of the
    journal's log, after which SQLite writes it back."""

    rounds: list[list[Life]]
    told: str
    server: str
    copies: str
    pages: int


class Request(msgspec.Struct, frozen=True, tag="request"):
    """A request that is about to be sent, or has been done by the server, whether or not its answer comes."""

    request: int
    done: bool


class MarkedLine(Switch):
    """Says when a request goes out and when the server has done it, and copies the server's database then."""

    spec: Spec
    descriptor: int
    count = 0

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.method == "GET" or self.state == "down":
            return super().handle_request(request)
        MarkedLine.count += 1
        number = MarkedLine.count
        self._say(Request(number, False))
        try:
            return super().handle_request(request)
        finally:
            copy_database(Path(self.spec.server), Path(self.spec.copies) / str(number))
            self._say(Request(number, True))

    def _say(self, what: Request) -> None:
        os.write(self.descriptor, msgspec.json.encode(what) + b"\n")


def copy_database(server: Path, folder: Path) -> None:
    """As it is on the disk, between two requests, when nobody writes."""
    folder.mkdir(parents=True)
    for path in server.glob("tallystick.sqlite3*"):
        if not path.name.endswith("-shm"):
            shutil.copyfile(path, folder / path.name)


def check_point_early(pages: int) -> None:
    """Days are short: SQLite writes the log of the journal back after so many pages, not after 1,000."""
    connect = schema.connect

    def connected(path: Path) -> sqlite3.Connection:
        connection = connect(path)
        connection.execute(f"PRAGMA wal_autocheckpoint = {pages}")
        return connection

    schema.connect = connected


def attempt_or_spoil(day: Day, step: Step) -> Said:
    """Beside the steps of `till_day`, `spoil`: the head of the cache's file is not what SQLite wrote."""
    if step.kind != "spoil":
        return attempt(day, step)
    day.close()
    path = day.path / "cache" / "cache.db"
    if path.exists():
        descriptor = os.open(path, os.O_WRONLY)
        os.pwrite(descriptor, b"spoilt" * 20, 0)
        os.fsync(descriptor)
        os.close(descriptor)
    return Said(step.number, step.kind, True)


def main() -> int:
    spec = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Spec)
    descriptor = os.open(spec.told, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    check_point_early(spec.pages)
    MarkedLine.spec, MarkedLine.descriptor = spec, descriptor
    till_day.Switch = MarkedLine  # type: ignore[misc] # the line of every till of this process
    till_day.attempt = attempt_or_spoil
    say = to_descriptor(descriptor)
    for index, lives in enumerate(spec.rounds):
        if index:
            sys.stdout.write("round\n")
            sys.stdout.flush()
            sys.stdin.readline()
        others = []
        for life in lives[1:]:
            pid = os.fork()
            if not pid:
                live(life, say)
                os._exit(0)
            others.append(pid)
        live(lives[0], say)
        for pid in others:
            os.waitpid(pid, 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
