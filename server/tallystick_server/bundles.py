"""What devices fetch: the signed manifest of a scope and the snapshot it names (protocol.md, section 3).

Both are made when they are first asked for: a snapshot once a version, never once a device.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from datetime import datetime, timedelta
from typing import Any

import msgspec
import zstandard
from sqlalchemy import Row, insert, select, update

from tallystick_server.database import Transaction
from tallystick_server.server import Server, not_found, read_ledger
from tallystick_server.tables import blobs, scope_vouchers, scopes, voucher_revisions, vouchers
from tallystick_shared.bundle import BlobRef, BundleVoucher, Caps, Manifest, put_line
from tallystick_shared.engine import ENGINE_VERSION
from tallystick_shared.errors import CallerError
from tallystick_shared.journal import encode
from tallystick_shared.signing import Typ, sha256_hex

_DIGEST = re.compile("[0-9a-f]{64}")


async def manifest(server: Server, scope: str) -> bytes:
    """The scope's manifest, signed; made anew after a change and at half-life. Raises `NOT_FOUND`."""
    now = server.clock()
    async with server.database.read() as connection:
        row = (await connection.execute(select(scopes).where(scopes.c.name == scope))).one_or_none()
    if row is None:
        raise not_found("scope")
    if _is_good(server, row, now):
        return bytes(row.manifest)
    return await server.database.write(lambda transaction: _make(server, transaction, scope, now))


async def blob(server: Server, sha256: str) -> bytes:
    """A blob by its digest. Raises `NOT_FOUND`."""
    if not _DIGEST.fullmatch(sha256):
        raise not_found("blob")
    async with server.database.read() as connection:
        data = (await connection.execute(select(blobs.c.data).where(blobs.c.sha256 == sha256))).scalar_one_or_none()
    if data is None:
        raise not_found("blob")
    return bytes(data)


def _is_good(server: Server, row: Row[Any], now: datetime) -> bool:
    if row.manifest is None or row.manifest_version != row.version:
        return False
    age = now - row.manifest_signed_at
    return bool(timedelta(0) <= age < timedelta(seconds=server.settings.manifest_ttl_s / 2))


async def _make(server: Server, transaction: Transaction, scope: str, now: datetime) -> bytes:
    row = (await transaction.execute(select(scopes).where(scopes.c.name == scope).with_for_update())).one()
    if _is_good(server, row, now):
        return bytes(row.manifest)  # somebody else was faster
    settings = server.settings
    sha256, size = row.snapshot_sha256, row.snapshot_bytes
    if row.snapshot_version != row.version:
        sha256, size = await _snapshot(transaction, scope, now)
    document = Manifest(
        scope=scope,
        server_epoch=(await read_ledger(transaction)).server_epoch,
        version=row.version,
        issued_at=now,
        expires_at=now + timedelta(seconds=settings.manifest_ttl_s),
        snapshot=BlobRef(version=row.version, sha256=sha256, bytes=size, vouchers=row.vouchers),
        deltas=[],
        state_digest=row.state_digest,
        code_salt=row.code_salt,
        engine_min=ENGINE_VERSION,
        poll_after_s=settings.poll_after_s,
        caps=Caps(settings.offline_s, settings.waiting_redemptions_max, settings.waiting_minor_max),
    )
    signed = server.keys.bundle.sign(Typ.MANIFEST, encode(document))
    await transaction.execute(
        update(scopes)
        .where(scopes.c.name == scope)
        .values(
            manifest=signed,
            manifest_version=row.version,
            manifest_signed_at=now,
            snapshot_version=row.version,
            snapshot_sha256=sha256,
            snapshot_bytes=size,
        )
    )
    return signed


async def _snapshot(transaction: Transaction, scope: str, now: datetime) -> tuple[str, int]:
    """Digest and size of the blob that holds every voucher of the scope as it now is."""
    query = (
        select(vouchers.c.id, vouchers.c.folded, vouchers.c.revision, voucher_revisions.c.json)
        .join(scope_vouchers, scope_vouchers.c.voucher_id == vouchers.c.id)
        .join(
            voucher_revisions,
            (voucher_revisions.c.voucher_id == vouchers.c.id) & (voucher_revisions.c.revision == vouchers.c.revision),
        )
        .where(scope_vouchers.c.scope == scope, vouchers.c.deactivated_at.is_(None))
        .order_by(vouchers.c.id)
    )
    lines = [
        put_line(BundleVoucher(row.id, row.revision, row.folded, msgspec.Raw(row.json)))
        for row in await transaction.execute(query)
    ]
    data = await asyncio.to_thread(zstandard.compress, b"".join(lines), 6)
    sha256 = sha256_hex(data)
    there = await transaction.execute(select(blobs.c.sha256).where(blobs.c.sha256 == sha256))
    if there.first() is None:
        await transaction.execute(insert(blobs), {"sha256": sha256, "data": data, "created_at": now})
    return sha256, len(data)


async def create_scope(transaction: Transaction, name: str, *, now: datetime) -> None:
    """Raises `CallerError` (`EXISTS`)."""
    if (await transaction.execute(select(scopes.c.name).where(scopes.c.name == name))).first() is not None:
        raise CallerError(f"there is a scope {name} already", code="EXISTS")
    salt = secrets.token_hex(16)
    row = {"name": name, "version": 1, "vouchers": 0, "state_digest": "0" * 64, "code_salt": salt, "created_at": now}
    await transaction.execute(insert(scopes), row)
