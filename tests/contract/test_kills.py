"""SIGKILL to the server, to tills, or to both, as processes of their own, with a redemption or a sync in flight.

A kill counts only where it met something in flight: a till that had taken an order and not printed its receipt, or a
sync that a till had said it started and not said it ended. Afterwards everything is started again, all tills sync, and
the audit, which shares no code with journal or ledger, must find its four zeros.
"""

from __future__ import annotations

import asyncio
import json
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec
import uuid_utils

from benchmarks.audit import audit
from benchmarks.loopback import till_command

if TYPE_CHECKING:
    from tests.contract.conftest import Shop

SEED = 20170101
KILLS = 54
TILLS = ("till-a", "till-b", "till-c")
VICTIMS = ("till syncing", "server syncing", "both syncing")
VOUCHERS: list[dict[str, Any]] = [
    {"code": "MANY", "discount": {"type": "fixed", "amount_minor": 75}, "limits": {"total": 150}},
    {"code": "FEW", "discount": {"type": "fixed", "amount_minor": 125}, "limits": {"total": 40}},
    {"code": "BUDGET", "discount": {"type": "fixed", "amount_minor": 30}, "limits": {"budget_minor": 2_000}},
    {"code": "FREE", "discount": {"type": "percentage", "percent": 10}},
]


class Day:
    """Three tills, the requests whose customers still wait, and what the tills' screens have said."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.chance = random.Random(SEED)
        self.waiting: dict[str, list[bytes]] = {till: [] for till in TILLS}
        self.receipts: dict[str, dict[str, Any]] = {}
        self.kills: Counter[str] = Counter()
        self._number = 0

    def request(self) -> bytes:
        self._number += 1
        code = self.chance.choice(VOUCHERS)["code"]
        order = {
            "id": f"order-{self._number}",
            "currency": "USD",
            "lines": [{"id": "1", "product_id": "p", "quantity": 2, "unit_price_minor": 1000 + self._number % 97}],
        }
        return msgspec.json.encode({"id": str(uuid_utils.uuid7()), "order": order, "codes": [code]}) + b"\n"

    def redeem(self, till: str, *, kill: bool) -> None:
        """A `tallystick redeem --stream` process takes what waits, and new orders; it may be killed on the way.

        Whoever has no receipt yet asks again next time, with the same id: the redemption in flight may be recorded.
        """
        requests = self.waiting[till] + [self.request() for _ in range(12 if kill else 0)]
        kill_after = self.chance.randrange(1, len(requests) - 2) if kill else None
        command = [*till_command(self.shop.work / till), "redeem", "--stream", "-"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"".join(requests))
            process.stdin.close()
            said = 0
            for line in process.stdout:
                if not line.endswith(b"\n"):
                    break  # torn by the kill: nobody saw a receipt
                said += 1
                self.note(json.loads(line))
                if said == kill_after:
                    process.kill()
        if kill_after is not None and process.returncode == -signal.SIGKILL and said < len(requests):
            self.kills["till redeeming"] += 1
        self.waiting[till] = requests[said:]

    def note(self, receipt: dict[str, Any]) -> None:
        before = self.receipts.get(receipt["id"])
        if before is not None and before["redeemed"]:
            assert before == receipt, "a till gave two different receipts for one redemption"
        self.receipts[receipt["id"]] = receipt

    def sync_and_kill(self, victim: str) -> None:
        """All tills sync at once; the server, a till, or both die while they do."""
        workers = {till: _worker(self.shop.work / till) for till in TILLS}
        try:
            for worker in workers.values():
                assert _said(worker) == "ready"
            for worker in workers.values():
                _pipe(worker.stdin).write("sync\n")
                _pipe(worker.stdin).flush()
            for worker in workers.values():
                assert _said(worker) == "started"
            time.sleep(self.chance.uniform(0, 0.06))
            in_flight = [worker for worker in workers.values() if not _has_said(worker)]
            if victim != "server syncing" and in_flight:
                in_flight[0].kill()
            if victim != "till syncing":
                self.shop.server.stop(signal.SIGKILL)
            self.kills[victim] += bool(in_flight)
        finally:
            for worker in workers.values():
                _pipe(worker.stdin).close()
                worker.wait(60)
                _pipe(worker.stdout).close()
        if victim != "till syncing":
            self.shop.server.start()


def _worker(directory: Path) -> subprocess.Popen[str]:
    script = Path(__file__).with_name("till_worker.py")
    command = [sys.executable, str(script), str(directory)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def _said(worker: subprocess.Popen[str]) -> str:
    return _pipe(worker.stdout).readline().strip()


def _has_said(worker: subprocess.Popen[str]) -> bool:
    return bool(select.select([_pipe(worker.stdout)], [], [], 0)[0])


def test_kills_in_flight_lose_double_and_exceed_nothing(shop: Shop) -> None:
    """54 SIGKILLs with a redemption or a sync in flight leave lost, doubled, over_limit and mismatched at 0."""
    assert shop.operator("import", shop.write("v.ndjson", *VOUCHERS)).returncode == 0
    for till in TILLS:
        shop.enrol(till)
    day = Day(shop)
    rounds = 0
    while day.kills.total() < KILLS:
        day.redeem(TILLS[rounds % 3], kill=True)
        day.sync_and_kill(VICTIMS[rounds % 3])
        rounds += 1
        assert rounds < 3 * KILLS, f"the kills meet nothing in flight: {day.kills}"
    for till in TILLS:
        day.redeem(till, kill=False)
        assert shop.till(till, "sync").returncode == 0
    assert shop.till(TILLS[0], "sync").returncode == 0
    report = asyncio.run(
        audit(f"sqlite+aiosqlite:///{shop.data / 'tallystick.sqlite3'}", [shop.work / till for till in TILLS])
    )
    assert min(day.kills[kind] for kind in ("till redeeming", *VICTIMS)) >= 5, day.kills
    assert (report.lost, report.doubled, report.over_limit, report.mismatched) == (0, 0, 0, 0)
    assert report.broken == []
    # what a cashier saw is there, and nothing that no cashier asked for
    assert report.redeemed == sum(receipt["redeemed"] for receipt in day.receipts.values()) >= 150
    reasons = {one["reason"] for receipt in day.receipts.values() for one in receipt["result"]["refused"]}
    assert reasons == {"NO_ALLOWANCE"}, "the limits were fought over"
