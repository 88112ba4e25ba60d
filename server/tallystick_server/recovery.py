"""A server that was restored from a backup: how that shows, and how the server learns what it forgot (protocol.md, 7).

| state | how it is reached | grants, online use of limited vouchers |
|---|---|---|
| `normal` | at first; every device that counts has reported, or an operator ends it | yes |
| `restore_suspected` | an active device has seen what this database has not | no |
| `recovering` | an operator declares the restore: a new epoch begins | no |

A device has reported when all of its journal is stored in the new epoch, with the leases it held. Active and suspended
devices count: a suspended one goes on selling from its leases until it hears of it. One that is lost or revoked does
not; what it knows is still taken whenever it comes, and until then it is granted nothing.
"""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import exists, select, update

from tallystick_server import auditing
from tallystick_server.database import Transaction
from tallystick_server.logs import LOG
from tallystick_server.server import Ledger, read_ledger
from tallystick_server.tables import devices, server
from tallystick_shared.errors import CallerError
from tallystick_shared.wire import SyncHead

if TYPE_CHECKING:
    from tallystick_server.devices import Device

COUNTED = ("active", "suspended")
"""The states of the devices that a recovery waits for."""


class Unreported(msgspec.Struct, frozen=True):
    """A device that a recovery waits for. `last_sync_at`: as far as this database knows."""

    id: str
    name: str
    store_id: str
    state: str
    last_sync_at: datetime | None


class Progress(msgspec.Struct, frozen=True):
    """How far a recovery is: of `devices` that count, those that have not reported in `server_epoch` yet."""

    state: str
    server_epoch: int
    devices: int
    unreported: list[Unreported]


# undeclared


def must_report(device: Device, ledger: Ledger) -> bool:
    """Whether there was a restore since the device last told everything. The first epoch follows none."""
    return ledger.server_epoch > max(device.reported_epoch, 1)


async def compare(transaction: Transaction, ledger: Ledger, device: Device, head: SyncHead, *, now: datetime) -> Ledger:
    """The ledger, with its state changed where the head of a sync shows that this database has forgotten something."""
    why = _forgotten(ledger, device, head)
    if why is None:
        return ledger
    await suspect(transaction, device.id, why=why, now=now)
    # whether it is believed or not, what this device says of its leases is not what the database says
    return dataclasses.replace(await read_ledger(transaction), state="restore_suspected")


def _forgotten(ledger: Ledger, device: Device, head: SyncHead) -> str | None:
    if head.server_epoch > ledger.server_epoch:
        return f"it has seen epoch {head.server_epoch}"
    if head.server_epoch < ledger.server_epoch:
        return None  # the restore is declared, and this device has yet to hear of it
    if head.ledger_mark > ledger.mark:
        return f"it has seen ledger mark {head.ledger_mark}"
    if must_report(device, ledger):
        return None  # it is about to tell
    if head.lease_number > device.lease_number:
        return f"it holds lease number {head.lease_number}, and {device.lease_number} is the last that is known"
    if device.branches == 1 and head.after.seq > device.seq:
        return f"event {head.after.seq} of it was acknowledged, and {device.seq} is the last that is known"
    return None


async def suspect(transaction: Transaction, device_id: str, *, why: str, now: datetime, proven: bool = False) -> None:
    """A device has seen what this database has not: it was restored from a backup, so nothing more is granted.

    Only an active device is believed: one that an operator has turned away must not stop all others. `proven`: by a
    signature of this server itself, of a device that the database does not know.
    """
    believed = exists().where(devices.c.id == device_id, devices.c.state == "active")
    change = update(server).where(server.c.state.in_(("normal", "recovering")))
    change = change if proven else change.where(believed)
    done = await transaction.execute(change.values(state="restore_suspected", suspected_by=device_id))
    if done.rowcount:
        LOG.warning("restore suspected", device=device_id, why=why)
        await auditing.note(
            transaction, who=auditing.SERVER, action="restore.suspect", about=device_id, now=now, detail={"why": why}
        )


# declared


async def begin(transaction: Transaction, *, now: datetime) -> Progress:
    """Declares that this database was restored from a backup. Raises `CallerError` (`WRONG_STATE`)."""
    row = (await transaction.execute(select(server).with_for_update())).one()
    if row.state == "recovering":
        raise CallerError(
            f"a recovery is under way already, in epoch {row.server_epoch}: it ends when every device has reported, "
            "or with tallystick-server recovery end",
            code="WRONG_STATE",
        )
    epoch = row.server_epoch + 1
    await transaction.execute(update(server).values(server_epoch=epoch, state="recovering", suspected_by=None))
    detail = {"was": row.state, "suspected_by": row.suspected_by, "server_epoch": epoch}
    who, action = auditing.OPERATOR, "recovery.begin"
    await auditing.note(transaction, who=who, action=action, about=row.server_id, now=now, detail=detail)
    return await progress(transaction)


async def end(transaction: Transaction, *, now: datetime) -> Progress:
    """An operator ends the recovery before every device has reported; who has not.

    What these devices hold is not known, so it may be granted to others a second time. Raises `CallerError`
    (`WRONG_STATE`).
    """
    await _must_be_recovering(transaction)
    found = await progress(transaction)
    await _end(transaction, found, who=auditing.OPERATOR, now=now)
    return msgspec.structs.replace(found, state="normal")


async def end_if_all_reported(transaction: Transaction, *, now: datetime) -> None:
    # of two devices that report at once, the second sees the first
    state = (await transaction.execute(select(server.c.state).with_for_update())).scalar_one()
    if state == "recovering":
        found = await progress(transaction)
        if not found.unreported:
            await _end(transaction, found, who=auditing.SERVER, now=now)


async def note_reported(transaction: Transaction, device: Device, ledger: Ledger, *, now: datetime) -> Ledger:
    """All of the device's journal is stored in this epoch, and what it held is adopted. The ledger as it is then."""
    mine = update(devices).where(devices.c.id == device.id)
    await transaction.execute(mine.values(reported_epoch=ledger.server_epoch))
    await end_if_all_reported(transaction, now=now)
    return await read_ledger(transaction)


async def progress(transaction: Transaction) -> Progress:
    ledger = await read_ledger(transaction)
    query = select(devices).where(devices.c.state.in_(COUNTED)).order_by(devices.c.store_id, devices.c.id)
    rows = (await transaction.execute(query)).all()
    waiting = [
        Unreported(row.id, row.name, row.store_id, row.state, row.last_sync_at)
        for row in rows
        if ledger.server_epoch > max(row.reported_epoch, 1)
    ]
    return Progress(ledger.state, ledger.server_epoch, len(rows), waiting)


async def must_be_recovering(transaction: Transaction) -> Progress:
    """What an operator is told before ending it. Raises `CallerError` (`WRONG_STATE`)."""
    await _must_be_recovering(transaction)
    return await progress(transaction)


async def _must_be_recovering(transaction: Transaction) -> None:
    state = (await transaction.execute(select(server.c.state).with_for_update())).scalar_one()
    if state != "recovering":
        raise CallerError(f"no recovery is under way: the server's state is {state}", code="WRONG_STATE")


async def _end(transaction: Transaction, found: Progress, *, who: str, now: datetime) -> None:
    ledger = await read_ledger(transaction)
    await transaction.execute(update(server).values(state="normal"))
    detail = {"server_epoch": found.server_epoch, "devices": found.devices,
              "unreported": [one.id for one in found.unreported]}  # fmt: skip
    await auditing.note(transaction, who=who, action="recovery.end", about=ledger.server_id, now=now, detail=detail)
