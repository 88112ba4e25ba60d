"""What a changed limit of a voucher does to its pools: the sum of I1 holds for the new limit as it did for the old."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import and_, case, delete, func, insert, select, text, update

from tallystick_server.database import Transaction
from tallystick_server.tables import leases, pools, redemption_uses
from tallystick_shared.errors import InvalidInput
from tallystick_shared.model import Limits

MEASURES: Final = (("minor", "budget_minor"), ("units", "total"))
"""Measure of a pool and field of `limits`, in the order in which pools are locked."""


async def change_limits(transaction: Transaction, voucher_id: str, before: Limits, after: Limits) -> bool:
    """Moves what is free of each limit by its difference; whether open leases are to be asked back.

    They are where a limit was lowered to what is spoken for, and where one is new, which they do not know of. Free may
    fall below 0: then nothing is granted or redeemed online until enough has come back. Raises `InvalidInput`
    (`LEASED`) where a limit is removed that devices hold leases of.
    """
    if transaction.dialect.name == "postgresql" and any(
        getattr(before, name) is None and getattr(after, name) is not None for _, name in MEASURES
    ):
        # who has seen that there is no such limit counts nothing of it: they finish first, and others wait
        await transaction.execute(text("LOCK TABLE pools IN ACCESS EXCLUSIVE MODE"))
    locked = select(pools).where(pools.c.voucher_id == voucher_id).order_by(pools.c.measure).with_for_update()
    free = {row.measure: row.free for row in await transaction.execute(locked)}
    ask_back = False
    for measure, name in MEASURES:
        old, new = getattr(before, name), getattr(after, name)
        pool = and_(pools.c.voucher_id == voucher_id, pools.c.measure == measure)
        if old == new:
            continue
        if old is None:
            await _add(transaction, voucher_id, measure, new)
            ask_back = True
        elif new is None:
            await _must_not_be_leased(transaction, voucher_id, measure, name)
            await transaction.execute(delete(pools).where(pool))
        else:
            moved = {"limit": pools.c.limit + (new - old), "free": pools.c.free + (new - old)}
            await transaction.execute(update(pools).where(pool).values(moved))
            ask_back = ask_back or (new < old and free[measure] + new - old <= 0)
    return ask_back


async def _must_not_be_leased(transaction: Transaction, voucher_id: str, measure: str, name: str) -> None:
    query = select(func.count()).where(
        leases.c.voucher_id == voucher_id, leases.c.state == "open", leases.c[measure].is_not(None)
    )
    if held := (await transaction.execute(query)).scalar_one():
        many = f"{held} leases" if held > 1 else "a lease"
        expected = f"cannot be removed while devices hold {many} of it; with offline.policy online_only they come back"
        raise InvalidInput(f"limits.{name}", expected, code="LEASED")


async def _add(transaction: Transaction, voucher_id: str, measure: str, limit: int) -> None:
    """A pool as if the limit had always been there: what the ledger knows of is counted from it.

    Leases that have this measure (of an earlier limit) stay what they were; all else that was redeemed offline had no
    cover of this limit.
    """
    counted = await _used(transaction, voucher_id, measure) | await _leased(transaction, voucher_id, measure)
    free = limit - sum(amount for name, amount in counted.items() if name != "voided") + counted["voided"]
    pool = {"voucher_id": voucher_id, "measure": measure, "limit": limit, "free": free}
    await transaction.execute(insert(pools), pool | counted)


async def _used(transaction: Transaction, voucher_id: str, measure: str) -> dict[str, int]:
    amount, voided = redemption_uses.c[measure], redemption_uses.c[f"voided_{measure}"]
    online = redemption_uses.c.cover == "online"
    leased = and_(redemption_uses.c.cover == "lease", leases.c[measure].is_not(None))
    query = (
        select(
            _total(case((online, amount), else_=0)).label("online"),
            _total(case((online | leased, 0), else_=amount)).label("uncovered"),
            _total(voided).label("voided"),
        )
        .select_from(redemption_uses)
        .outerjoin(leases, leases.c.id == redemption_uses.c.lease_id)
        .where(redemption_uses.c.voucher_id == voucher_id)
    )
    return _whole((await transaction.execute(query)).one()._mapping)


async def _leased(transaction: Transaction, voucher_id: str, measure: str) -> dict[str, int]:
    granted, known = leases.c[measure], leases.c[f"known_{measure}"]
    state = leases.c.state
    query = select(
        _total(case((state.in_(("open", "burned")), granted), else_=0)).label("held"),
        _total(case((state == "closed", known), else_=0)).label("closed_used"),
        _total(case((state == "released", known), else_=0)).label("released_known"),
    ).where(leases.c.voucher_id == voucher_id, granted.is_not(None))
    return _whole((await transaction.execute(query)).one()._mapping)


def _total(amount: Any) -> Any:
    return func.coalesce(func.sum(amount), 0)


def _whole(totals: Any) -> dict[str, int]:
    """PostgreSQL sums up to a decimal."""
    return {name: int(total) for name, total in totals.items()}
