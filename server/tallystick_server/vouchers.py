"""Vouchers as an operator publishes, revises and withdraws them: revisions, pools, and the scopes they are in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Row, insert, select, update

from tallystick_server import auditing
from tallystick_server.database import Transaction, chunks
from tallystick_server.deltas import change_scope
from tallystick_server.hiding import hide, must_be_strong, with_code
from tallystick_server.limits import MEASURES, change_limits
from tallystick_server.server import new_id, not_found
from tallystick_server.settings import Settings
from tallystick_server.tables import campaigns, leases, pools, scope_vouchers, scopes, voucher_revisions, vouchers
from tallystick_shared.codes import fold
from tallystick_shared.door import shown
from tallystick_shared.engine import max_discount_minor
from tallystick_shared.errors import CallerError, InvalidInput
from tallystick_shared.model import Voucher, load_voucher, parse_voucher, voucher_json
from tallystick_shared.signing import sha256_hex


async def publish(
    transaction: Transaction,
    batch: Sequence[Voucher],
    scope_names: Sequence[str],
    *,
    hidden: bool = False,
    now: datetime,
) -> list[str]:
    """Store new vouchers as revision 1, with their pools, in all of `scope_names`; the ids, in the same order.

    The caller has checked the codes (`taken`, and for `hidden` ones `must_be_strong` and that it is one scope). Each
    scope's version rises by one, whatever the size of the batch.
    """
    rows: list[dict[str, Any]] = []
    revisions: list[dict[str, Any]] = []
    limits: list[dict[str, Any]] = []
    salt = await _salt(transaction, scope_names[0]) if hidden else ""
    for voucher in batch:
        raw = voucher_json(hide(voucher, salt) if hidden else voucher)
        row = {
            "id": new_id(now),
            "folded": fold(voucher.code),
            "hidden": int(hidden),
            "created_at": now,
            **_columns(voucher, 1, raw, now),
        }
        rows.append(row)
        revisions.append(_revision(row, raw))
        for measure, name in MEASURES:
            limit = getattr(voucher.limits, name)
            if limit is not None:
                limits.append({"voucher_id": row["id"], "measure": measure, "limit": limit, "free": limit})
    await _new_campaigns(transaction, batch, now)
    for table, values in ((vouchers, rows), (voucher_revisions, revisions), (pools, limits)):
        if values:
            await transaction.execute(insert(table), values)
    for name in sorted(scope_names):
        members = [{"scope": name, "voucher_id": row["id"]} for row in rows]
        if members:
            await transaction.execute(insert(scope_vouchers), members)
        await change_scope(transaction, name, put=[(row["id"], row["sha256"]) for row in rows])
    return [row["id"] for row in rows]


def _columns(voucher: Voucher, revision: int, raw: bytes, now: datetime) -> dict[str, Any]:
    """What `vouchers` holds of the current revision; `voucher` has its code in clear, `raw` as it is published."""
    return {
        "code": voucher.code,
        "campaign_id": voucher.campaign_id or "",
        "revision": revision,
        "revised_at": now,
        "sha256": sha256_hex(raw),
        "status": voucher.status,
        "policy": voucher.offline.policy,
        "valid_from": voucher.valid_from,
        "valid_until": voucher.valid_until,
        "largest_minor": max_discount_minor(voucher),
    }


def _revision(row: Mapping[str, Any], raw: bytes) -> dict[str, Any]:
    return {
        "voucher_id": row["id"],
        "revision": row["revision"],
        "sha256": row["sha256"],
        "json": raw,
        "published_at": row["revised_at"],
    }


async def _salt(transaction: Transaction, scope: str) -> str:
    return str((await transaction.execute(select(scopes.c.code_salt).where(scopes.c.name == scope))).scalar_one())


async def taken(transaction: Transaction, folded: Sequence[str]) -> set[str]:
    """Those of the folded codes that a voucher has already; deactivated ones keep theirs."""
    found: set[str] = set()
    for part in chunks(folded):
        found.update(
            (await transaction.execute(select(vouchers.c.folded).where(vouchers.c.folded.in_(part)))).scalars()
        )
    return found


async def must_be_scopes(transaction: Transaction, names: Sequence[str]) -> None:
    found = set((await transaction.execute(select(scopes.c.name).where(scopes.c.name.in_(names)))).scalars())
    for name in names:
        if name not in found:
            raise CallerError(f"there is no scope {name}", code="NOT_FOUND")


async def create(
    transaction: Transaction,
    raw: bytes,
    scope_names: Sequence[str],
    settings: Settings,
    *,
    hidden: bool = False,
    now: datetime,
) -> str:
    """One voucher from its JSON (engine.md); its id. `hidden`: its code travels as its digest (`hiding`).

    Raises `InvalidInput`, `CallerError` (`EXISTS`, `NOT_FOUND`).
    """
    voucher = parse_voucher(raw, default_currency=settings.default_currency)
    scope_names = sorted(set(scope_names))
    await must_be_scopes(transaction, scope_names)
    if hidden:
        must_be_strong(voucher.code)
        if len(scope_names) != 1:
            expected = "must be one where the code is hidden, because its digest is salted for that scope"
            raise InvalidInput("scope", expected, str(len(scope_names)))
    if await taken(transaction, [fold(voucher.code)]):
        raise exists_already(voucher.code)
    return (await publish(transaction, [voucher], scope_names, hidden=hidden, now=now))[0]


def exists_already(code: str) -> InvalidInput:
    return InvalidInput("code", f"{shown(code)} is the code of a voucher already", code="EXISTS")


async def deactivate(transaction: Transaction, voucher_id: str, *, now: datetime, who: str = auditing.OPERATOR) -> None:
    """Takes a voucher out of every bundle, for good. A second time changes nothing. Raises `NOT_FOUND`."""
    row = await _locked(transaction, voucher_id)
    if row.deactivated_at is not None:
        return
    await transaction.execute(update(vouchers).where(vouchers.c.id == voucher_id).values(deactivated_at=now))
    for name in await _scopes_of(transaction, voucher_id):
        await change_scope(transaction, name, taken=[(voucher_id, row.sha256)])
    await auditing.note(transaction, who=who, action="voucher.deactivate", about=voucher_id, now=now)


async def revise(
    transaction: Transaction,
    voucher_id: str,
    raw: bytes,
    settings: Settings,
    *,
    now: datetime,
    who: str = auditing.OPERATOR,
) -> None:
    """A new revision of a voucher from its whole JSON; one that says the same changes nothing.

    Raises `InvalidInput` (`FIXED_FIELD` for what never changes, `LEASED`), `CallerError` (`NOT_FOUND`, `WRONG_STATE`
    where it is deactivated).
    """
    row = await _locked(transaction, voucher_id)
    if row.deactivated_at is not None:
        raise CallerError(
            "this voucher is deactivated: it is not revised any more, publish another", code="WRONG_STATE"
        )
    query = select(voucher_revisions.c.json).where(
        voucher_revisions.c.voucher_id == voucher_id, voucher_revisions.c.revision == row.revision
    )
    published = bytes((await transaction.execute(query)).scalar_one())
    before = load_voucher(published)
    voucher = parse_voucher(raw, default_currency=before.currency or settings.default_currency)
    _must_stay(row.folded, before, voucher)
    # of one folded code and one salt there is one digest
    new = voucher_json(with_code(voucher, before.code) if row.hidden else voucher)
    if new == published:
        return
    ask_back = await change_limits(transaction, voucher_id, before.limits, voucher.limits)
    await _new_campaigns(transaction, [voucher], now)
    columns = _columns(voucher, row.revision + 1, new, now)
    await transaction.execute(insert(voucher_revisions), _revision(columns | {"id": voucher_id}, new))
    await transaction.execute(update(vouchers).where(vouchers.c.id == voucher_id).values(**columns))
    if ask_back or _needs_no_such_leases(before, voucher):
        await _ask_back(transaction, voucher_id, now)
    for name in await _scopes_of(transaction, voucher_id):
        put, gone = [(voucher_id, columns["sha256"])], [(voucher_id, row.sha256)]
        await change_scope(transaction, name, put=put, taken=gone)
    detail = {"revision": columns["revision"], "changed": _changes(published, new)}
    await auditing.note(transaction, who=who, action="voucher.revise", about=voucher_id, now=now, detail=detail)


async def _locked(transaction: Transaction, voucher_id: str) -> Row[Any]:
    """The voucher, so that one change of it comes after the other. Leases of it can be granted meanwhile."""
    query = select(vouchers).where(vouchers.c.id == voucher_id).with_for_update(key_share=True)
    row = (await transaction.execute(query)).one_or_none()
    if row is None:
        raise not_found("voucher")
    return row


async def _scopes_of(transaction: Transaction, voucher_id: str) -> list[str]:
    """In the order in which everybody locks scopes."""
    members = select(scope_vouchers.c.scope).where(scope_vouchers.c.voucher_id == voucher_id)
    return sorted((await transaction.execute(members)).scalars())


def _must_stay(folded: str, before: Voucher, after: Voucher) -> None:
    kinds = [str(type(one.discount).__struct_config__.tag) for one in (before, after)]
    for path, same, told in (
        ("code", fold(after.code) == folded, after.code),
        ("discount.type", kinds[0] == kinds[1], kinds[1]),
        ("currency", after.currency == before.currency, after.currency),
    ):
        if not same:
            raise InvalidInput(path, "never changes once a voucher is published", shown(told), code="FIXED_FIELD")


def _needs_no_such_leases(before: Voucher, after: Voucher) -> bool:
    """Whether the open leases are not of the kind that the new policy hands out: none, or all to one device."""
    policy = after.offline.policy
    return policy != before.offline.policy and policy != "quota"


async def _ask_back(transaction: Transaction, voucher_id: str, now: datetime) -> None:
    mine = update(leases).where(
        leases.c.voucher_id == voucher_id, leases.c.state == "open", leases.c.recalled_at.is_(None)
    )
    await transaction.execute(mine.values(recalled_at=now))


def _changes(before: bytes, after: bytes) -> dict[str, list[msgspec.Raw | None]]:
    """Each field that is not what it was: from what, to what; null where it was left out."""
    old, new = (msgspec.json.decode(raw, type=dict[str, msgspec.Raw]) for raw in (before, after))
    names = sorted({*old, *new})
    return {name: [old.get(name), new.get(name)] for name in names if old.get(name) != new.get(name)}


async def _new_campaigns(transaction: Transaction, batch: Sequence[Voucher], now: datetime) -> None:
    """A campaign a voucher names comes into being by that."""
    wanted = sorted({voucher.campaign_id for voucher in batch if voucher.campaign_id})
    known = set[str]()
    for part in chunks(wanted):
        known.update((await transaction.execute(select(campaigns.c.id).where(campaigns.c.id.in_(part)))).scalars())
    new = [{"id": name, "name": name, "created_at": now} for name in wanted if name not in known]
    if new:
        await transaction.execute(insert(campaigns), new)


class VoucherView(msgspec.Struct, frozen=True):
    """A voucher as an operator sees it; `voucher` is the current revision, byte for byte.

    But for a `hidden` one: there it has its code, and `sha256` is of what is published, which has a digest instead.
    """

    id: str
    code: str
    hidden: bool
    revision: int
    sha256: str
    scopes: list[str]
    created_at: datetime
    deactivated_at: datetime | None
    pools: list[dict[str, Any]]
    voucher: msgspec.Raw


async def view(
    transaction: Transaction, *, voucher_id: str = "", folded: str = "", after: str = "", limit: int
) -> list[VoucherView]:
    """Vouchers by id, by folded code, or all of them in the order of their ids."""
    query = (
        select(vouchers, voucher_revisions.c.json)
        .join(
            voucher_revisions,
            (voucher_revisions.c.voucher_id == vouchers.c.id) & (voucher_revisions.c.revision == vouchers.c.revision),
        )
        .where(vouchers.c.id > after)
        .order_by(vouchers.c.id)
        .limit(limit)
    )
    if voucher_id:
        query = query.where(vouchers.c.id == voucher_id)
    if folded:
        query = query.where(vouchers.c.folded == folded)
    rows = (await transaction.execute(query)).all()
    ids = [row.id for row in rows]
    members: dict[str, list[str]] = {}
    for row in await transaction.execute(select(scope_vouchers).where(scope_vouchers.c.voucher_id.in_(ids))):
        members.setdefault(row.voucher_id, []).append(row.scope)
    counts: dict[str, list[dict[str, Any]]] = {}
    for pool in (await transaction.execute(select(pools).where(pools.c.voucher_id.in_(ids)))).mappings():
        counts.setdefault(pool["voucher_id"], []).append({k: v for k, v in pool.items() if k != "voucher_id"})
    return [
        VoucherView(
            id=row.id,
            code=row.code,
            hidden=bool(row.hidden),
            revision=row.revision,
            sha256=row.sha256,
            scopes=sorted(members.get(row.id, [])),
            created_at=row.created_at,
            deactivated_at=row.deactivated_at,
            pools=counts.get(row.id, []),
            voucher=msgspec.Raw(_in_clear(row) if row.hidden else row.json),
        )
        for row in rows
    ]


def _in_clear(row: Any) -> bytes:
    return voucher_json(with_code(load_voucher(row.json), row.code))
