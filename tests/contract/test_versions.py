"""The release before this one and this one, as real processes: a till goes months without an update.

The release before is the newest tag `v*` that is not of this commit. As long as there is none it is the last commit, so
that what this file does is tried at all.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from benchmarks.audit import audit
from benchmarks.loopback import ServerProcess, server_command, till_command

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("shared", "client", "server")
TEN = {"code": "TEN", "discount": {"type": "percentage", "percent": 10}}
ONCE = {"code": "Once", "discount": {"type": "fixed", "amount_minor": 300}, "limits": {"total": 2}}
ORDER = {
    "id": "order-1",
    "currency": "USD",
    "lines": [{"id": "1", "product_id": "tea", "quantity": 3, "unit_price_minor": 450}],
}


def git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True).stdout


def release_before() -> str:
    tags = git("tag", "--list", "v*", "--sort=-version:refname", "--no-contains", "HEAD").decode().split()
    return tags[0] if tags else "HEAD"


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which the commands are those of the release before."""
    if not (ROOT / ".git").exists():
        pytest.skip("the release before is taken from git, and this is no clone")
    tree = tmp_path_factory.mktemp("before")
    with tarfile.open(fileobj=BytesIO(git("archive", release_before(), *PACKAGES))) as archive:
        archive.extractall(tree, filter="data")
    return {"PYTHONPATH": os.pathsep.join(str(tree / package) for package in PACKAGES)}


NOW: dict[str, str] = {"PYTHONPATH": os.pathsep.join(str(ROOT / package) for package in PACKAGES)}


class Pair:
    """A server of one release and a till of another."""

    def __init__(self, work: Path, server: dict[str, str], till: dict[str, str]) -> None:
        self.work, self.data = work, work / "server"
        self.of_server = server | {"TALLYSTICK_DEFAULT_CURRENCY": "USD"}
        self.of_till = till
        self.server = ServerProcess(self.data, self.of_server)

    def operator(self, *arguments: str) -> str:
        return run([*server_command(), "--data", str(self.data), *arguments], self.of_server)

    def till(self, *arguments: str) -> str:
        return run([*till_command(self.work / "till"), *arguments], self.of_till)

    def publish(self, *vouchers: dict[str, Any]) -> None:
        path = self.work / "vouchers.ndjson"
        path.write_text("".join(json.dumps(one) + "\n" for one in vouchers))
        self.operator("import", str(path))

    def redeem(self, code: str) -> dict[str, Any]:
        path = self.work / "order.json"
        path.write_text(json.dumps(ORDER))
        receipt: dict[str, Any] = json.loads(self.till("redeem", str(path), "--code", code, "--json"))
        return receipt

    def begin(self) -> None:
        self.operator("init")
        self.publish(TEN, ONCE)
        self.server.start()
        self.till("enroll", self.server.url, self.operator("token", "--store", "309").split()[-1])
        self.till("sync")

    def audited(self) -> tuple[int, int]:
        report = asyncio.run(audit(f"sqlite+aiosqlite:///{self.data / 'tallystick.sqlite3'}", [self.work / "till"]))
        assert report.holds, report
        return report.redeemed, report.settled_minor


def run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def work(tmp_path: Path) -> Iterator[list[Pair]]:
    """Whatever a test puts in is stopped."""
    pairs: list[Pair] = []
    yield pairs
    for pair in pairs:
        pair.server.stop()


def sold_in_all(pair: Pair) -> None:
    """Enrolment, bundle, lease, redemption, sync and a new bundle: to the cent."""
    pair.begin()
    assert pair.redeem("TEN")["redeemed"]
    assert pair.redeem("once")["redeemed"]
    assert json.loads(pair.till("sync", "--json"))["acknowledged"] >= 2
    pair.publish({**TEN, "code": "NEW"})
    pair.till("sync")
    assert pair.redeem("NEW")["result"]["discount_minor"] == 135


def test_an_older_till_and_this_server(before: dict[str, str], tmp_path: Path, work: list[Pair]) -> None:
    """They understand each other; and the till is updated while events wait, of which none is lost."""
    pair = Pair(tmp_path, NOW, before)
    work.append(pair)
    sold_in_all(pair)
    pair.of_till = NOW
    assert json.loads(pair.till("status", "--json"))["waiting"] == 1
    assert pair.redeem("TEN")["redeemed"]
    assert json.loads(pair.till("sync", "--json"))["acknowledged"] >= 2
    assert pair.audited() == (4, 135 + 300 + 135 + 135)


def test_this_till_and_an_older_server(before: dict[str, str], tmp_path: Path, work: list[Pair]) -> None:
    """They understand each other; and the server is upgraded, once, with all that it holds."""
    pair = Pair(tmp_path, before, NOW)
    work.append(pair)
    sold_in_all(pair)
    pair.server.stop()
    pair.of_server = NOW | {"TALLYSTICK_DEFAULT_CURRENCY": "USD"}
    assert pair.operator("upgrade").split()[0] in ("upgraded", "nothing")
    assert pair.operator("upgrade").startswith("nothing to do")
    again = ServerProcess(pair.data, pair.of_server)
    again._port = pair.server._port
    pair.server = again
    again.start()
    assert pair.redeem("TEN")["redeemed"]
    pair.till("sync")
    assert pair.audited() == (4, 135 + 300 + 135 + 135)
