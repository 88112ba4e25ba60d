"""The real server of a case, in a process of its own that can be killed and started again, on a clock the case turns.

Forked from a warm interpreter without threads, so that a start costs a tenth of a second. A control breaks the product
in that process only: `broken` names what.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import shutil
import sys
import time
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

VOUCHERS: list[dict[str, Any]] = [
    {"code": "OPEN", "discount": {"type": "percentage", "percent": 10}},
    {"code": "UNITS", "discount": {"type": "fixed", "amount_minor": 300}, "limits": {"total": 400}},
    {"code": "MONEY", "discount": {"type": "percentage", "percent": 50, "cap_minor": 400},
     "limits": {"budget_minor": 100_000}},
    {"code": "FEW", "discount": {"type": "fixed", "amount_minor": 75}, "limits": {"total": 12}},
    {"code": "ONLINE", "discount": {"type": "fixed", "amount_minor": 50}, "limits": {"total": 300},
     "offline": {"policy": "online_only"}},
]  # fmt: skip
CODES = [str(one["code"]) for one in VOUCHERS]
WAIT_S = 60.0


class Clock:
    """One wall clock for the server and the tills, in one boot: `posix_s`, shared with processes.

    It begins at the time of this machine, which the command line goes by, and stands still until `run`.
    """

    def __init__(self, posix_s: Any) -> None:
        self.posix_s = posix_s

    def __call__(self) -> datetime:
        return datetime.fromtimestamp(self.posix_s.value, UTC)

    now = __call__

    def monotonic(self) -> float:
        return float(self.posix_s.value)

    def boot_id(self) -> str:
        return "boot"

    def run(self, **time: float) -> None:
        self.posix_s.value += timedelta(**time).total_seconds()


@cache
def context() -> Any:
    """Processes that are forked from one that has imported the server, and has no threads."""
    forking = multiprocessing.get_context("forkserver")
    # pytest: a process that is forked imports what its parent's `__main__` does
    warm = [name for name in ("pytest",) if name in sys.modules]
    forking.set_forkserver_preload(["tests.proof.wire_serving", *warm])
    return forking


def new_clock() -> Clock:
    return Clock(context().Value("d", time.time()))


class Server:
    """`start` and `kill`, any number of times, on one port. `data`: as `prepared` left it."""

    def __init__(self, data: Path, clock: Clock, broken: str = "") -> None:
        self.data, self.clock, self.broken = data, clock, broken
        self.port = 0
        self._process: Any = None

    @property
    def database_url(self) -> str:
        return f"sqlite+aiosqlite:///{self.data / 'tallystick.sqlite3'}"

    def start(self) -> int:
        """Its port. Returns when it answers."""
        from tests.proof.wire_serving import serve

        mine, theirs = context().Pipe(duplex=False)
        given = (self.data, self.clock.posix_s, self.port, self.broken, theirs)
        self._process = context().Process(target=serve, args=given, name="tallystick-server")
        self._process.start()
        theirs.close()
        try:
            if not mine.poll(WAIT_S):
                raise RuntimeError("the server did not start")
            self.port = mine.recv()
        finally:
            mine.close()
        return self.port

    def kill(self) -> None:
        """SIGKILL, in the midst of whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
            self._process = None


class Prepared:
    """A server with vouchers, and enrolled tills that have synced: made once a process, copied for every case."""

    def __init__(self, work: Path, tills: int) -> None:
        self.work = work
        self.names = [f"till-{number}" for number in range(tills)]
        self.operator_key = asyncio.run(self._initialise())

    async def _initialise(self) -> str:
        from tallystick_server import operations

        settings = settings_of(self.work / "server")
        key = await operations.initialise(settings, now=datetime.now(UTC))
        path = self.work / "vouchers.ndjson"
        path.write_text("".join(json.dumps(one) + "\n" for one in VOUCHERS))
        await operations.import_vouchers(settings, path, now=datetime.now(UTC))
        return key

    def enrol(self) -> None:
        """The tills, through a server that runs for that."""
        from tallystick_client import Till

        clock = new_clock()
        server = Server(self.work / "server", clock)
        url = f"http://127.0.0.1:{server.start()}"
        try:
            for name in self.names:  # all of them first: a till alone would be granted everything
                Till.enroll(self.work / name, url, token(server.data), name=name, clock=clock).close()
            for name in self.names:
                with Till.open(self.work / name, clock=clock) as till:
                    till.sync()
                    for code in ("UNITS", "MONEY", "FEW"):  # asked for in vain, so that it is granted
                        till.redeem(order(f"{name}-{code}"), [code])
                    till.sync()
        finally:
            server.kill()

    def copy(self, work: Path) -> None:
        shutil.copytree(self.work, work, dirs_exist_ok=True)


def settings_of(data: Path) -> Any:
    """Small leases: most of each limit stays free, so that an online redemption whose answer is lost was counted."""
    from tallystick_server.settings import Settings

    return Settings(data=data, default_currency="EUR", lease_units_max=12)


def token(data: Path) -> str:
    from tallystick_server import operations

    return asyncio.run(operations.create_token(settings_of(data), store_id="309", now=datetime.now(UTC)))


def order(name: str, price_minor: int = 500) -> dict[str, Any]:
    lines = [{"id": "1", "product_id": "tea", "quantity": 2, "unit_price_minor": price_minor}]
    return {"id": name, "currency": "EUR", "lines": lines}
