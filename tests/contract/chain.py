"""A server and its tills in one process, over real HTTP and real disks, on one clock that a test turns."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.audit import Report, audit
from benchmarks.loopback import server_thread
from tallystick_client import Till
from tallystick_server import backups, operations, recovery
from tallystick_server.settings import Settings

START = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
VOUCHERS = [
    {"code": "OPEN", "discount": {"type": "percentage", "percent": 10}},
    {"code": "UNITS", "discount": {"type": "fixed", "amount_minor": 300}, "limits": {"total": 12}},
    {"code": "MONEY", "discount": {"type": "percentage", "percent": 50, "cap_minor": 400},
     "limits": {"budget_minor": 4000}},
    {"code": "ALONE", "discount": {"type": "fixed", "amount_minor": 100}, "limits": {"total": 1},
     "offline": {"policy": "exclusive"}},
]  # fmt: skip
CODES = [str(one["code"]) for one in VOUCHERS]


class Clock:
    """One wall clock for the server and all tills, in one boot. `turned`: by how much it was set forward."""

    def __init__(self) -> None:
        self.at = START
        self.turned = timedelta(0)

    def __call__(self) -> datetime:
        return self.at

    now = __call__

    def monotonic(self) -> float:
        return (self.at - START - self.turned).total_seconds() + 1000

    def boot_id(self) -> str:
        return "boot"

    def run(self, **passed: int) -> None:
        self.at += timedelta(**passed)

    def turn(self, **by: int) -> None:
        """Somebody sets the wall clock; no time passes."""
        self.at += timedelta(**by)
        self.turned += timedelta(**by)


class Chain:
    """A server that can be put back to a copy of its database, and its tills."""

    def __init__(self, work: Path) -> None:
        self.work, self.clock = work, Clock()
        self.settings = Settings(data=work / "server", default_currency="EUR")
        self.tills: dict[str, Till] = {}
        self.redeemed = 0
        self._serving = ExitStack()
        asyncio.run(operations.initialise(self.settings, now=self.clock()))
        path = work / "vouchers.ndjson"
        path.write_text("".join(json.dumps(one) + "\n" for one in VOUCHERS))
        asyncio.run(operations.import_vouchers(self.settings, path, now=self.clock()))
        self.url = self.start()

    def start(self) -> str:
        self.url, _ = self._serving.enter_context(server_thread(self.settings, self.clock))
        for name, till in self.tills.items():
            till.close()
            self.tills[name] = self._open(name)
        return self.url

    def stop(self) -> None:
        self._serving.close()

    def close(self) -> None:
        for till in self.tills.values():
            till.close()
        self.stop()

    def _open(self, name: str) -> Till:
        config = self.work / name / "config.json"
        document = json.loads(config.read_text()) | {"server_url": self.url}
        config.write_text(json.dumps(document))
        return Till.open(self.work / name, clock=self.clock)

    def enrol(self, name: str) -> Till:
        token = asyncio.run(operations.create_token(self.settings, store_id=name, now=self.clock()))
        self.tills[name] = Till.enroll(self.work / name, self.url, token, name=name, clock=self.clock)
        self.tills[name].sync()
        return self.tills[name]

    def back_up(self) -> Path:
        file = self.work / f"backup-{self.clock():%H%M%S}.sqlite3"
        asyncio.run(backups.back_up(self.settings, file, now=self.clock()))
        return file

    def restore(self, file: Path) -> None:
        """As an operator does it: stop, put the copy in its place, start."""
        self.stop()
        database = self.settings.sqlite_file
        assert database is not None
        for suffix in ("", "-wal", "-shm"):
            database.with_name(database.name + suffix).unlink(missing_ok=True)
        shutil.copy(file, database)
        self.start()

    def declare(self, *, all_known: bool = False) -> None:
        """`all_known`: no till enrolled since the backup, so the recovery ends by itself."""

        async def begin() -> None:
            async with operations.opened(self.settings, self.clock()) as server:
                now = self.clock()
                await server.database.write(lambda t: recovery.begin(t, now=now, all_known=all_known))

        asyncio.run(begin())

    def end(self) -> None:
        """An operator ends the recovery."""

        async def end() -> None:
            async with operations.opened(self.settings, self.clock()) as server:
                await server.database.write(lambda t: recovery.end(t, now=self.clock()))

        asyncio.run(end())

    def state(self) -> str:
        return asyncio.run(operations.read_status(self.settings, now=self.clock())).state

    def sell(self, name: str, code: str) -> bool:
        order = {"id": f"order-{self.redeemed}", "currency": "EUR", "customer": {"id": name},
                 "lines": [{"id": "1", "product_id": "tea", "quantity": 2, "unit_price_minor": 500}]}  # fmt: skip
        receipt = self.tills[name].redeem(order, [code])
        self.redeemed += receipt.redeemed
        return receipt.redeemed

    def act(self, chance: random.Random, count: int) -> None:
        """Sales, voids and syncs of all tills, in a random order."""
        for _ in range(count):
            self.clock.run(minutes=1)
            name = chance.choice(sorted(self.tills))
            action = chance.random()
            if action < 0.7:
                self.sell(name, chance.choice(CODES))
            elif action < 0.75:
                self.void_one(name, chance)
            else:
                self.tills[name].sync()

    def void_one(self, name: str, chance: random.Random) -> None:
        with self.tills[name]._keeper.journal.read() as view:
            query = "SELECT id FROM events WHERE type = 'redeem' AND id NOT IN (SELECT redemption_id FROM voids)"
            ids = [row[0] for row in view.run(query)]
        if ids:
            self.tills[name].void(chance.choice(ids))

    def sync_all(self, rounds: int = 3) -> None:
        for _ in range(rounds):
            self.clock.run(minutes=1)
            for till in self.tills.values():
                till.sync()

    def check(self) -> None:
        """Nothing lost, doubled, mismatched or beyond a limit, and nothing waits for a person."""
        report = self.audited()
        assert report.holds, report
        assert (report.redeemed, report.flagged) == (self.redeemed, {}), report

    def audited(self) -> Report:
        url = f"sqlite+aiosqlite:///{self.settings.sqlite_file}"
        return asyncio.run(audit(url, [self.work / name for name in self.tills]))
