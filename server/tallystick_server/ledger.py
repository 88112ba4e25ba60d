"""What settling and redeeming write, set by set: pools, uses by customer, demand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Table, bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite

from tallystick_server.database import Transaction, chunks
from tallystick_server.tables import customer_uses, demand, pools, vouchers

DEMAND_ADDED_MAX: Final = 1_000
"""Units that one request can add to a device's demand for a voucher, whatever the device says."""


@dataclass
class PoolMove:
    """A change to one pool (I1); all its fields together leave the sum as it is."""

    voucher_id: str
    measure: str
    free: int = 0
    online: int = 0
    uncovered: int = 0
    voided: int = 0
    held: int = 0
    closed_used: int = 0
    released_known: int = 0


class PoolMoves:
    """Changes to pools, added up, so that each pool is written once."""

    def __init__(self) -> None:
        self._moves: dict[tuple[str, str], PoolMove] = {}

    def add(self, voucher_id: str, measure: str, **change: int) -> None:
        move = self._moves.setdefault((voucher_id, measure), PoolMove(voucher_id, measure))
        for name, amount in change.items():
            setattr(move, name, getattr(move, name) + amount)

    def free(self, voucher_id: str, measure: str) -> int:
        """By how much these changes raise what is free."""
        move = self._moves.get((voucher_id, measure))
        return 0 if move is None else move.free

    def __iter__(self) -> Iterator[PoolMove]:
        return iter(self._moves.values())


async def move_pools(transaction: Transaction, moves: Iterable[PoolMove]) -> None:
    """In the order of voucher and measure, in which everybody locks pools. A pool that is not there is passed over."""
    ordered = sorted(moves, key=lambda move: (move.voucher_id, move.measure))
    if not ordered:
        return
    change = update(pools).where(
        pools.c.voucher_id == bindparam("p_voucher_id"), pools.c.measure == bindparam("p_measure")
    )
    columns = ("free", "online", "uncovered", "voided", "held", "closed_used", "released_known")
    change = change.values({name: pools.c[name] + bindparam(f"p_{name}") for name in columns})
    await transaction.execute(change, [{f"p_{k}": v for k, v in asdict(move).items()} for move in ordered])


async def count_customers(transaction: Transaction, units: Mapping[tuple[str, str], int]) -> None:
    """Adds to (or, below 0, takes from) what customers have used, by (voucher id, customer id)."""
    added = [_customer(key, n) for key, n in sorted(units.items()) if n > 0]
    taken = [_customer(key, n) for key, n in sorted(units.items()) if n < 0]
    if added:
        new = upsert(transaction, customer_uses)
        grown = {"units": customer_uses.c.units + new.excluded.units}
        await transaction.execute(
            new.on_conflict_do_update(index_elements=["voucher_id", "customer_id"], set_=grown), added
        )
    if taken:
        change = update(customer_uses).where(
            customer_uses.c.voucher_id == bindparam("p_voucher_id"),
            customer_uses.c.customer_id == bindparam("p_customer_id"),
        )
        change = change.values(units=customer_uses.c.units + bindparam("p_units"))
        await transaction.execute(change, [{f"p_{k}": v for k, v in row.items()} for row in taken])


async def count_customer_within(
    transaction: Transaction, voucher_id: str, customer_id: str, units: int, limit: int
) -> bool:
    """Adds `units` only where the customer stays within `limit`; whether it did."""
    if units > limit:
        return False
    new = upsert(transaction, customer_uses).values(_customer((voucher_id, customer_id), units))
    grown = customer_uses.c.units + new.excluded.units
    result = await transaction.execute(
        new.on_conflict_do_update(
            index_elements=["voucher_id", "customer_id"], set_={"units": grown}, where=grown <= limit
        )
    )
    return bool(result.rowcount)


async def note_demand(transaction: Transaction, device_id: str, units: Mapping[str, int], *, now: datetime) -> None:
    """Adds to what a device sold or had to refuse, by voucher id; ids that are no voucher's are passed over."""
    known: set[str] = set()
    for part in chunks(sorted(units)):
        known.update((await transaction.execute(select(vouchers.c.id).where(vouchers.c.id.in_(part)))).scalars())
    rows = [
        {"device_id": device_id, "voucher_id": voucher_id, "units": min(units[voucher_id], DEMAND_ADDED_MAX), "at": now}
        for voucher_id in sorted(known)
    ]
    if rows:
        new = upsert(transaction, demand)
        grown = {"units": demand.c.units + new.excluded.units, "at": new.excluded.at}
        await transaction.execute(
            new.on_conflict_do_update(index_elements=["device_id", "voucher_id"], set_=grown), rows
        )


def upsert(transaction: Transaction, table: Table) -> Any:
    """An INSERT that can have an ON CONFLICT: both databases have it, each in its own dialect."""
    return sqlite.insert(table) if transaction.dialect.name == "sqlite" else postgresql.insert(table)


def _customer(key: tuple[str, str], units: int) -> dict[str, Any]:
    return {"voucher_id": key[0], "customer_id": key[1], "units": units}
