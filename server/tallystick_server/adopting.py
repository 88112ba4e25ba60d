"""Leases that a restored server has forgotten, and takes from the devices that hold them (protocol.md, section 7).

A device tells all leases it holds open at the place where its events go on. What is unknown is stored with that number,
its units move from `free` to `held` (I1), and `free` may fall below 0: then nothing is granted until it is back.

The list can name two leases of one voucher: the first was closed in the events that follow, the second granted after
that. The second is then put aside, which counts the same but leaves its place to the first, until that one is closed.

How much a device can claim has bounds: one list in each epoch, numbers above those that are known, no lease above the
voucher's limit, and no more leases in all than a device is ever granted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, func, insert, select, update

from tallystick_server import auditing
from tallystick_server.database import Transaction, chunks
from tallystick_server.devices import Device
from tallystick_server.ledger import PoolMoves, move_pools
from tallystick_server.logs import LOG
from tallystick_server.server import Ledger
from tallystick_server.settings import Settings
from tallystick_server.tables import devices, leases, pools, redemption_uses
from tallystick_shared.wire import DeviceState, Lease, SyncHead

_ASIDE = "lost"
"""`burned_by` of a lease that is put aside: its uses are covered, and its close returns the rest."""
NUMBER_MAX = 10**15


async def adopt(
    transaction: Transaction, settings: Settings, device: Device, head: SyncHead, ledger: Ledger, *, now: datetime
) -> None:
    """Takes the leases of `head.held` that are not known, before the events are settled that used them.

    Only from the first list in an epoch: later ones, at later places in the journal, name a part of the same leases.
    """
    mine = devices.c.id == device.id
    if (await transaction.execute(select(devices.c.adopted_epoch).where(mine))).scalar_one() >= ledger.server_epoch:
        return
    told = sorted(head.held or [], key=lambda one: one.number)
    known = await _known(transaction, device.id, told)
    limits = await _limits(transaction, sorted({one.voucher_id for one in told}))
    ids, numbers = {row.id for row in known}, {row.number for row in known if row.device_id == device.id}
    taken: list[Lease] = []
    room = settings.leases_per_device_max - await _count(transaction, device.id)
    for one in told:
        if one.id in ids:
            continue
        # what is not above the last known number was granted before, and would be known
        fits = device.lease_number < one.number <= NUMBER_MAX and len(taken) < room
        if not fits or one.number in numbers or not _makes_sense(one, limits.get(one.voucher_id, {})):
            LOG.warning("a lease is not adopted", device=device.id, lease=one.id, voucher=one.voucher_id)
            continue
        ids.add(one.id)
        numbers.add(one.number)
        taken.append(one)
    if taken:
        await _store(transaction, device, taken, now)
    highest = max([device.lease_number, min(head.lease_number, NUMBER_MAX), *(one.number for one in taken)])
    # a journal that came as a file may not be the last word of a till that goes on
    final = {"adopted_epoch": ledger.server_epoch} if head.server_epoch == ledger.server_epoch or head.retired else {}
    await transaction.execute(update(devices).where(mine).values(lease_number=highest, **final))


async def _count(transaction: Transaction, device_id: str) -> int:
    held = select(func.count()).where(leases.c.device_id == device_id, leases.c.state.in_(("open", "burned")))
    return int((await transaction.execute(held)).scalar_one())


async def take_up(transaction: Transaction, device: Device) -> None:
    """What was put aside is an open lease from the moment when no other one of its voucher is."""
    if device.state is DeviceState.LOST or device.branches > 1:
        return
    mine = (leases.c.device_id == device.id) & leases.c.state.in_(("open", "burned"))
    query = select(leases.c.id, leases.c.voucher_id, leases.c.state, leases.c.burned_by).where(mine)
    rows = (await transaction.execute(query.order_by(leases.c.number))).all()
    busy = {row.voucher_id for row in rows if row.state == "open"}
    for row in rows:
        if row.burned_by == _ASIDE and row.voucher_id not in busy:
            busy.add(row.voucher_id)
            change = update(leases).where(leases.c.id == row.id)
            await transaction.execute(change.values(state="open", burned_by=None))


async def _known(transaction: Transaction, device_id: str, told: Sequence[Lease]) -> list[Any]:
    """Every lease with one of these ids, and the device's own with one of these numbers."""
    columns = select(leases.c.id, leases.c.device_id, leases.c.number)
    found: list[Any] = []
    for part in chunks(told):
        same_id = columns.where(leases.c.id.in_([one.id for one in part]))
        same_number = columns.where(leases.c.device_id == device_id, leases.c.number.in_([one.number for one in part]))
        found += (await transaction.execute(same_id)).all()
        found += (await transaction.execute(same_number)).all()
    return found


async def _limits(transaction: Transaction, voucher_ids: Sequence[str]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for part in chunks(voucher_ids):
        query = select(pools.c.voucher_id, pools.c.measure, pools.c.limit).where(pools.c.voucher_id.in_(part))
        for voucher_id, measure, limit in await transaction.execute(query):
            found[voucher_id][measure] = limit
    return found


def _makes_sense(one: Lease, limits: dict[str, int]) -> bool:
    """Null exactly where the voucher has no such limit, and never more than all of it."""
    parts = {"units": one.units, "minor": one.minor}
    amounts = {measure: amount for measure, amount in parts.items() if amount is not None}
    return bool(limits) and amounts.keys() == limits.keys() and all(amounts[name] <= limits[name] for name in limits)


async def _store(transaction: Transaction, device: Device, taken: Sequence[Lease], now: datetime) -> None:
    held = select(leases.c.voucher_id).where(leases.c.device_id == device.id, leases.c.state == "open")
    busy = set((await transaction.execute(held)).scalars())
    burned = "forked" if device.branches > 1 else "lost" if device.state is DeviceState.LOST else None
    moves = PoolMoves()
    rows: list[dict[str, Any]] = []
    known = await _cover_earlier_uses(transaction, device.id, taken, moves)
    for one in taken:
        units, minor = known[one.id]
        by = burned or (_ASIDE if one.voucher_id in busy else None)
        busy.add(one.voucher_id)
        rows.append(
            {"id": one.id, "device_id": device.id, "number": one.number, "voucher_id": one.voucher_id,
             "units": one.units, "minor": one.minor, "known_units": units, "known_minor": minor,
             "state": "burned" if by else "open", "burned_by": by, "granted_at": now, "expires_at": one.expires_at}
        )  # fmt: skip
        for measure, amount in (("units", one.units), ("minor", one.minor)):
            if amount is not None:
                moves.add(one.voucher_id, measure, free=-amount, held=amount)
    await transaction.execute(insert(leases), rows)
    await move_pools(transaction, moves)
    below = await _overdrawn(transaction, sorted({one.voucher_id for one in taken}))
    if below:
        LOG.warning("adopted leases were granted to others meanwhile", device=device.id, vouchers=sorted(below))
    details = {
        one.id: {"device": device.id, "voucher": one.voucher_id, "units": one.units, "minor": one.minor,
                 "overdrawn": below.get(one.voucher_id, {})}
        for one in taken
    }  # fmt: skip
    await auditing.note_each(transaction, who=auditing.SERVER, action="lease.adopt", details=details, now=now)


async def _overdrawn(transaction: Transaction, voucher_ids: Sequence[str]) -> dict[str, dict[str, int]]:
    """By how much more of these vouchers is out than there is, by measure: what an early end of a recovery cost."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for part in chunks(voucher_ids):
        query = select(pools.c.voucher_id, pools.c.measure, pools.c.free)
        for voucher_id, measure, free in await transaction.execute(
            query.where(pools.c.voucher_id.in_(part), pools.c.free < 0)
        ):
            found[voucher_id][measure] = -free
    return found


async def _cover_earlier_uses(
    transaction: Transaction, device_id: str, taken: Sequence[Lease], moves: PoolMoves
) -> dict[str, tuple[int, int]]:
    """k of each lease: of its uses that came before the restore was declared, and were counted as without cover."""
    uses, by_id = redemption_uses, {one.id: one for one in taken}
    known = dict.fromkeys(by_id, (0, 0))
    covered: list[dict[str, str]] = []
    for part in chunks(sorted(by_id)):
        query = select(uses.c.redemption_id, uses.c.voucher_id, uses.c.lease_id, uses.c.units, uses.c.minor).where(
            uses.c.issuer == device_id, uses.c.lease_id.in_(part), uses.c.cover.in_(("none", "open"))
        )
        for row in await transaction.execute(query.order_by(uses.c.redemption_id)):
            lease = by_id[row.lease_id]
            units, minor = known[lease.id][0] + row.units, known[lease.id][1] + row.minor
            fits = (lease.units is None or units <= lease.units) and (lease.minor is None or minor <= lease.minor)
            if row.voucher_id == lease.voucher_id and fits:
                known[lease.id] = units, minor
                covered.append({"p_redemption_id": row.redemption_id, "p_voucher_id": row.voucher_id})
    if covered:
        change = update(uses).where(
            uses.c.issuer == device_id,
            uses.c.redemption_id == bindparam("p_redemption_id"),
            uses.c.voucher_id == bindparam("p_voucher_id"),
        )
        await transaction.execute(change.values(cover="lease"), covered)
    for lease_id, (units, minor) in known.items():
        moves.add(by_id[lease_id].voucher_id, "units", free=units, uncovered=-units)
        moves.add(by_id[lease_id].voucher_id, "minor", free=minor, uncovered=-minor)
    return known
