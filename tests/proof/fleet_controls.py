"""The fleet on a product that is broken on purpose: the same worlds, the same audit, and each break must be found.

A function of the product is taken from its source, changed in one place and put back in its stead, in this process.
"""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest import mock

from tallystick_server import redemptions, settling
from tests.proof.fleet_server import FleetServer
from tests.proof.fleet_till import FleetTill
from tests.proof.fleet_world import DAY_S, Profile, World
from tests.proof.tally import Tally

WORLDS_MAX = 6
_WITHOUT_CONSTRAINTS = (
    "PRAGMA foreign_keys = OFF",
    *(
        statement
        for table in ("redemption_uses", "redemptions")
        for statement in (
            f"CREATE TABLE plain AS SELECT * FROM {table}",
            f"DROP TABLE {table}",
            f"ALTER TABLE plain RENAME TO {table}",
        )
    ),
)


@contextmanager
def changed(module: Any, function: str, old: str, new: str) -> Iterator[None]:
    """`module.function` with `new` instead of `old`, which must be there once."""
    source = textwrap.dedent(inspect.getsource(getattr(module, function)))
    assert source.count(old) == 1, f"{function} has changed: the control has to be written anew"
    names: dict[str, Any] = {}
    broken_code = compile(source.replace(old, new), f"{function}, broken on purpose", "exec")
    exec(broken_code, vars(module), names)  # noqa: S102 - the product's own source, but for one line
    with mock.patch.object(module, function, names[function]):
        yield


# -- what is broken


@contextmanager
def identifiers_not_unique() -> Iterator[None]:
    """Neither the tables nor the settling know that an id was there before (I8)."""

    start = FleetServer.start

    def without_constraints(self: FleetServer) -> None:
        self.write(*_WITHOUT_CONSTRAINTS)
        start(self)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(FleetServer, "start", without_constraints))
        stack.enter_context(changed(redemptions, "_settle", "if before is not None:", "if False:"))
        before = "before = facts.redemptions.get(envelope.id)"
        stack.enter_context(changed(settling, "_redeem", before, "before = None"))
        yield


@contextmanager
def leases_returned_at_expiry() -> Iterator[None]:
    """A timer of the server gives back what is left of a lease that is over, without the device (I3)."""
    ask = FleetServer.ask

    def with_timer(self: FleetServer, *request: Any) -> Any:
        if self.is_up:
            _return_expired(self)
        return ask(self, *request)

    with mock.patch.object(FleetServer, "ask", with_timer):
        yield


def _return_expired(server: FleetServer) -> None:
    rows = server.read("SELECT id, voucher_id, units, minor, known_units, known_minor, expires_at FROM leases"
                       " WHERE state = 'open'")  # fmt: skip
    statements = []
    for lease, voucher, units, minor, known_units, known_minor, expires_at in rows:
        if datetime.fromisoformat(f"{expires_at[:19]}+00:00") > server.clock():
            continue
        for measure, granted, known in (("units", units, known_units), ("minor", minor, known_minor)):
            if granted is not None:
                statements.append(
                    f"UPDATE pools SET free = free + {granted - known}, held = held - {granted}, closed_used ="
                    f" closed_used + {known} WHERE voucher_id = '{voucher}' AND measure = '{measure}'"
                )
        statements.append(f"UPDATE leases SET state = 'closed' WHERE id = '{lease}'")
    if statements:
        server.write(*statements)


@contextmanager
def close_not_durable() -> Iterator[None]:
    """A crash in a sync forgets the close of a lease that the sync has sent."""
    persist, crash = FleetTill._persist, FleetTill.crash
    kept: dict[FleetTill, Path] = {}

    def persist_loosely(self: FleetTill, flow: Any, change: Any) -> None:
        image = self.path.with_name(f"{self.path.name}.loose")
        shutil.rmtree(image, ignore_errors=True)
        kept.pop(self, None)
        if type(change).__name__ == "Prepare" and self.path.exists():
            shutil.copytree(self.path, image)
            kept[self] = image
        persist(self, flow, change)

    def crash_and_forget(self: FleetTill) -> None:
        image = kept.pop(self, None)
        if image is not None and self.syncing and _only_closes(self.path, image):
            self.close()
            shutil.rmtree(self.path)
            image.rename(self.path)
        else:
            crash(self)

    with (
        mock.patch.object(FleetTill, "_persist", persist_loosely),
        mock.patch.object(FleetTill, "crash", crash_and_forget),
    ):
        yield


def _only_closes(now: Path, before: Path) -> bool:
    """Whether nothing but closes was recorded since: what a cashier was told is not what is forgotten here."""
    from benchmarks.audit import read_journal

    had = read_journal(before).events
    new = [event for event in read_journal(now).envelopes() if event["seq"] not in had]
    return bool(new) and all(event["type"] == "lease_close" for event in new)


# -- the worlds that provoke it

_BUSY = {"answer lost": 6.0, "request repeated": 3.0, "old message": 1.0, "no line": 1.0}
_SHORT = {"lease_ttl_s": DAY_S, "manifest_ttl_s": DAY_S, "offline_s": 3 * DAY_S}
BREAKS: dict[str, tuple[Callable[[], Any], Profile]] = {
    "redemption ids not unique": (identifiers_not_unique, Profile(3, 4, _BUSY)),
    "leases returned at expiry": (
        leases_returned_at_expiry,
        Profile(4, 8, {"outage": 4.0, "no line": 1.0, "clock set": 0.3}, _SHORT),
    ),
    "the close not durable": (
        close_not_durable,
        Profile(4, 6, {"till dies before the answer": 12.0}, _SHORT),
    ),
}


def broken(simulate: Callable[[str, Path, Profile], World], name: str, seed: int, work: Path) -> Tally:
    """Worlds until one of them does not hold."""
    what, profile = BREAKS[name]
    whole = Tally()
    for number in range(WORLDS_MAX):
        place = work / str(number)
        place.mkdir()
        with what():
            world = simulate(f"control {name} {seed}/{number}", place, profile)
        for sentence in world.failures:
            world.tally.fail(number, sentence)
        whole.add(world.tally)
        if not whole.holds:
            break
    return whole
