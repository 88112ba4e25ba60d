"""What a case comes to: the auditor's zeros, what cashiers were told against what the server has, and cleanliness."""

from __future__ import annotations

import asyncio
import gc
import logging
import sqlite3
import sys
import threading
import time
import warnings
from collections import Counter as Count
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.audit import audit
from tallystick_client.errors import TallystickError
from tests.proof.wire_tills import WATCHDOG_S, Counter

if TYPE_CHECKING:
    from tests.proof.wire_case import Case


class Books:
    """Of one case. `close` heals, counts and compares."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._before = set(self._server_has())

    def _server_has(self) -> dict[str, tuple[str, int]]:
        """The redemptions of the server by id: what was asked, as a digest, and the amount."""
        query = (
            "SELECT r.redemption_id, r.content_sha256, coalesce(sum(u.minor), 0) FROM redemptions r"
            " LEFT JOIN redemption_uses u ON (u.issuer, u.redemption_id) = (r.issuer, r.redemption_id) GROUP BY 1, 2"
        )
        with closing(sqlite3.connect(self._case.server.data / "tallystick.sqlite3")) as connection:
            return {one: (digest, minor) for one, digest, minor in connection.execute(query)}

    def close(self, counters: Sequence[Counter]) -> None:
        case, tally = self._case, self._case.tally
        for counter in counters:
            tally.tills += 1
            try:
                tally.converged += self._rest(counter)
            except Exception as error:  # noqa: BLE001 - nothing may fail on whole wires
                case.fail(f"{counter.name} after the healing: {type(error).__name__}: {error}")
        new = sorted(path for path in case.work.glob("new-*") if (path / "config.json").exists())
        for path in new:
            tally.tills += 1
            tally.converged += self._first_sale(path)
        self._compare([counter.directory for counter in counters] + new, counters)
        if case.relay.trapped:
            case.fail(f"{case.relay.trapped} requests followed a redirect")
        errors = case.server.data / "errors.log"
        if errors.exists() and errors.stat().st_size:
            case.fail(f"the server had an error: {errors.read_text()[-600:]}")

    def _rest(self, counter: Counter) -> bool:
        """All sent; and who knows no result asks again: an attempt that was cut off is taken up under its id."""
        converged = counter.converge()
        for sale in counter.sales:
            told_by_server = sale.told and sale.told[-1].online
            if sale.asked_online and not sale.redeemed and not told_by_server:
                counter.ask(sale)
                self._case.tally.see("sales asked for again")
        return counter.converge() and converged

    def _first_sale(self, path: Path) -> bool:
        """A till that was enrolled through faults is one like any other."""
        case = self._case
        counter = Counter(path.name, path, case.relay.wire(path.name), case.clock, None, False)
        try:
            counter.open()
            counter.do("sync")
            if not counter.sell("OPEN").redeemed:
                case.fail(f"{path.name} cannot redeem after its first sync")
            return counter.converge()
        except TallystickError as error:
            case.fail(f"{path.name} after its enrolment: {type(error).__name__}: {error}")
            return False
        finally:
            counter.close()

    def _compare(self, directories: list[Path], counters: Sequence[Counter]) -> None:
        case, tally = self._case, self._case.tally
        report = asyncio.run(audit(case.server.database_url, directories))
        told = {one.id: one for counter in counters for sale in counter.sales for one in sale.told if one.redeemed}
        has = self._server_has()
        tally.acknowledged += len(told)
        tally.lost += report.lost + sum(one not in has for one in told)
        again = Count(digest for one, (digest, _) in has.items() if one not in self._before)
        tally.doubled += report.doubled + sum(count - 1 for count in again.values())
        wrong = sum(has[one][1] != receipt.result.discount_minor for one, receipt in told.items() if one in has)
        tally.mismatched += report.mismatched + wrong
        tally.over_limit += report.over_limit
        for sentence in report.broken:
            case.fail(sentence)
        untold = set(has) - self._before - set(told) - self._of_new(directories)
        if untold:
            case.fail(f"the server counted {len(untold)} redemptions that no cashier was told of: {sorted(untold)[:3]}")
        several = sum(len({one.id for one in sale.told if one.redeemed}) > 1 for c in counters for sale in c.sales)
        if several:
            case.fail(f"{several} sales have two receipts")
        for reason, count in report.flagged.items():
            tally.see(f"flagged {reason}", count)

    def _of_new(self, directories: list[Path]) -> set[str]:
        ids = set()
        for path in directories:
            if path.name.startswith("new-"):
                with closing(sqlite3.connect(path / "journal.sqlite3")) as connection:
                    ids |= {str(row[0]) for row in connection.execute("SELECT id FROM events WHERE type = 'redeem'")}
        return ids


class Clean:
    """That a case leaves no thread and no file open, and nobody complains: a context manager."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._unraisable: list[str] = []
        self._log = _Records()

    def __enter__(self) -> None:
        gc.collect()
        self._threads = set(threading.enumerate())
        self._files = open_files()
        self._warned = warnings.catch_warnings(record=True)
        self._warnings = self._warned.__enter__()
        warnings.simplefilter("always")
        self._hooks = sys.unraisablehook, threading.excepthook
        sys.unraisablehook = self._note
        threading.excepthook = self._note
        logging.getLogger("asyncio").addHandler(self._log)

    def _note(self, raised: Any) -> None:
        self._unraisable.append(f"{raised.exc_type.__name__}: {raised.exc_value}")

    def __exit__(self, *_: object) -> None:
        gc.collect()
        until = time.monotonic() + WATCHDOG_S
        left = self._left()
        while left and time.monotonic() < until:
            time.sleep(0.01)
            left = self._left()
        sys.unraisablehook, threading.excepthook = self._hooks
        logging.getLogger("asyncio").removeHandler(self._log)
        self._warned.__exit__(None, None, None)
        said = [f"{one.category.__name__}: {one.message}" for one in self._warnings or ()]
        for sentence in [*left, *self._unraisable, *said, *self._log.said]:
            self._case.fail(f"not clean: {sentence[:400]}")

    def _left(self) -> list[str]:
        threads = [f"the thread {one.name} is left" for one in set(threading.enumerate()) - self._threads]
        files = open_files()
        return threads + [f"left open: {what}" for number, what in files.items() if number not in self._files]


def open_files() -> dict[int, str]:
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[int(entry.name)] = str(entry.readlink())
        except FileNotFoundError:
            continue  # the listing itself
    return found


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(f"asyncio: {record.getMessage()}")
