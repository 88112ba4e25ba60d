"""SIGKILL to the server, to tills, or to both, as processes of their own, with a redemption or a sync in flight.

The processes are the real commands. A kill counts only where it met something in flight: a till that had read an order
and not printed its receipt, or a sync that had started and not returned. Afterwards everything is started again, all
tills sync, and the audit, which shares no code with journal or ledger, must find its four zeros.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import uuid_utils

from benchmarks.audit import Report, audit
from benchmarks.loopback import ServerProcess, server_command, till_command

SEED = 20170101
KILLS = 50
TILLS = ("till-a", "till-b", "till-c")
VOUCHERS = [
    {"code": "MANY", "discount": {"type": "fixed", "amount_minor": 75}, "limits": {"total": 900}},
    {"code": "FEW", "discount": {"type": "fixed", "amount_minor": 125}, "limits": {"total": 40}},
    {"code": "BUDGET", "discount": {"type": "fixed", "amount_minor": 30}, "limits": {"budget_minor": 20_000}},
    {"code": "FREE", "discount": {"type": "percentage", "percent": 10}},
]


class Shop:
    """A server process, three tills, and the redemptions that customers still wait for."""

    def __init__(self, work: Path) -> None:
        self.work, self.data = work, work / "server"
        self.tills = [work / name for name in TILLS]
        self.server = ServerProcess(self.data, {"TALLYSTICK_DEFAULT_CURRENCY": "USD"})
        self.chance = random.Random(SEED)
        self.receipts: dict[str, dict[str, Any]] = {}
        self.kills = {"till redeeming": 0, "till syncing": 0, "server syncing": 0, "both": 0}
        self._number = 0

    def open(self) -> None:
        catalogue = self.work / "vouchers.ndjson"
        catalogue.write_text("".join(json.dumps(voucher) + "\n" for voucher in VOUCHERS))
        environment = os.environ | {"TALLYSTICK_DEFAULT_CURRENCY": "USD"}
        for arguments in (["init"], ["import", str(catalogue)]):
            subprocess.run(
                [*server_command(), "--data", str(self.data), *arguments],
                check=True, capture_output=True, env=environment,
            )  # fmt: skip
        url = self.server.start()
        for till in self.tills:
            token = subprocess.run(
                [*server_command(), "--data", str(self.data), "token", "--store", till.name],
                check=True, capture_output=True, text=True,
            ).stdout.split()[-1]  # fmt: skip
            subprocess.run([*till_command(till), "enroll", url, token], check=True, capture_output=True)
            assert self.sync(till) == 0

    def request(self) -> bytes:
        self._number += 1
        code = self.chance.choice([voucher["code"] for voucher in VOUCHERS])
        order = {
            "id": f"order-{self._number}",
            "currency": "USD",
            "lines": [{"id": "1", "product_id": "p", "quantity": 2, "unit_price_minor": 1000 + self._number % 97}],
        }
        return msgspec.json.encode({"id": str(uuid_utils.uuid7()), "order": order, "codes": [code]}) + b"\n"

    def redeem(self, till: Path, requests: list[bytes], *, kill_after: int | None) -> int:
        """Streams requests through one process; kills it after so many receipts. Returns the receipts read."""
        command = [*till_command(till), "redeem", "--stream", "-"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"".join(requests))
            process.stdin.close()
            said = 0
            for line in process.stdout:
                if not line.endswith(b"\n"):
                    break  # torn by the kill: a cashier saw no receipt
                said += 1
                self.note(json.loads(line))
                if said == kill_after:
                    process.kill()
            process.wait()
            if kill_after is not None and process.returncode == -signal.SIGKILL and said < len(requests):
                self.kills["till redeeming"] += 1
            return said

    def note(self, receipt: dict[str, Any]) -> None:
        before = self.receipts.setdefault(receipt["id"], receipt)
        assert before == receipt, "a till gave two different receipts for one redemption"

    def sync(self, till: Path) -> int:
        return subprocess.run([*till_command(till), "sync"], capture_output=True, timeout=60).returncode

    @contextmanager
    def syncing(self) -> Iterator[list[subprocess.Popen[bytes]]]:
        """All tills begin to sync, and a part of a second passes: the kill comes somewhere inside."""
        running = [
            subprocess.Popen([*till_command(till), "sync"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for till in self.tills
        ]
        with suppress(subprocess.TimeoutExpired):  # done already: the caller sees that nobody is in flight
            running[0].wait(self.chance.uniform(0.35, 0.7))
        try:
            yield running
        finally:
            for process in running:
                process.wait(60)

    def report(self) -> Report:
        return asyncio.run(audit(f"sqlite+aiosqlite:///{self.data / 'tallystick.sqlite3'}", self.tills))


def test_kills_in_flight_lose_double_and_exceed_nothing(tmp_path: Path) -> None:
    """50 SIGKILLs with a redemption or a sync in flight leave lost, doubled, over_limit and mismatched at 0."""
    shop = Shop(tmp_path)
    try:
        shop.open()
        while sum(shop.kills.values()) < KILLS:
            _redeem_and_kill(shop)
            _sync_and_kill(shop)
        for till in shop.tills:
            assert shop.sync(till) == 0
        assert shop.sync(shop.tills[0]) == 0
    finally:
        shop.server.stop()
    report = shop.report()
    assert sum(shop.kills.values()) >= KILLS
    assert min(shop.kills.values()) >= 3, shop.kills
    assert (report.lost, report.doubled, report.over_limit, report.mismatched) == (0, 0, 0, 0)
    assert report.broken == []
    assert report.redeemed >= 200
    # whatever a cashier saw is there, and nothing that no cashier asked for
    assert report.redeemed == sum(receipt["redeemed"] for receipt in shop.receipts.values())


def _redeem_and_kill(shop: Shop) -> None:
    """Every till is killed in the middle of redeeming, then redeems what its customers still wait for."""
    for till in shop.tills:
        requests = [shop.request() for _ in range(12)]
        said = shop.redeem(till, requests, kill_after=shop.chance.randrange(1, 9))
        # the one in flight may or may not have been recorded: it is asked again, with the same id
        again = requests[max(0, said - 1) :]
        assert shop.redeem(till, again, kill_after=None) == len(again)


def _sync_and_kill(shop: Shop) -> None:
    """The server, a till, or both die while all tills sync; then the server is started again."""
    victim = shop.chance.choice(["till syncing", "server syncing", "both"])
    with shop.syncing() as running:
        in_flight = [process for process in running if process.poll() is None]
        if victim != "server syncing" and in_flight:
            in_flight[0].kill()
        if victim != "till syncing" and in_flight:
            shop.server.stop(signal.SIGKILL)
        shop.kills[victim] += bool(in_flight)
    if victim != "till syncing" and in_flight:
        shop.server.start()
