"""A server and its tills on disk, made once a process and copied for each case."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from multiprocessing.util import Finalize
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Self

from benchmarks.audit import Report, audit
from benchmarks.loopback import server_thread
from tallystick_client import Till
from tallystick_client.directory import CONFIG_NAME
from tallystick_client.errors import TallystickError
from tallystick_server import operations
from tallystick_server.settings import Settings
from tests.client.fake_clock import FakeClock
from tests.proof.till_day import SALES, VOUCHERS, Step

TILL = "till"


class Shop:
    """`work` holds `server` and a folder for each till. `clock` is the server's; whoever runs a till turns it too."""

    def __init__(self, work: Path) -> None:
        self.work, self.clock, self.url = work, FakeClock(), ""
        self.settings = Settings(data=work / "server", default_currency="EUR", backup="replicated")
        self.tills = [TILL]

    @classmethod
    def make(cls, work: Path) -> Self:
        """One till with a bundle and leases, and a few redemptions on the server and in its journal."""
        shop = cls(work)
        asyncio.run(operations.initialise(shop.settings, now=shop.clock.now()))
        shop.publish(VOUCHERS)
        with (
            shop.serving() as url,
            Till.enroll(shop.path(), url, shop.token(), name=TILL, clock=shop.clock) as till,
        ):
            for number in range(3):
                till.sync()
                for index, codes in enumerate(SALES):
                    order = Step(0, "redeem", f"first-{number}-{index}", customer=f"early-{number}").order()
                    till.redeem(order, codes)
                shop.clock.run(minutes=5)
            till.sync()
        return shop

    @classmethod
    def copy(cls, template: Path, work: Path) -> Self:
        shutil.copytree(template, work, dirs_exist_ok=True)
        shop = cls(work)
        shop.clock.run(hours=1)
        return shop

    def path(self, name: str = TILL) -> Path:
        return self.work / name

    def paths(self) -> list[Path]:
        return [self.path(name) for name in self.tills]

    def publish(self, vouchers: Sequence[dict[str, Any]]) -> None:
        file = self.work / "vouchers.ndjson"
        file.write_text("".join(json.dumps(one) + "\n" for one in vouchers))
        asyncio.run(operations.import_vouchers(self.settings, file, now=self.clock.now()))

    def token(self) -> str:
        return asyncio.run(operations.create_token(self.settings, store_id="store", now=self.clock.now()))

    @contextmanager
    def serving(self) -> Iterator[str]:
        """The server over HTTP in a thread, and all tills know where."""
        with server_thread(self.settings, self.clock.now) as (self.url, _):
            for path in self.paths():
                if (path / CONFIG_NAME).exists():
                    document = json.loads((path / CONFIG_NAME).read_bytes()) | {"server_url": self.url}
                    (path / CONFIG_NAME).write_text(json.dumps(document))
            yield self.url

    def open(self, name: str = TILL) -> Till:
        return Till.open(self.path(name), clock=self.clock)

    def converge(self) -> list[str]:
        """Syncs all tills until nothing waits; sentences on those that still have something, or cannot."""
        late = []
        for name in self.tills:
            try:
                with self.open(name) as till:
                    late += self._until_nothing_waits(name, till)
            except TallystickError as error:
                late.append(f"{name}: {error}")
        return late

    def _until_nothing_waits(self, name: str, till: Till, rounds: int = 8) -> list[str]:
        for _ in range(rounds):
            self.clock.run(minutes=1)
            till.sync()
            status = till.status()
            if not status.waiting and all(lease.state == "active" for lease in status.leases):
                return []
        return [f"{name}: {status.waiting} events wait, {status.leases}"]

    def audited(self) -> Report:
        """Of all tills whose enrolment came to its end."""
        tills = [path for path in self.paths() if (path / CONFIG_NAME).exists()]
        return asyncio.run(audit(f"sqlite+aiosqlite:///{self.settings.sqlite_file}", tills))


@cache
def template() -> Path:
    """The shop that this process copies."""
    folder = own_folder("shop")
    Shop.make(folder)
    return folder


def own_folder(name: str) -> Path:
    """In memory where that is possible; removed when this process ends."""
    base = Path("/dev/shm")
    folder = Path(mkdtemp(dir=base if base.is_dir() else None, prefix=f"tallystick-proof-{name}-"))
    Finalize(None, shutil.rmtree, (folder,), {"ignore_errors": True}, exitpriority=1)
    return folder
