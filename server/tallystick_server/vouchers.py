"""Publishing vouchers: what an operator creates or imports, its revisions, its pools and the scopes it is in."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import insert, select, update

from tallystick_server.database import Database, Transaction, chunks
from tallystick_server.server import new_id, not_found
from tallystick_server.settings import Settings
from tallystick_server.tables import campaigns, pools, scope_vouchers, scopes, voucher_revisions, vouchers
from tallystick_shared.bundle import state_digest, voucher_digest
from tallystick_shared.codes import fold
from tallystick_shared.door import shown
from tallystick_shared.engine import max_discount_minor
from tallystick_shared.errors import CallerError, InvalidInput
from tallystick_shared.model import Voucher, parse_voucher, voucher_json
from tallystick_shared.signing import sha256_hex

LINE_BYTES_MAX = 4 * 1024 * 1024
SHOWN_ERRORS_MAX = 20


class BadFile(CallerError):
    """A file of which nothing was imported; `lines` are `FILE:LINE: path: sentence`, the first of `count`."""

    default_code = "BAD_FILE"

    def __init__(self, path: Path, lines: list[str], count: int) -> None:
        super().__init__(f"{path}: nothing was imported, {count} of its lines cannot be")
        self.lines, self.count = lines, count


async def publish(
    transaction: Transaction, batch: Sequence[Voucher], scope_names: Sequence[str], *, now: datetime
) -> list[str]:
    """Store new vouchers as revision 1, with their pools, in all of `scope_names`; the ids, in the same order.

    The caller has checked the codes (`taken`). Each scope's version rises by one, whatever the size of the batch.
    """
    rows: list[dict[str, Any]] = []
    revisions: list[dict[str, Any]] = []
    limits: list[dict[str, Any]] = []
    for voucher in batch:
        raw = voucher_json(voucher)
        row = _row(voucher, raw, now)
        rows.append(row)
        revisions.append(
            {"voucher_id": row["id"], "revision": 1, "sha256": row["sha256"], "json": raw, "published_at": now}
        )
        for measure, limit in (("units", voucher.limits.total), ("minor", voucher.limits.budget_minor)):
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
        await _change_scope(transaction, name, [(row["id"], row["sha256"]) for row in rows], sign=1)
    return [row["id"] for row in rows]


def _row(voucher: Voucher, raw: bytes, now: datetime) -> dict[str, Any]:
    return {
        "id": new_id(now),
        "code": voucher.code,
        "folded": fold(voucher.code),
        "campaign_id": voucher.campaign_id or "",
        "revision": 1,
        "revised_at": now,
        "sha256": sha256_hex(raw),
        "status": voucher.status,
        "policy": voucher.offline.policy,
        "valid_from": voucher.valid_from,
        "valid_until": voucher.valid_until,
        "largest_minor": max_discount_minor(voucher),
        "created_at": now,
    }


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
    transaction: Transaction, raw: bytes, scope_names: Sequence[str], settings: Settings, *, now: datetime
) -> str:
    """One voucher from its JSON (engine.md); its id. Raises `InvalidInput`, `CallerError` (`EXISTS`, `NOT_FOUND`)."""
    voucher = parse_voucher(raw, default_currency=settings.default_currency)
    scope_names = sorted(set(scope_names))
    await must_be_scopes(transaction, scope_names)
    if await taken(transaction, [fold(voucher.code)]):
        raise _exists(voucher.code)
    return (await publish(transaction, [voucher], scope_names, now=now))[0]


def _exists(code: str) -> InvalidInput:
    return InvalidInput("code", f"{shown(code)} is the code of a voucher already", code="EXISTS")


async def deactivate(transaction: Transaction, voucher_id: str, *, now: datetime) -> None:
    """Takes a voucher out of every bundle, for good. A second time changes nothing. Raises `NOT_FOUND`."""
    query = select(vouchers).where(vouchers.c.id == voucher_id).with_for_update()
    row = (await transaction.execute(query)).one_or_none()
    if row is None:
        raise not_found("voucher")
    if row.deactivated_at is not None:
        return
    await transaction.execute(update(vouchers).where(vouchers.c.id == voucher_id).values(deactivated_at=now))
    members = select(scope_vouchers.c.scope).where(scope_vouchers.c.voucher_id == voucher_id)
    for name in sorted((await transaction.execute(members)).scalars()):
        await _change_scope(transaction, name, [(voucher_id, row.sha256)], sign=-1)


async def _change_scope(transaction: Transaction, name: str, parts: list[tuple[str, str]], *, sign: int) -> None:
    """A new version of a scope to which `parts` (voucher id, revision digest) were added, or taken from."""
    row = (await transaction.execute(select(scopes).where(scopes.c.name == name).with_for_update())).one()
    change = sign * sum(voucher_digest(voucher_id, sha256) for voucher_id, sha256 in parts)
    await transaction.execute(
        update(scopes)
        .where(scopes.c.name == name)
        .values(
            version=row.version + 1,
            vouchers=row.vouchers + sign * len(parts),
            state_digest=state_digest(int(row.state_digest, 16) + change),
        )
    )


async def _new_campaigns(transaction: Transaction, batch: Sequence[Voucher], now: datetime) -> None:
    """A campaign a voucher names comes into being by that."""
    wanted = sorted({voucher.campaign_id for voucher in batch if voucher.campaign_id})
    known = set[str]()
    for part in chunks(wanted):
        known.update((await transaction.execute(select(campaigns.c.id).where(campaigns.c.id.in_(part)))).scalars())
    new = [{"id": name, "name": name, "created_at": now} for name in wanted if name not in known]
    if new:
        await transaction.execute(insert(campaigns), new)


async def import_into(
    database: Database,
    settings: Settings,
    path: Path,
    *,
    scope: str,
    now: datetime,
    on_line: Callable[[int], None] | None = None,
) -> int:
    """Publish every line of an NDJSON file (gzip or not) or none; how many. `on_line` hears how far reading is.

    Raises `BadFile`, `CallerError` (`NO_FILE`, `NOT_FOUND` for the scope).
    """
    lines: dict[str, int] = {}
    found: list[Voucher] = []
    errors: list[tuple[int, InvalidInput]] = []
    for number, raw in read_lines(path):
        try:
            voucher = parse_voucher(raw, default_currency=settings.default_currency)
            folded = fold(voucher.code)
            if folded in lines:
                raise InvalidInput("code", f"{shown(voucher.code)} is the code of line {lines[folded]} already")
            lines[folded] = number
            found.append(voucher)
        except InvalidInput as error:
            errors.append((number, error))
        if on_line is not None:
            on_line(number)

    if not found and errors and errors[0][1].expected.endswith("it ends too early"):
        text = "must hold each voucher whole on one line of its own (NDJSON), nothing was imported"
        raise CallerError(f"{path} {text}", code="BAD_FILE")
    if not found and not errors:
        raise CallerError(f"{path} holds no vouchers, nothing was imported", code="BAD_FILE")
    codes = {fold(voucher.code): voucher.code for voucher in found}

    async def store(transaction: Transaction) -> None:
        await must_be_scopes(transaction, [scope])
        there = [(lines[folded], _exists(codes[folded])) for folded in await taken(transaction, list(lines))]
        if bad := sorted([*errors, *there], key=lambda one: one[0]):
            told = [f"{path}:{number}: {error}" for number, error in bad[:SHOWN_ERRORS_MAX]]
            raise BadFile(path, told, len(bad))
        await publish(transaction, found, [scope], now=now)

    await database.write(store)
    return len(found)


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of every line that is not blank. Raises `CallerError` (`NO_FILE`)."""
    try:
        with path.open("rb") as plain:
            zipped = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            stream = gzip.GzipFile(fileobj=plain) if zipped else plain
            number = 0
            while line := stream.readline(LINE_BYTES_MAX + 1):
                number += 1
                if len(line) > LINE_BYTES_MAX:
                    raise CallerError(f"{path}:{number}: a line has at most {LINE_BYTES_MAX} bytes", code="NO_FILE")
                if line.strip():
                    yield number, line
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or "it is damaged"
        raise CallerError(f"{path} cannot be read: {why}", code="NO_FILE") from error


class VoucherView(msgspec.Struct, frozen=True):
    """A voucher as an operator sees it; `voucher` is the current revision, byte for byte."""

    id: str
    code: str
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
            revision=row.revision,
            sha256=row.sha256,
            scopes=sorted(members.get(row.id, [])),
            created_at=row.created_at,
            deactivated_at=row.deactivated_at,
            pools=counts.get(row.id, []),
            voucher=msgspec.Raw(row.json),
        )
        for row in rows
    ]
