"""What devices fetch: the signed manifest of a scope, and the blobs it names (protocol.md, section 3).

Made when they are first asked for, once a version, never once a device: `deltas` says how little has to be made.
"""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import Row, Select, insert, select, update

from tallystick_server import blobs, deltas
from tallystick_server.database import Transaction
from tallystick_server.server import Server, not_found
from tallystick_server.tables import scopes
from tallystick_server.tables import server as server_table
from tallystick_shared.bundle import Caps, Manifest
from tallystick_shared.engine import ENGINE_VERSION
from tallystick_shared.errors import CallerError
from tallystick_shared.journal import encode
from tallystick_shared.signing import Typ, peek


class _Signed(msgspec.Struct, frozen=True):
    server_epoch: int


_SIGNED = msgspec.json.Decoder(_Signed)


async def manifest(server: Server, scope: str) -> bytes:
    """The scope's manifest, signed; made anew after a change and at half-life. Raises `NOT_FOUND`."""
    now = server.clock()
    async with server.database.read() as connection:
        row = (await connection.execute(_query(scope))).one_or_none()
    if row is None:
        raise not_found("scope")
    if _is_good(server, row, now):
        return bytes(row.manifest)
    return await server.database.write(lambda transaction: _make(server, transaction, scope, now))


def _query(scope: str) -> Select[Any]:
    """The scope, and the epoch that the server is in."""
    return select(scopes, select(server_table.c.server_epoch).scalar_subquery().label("server_epoch")).where(
        scopes.c.name == scope
    )


def _is_good(server: Server, row: Row[Any], now: datetime) -> bool:
    if row.manifest is None or row.manifest_version != row.version:
        return False
    kid, payload = peek(row.manifest, Typ.MANIFEST)
    if kid != server.keys.bundle.kid or _SIGNED.decode(payload).server_epoch != row.server_epoch:
        return False
    # another request, or another process, may have read its clock a moment later and signed first
    age, ahead = now - row.manifest_signed_at, timedelta(seconds=server.settings.clock_ahead_s)
    return bool(-ahead <= age < timedelta(seconds=server.settings.manifest_ttl_s / 2))


async def _make(server: Server, transaction: Transaction, scope: str, now: datetime) -> bytes:
    # the lock lets one request at a time past this point, and no change of the scope
    row = (await transaction.execute(_query(scope).with_for_update(key_share=True, of=scopes))).one()
    if _is_good(server, row, now):
        return bytes(row.manifest)  # somebody else was faster
    settings = server.settings
    lifetime = timedelta(seconds=settings.manifest_ttl_s)
    chain = await deltas.advance(transaction, row, same_epoch=_of_this_epoch(row), now=now)
    document = Manifest(
        scope=scope,
        server_epoch=row.server_epoch,
        version=row.version,
        issued_at=now,
        expires_at=now + lifetime,
        snapshot=chain.snapshot,
        deltas=[one.ref() for one in chain.deltas],
        state_digest=row.state_digest,
        code_salt=row.code_salt,
        engine_min=ENGINE_VERSION,
        poll_after_s=settings.poll_after_s,
        caps=Caps(settings.offline_s, settings.waiting_redemptions_max, settings.waiting_minor_max),
    )
    signed = server.keys.bundle.sign(Typ.MANIFEST, encode(document))
    made = {"manifest": signed, "manifest_version": row.version, "manifest_signed_at": now}
    await transaction.execute(update(scopes).where(scopes.c.name == scope).values(**made, **chain.columns()))
    # whoever holds the manifest before this one may take as long as it is valid to fetch what it names
    await blobs.keep(transaction, chain.blobs(), deltas.named_by(row), until=now + lifetime)
    await blobs.sweep(transaction, now)
    return signed


def _of_this_epoch(row: Row[Any]) -> bool:
    if row.manifest is None:
        return True
    return _SIGNED.decode(peek(row.manifest, Typ.MANIFEST)[1]).server_epoch == int(row.server_epoch)


async def create_scope(transaction: Transaction, name: str, *, now: datetime) -> None:
    """Raises `CallerError` (`EXISTS`)."""
    if (await transaction.execute(select(scopes.c.name).where(scopes.c.name == name))).first() is not None:
        raise CallerError(f"there is a scope {name} already", code="EXISTS")
    salt = secrets.token_hex(16)
    row = {"name": name, "version": 1, "vouchers": 0, "state_digest": "0" * 64, "code_salt": salt, "created_at": now}
    await transaction.execute(insert(scopes), row)
