"""Erasing bodies: those past their time, and all that name a customer who is to be forgotten (protocol.md, section 6).

Counts and the chain read only envelopes and `redemption_uses`, so a body can go and nothing that is counted changes:

- an event whose body is erased has an empty one; sent again it is still a duplicate, by the digest in its envelope;
- a void takes its amounts from `redemption_uses`, as before;
- the digest of what was asked stays with the redemption: without it the same sale could be counted twice;
- what customers have used is kept by customer and voucher, so that forgetting one changes nobody else's limit. One who
  is forgotten starts anew.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Row, bindparam, delete, exists, select, tuple_, update

from tallystick_server import auditing
from tallystick_server.customers import customer_of
from tallystick_server.database import Database, Transaction
from tallystick_server.server import read_ledger
from tallystick_server.settings import Settings
from tallystick_server.tables import customer_uses, events, flags, redemptions
from tallystick_shared.errors import CallerError, InvalidInput, Untrusted
from tallystick_shared.journal import EventType, read_envelope
from tallystick_shared.signing import sha256_hex

PAGE: Final = 500
"""Events read, and at most erased, in one transaction: at most 32 MB, and no till waits long."""
_KEY = (events.c.device_id, events.c.branch, events.c.seq)
_SALE = (redemptions.c.issuer, redemptions.c.redemption_id)
_WAITS = exists().where(*(flags.c[column.name] == column for column in _KEY), flags.c.state == "open")


@dataclass(frozen=True)
class Forgotten:
    """What was erased of a customer: ids at `redemptions`, and `bodies`.

    `waiting`: those of the bodies whose events wait for a person, who now has only the envelope to look at.
    `unreadable`: bodies that cannot be read and hold the customer's id somewhere; left for a person to judge.
    """

    redemptions: int
    bodies: int
    waiting: int
    unreadable: int


async def erase_old_bodies(settings: Settings, *, now: datetime) -> int:
    """Erases the bodies received longer ago than `body_retention_s` that nobody has to look at; how many.

    What the results of redemptions as old, or of those bodies, say of their customers goes too, online ones included.
    Raises `CallerError` (`NO_RETENTION`, `NOT_INITIALISED`).
    """
    if settings.body_retention_s is None:
        raise CallerError(
            "TALLYSTICK_BODY_RETENTION_S is not set, so bodies are kept for ever: set it to a number of seconds",
            code="NO_RETENTION",
        )
    before = now - timedelta(seconds=settings.body_retention_s)
    database = Database(settings)
    try:
        await database.must_be_ready()
        erased, _ = await _erase(database, (events.c.received_at < before) & ~_WAITS, None)
        results = await _erase_details(database, before)
        detail = {"bodies": erased, "results": results, "received_before": before.isoformat()}
        note = partial(
            auditing.note, who=auditing.OPERATOR, action="bodies.erase", about="events", now=now, detail=detail
        )
        await database.write(note)
    finally:
        await database.close()
    _scrub(settings)
    return erased


async def forget(settings: Settings, customer_id: str, *, now: datetime) -> Forgotten:
    """Erases whatever names this customer, in all branches of all journals; doing it again is harmless. Steps:

    1. every body that names the customer, and the bodies of voids of those redemptions, page by page
    2. in one transaction: the id at redemptions, what the customer has used, and the audit, which holds a digest

    In this order, so that after a crash the second run still finds everything.
    Raises `InvalidInput`, `CallerError` (`NOT_INITIALISED`).
    """
    if not 0 < len(customer_id) <= 256:
        raise InvalidInput("--customer", "must be a customer's id, of 1 to 256 characters")
    database = Database(settings)
    try:
        await database.must_be_ready()
        # 1
        async with database.read() as connection:
            query = select(redemptions.c.issuer, redemptions.c.redemption_id)
            found = await connection.execute(query.where(redemptions.c.customer_id == customer_id))
            mine = {(issuer, redemption_id) for issuer, redemption_id in found}
        search = _Search(customer_id, mine)
        bodies, waiting = await _erase(database, None, search.finds)
        # 2
        forgotten = Forgotten(len(mine), bodies, waiting, search.unreadable)
        await database.write(partial(_forget_accounts, customer_id=customer_id, forgotten=forgotten, now=now))
    finally:
        await database.close()
    _scrub(settings)
    return forgotten


class _Search:
    """Finds the events of one customer; `mine`: issuer and id of the redemptions known to be theirs."""

    def __init__(self, customer_id: str, mine: set[tuple[str, str]]) -> None:
        self._id, self._mine = customer_id, mine
        self._raw = msgspec.json.encode(customer_id)[1:-1]
        self.unreadable = 0

    def finds(self, row: Row[Any]) -> bool:
        if row.type == EventType.VOID.value:
            return (row.device_id, _ref(row.envelope)) in self._mine
        try:
            return customer_of(row.body) == self._id
        except Untrusted:
            self.unreadable += self._raw in row.body
            return False


def _ref(envelope: bytes) -> str:
    try:
        return read_envelope(envelope).ref or ""
    except Untrusted:
        return ""


async def _erase(
    database: Database, condition: ColumnElement[bool] | None, chosen: Callable[[Row[Any]], bool] | None
) -> tuple[int, int]:
    """Empties the bodies of the events that meet `condition` and are `chosen`, both None: all of them.

    How many, and how many of those wait for a person.
    """
    columns = [*_KEY, events.c.event_id, _WAITS.label("waits")]
    if chosen is not None:
        columns += [events.c.type, events.c.envelope, events.c.body]
    query = select(*columns).where(events.c.body != b"").order_by(*_KEY).limit(PAGE)
    if condition is not None:
        query = query.where(condition)
    erased = waiting = 0
    last: tuple[str, int, int] = ("", -1, -1)
    while True:
        async with database.read() as connection:
            page = (await connection.execute(query.where(tuple_(*_KEY) > last))).all()
        if not page:
            return erased, waiting
        last = (page[-1].device_id, page[-1].branch, page[-1].seq)
        rows = [row for row in page if chosen is None or chosen(row)]
        if rows:
            await database.write(partial(_empty, rows=rows))
        erased += len(rows)
        waiting += sum(bool(row.waits) for row in rows)


async def _empty(transaction: Transaction, *, rows: Sequence[Row[Any]]) -> None:
    await _overwrite_what_is_deleted(transaction)
    change = update(events).where(*(column == bindparam(f"p_{column.name}") for column in _KEY)).values(body=b"")
    keys = [{f"p_{column.name}": getattr(row, column.name) for column in _KEY} for row in rows]
    await transaction.execute(change, keys)
    # a till's clock may be years ahead: these results are as old as their bodies, whatever time they name
    sold = [(row.device_id, row.event_id) for row in rows if row.event_id is not None]
    if sold:
        await _cut_details(transaction, tuple_(*_SALE).in_(sold))


async def _erase_details(database: Database, before: datetime) -> int:
    """Cuts the details out of the results of all redemptions made before then, page by page; of how many."""
    query = select(*_SALE).where(redemptions.c.at < before).order_by(*_SALE).limit(PAGE)
    last, cut = ("", ""), 0
    while True:
        async with database.read() as connection:
            page = [tuple(row) for row in await connection.execute(query.where(tuple_(*_SALE) > last))]
        if not page:
            return cut
        last = page[-1]
        cut += await database.write(partial(_cut_details, condition=tuple_(*_SALE).in_(page)))


async def _cut_details(transaction: Transaction, condition: ColumnElement[bool]) -> int:
    """How many results had any."""
    await _overwrite_what_is_deleted(transaction)
    found = await transaction.execute(select(*_SALE, redemptions.c.result).where(condition))
    rows = [
        {"p_issuer": row.issuer, "p_redemption_id": row.redemption_id, "result": without}
        for row in found
        if (without := without_details(row.result)) != row.result
    ]
    if rows:
        change = update(redemptions).where(*(column == bindparam(f"p_{column.name}") for column in _SALE))
        await transaction.execute(change, rows)
    return len(rows)


async def _forget_accounts(transaction: Transaction, *, customer_id: str, forgotten: Forgotten, now: datetime) -> None:
    await _overwrite_what_is_deleted(transaction)
    theirs = redemptions.c.customer_id == customer_id
    await _cut_details(transaction, theirs)
    await transaction.execute(update(redemptions).where(theirs).values(customer_id=None))
    await transaction.execute(delete(customer_uses).where(customer_uses.c.customer_id == customer_id))
    ledger = await read_ledger(transaction)
    digest = sha256_hex(f"{ledger.server_id} {customer_id}".encode("utf-8", "replace"))
    detail = {"redemptions": forgotten.redemptions, "bodies": forgotten.bodies, "waiting": forgotten.waiting}
    await auditing.note(
        transaction, who=auditing.OPERATOR, action="customer.forget", about=f"sha256:{digest}", now=now, detail=detail
    )


def without_details(result: bytes) -> bytes:
    """A stored result without the details of its refusals, which say what the customer was; a till that asks for the
    same redemption again can still read it."""
    try:
        document = msgspec.json.decode(result, type=dict[str, msgspec.Raw])
        refused = msgspec.json.decode(document["refused"], type=list[dict[str, msgspec.Raw]])
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError):
        return result
    kept = [one | {"detail": msgspec.Raw(b'{"message":""}')} for one in refused]
    return msgspec.json.encode(document | {"refused": kept})


async def _overwrite_what_is_deleted(transaction: Transaction) -> None:
    """SQLite leaves deleted bytes in its file until something else needs the room."""
    if transaction.dialect.name == "sqlite":
        await transaction.exec_driver_sql("PRAGMA secure_delete = ON")


def _scrub(settings: Settings) -> None:
    """Brings SQLite's log into its file, so that the log keeps none of what was erased; a busy server does it later."""
    if settings.sqlite_file is not None:
        with closing(sqlite3.connect(settings.sqlite_file, timeout=5)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
