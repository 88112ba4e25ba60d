"""A fork: two copies of one device's journal are in use (protocol.md, I5). What it costs, and what it looks like.

Every branch is kept and settled, the device is suspended and its leases are burned: they count as used up. That holds
the limit for one copy. Each further copy can sell the rest of every lease once more; what really lands beyond a lease
is counted without cover, and flagged.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from typing import Any, Final

import msgspec
from sqlalchemy import Row, Select, func, select

from tallystick_server import auditing
from tallystick_server.database import Transaction
from tallystick_server.logs import LOG
from tallystick_server.placing import Sign
from tallystick_server.server import Server, not_found
from tallystick_server.tables import audit, devices, events, leases, redemption_uses, vouchers

_FORK: Final = "device.fork"


class BranchView(msgspec.Struct, frozen=True):
    """One journal of the device. `last_seq` is 0 where it has no event of its own yet: an older copy was presented."""

    branch: int
    events: int
    last_seq: int
    last_at: datetime | None
    received_at: datetime | None


class LeaseView(msgspec.Struct, frozen=True):
    """A lease that units are held for, or that was released.

    `known_*` is what the server knows to be used of it, and `rest_*` what is left: of a burned lease, what each copy
    of a forked device can still sell, beyond the first. `uncovered_*` named this lease and had no cover. Amounts are
    minor units of `currency`; null: the voucher has no limit of that kind.
    """

    id: str
    number: int
    voucher_id: str
    code: str
    currency: str | None
    state: str
    expires_at: datetime
    units: int | None
    minor: int | None
    known_units: int
    known_minor: int
    rest_units: int | None
    rest_minor: int | None
    uncovered_units: int
    uncovered_minor: int
    branches: list[int]
    """Those whose events used it."""


class DeviceDetail(msgspec.Struct, frozen=True):
    """A device with its journal's branches and the leases that are open, burned or released."""

    id: str
    name: str
    store_id: str
    scope: str
    state: str
    enrolled_at: datetime
    last_sync_at: datetime | None
    acknowledged_seq: int
    durable_seq: int
    reported_epoch: int
    forked: bool
    branches: list[BranchView]
    leases: list[LeaseView]


async def note(
    transaction: Transaction, server: Server, device_id: str, sign: Sign, branch: int, *, now: datetime
) -> None:
    """Writes the fork into the audit, and with the device's first one the exposure, once its events are settled.

    Each branch writes no more than a line: a hostile till opens as many as it likes. `show` has the exposure of today.
    """
    detail: dict[str, Any] = {"sign": sign.value, "branch": branch}
    earlier = select(audit.c.id).where(audit.c.object == device_id, audit.c.action == _FORK).limit(1)
    if (await transaction.execute(earlier)).one_or_none() is None:
        burned = [one for one in await _leases(transaction, server, device_id) if one.state == "burned"]
        detail["leases"] = [msgspec.structs.asdict(one) for one in burned]
    LOG.warning("fork", device=device_id, branch=branch, sign=sign.value)
    await auditing.note(transaction, who=auditing.SERVER, action=_FORK, about=device_id, now=now, detail=detail)


async def show(transaction: Transaction, server: Server, device_id: str) -> DeviceDetail:
    """Raises `CallerError` (`NOT_FOUND`)."""
    row = (await transaction.execute(select(devices).where(devices.c.id == device_id))).one_or_none()
    if row is None:
        raise not_found("device")
    return DeviceDetail(
        id=row.id,
        name=row.name,
        store_id=row.store_id,
        scope=row.scope,
        state=row.state,
        enrolled_at=row.enrolled_at,
        last_sync_at=row.last_sync_at,
        acknowledged_seq=row.seq,
        durable_seq=row.durable_seq,
        reported_epoch=row.reported_epoch,
        forked=row.branches > 1,
        branches=await _branches(transaction, device_id, row.branches),
        leases=await _leases(transaction, server, device_id),
    )


async def _branches(transaction: Transaction, device_id: str, count: int) -> list[BranchView]:
    query = (
        select(
            events.c.branch,
            func.count().label("events"),
            func.max(events.c.seq).label("last_seq"),
            func.max(events.c.at).label("last_at"),
            func.max(events.c.received_at).label("received_at"),
        )
        .where(events.c.device_id == device_id)
        .group_by(events.c.branch)
    )
    found = {row.branch: BranchView(*row) for row in await transaction.execute(query)}
    return [found.get(branch, BranchView(branch, 0, 0, None, None)) for branch in range(count)]


async def _leases(transaction: Transaction, server: Server, device_id: str) -> list[LeaseView]:
    query = (
        select(leases, vouchers.c.code, vouchers.c.sha256)
        .join(vouchers, vouchers.c.id == leases.c.voucher_id)
        .where(leases.c.device_id == device_id, leases.c.state != "closed")
        .order_by(vouchers.c.code, leases.c.number)
    )
    rows = (await transaction.execute(query)).all()
    revisions = await server.revisions.get(transaction, {(row.voucher_id, row.sha256) for row in rows})
    currencies = {key: one.voucher.currency for key, one in revisions.items()}
    uncovered = await _uncovered(transaction, device_id)
    used_on = await _used_on(transaction, device_id)
    return [
        _view(row, currencies.get((row.voucher_id, row.sha256)), uncovered.get(row.id, (0, 0)), used_on[row.id])
        for row in rows
    ]


def _shown(device_id: str) -> Select[tuple[str]]:
    return select(leases.c.id).where(leases.c.device_id == device_id, leases.c.state != "closed")


def _view(row: Row[tuple[object, ...]], currency: str | None, over: tuple[int, int], on: list[int]) -> LeaseView:
    return LeaseView(
        id=row.id,
        number=row.number,
        voucher_id=row.voucher_id,
        code=row.code,
        currency=currency,
        state=row.state,
        expires_at=row.expires_at,
        units=row.units,
        minor=row.minor,
        known_units=row.known_units,
        known_minor=row.known_minor,
        rest_units=None if row.units is None else row.units - row.known_units,
        rest_minor=None if row.minor is None else row.minor - row.known_minor,
        uncovered_units=over[0],
        uncovered_minor=over[1],
        branches=sorted(on),
    )


async def _uncovered(transaction: Transaction, device_id: str) -> dict[str, tuple[int, int]]:
    """Units and minor by the lease that was to cover them and could not."""
    uses = redemption_uses
    query = (
        select(uses.c.lease_id, func.sum(uses.c.units), func.sum(uses.c.minor))
        .where(uses.c.issuer == device_id, uses.c.cover == "none", uses.c.lease_id.in_(_shown(device_id)))
        .group_by(uses.c.lease_id)
    )
    return {lease_id: (int(units), int(minor)) for lease_id, units, minor in await transaction.execute(query)}


async def _used_on(transaction: Transaction, device_id: str) -> dict[str, list[int]]:
    """The branches whose events used each lease."""
    uses = redemption_uses
    same = (events.c.device_id == uses.c.issuer) & (events.c.event_id == uses.c.redemption_id)
    query = (
        select(uses.c.lease_id, events.c.branch)
        .join(events, same)
        .where(uses.c.issuer == device_id, uses.c.lease_id.in_(_shown(device_id)))
        .distinct()
    )
    found: dict[str, list[int]] = defaultdict(list)
    for lease_id, branch in await transaction.execute(query):
        found[lease_id].append(branch)
    return found
