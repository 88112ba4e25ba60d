"""Blobs: what manifests name, by digest. Immutable; kept for devices that hold an older manifest, then deleted."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final

import zstandard
from sqlalchemy import delete, exists, insert, or_, select, update

from tallystick_server.database import Transaction
from tallystick_server.server import Server, not_found
from tallystick_server.tables import blobs, scopes
from tallystick_shared.signing import sha256_hex

SWEPT_MAX: Final = 16
"""Blobs deleted with one manifest that is made: more than a manifest takes out of use."""
_LEVEL: Final = 6
_DIGEST = re.compile("[0-9a-f]{64}")


async def blob(server: Server, sha256: str) -> bytes:
    """A blob by its digest. Raises `NOT_FOUND`."""
    if not _DIGEST.fullmatch(sha256):
        raise not_found("blob")
    async with server.database.read() as connection:
        data = (await connection.execute(select(blobs.c.data).where(blobs.c.sha256 == sha256))).scalar_one_or_none()
    if data is None:
        raise not_found("blob")
    return bytes(data)


async def store(transaction: Transaction, lines: Sequence[bytes], now: datetime) -> tuple[str, int]:
    """Digest and size of the compressed blob of these lines, which is stored where it is not there yet.

    It stays only if a manifest names it (`keep`).
    """
    data = await asyncio.to_thread(zstandard.compress, b"".join(lines), _LEVEL)
    sha256 = sha256_hex(data)
    # the row lock keeps a sweep away from a blob that comes into use again
    there = select(blobs.c.sha256).where(blobs.c.sha256 == sha256).with_for_update()
    if (await transaction.execute(there)).one_or_none() is None:
        row = {"sha256": sha256, "data": data, "created_at": now, "kept_until": now}
        await transaction.execute(insert(blobs), row)
    return sha256, len(data)


async def unpacked(transaction: Transaction, sha256s: Sequence[str]) -> list[bytes]:
    """The lines' bytes of several blobs, in the same order."""
    query = select(blobs.c.sha256, blobs.c.data).where(blobs.c.sha256.in_(sha256s))
    found = {row.sha256: row.data for row in await transaction.execute(query)}
    return [await asyncio.to_thread(zstandard.decompress, found[sha256]) for sha256 in sha256s]


async def keep(transaction: Transaction, named: Collection[str], before: Collection[str], *, until: datetime) -> None:
    """A manifest names these now. Those that only the one `before` named are kept for who still holds that one."""
    in_use = update(blobs).where(blobs.c.sha256.in_(sorted(named)), blobs.c.kept_until.is_not(None))
    await transaction.execute(in_use.values(kept_until=None))
    if gone := sorted(set(before) - set(named)):
        await transaction.execute(update(blobs).where(blobs.c.sha256.in_(gone)).values(kept_until=until))


async def sweep(transaction: Transaction, now: datetime) -> None:
    """Deletes some of the blobs that were kept long enough; one that another scope names too stays."""
    over = select(blobs.c.sha256).where(blobs.c.kept_until <= now).order_by(blobs.c.kept_until).limit(SWEPT_MAX)
    for sha256 in (await transaction.execute(over)).scalars().all():
        named = exists().where(or_(scopes.c.snapshot_sha256 == sha256, scopes.c.deltas.contains(sha256)))
        mine = blobs.c.sha256 == sha256
        if (await transaction.execute(select(named))).scalar_one():
            await transaction.execute(update(blobs).where(mine).values(kept_until=None))
        else:
            await transaction.execute(delete(blobs).where(mine, blobs.c.kept_until <= now))
