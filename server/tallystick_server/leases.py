"""Leases: who may sell which part of a limit offline (protocol.md, section 5).

Nothing here can exceed a limit: a grant moves units from `free` to `held` under the pool's lock, and they come back
only by the device's own close. What is decided here is how well they are spread, in this order:

1. a voucher's units are handed out ahead of its first day, so that tills have them in the morning;
2. a device gets its share by `demand`; where there are fewer units than devices, the likeliest sellers get one each,
   and of equally likely ones whoever asks;
3. where nothing is free, an idle lease of the unlikeliest holder is recalled for a device that is clearly likelier to
   sell, or one of a holder of twice its share, as the first device of a new server is; where each lease has too little
   left for one use, as of a budget, such rests are collected;
4. a lease past half its life is recalled and granted anew, so that it never expires while a till is offline and the
   spread follows demand.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Row, Select, and_, case, exists, func, insert, not_, or_, select, update

from tallystick_server import auditing
from tallystick_server.allotting import EXCLUSIVE, Allotting, Candidate
from tallystick_server.database import Transaction, chunks
from tallystick_server.demand import Demand
from tallystick_server.ledger import PoolMove, move_pools
from tallystick_server.server import new_id, not_found
from tallystick_server.settings import DAY_S, Settings
from tallystick_server.tables import demand, devices, leases, pools, scope_vouchers, vouchers
from tallystick_shared.errors import CallerError
from tallystick_shared.wire import Lease

RECENT_S: Final = 60 * DAY_S
"""Demand older than this says nothing any more."""
RECALLS_MAX: Final = 500
"""Leases of others recalled in one sync."""
PENDING_S: Final = DAY_S
"""A holder that was asked longer ago may be gone: nobody waits for it before asking another one."""


class Released(msgspec.Struct, frozen=True):
    """A lease that was released: what is known to be used of it, and what is free again. Minor in minor units."""

    id: str
    device_id: str
    voucher_id: str
    was: str
    known_units: int
    known_minor: int
    freed_units: int | None
    freed_minor: int | None


@dataclass(frozen=True)
class Asking:
    """The device that leases are decided for, as it stands in this sync."""

    device_id: str
    scope: str
    lease_number: int
    wants: Collection[str]


async def open_leases(transaction: Transaction, device_id: str) -> list[Row[Any]]:
    """What the device should hold as active: without those it has closed over unreadable events."""
    query = select(leases).where(
        leases.c.device_id == device_id, leases.c.state == "open", leases.c.close_seq.is_(None)
    )
    return list((await transaction.execute(query.order_by(leases.c.number))).all())


def as_lease(row: Any) -> Lease:
    return Lease(row.id, row.number, row.voucher_id, row.units, row.minor, row.expires_at)


async def lock(transaction: Transaction, lease_id: str) -> Row[Any] | None:
    """The lease, with its device locked: a sync that is under way would write over what is decided here."""
    query = select(leases).where(leases.c.id == lease_id)
    if (row := (await transaction.execute(query)).one_or_none()) is None:
        return None
    await transaction.execute(select(devices.c.id).where(devices.c.id == row.device_id).with_for_update())
    return (await transaction.execute(query)).one()


async def burn(transaction: Transaction, device_id: str, *, by: str) -> None:
    """The device's open leases count as used up. `by` is `lost` or `forked`; a fork outdoes a loss."""
    burnable = or_(leases.c.state == "open", and_(leases.c.state == "burned", leases.c.burned_by == "lost"))
    change = update(leases).where(leases.c.device_id == device_id, burnable)
    await transaction.execute(change.values(state="burned", burned_by=by))


async def release(transaction: Transaction, lease_id: str, *, now: datetime) -> Released:
    """An operator takes the rest of a lease back without the device: final, and at risk (protocol.md, section 5).

    The device may have used more than is known, or use it still: what it reports of it later counts without cover.
    Raises `CallerError` (`NOT_FOUND`, `WRONG_STATE`).
    """
    row = await lock(transaction, lease_id)
    if row is None:
        raise not_found("lease")
    if row.state not in ("open", "burned"):
        raise CallerError(f"this lease is {row.state}: nothing is held for it any more", code="WRONG_STATE")
    parts = (("units", row.units, row.known_units), ("minor", row.minor, row.known_minor))
    moves = [
        PoolMove(row.voucher_id, measure, free=granted - known, held=-granted, released_known=known)
        for measure, granted, known in parts
        if granted is not None
    ]
    await move_pools(transaction, moves)
    await transaction.execute(update(leases).where(leases.c.id == lease_id).values(state="released"))
    done = Released(
        lease_id,
        row.device_id,
        row.voucher_id,
        row.state,
        row.known_units,
        row.known_minor,
        None if row.units is None else row.units - row.known_units,
        None if row.minor is None else row.minor - row.known_minor,
    )
    await auditing.note(
        transaction, who=auditing.OPERATOR, action="lease.release", about=lease_id, now=now,
        detail=msgspec.structs.asdict(done),
    )  # fmt: skip
    return done


async def to_recall(transaction: Transaction, settings: Settings, device_id: str, *, now: datetime) -> list[str]:
    """Ids of the device's open leases that it is asked to close: recalled, withdrawn, growing old, or overdrawn.

    Overdrawn: more of the voucher is out than its limit allows, as after a lowered limit. Whoever holds something that
    is not used yet gives it back, one device after the other, until nothing is missing any more.
    """
    half_life = now + timedelta(seconds=settings.lease_ttl_s / 2)
    growing_old = and_(
        leases.c.expires_at <= half_life,
        or_(vouchers.c.valid_until.is_(None), vouchers.c.valid_until > leases.c.expires_at),
    )
    overdrawn = exists().where(pools.c.voucher_id == leases.c.voucher_id, pools.c.free < 0)
    query = (
        select(leases.c.id)
        .join(vouchers, vouchers.c.id == leases.c.voucher_id)
        .where(leases.c.device_id == device_id, leases.c.state == "open", leases.c.close_seq.is_(None))
        .where(or_(leases.c.recalled_at.is_not(None), vouchers.c.deactivated_at.is_not(None), growing_old, overdrawn))
        .order_by(leases.c.number)
    )
    return list((await transaction.execute(query)).scalars())


async def allot(transaction: Transaction, settings: Settings, asking: Asking, *, now: datetime) -> list[Lease]:
    """New leases for one device, stored; leases of others may be marked as recalled on the way."""
    counted = select(func.count()).where(leases.c.device_id == asking.device_id, leases.c.state == "open")
    room = settings.leases_per_device_max - (await transaction.execute(counted)).scalar_one()
    candidates = await _candidates(transaction, settings, asking, now) if room > 0 else []
    if not candidates:
        return []
    scores = await _demand(transaction, settings, asking, now)
    holders = await _holders(transaction, settings, asking, now)
    allotting = Allotting(asking.device_id, asking.wants, scores, holders, settings.lease_units_max)
    chosen, recalled = _choose(allotting, candidates, room)
    for some in chunks(recalled):
        await transaction.execute(update(leases).where(leases.c.id.in_(some)).values(recalled_at=now))
    await _lock(transaction, chosen)
    parts = [(one, part) for one in chosen if (part := allotting.part(one)) is not None]
    return await _store(transaction, settings, asking, parts, now)


def _choose(allotting: Allotting, candidates: list[Candidate], room: int) -> tuple[list[Candidate], list[str]]:
    """What is granted and which leases are recalled, where there is room for some only: first what a customer waits
    for, then the likeliest to sell; of each, what is free before what others hold."""
    candidates.sort(key=lambda one: (-allotting.mine(one), one.voucher_id))
    wanted = {one.voucher_id for one in candidates if allotting.is_wanted(one)}
    chosen: list[Candidate] = []
    recalled: list[str] = []
    for first in (True, False):
        some = [one for one in candidates if (one.voucher_id in wanted) is first]
        free = [one for one in some if allotting.part(one) is not None][:room]
        chosen += free
        room -= len(free)
        for one in some:
            if one.slots <= 0 < room and len(recalled) < RECALLS_MAX:
                lease_id = allotting.recallable(one)
                recalled += [] if lease_id is None else [lease_id]
                # room is kept until it comes: a full device is waited for by nobody
                room -= lease_id is not None or (first and allotting.is_coming(one))
    return chosen, recalled


def _in_reach(scope: str, settings: Settings, now: datetime) -> Select[Any]:
    """Vouchers of the scope that leases are made of, from some time before their first day to their last."""
    horizon = now + timedelta(seconds=settings.lease_horizon_s)
    return (
        select(vouchers.c.id)
        .join(scope_vouchers, scope_vouchers.c.voucher_id == vouchers.c.id)
        .where(
            scope_vouchers.c.scope == scope,
            vouchers.c.deactivated_at.is_(None),
            vouchers.c.status == "active",
            vouchers.c.policy.in_(("quota", EXCLUSIVE)),
            or_(vouchers.c.valid_from.is_(None), vouchers.c.valid_from <= horizon),
            or_(vouchers.c.valid_until.is_(None), vouchers.c.valid_until > now),
        )
    )


def _without_mine(query: Select[Any], device_id: str) -> Select[Any]:
    mine = select(leases.c.voucher_id).where(leases.c.device_id == device_id, leases.c.state == "open")
    return query.where(vouchers.c.id.not_in(mine))


async def _candidates(transaction: Transaction, settings: Settings, asking: Asking, now: datetime) -> list[Candidate]:
    units, minor = pools.alias("pool_units"), pools.alias("pool_minor")
    query = (
        _without_mine(_in_reach(asking.scope, settings, now), asking.device_id)
        .add_columns(
            vouchers.c.campaign_id,
            vouchers.c.policy,
            vouchers.c.valid_until,
            vouchers.c.largest_minor,
            units.c.free.label("units_free"),
            minor.c.free.label("minor_free"),
            (func.coalesce(units.c.held, 0) + func.coalesce(minor.c.held, 0)).label("held"),
        )
        .outerjoin(units, and_(units.c.voucher_id == vouchers.c.id, units.c.measure == "units"))
        .outerjoin(minor, and_(minor.c.voucher_id == vouchers.c.id, minor.c.measure == "minor"))
    )
    return [
        Candidate(
            row.id, row.campaign_id, row.policy, row.valid_until, row.largest_minor, row.units_free, row.minor_free,
            row.held > 0,
        )
        for row in await transaction.execute(query)
    ]  # fmt: skip


async def _demand(transaction: Transaction, settings: Settings, asking: Asking, now: datetime) -> Demand:
    """Among active devices heard of within a lease's life: one that is gone must not keep units from the others. Of
    other scopes only what is demanded of the vouchers in reach, counted by the database: a chain may have hundreds."""
    most = settings.leases_per_device_max
    recent = demand.c.at >= now - timedelta(seconds=RECENT_S)
    is_live = _is_live(settings, now)
    held = select(func.count()).where(leases.c.device_id == devices.c.id, leases.c.state == "open").scalar_subquery()
    # each lease had a number: most devices are not even counted
    is_full = case((devices.c.lease_number >= most, held >= most), else_=False)
    live = select(devices.c.id, is_full.label("is_full")).where(devices.c.scope == asking.scope, is_live)
    found = (await transaction.execute(live)).all()
    rows = (
        select(demand.c.device_id, demand.c.voucher_id, vouchers.c.campaign_id, demand.c.units)
        .join(vouchers, vouchers.c.id == demand.c.voucher_id)
        .join(devices, devices.c.id == demand.c.device_id)
        .where(devices.c.scope == asking.scope, recent)
    )
    here = [(a, b, c, n) for a, b, c, n in await transaction.execute(rows)]
    reach = _without_mine(_in_reach(asking.scope, settings, now), asking.device_id)
    has_it = exists().where(
        scope_vouchers.c.scope == devices.c.scope, scope_vouchers.c.voucher_id == demand.c.voucher_id
    )
    holds_it = exists().where(
        leases.c.device_id == devices.c.id, leases.c.voucher_id == demand.c.voucher_id, leases.c.state == "open"
    )
    outside = (
        select(demand.c.voucher_id, demand.c.units, func.count())
        .join(devices, devices.c.id == demand.c.device_id)
        .where(demand.c.voucher_id.in_(reach), devices.c.scope != asking.scope, recent, is_live, has_it)
        .where(~holds_it, not_(is_full))
        .group_by(demand.c.voucher_id, demand.c.units)
    )
    there = [(a, n, count) for a, n, count in await transaction.execute(outside)]
    return Demand([row.id for row in found], here, {row.id for row in found if row.is_full}, there)


def _is_live(settings: Settings, now: datetime) -> ColumnElement[bool]:
    seen = func.coalesce(devices.c.last_sync_at, devices.c.enrolled_at)
    return and_(devices.c.state == "active", seen >= now - timedelta(seconds=settings.lease_ttl_s))


async def _holders(transaction: Transaction, settings: Settings, asking: Asking, now: datetime) -> dict[str, list[Any]]:
    """Open leases of other devices on the vouchers in reach, by voucher. `pending`: it comes back soon. `undecided`:
    its device has closed it, and a person says what comes back. `sold`: units that its device sold or refused."""
    pending = and_(leases.c.close_seq.is_(None), leases.c.recalled_at > now - timedelta(seconds=PENDING_S))
    columns = (leases.c.id, leases.c.device_id, leases.c.voucher_id, leases.c.units, leases.c.minor,
               leases.c.known_units, leases.c.known_minor, leases.c.recalled_at, pending.label("pending"),
               leases.c.close_seq.is_not(None).label("undecided"), _is_live(settings, now).label("live"),
               (devices.c.scope != asking.scope).label("elsewhere"),
               func.coalesce(demand.c.units, 0).label("sold"))  # fmt: skip
    reach = _without_mine(_in_reach(asking.scope, settings, now), asking.device_id)
    sold = and_(
        demand.c.device_id == leases.c.device_id,
        demand.c.voucher_id == leases.c.voucher_id,
        demand.c.at >= now - timedelta(seconds=RECENT_S),
    )
    query = select(*columns).join(devices, devices.c.id == leases.c.device_id).outerjoin(demand, sold)
    found: dict[str, list[Any]] = defaultdict(list)
    for row in await transaction.execute(query.where(leases.c.state == "open", leases.c.voucher_id.in_(reach))):
        found[row.voucher_id].append(row)
    return found


async def _lock(transaction: Transaction, chosen: Sequence[Candidate]) -> None:
    """Locks the pools of these vouchers, in one order for everybody, and reads again what is free."""
    by_id = {one.voucher_id: one for one in chosen}
    for part in chunks(sorted(by_id)):
        query = select(pools).where(pools.c.voucher_id.in_(part)).order_by(pools.c.voucher_id, pools.c.measure)
        for row in await transaction.execute(query.with_for_update()):
            one = by_id[row.voucher_id]
            if row.measure == "units":
                one.units_free = row.free
            else:
                one.minor_free = row.free
            one.held = row.held > 0


async def _store(
    transaction: Transaction,
    settings: Settings,
    asking: Asking,
    parts: Sequence[tuple[Candidate, tuple[int | None, int | None]]],
    now: datetime,
) -> list[Lease]:
    granted: list[Lease] = []
    moves: list[PoolMove] = []
    for number, (one, (units, minor)) in enumerate(parts, asking.lease_number + 1):
        ends = now + timedelta(seconds=settings.lease_ttl_s)
        ends = ends if one.valid_until is None else min(ends, one.valid_until)
        granted.append(Lease(new_id(now), number, one.voucher_id, units, minor, ends))
        for measure, amount in (("units", units), ("minor", minor)):
            if amount is not None:
                moves.append(PoolMove(one.voucher_id, measure, free=-amount, held=amount))
    if not granted:
        return []
    await move_pools(transaction, moves)
    rows = [
        {"id": one.id, "device_id": asking.device_id, "number": one.number, "voucher_id": one.voucher_id,
         "units": one.units, "minor": one.minor, "state": "open", "granted_at": now, "expires_at": one.expires_at}
        for one in granted
    ]  # fmt: skip
    await transaction.execute(insert(leases), rows)
    top = update(devices).where(devices.c.id == asking.device_id)
    await transaction.execute(top.values(lease_number=granted[-1].number))
    return granted
