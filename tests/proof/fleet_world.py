"""A simulated fleet: a server, its tills, their cashiers' notes, and a scheduler with the only true clock.

All that happens is an event in one queue, in an order that follows from the seed.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from tallystick_client.errors import TallystickError
from tallystick_client.reports import Receipt, SyncReport
from tests.proof.fleet_line import Line
from tests.proof.fleet_server import FleetServer
from tests.proof.fleet_till import Device, FleetTill, TillClock
from tests.proof.tally import Tally

START = datetime(2026, 11, 23, 7, 0, tzinfo=UTC)
DAY_S = 86_400
URL = "http://tallystick.test"
VOUCHERS: list[dict[str, Any]] = [
    {"code": "OPEN", "discount": {"type": "percentage", "percent": 10}},
    {"code": "UNITS", "discount": {"type": "fixed", "amount_minor": 300}, "limits": {"total": 25}},
    {"code": "MONEY", "discount": {"type": "percentage", "percent": 33.3, "cap_minor": 400},
     "limits": {"budget_minor": 9000}},
    {"code": "BOTH", "discount": {"type": "percentage", "percent": 7.5, "cap_minor": 350},
     "limits": {"total": 30, "budget_minor": 6000}},
    *({"code": f"ALONE{n}", "discount": {"type": "fixed", "amount_minor": 100}, "limits": {"total": 1},
       "offline": {"policy": "exclusive"}} for n in range(4)),
    {"code": "SOFT", "discount": {"type": "fixed", "amount_minor": 50}, "limits": {"total": 10},
     "offline": {"policy": "soft", "max_units": 3, "max_minor": 100_000}},
    {"code": "CARD", "discount": {"type": "fixed", "amount_minor": 900}, "limits": {"total": 12},
     "offline": {"policy": "online_only"}},
    {"code": "ONCE", "discount": {"type": "fixed", "amount_minor": 120}, "limits": {"total": 40, "per_customer": 2}},
]  # fmt: skip


class Note(NamedTuple):
    """What a till told its cashier. `server_life`: how often the server had been restored by then."""

    id: str
    device: str
    disk: str
    online: bool
    minors: dict[str, int]
    server_life: int


@dataclass
class Restore:
    """A copy of the database was put in the place of a later one. `declared_at`: None as long as nobody said so."""

    at: datetime
    declared_at: datetime | None = None


@dataclass
class Profile:
    """Of a world. `rates`: by kind of fault, how many times as often as it usually comes; 0 where it is off."""

    tills: int = 5
    days: int = 8
    rates: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


class World:
    def __init__(self, name: str, work: Path, profile: Profile) -> None:
        self.chance = random.Random(name)
        self.work, self.profile, self.tally = work, profile, Tally()
        self.at, self._order, self._queue = START, itertools.count(), list[tuple[datetime, int, Callable[[], None]]]()
        self._trace = hashlib.sha256()
        self.server = FleetServer(work / "server", lambda: self.at, **profile.settings)
        self.line = Line(self.server, self.chance, self.hits, self.later, self.trace)
        self.tills: list[FleetTill] = []
        self.devices: list[Device] = []
        self.copies: list[Path] = []
        self.backup: Path | None = None
        self.restores: list[Restore] = []
        self.notes: list[Note] = []
        self.destroyed: set[bytes] = set()
        self.limits: dict[tuple[str, str], int] = {}
        self.unknown_to_server: dict[str, tuple[str, int, int]] = {}
        self.released: dict[str, tuple[int, int]] = {}
        self.forgotten_revisions: set[tuple[str, str]] = set()
        self.voids: dict[str, str] = {}
        self.seen: dict[str, dict[str, tuple[int, ...]]] = {}
        self.noted: dict[str, tuple[int, int]] = {}
        self.devices_in_backup = 0
        self.rotated = 0
        self.changed_vouchers = False
        self.acknowledged: dict[bytes, int] = {}
        self.orders = itertools.count(1)
        self.failures: list[str] = []
        self.healing = False

    # -- time and chance

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.at + timedelta(seconds=seconds), next(self._order), what))

    def run(self, until: datetime) -> None:
        while self._queue and self._queue[0][0] <= until:
            at, _, what = heapq.heappop(self._queue)
            self.at = max(self.at, at)
            what()
        self.at = max(self.at, until)

    def forget_events(self) -> None:
        self._queue.clear()

    def trace(self, what: str) -> None:
        self._trace.update(f"{self.at.isoformat()} {what}\n".encode())

    @property
    def digest(self) -> str:
        """Of all that happened: the same for the same world."""
        return self._trace.hexdigest()

    def hits(self, kind: str, often: float) -> bool:
        """Whether a fault of this kind comes now; it is counted."""
        rate = 0.0 if self.healing else self.profile.rates.get(kind, 0.0)
        came = self.chance.random() < often * rate
        if came:
            self.tally.fault(kind)
            self.trace(kind)
        return came

    def fail(self, what: str) -> None:
        self.trace(what)
        self.failures.append(what)

    # -- the fleet

    def publish(self) -> None:
        self.server.operate("POST", "scopes", {"name": "branch"})
        for voucher in VOUCHERS:
            status, answer = self.server.operate("POST", "vouchers?scope=main&scope=branch", voucher)
            assert status == 201, answer
            self.note_limits(voucher)

    def note_limits(self, voucher: Mapping[str, Any]) -> None:
        """The highest that a limit ever was: what was granted under it stays good when it is lowered."""
        for measure, name in (("units", "total"), ("minor", "budget_minor")):
            limit = voucher.get("limits", {}).get(name)
            if limit is not None:
                key = voucher["code"], measure
                self.limits[key] = max(limit, self.limits.get(key, 0))

    def codes(self) -> list[str]:
        return [str(one["code"]) for one in VOUCHERS]

    def enrol(self) -> FleetTill:
        name = f"till-{len(self.devices) + 1}"
        device = Device(name)
        self.devices.append(device)
        till = self.new_till(device, self.work / name)
        token = self.server.token(name)
        errors: list[TallystickError] = []

        def first_sync(error: TallystickError | None) -> None:
            if error is not None:
                errors.append(error)
            if till in self.tills and len(errors) < 50:
                self.later(600 * bool(errors), lambda: self.sync(till, retry))

        def retry(error: TallystickError | None) -> None:
            if error is not None:
                first_sync(error)

        def again(error: TallystickError | None) -> None:
            nonlocal token
            if error is not None and len(errors) < 50:
                errors.append(error)
                if error.code == "BAD_TOKEN":  # a restore has forgotten it: the operator makes another one
                    self.server.start_again()
                    token = self.server.token(name)
                self.later(600, lambda: till.enrol(URL, token, again))
            elif error is not None:
                self.fail(f"{name} cannot be enrolled: {error}")
            else:
                self.tills.append(till)
                device.id = till.open().config.device
                first_sync(None)

        till.enrol(URL, token, again)
        return till

    def new_till(self, device: Device, path: Path) -> FleetTill:
        return FleetTill(device, path, TillClock(path.name, lambda: self.at), self.later, self.line.send)

    # -- what cashiers write down

    def told(self, till: FleetTill, receipt: Receipt) -> None:
        """A receipt was shown: for the cashier, it is done."""
        if not receipt.redeemed:
            return
        minors = {one.code: one.discount_minor for one in receipt.result.applied}
        life = len(self.restores)
        self.notes.append(Note(receipt.id, till.device.name, till.path.name, receipt.online, minors, life))
        self.tally.see("redeemed online" if receipt.online else "redeemed offline")
        self.trace(f"told {till.path.name} {receipt.id} {sorted(minors.items())}")

    def sync(self, till: FleetTill, then: Callable[[TallystickError | None], None] = lambda error: None) -> None:
        """`then` gets the error with which it ended, if it did."""
        life = len(self.restores)

        def over(report: SyncReport | None, error: TallystickError | None) -> None:
            self._synced(till, report, error)
            if report is not None and life == len(self.restores):
                self._note_acknowledged(till)
            then(error)

        till.sync(over)

    def _note_acknowledged(self, till: FleetTill) -> None:
        """What this very server has acknowledged. Nothing while it was restored and does not know it, or the till does
        not: what the till takes for acknowledged is then of the database that was thrown away."""
        if till.keeper is None or (self.restores and self.restores[-1].declared_at is None):
            return
        with till.keeper.journal.read() as view:
            state = view.state
            life, upto = self.noted.get(till.path.name, (0, 0))
            since = upto if life == len(self.restores) else 0
            rows = view.run(
                "SELECT envelope FROM events WHERE seq > ? AND seq <= ?", (since, state.acknowledged_seq)
            ).fetchall()
        if self.restores and self.server.read("SELECT server_epoch FROM server")[0][0] != state.server_epoch:
            return
        self.noted[till.path.name] = len(self.restores), state.acknowledged_seq
        self.acknowledged.update(dict.fromkeys((bytes(raw) for (raw,) in rows), len(self.restores)))
        self.tally.see("events acknowledged", len(rows))

    def _synced(self, till: FleetTill, report: SyncReport | None, error: TallystickError | None) -> None:
        if error is not None:
            self.tally.see(f"sync ended with {error.code}")
            self.trace(f"sync {till.path.name} {error.code}")
        elif report is not None:
            self.tally.see("syncs")
            self.trace(f"sync {till.path.name} {report.acknowledged} {report.state} {report.bundle_version}")

        self._check_floors(till)

    def _check_floors(self, till: FleetTill) -> None:
        """I6, by what was seen after every sync of this disk: nothing it once believed goes down."""
        if till.keeper is None:
            return
        with till.keeper.journal.read() as view:
            floors = view.run("SELECT scope, server_epoch, version FROM floors").fetchall()
            root = view.run("SELECT max(version) FROM roots").fetchone()
            now: dict[str, tuple[int, ...]] = {scope: (epoch, version) for scope, epoch, version in floors}
            now |= {"lease number": (view.state.lease_number,), "root": root}
        before = self.seen.get(till.path.name, {})
        for what, value in before.items():
            reset = self.rotated and what not in ("lease number", "root")  # with new bundle keys
            if not reset and now.get(what, value) < value:
                self.fail(f"on {till.path.name} the floor of {what} went down from {value} to {now[what]}")
        self.seen[till.path.name] = now

    # -- what a restore of the server costs, and no client can mend

    def declare(self) -> None:
        """The operator says that the database was restored; from here on nothing is granted that others may hold."""
        restore = self.restores[-1]
        if restore.declared_at is not None:
            return
        self.server.start_again()
        self.note_windows()
        self.server.declare(all_known=len(self.devices) == self.devices_in_backup and self.chance.random() < 0.8)
        restore.declared_at = self.at

    def restore(self, backup: Path) -> None:
        """What the database that is thrown away gave out where it did not know better, and what is unknown after it."""
        if self.restores:
            self.note_windows()
        published = self._revisions()
        self.server.restore(backup)
        self.forgotten_revisions |= published - self._revisions()

    def _revisions(self) -> set[tuple[str, str]]:
        return set(self.server.read("SELECT voucher_id, sha256 FROM voucher_revisions"))

    def note_windows(self) -> None:
        """Leases and online redemptions that the server gave while it did not know, nor could, that it had forgotten
        others: between a restore and its declaration; and leases that it adopts once it is back to normal."""
        for restore in self.restores:
            until = restore.declared_at or self.at
            for lease, voucher, units, minor, at in self.server.read(
                "SELECT id, voucher_id, coalesce(units, 0), coalesce(minor, 0), granted_at FROM leases"
            ):
                if restore.at <= _time(at) <= until:
                    self.unknown_to_server[lease] = voucher, units, minor
            for one, voucher, units, minor, at in self.server.read(
                "SELECT u.redemption_id, u.voucher_id, u.units, u.minor, r.at FROM redemption_uses u JOIN redemptions r"
                " ON r.issuer = u.issuer AND r.redemption_id = u.redemption_id WHERE r.online = 1"
            ):
                if restore.at <= _time(at) <= until:
                    self.unknown_to_server[one] = voucher, units, minor
        recovering = False
        for action, lease in self.server.read("SELECT action, object FROM audit ORDER BY id"):
            if action in ("recovery.begin", "recovery.end"):
                recovering = action == "recovery.begin"
            elif action == "lease.adopt" and not recovering:
                query = "SELECT voucher_id, coalesce(units, 0), coalesce(minor, 0) FROM leases WHERE id = ?"
                self.unknown_to_server[lease] = self.server.read(query, lease)[0]


def _time(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def settings_of(rates: Mapping[str, float]) -> dict[str, Any]:
    """Leases end soon where time is what is tried."""
    return {"lease_ttl_s": 4 * DAY_S, "manifest_ttl_s": 2 * DAY_S, "token_ttl_s": 30 * DAY_S} | (
        {"lease_ttl_s": DAY_S} if rates.get("short leases") else {}
    )
