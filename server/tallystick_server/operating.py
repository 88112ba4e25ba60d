"""What an operator looks at and decides: keys, campaigns, devices, the flagged queue, status."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import func, insert, select, update

from tallystick_server import backups, recovery
from tallystick_server import leases as leases_of
from tallystick_server.database import Transaction
from tallystick_server.ledger import PoolMoves, move_pools
from tallystick_server.server import OPERATOR_KEY_PREFIX, Ledger, Server, not_found, read_ledger, secret_digest
from tallystick_server.tables import campaigns, devices, events, flags, leases, operator_keys, pools, scopes
from tallystick_shared.errors import CallerError
from tallystick_shared.journal import EventType, read_envelope

PAGE_MAX = 500
ROW_ID_MAX = 2**63 - 1
FORKS_SHOWN = 20
"""Forked devices that the notes of a status name."""


class CampaignView(msgspec.Struct, frozen=True):
    id: str
    name: str
    created_at: datetime


class ScopeView(msgspec.Struct, frozen=True):
    name: str
    version: int
    vouchers: int
    created_at: datetime


class DeviceView(msgspec.Struct, frozen=True):
    """`waiting_since` has no place here: only the device knows what it has not sent yet."""

    id: str
    name: str
    store_id: str
    scope: str
    state: str
    enrolled_at: datetime
    last_sync_at: datetime | None
    acknowledged_seq: int
    branches: int


class FlaggedView(msgspec.Struct, frozen=True):
    """One reason why one event waits for a person. `envelope` as text: it may not be JSON at all."""

    id: int
    device_id: str
    branch: int
    seq: int
    event_id: str | None
    type: str | None
    at: datetime | None
    reason: str
    state: str
    raised_at: datetime
    resolved_at: datetime | None
    note: str
    envelope: str


class Status(msgspec.Struct, frozen=True):
    """`notes` says in words what an operator should know or do."""

    server_id: str
    server_epoch: int
    state: str
    ledger_mark: int
    backup: str
    root_version: int
    scopes: list[ScopeView]
    devices: dict[str, int]
    leases: dict[str, int]
    events: dict[str, int]
    flagged_open: int
    pools_overdrawn: int
    notes: list[str]


async def must_be_operator(server: Server, authorization: str) -> None:
    """Raises `CallerError` (`UNAUTHENTICATED`). Compared by digest: how long that takes says nothing about the key."""
    scheme, _, key = authorization.partition(" ")
    key = key.strip()
    if scheme.lower() == "bearer" and key.startswith(OPERATOR_KEY_PREFIX):
        async with server.database.read() as connection:
            query = select(operator_keys.c.sha256).where(operator_keys.c.sha256 == secret_digest(key))
            if (await connection.execute(query)).first() is not None:
                return
    raise CallerError("this needs an operator key: Authorization: Bearer KEY", code="UNAUTHENTICATED")


async def create_campaign(transaction: Transaction, campaign_id: str, name: str, *, now: datetime) -> CampaignView:
    """Raises `CallerError` (`EXISTS`)."""
    if (await transaction.execute(select(campaigns.c.id).where(campaigns.c.id == campaign_id))).first() is not None:
        raise CallerError(f"there is a campaign {campaign_id} already", code="EXISTS")
    view = CampaignView(campaign_id, name, now)
    await transaction.execute(insert(campaigns), msgspec.structs.asdict(view))
    return view


async def list_campaigns(transaction: Transaction) -> list[CampaignView]:
    rows = await transaction.execute(select(campaigns).order_by(campaigns.c.id))
    return [CampaignView(row.id, row.name, row.created_at) for row in rows]


async def list_scopes(transaction: Transaction) -> list[ScopeView]:
    rows = await transaction.execute(select(scopes).order_by(scopes.c.name))
    return [ScopeView(row.name, row.version, row.vouchers, row.created_at) for row in rows]


async def list_devices(transaction: Transaction, *, after: str, limit: int) -> list[DeviceView]:
    rows = await transaction.execute(select(devices).where(devices.c.id > after).order_by(devices.c.id).limit(limit))
    return [
        DeviceView(
            id=row.id,
            name=row.name,
            store_id=row.store_id,
            scope=row.scope,
            state=row.state,
            enrolled_at=row.enrolled_at,
            last_sync_at=row.last_sync_at,
            acknowledged_seq=row.seq,
            branches=row.branches,
        )
        for row in rows
    ]


async def list_flagged(transaction: Transaction, *, state: str, after: int, limit: int) -> list[FlaggedView]:
    """In the order in which they were raised."""
    same = (
        (events.c.device_id == flags.c.device_id) & (events.c.branch == flags.c.branch) & (events.c.seq == flags.c.seq)
    )
    query = (
        select(flags, events.c.event_id, events.c.type, events.c.at, events.c.envelope)
        .join(events, same)
        .where(flags.c.state == state, flags.c.id > after)
        .order_by(flags.c.id)
        .limit(limit)
    )
    return [
        FlaggedView(
            id=row.id,
            device_id=row.device_id,
            branch=row.branch,
            seq=row.seq,
            event_id=row.event_id,
            type=row.type,
            at=row.at,
            reason=row.reason,
            state=row.state,
            raised_at=row.raised_at,
            resolved_at=row.resolved_at,
            note=row.note,
            envelope=row.envelope.decode("utf-8", "replace"),
        )
        for row in await transaction.execute(query)
    ]


async def resolve(transaction: Transaction, flag_id: int, note: str, *, now: datetime) -> None:
    """A person has looked at it. Of a close that was kept waiting, this lets the rest of the lease return.

    Raises `CallerError` (`NOT_FOUND`, `WRONG_STATE`).
    """
    if flag_id > ROW_ID_MAX:  # which no database takes for a number of a row
        raise not_found("flag")
    row = (await transaction.execute(select(flags).where(flags.c.id == flag_id).with_for_update())).one_or_none()
    if row is None:
        raise not_found("flag")
    if row.state != "open":
        raise CallerError("this flag is resolved already", code="WRONG_STATE")
    done = update(flags).where(flags.c.id == flag_id)
    await transaction.execute(done.values(state="resolved", resolved_at=now, note=note))
    event = select(events).where(
        events.c.device_id == row.device_id, events.c.branch == row.branch, events.c.seq == row.seq
    )
    stored = (await transaction.execute(event)).one()
    if stored.type == EventType.LEASE_CLOSE.value:
        await _finish_close(transaction, stored)


async def _finish_close(transaction: Transaction, stored: Any) -> None:
    use = read_envelope(stored.envelope).uses[0]
    lease = await leases_of.lock(transaction, use.lease or "")
    if lease is None or (lease.device_id, lease.close_seq) != (stored.device_id, stored.seq):
        return
    if lease.state != "open" and (lease.state, lease.burned_by) != ("burned", "lost"):
        return
    moves = PoolMoves()
    final: dict[str, int | str] = {"state": "closed"}
    parts = (("units", lease.units, lease.known_units, use.units), ("minor", lease.minor, lease.known_minor, use.minor))
    for measure, granted, known, reported in parts:
        if granted is not None:
            used = min(max(known, reported), granted)  # I2, whatever the device said
            final[f"known_{measure}"] = used
            moves.add(lease.voucher_id, measure, free=granted - used, held=-granted, closed_used=used)
    await move_pools(transaction, moves)
    await transaction.execute(update(leases).where(leases.c.id == lease.id).values(**final))


async def status(server: Server, transaction: Transaction) -> Status:
    ledger = await read_ledger(transaction)
    flagged = select(func.count()).where(flags.c.state == "open")
    overdrawn = select(func.count(pools.c.voucher_id.distinct())).where(pools.c.free < 0)
    return Status(
        server_id=ledger.server_id,
        server_epoch=ledger.server_epoch,
        state=ledger.state,
        ledger_mark=ledger.mark,
        backup=server.settings.backup,
        root_version=server.keys.root_version,
        scopes=await list_scopes(transaction),
        devices=await _count_by(transaction, devices.c.state),
        leases=await _count_by(transaction, leases.c.state),
        events=await _count_by(transaction, events.c.outcome),
        flagged_open=(await transaction.execute(flagged)).scalar_one(),
        pools_overdrawn=(await transaction.execute(overdrawn)).scalar_one(),
        notes=await _notes(server, transaction, ledger),
    )


async def _notes(server: Server, transaction: Transaction, ledger: Ledger) -> list[str]:
    notes = await backups.notes(transaction, server.settings)
    if ledger.state == "restore_suspected":
        notes.append(
            f"device {ledger.suspected_by} has seen later answers than this database holds, as if it was restored from "
            "a backup: no lease is granted, and no voucher with a limit is used online. If it was restored, or if you "
            "do not know, run tallystick-server recovery begin; if that device is not to be believed, suspend it first"
        )
    if ledger.state == "recovering":
        found = await recovery.progress(transaction)
        notes.append(
            f"recovering, and until it ends no lease is granted and no voucher with a limit is used online: "
            f"{recovery.what_to_do(found)}; tallystick-server recovery status names the devices"
        )
    forked = select(devices.c.id).where(devices.c.branches > 1, devices.c.state.in_(recovery.COUNTED))
    for device_id in (await transaction.execute(forked.order_by(devices.c.id).limit(FORKS_SHOWN))).scalars():
        notes.append(
            f"device {device_id} is in use twice: tallystick-server devices show {device_id} says what that can cost; "
            "enrol it anew and revoke this one"
        )
    return notes + server.keys.notes(server.clock())


async def _count_by(transaction: Transaction, column: Any) -> dict[str, int]:
    rows = await transaction.execute(select(column, func.count()).group_by(column).order_by(column))
    return {str(value): int(count) for value, count in rows}
