"""The audit of a simulated fleet: `benchmarks.audit` over both databases, and beside it what a fleet with faults needs.

Raw SQL, `json` and what the world wrote down; nothing here is shared with ledger, journal or engine.

What the design does not promise is reckoned, voucher by voucher, and nothing beyond it is let pass (`_allowances`):

- what the copies of a cloned till sold of a lease beyond what the server holds for it
- what was sold of a released lease beyond what was known of it then
- what a restored server gave out while nobody had told it that it was restored, or took in only after it was back
- of a voucher with the policy `soft`, its `max_units` for every copy of every till
- the server's own figure of what names a revision that a restore has forgotten
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import Counter, defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.audit import audit, read_journal
from tests.proof.fleet_till import Device, FleetTill
from tests.proof.fleet_world import World

Amount = tuple[str, str]
"""Of a voucher's code and a measure."""
MEASURES = ("units", "minor")
EXPLAINED_BY = {
    "LATE": {"clock", "outage", "reboot", "cloned", "suspend", "restored", "lost", "revoke"},
    "TIME_UNCERTAIN": {"clock", "reboot", "cloned", "restored"},
    "WITHOUT_COVER": {"cloned", "released", "restored"},
    "ALREADY_VOIDED": {"cloned", "restored"},
    "IDENTIFIER_REUSED": {"cloned"},
    "REVOKED_VOUCHER": {"revised"},
    "CUSTOMER_LIMIT": {"fleet"},
    "UNKNOWN_REVISION": {"restored"},
}
"""By flag, the faults of which one must have come to the device, or to all. Others are never raised."""


class Event(NamedTuple):
    device: str
    type: str
    id: str
    ref: str
    uses: list[dict[str, Any]]


class Facts:
    """Every event that is anywhere, once; and how the server accounts for leases."""

    def __init__(self, world: World) -> None:
        self.on_disks: set[bytes] = set()
        events: dict[tuple[str, bytes], Event] = {}
        for till in world.tills:
            journal = read_journal(till.path)
            self.on_disks |= {raw for raw, _ in journal.events.values()}
            for raw, _ in journal.events.values():
                events[journal.device, raw] = _event(journal.device, raw)
        self.on_server: set[bytes] = set()
        for device, raw in world.server.read("SELECT device_id, envelope FROM events"):
            self.on_server.add(bytes(raw))
            events[device, bytes(raw)] = _event(device, bytes(raw))
        self.events = list(events.values())
        self.codes = dict(world.server.read("SELECT id, code FROM vouchers"))
        self.leases = {
            row[0]: row[1:]
            for row in world.server.read(
                "SELECT id, device_id, voucher_id, state, units, minor, known_units, known_minor FROM leases"
            )
        }


def check(world: World) -> None:
    """Into the world's tally, and its failures in sentences."""
    url = f"sqlite+aiosqlite:///{world.server.file}"
    report = asyncio.run(audit(url, [till.path for till in world.tills], world.forgotten_revisions))
    for sentence in report.broken:
        world.fail(sentence)
    facts = Facts(world)
    tally = world.tally
    tally.acknowledged = len(world.notes)
    tally.lost += report.lost + _lost(world, facts)
    tally.doubled += report.doubled
    tally.mismatched += report.mismatched
    tally.over_limit += _over_limit(world, facts)
    _check_flags(world)
    tally.tills = len(world.tills)
    tally.converged = sum(_has_converged(world, till) for till in world.tills)


def _event(device: str, raw: bytes) -> Event:
    envelope = json.loads(raw)
    return Event(device, envelope["type"], envelope["id"], envelope.get("ref") or "", envelope["uses"])


def _lost(world: World, facts: Facts) -> int:
    """Receipts of which nothing is left on the server, though a disk or a database that had them was not destroyed."""
    known = {json.loads(raw)["id"] for raw in facts.on_server}
    rows = world.server.read("SELECT issuer, redemption_id FROM redemptions")
    effects = {redemption for _, redemption in rows}
    gone = {json.loads(raw)["id"] for raw in world.destroyed if raw not in facts.on_disks}
    lost = 0
    for note in world.notes:
        forgotten = note.online and note.server_life < len(world.restores)
        if note.id not in effects | known and note.id not in gone and not forgotten:
            world.fail(f"the receipt {note.id} of {note.disk} is nowhere ({'online' if note.online else 'offline'})")
            lost += 1
    for void_id, name in world.voids.items():
        if void_id not in known | gone:
            world.fail(f"the void {void_id} of {name} is nowhere")
            lost += 1
    for raw, life in world.acknowledged.items():
        forgotten = life < len(world.restores) and raw in world.destroyed
        if raw not in facts.on_server and not forgotten:
            world.fail(f"an event that the server acknowledged is gone: {raw[:120]!r}")
            lost += 1
    return lost


def _over_limit(world: World, facts: Facts) -> int:
    used, per_lease = _used(world, facts)
    allowed = _allowances(world, facts, per_lease)
    over = 0
    for amount, limit in world.limits.items():
        beyond = used[amount] - limit
        if beyond > 0:
            world.tally.see(f"{amount[1]} beyond a limit as declared", min(beyond, allowed[amount]))
        if beyond > allowed[amount]:
            world.fail(
                f"{used[amount]} {amount[1]} of {amount[0]} are used, of {limit} and {allowed[amount]} explained"
            )
            over += beyond - allowed[amount]
    return over


def _used(world: World, facts: Facts) -> tuple[Counter[Amount], dict[str, dict[str, int]]]:
    """By code and measure, less what was voided; and by lease."""
    taken: dict[tuple[str, str, str], tuple[int, int]] = {}
    per_lease: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(MEASURES, 0))
    for issuer, one, voucher, units, minor in world.server.read(
        "SELECT issuer, redemption_id, voucher_id, units, minor FROM redemption_uses"
    ):
        taken[issuer, one, voucher] = units, minor
    counted: set[tuple[str, str]] = set()
    for event in facts.events:
        for use in event.uses if event.type == "redeem" else ():
            taken.setdefault((event.device, event.id, use["voucher_id"]), (use["units"], use["minor"]))
            if use["lease"] and (event.id, use["voucher_id"]) not in counted:
                counted.add((event.id, use["voucher_id"]))
                per_lease[use["lease"]]["units"] += use["units"]
                per_lease[use["lease"]]["minor"] += use["minor"]
    used: Counter[Amount] = Counter()
    for (_, _, voucher), (units, minor) in taken.items():
        used[facts.codes.get(voucher, voucher), "units"] += units
        used[facts.codes.get(voucher, voucher), "minor"] += minor
    for voucher, units, minor in world.server.read(
        "SELECT voucher_id, voided_units, voided_minor FROM redemption_uses WHERE voided_units + voided_minor > 0"
    ):
        used[facts.codes.get(voucher, voucher), "units"] -= units
        used[facts.codes.get(voucher, voucher), "minor"] -= minor
    return used, per_lease


def _allowances(world: World, facts: Facts, per_lease: dict[str, dict[str, int]]) -> Counter[Amount]:
    allowed: Counter[Amount] = Counter()
    cloned = {device.id for device in world.devices if "cloned" in device.faults}
    voucher_of = {
        use["lease"]: (event.device, use["voucher_id"]) for event in facts.events for use in event.uses if use["lease"]
    }
    for lease, used in per_lease.items():
        device, voucher = voucher_of[lease]
        _, _, state, units, minor, known_units, known_minor = facts.leases.get(lease, ("", "", "", 0, 0, 0, 0))
        held = state in ("open", "burned")
        for measure, granted, known in (("units", units, known_units), ("minor", minor, known_minor)):
            counted = (granted if granted is not None and held else known) if state else 0
            key = facts.codes.get(voucher, voucher), measure
            if device in cloned:
                allowed[key] += max(0, used[measure] - counted)
            elif lease in world.released:
                allowed[key] += max(0, used[measure] - world.released[lease][MEASURES.index(measure)])
    for voucher, units, minor in world.unknown_to_server.values():
        allowed[facts.codes.get(voucher, voucher), "units"] += units
        allowed[facts.codes.get(voucher, voucher), "minor"] += minor
    allowed["SOFT", "units"] += 3 * sum(device.disks + device.older_copies for device in world.devices)
    return allowed


def _check_flags(world: World) -> None:
    """Each flag has a fault that explains it; a till that nothing was done to has none."""
    by_id = {device.id: device for device in world.devices}
    soft = {voucher for voucher, policy in world.server.read("SELECT id, policy FROM vouchers") if policy == "soft"}
    for device_id, reason, raw in world.server.read(
        "SELECT f.device_id, f.reason, e.envelope FROM flags f JOIN events e"
        " ON e.device_id = f.device_id AND e.branch = f.branch AND e.seq = f.seq ORDER BY f.id"
    ):
        world.tally.see(f"flagged {reason}")
        if reason == "WITHOUT_COVER" and soft & {use["voucher_id"] for use in json.loads(raw)["uses"]}:
            continue  # what a soft voucher's tills sell beyond its limit is said to be flagged
        device = by_id.get(device_id, Device("unknown"))
        named = {(use["voucher_id"], use["revision_sha256"]) for use in json.loads(raw)["uses"]}
        explained = EXPLAINED_BY.get(reason, set()) & _faults(world, device)
        if not explained or (reason == "UNKNOWN_REVISION" and not named & world.forgotten_revisions):
            world.fail(f"an event of {device.name} is flagged {reason}, and nothing explains it: {raw!r}")


def _faults(world: World, device: Device) -> set[str]:
    everywhere = {"restored"} if world.restores else set()
    return device.faults | everywhere | {"fleet"} | ({"revised"} if world.changed_vouchers else set())


def _has_converged(world: World, till: FleetTill) -> bool:
    """Everything it recorded is acknowledged, and what till and server say of each other is the same."""
    said = _disagreements(world, till)
    for sentence in said:
        world.fail(f"{till.path.name} ({', '.join(sorted(till.device.faults)) or 'no faults'}): {sentence}")
    return not said


def _disagreements(world: World, till: FleetTill) -> list[str]:
    said: list[str] = []
    state = till.open().journal.state()
    if till.last_error is not None:
        said.append(f"its last sync ended with {till.last_error.code}: {till.last_error}")
    if state.acknowledged_seq != state.head_seq:
        said.append(f"{state.head_seq - state.acknowledged_seq} events still wait")
    rows = world.server.read("SELECT state, scope, branches FROM devices WHERE id = ?", till.device.id)
    if not rows:
        return [*said, "the server does not know it"]
    known, scope, branches = rows[0]
    if state.device_state.value != known:
        said.append(f"it takes itself for {state.device_state.value}, and the server for {known}")
    cloned = "cloned" in till.device.faults
    if branches > 1 and not cloned:
        said.append("the server takes it for forked, and it is not")
    if known == "suspended" and branches == 1:
        said.append("it is suspended, and nobody suspended it")
    if known != "active":
        return said
    newest = world.server.read("SELECT version FROM scopes WHERE name = ?", scope)[0][0]
    if (state.scope, state.bundle_version) != (scope, newest):
        said.append(f"it has bundle {state.bundle_version} of {state.scope}, the newest is {newest} of {scope}")
    if not cloned and (differ := _lease_differences(world, till)):
        said.append(differ)
    return said


def _lease_differences(world: World, till: FleetTill) -> str:
    query = "SELECT id, units, minor, used_units, used_minor FROM leases WHERE state = 'active' ORDER BY id"
    theirs = (
        "SELECT id, units, minor, known_units, known_minor FROM leases WHERE device_id = ? AND state = 'open'"
        " AND close_seq IS NULL ORDER BY id"
    )
    mine, known = _rows(till.path, query), world.server.read(theirs, till.device.id)
    return "" if mine == known else f"it holds {mine}, and the server says {known}"


def _rows(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(f"file:{path / 'journal.sqlite3'}?mode=ro", uri=True)) as connection:
        return connection.execute(query).fetchall()
