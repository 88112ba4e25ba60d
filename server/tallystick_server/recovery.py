"""A server that was restored from a backup: how that shows, and how the server learns what it forgot (protocol.md, 7).

| state | how it is reached | grants, online use of limited vouchers |
|---|---|---|
| `normal` | at first; an operator ends it, or, begun with all known, every device that counts has reported | yes |
| `restore_suspected` | an active device has seen what this database has not | no |
| `recovering` | an operator declares the restore: a new epoch begins | no |

A device has reported when all of its journal is stored in the new epoch, with the leases it held. Active and suspended
devices count: a suspended one goes on selling from its leases until it hears of it. One that is lost or revoked does
not; what it knows is still taken whenever it comes, and until then it is granted nothing.

A device that enrolled after the backup is not known, so it cannot be counted, and may hold leases all the same. So a
recovery ends by itself only where the operator says that there is none.
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
from tallystick_server.tables import audit, devices, server, syncs
from tallystick_shared.errors import CallerError
from tallystick_shared.wire import SyncHead

if TYPE_CHECKING:
    from tallystick_server.devices import Device

COUNTED = ("active", "suspended")
"""The states of the devices that a recovery waits for."""
BEGIN, AGAIN = "recovery.begin", "device.again"
"""In the audit."""


class Unreported(msgspec.Struct, frozen=True):
    """A device that a recovery waits for. `last_sync_at`: as far as this database knows."""

    id: str
    name: str
    store_id: str
    state: str
    last_sync_at: datetime | None


class Returned(msgspec.Struct, frozen=True):
    """A device that the database had forgotten, and that came back by itself."""

    id: str
    name: str
    store_id: str
    state: str


class Progress(msgspec.Struct, frozen=True):
    """How far a recovery is: of `devices` that count, those that have not reported in `server_epoch` yet.

    `ends_by_itself`: once all have. `known_until`: when the newest thing happened that the database remembered when the
    recovery began; what was decided after it is forgotten. `returned`: since it began.
    """

    state: str
    server_epoch: int
    devices: int
    unreported: list[Unreported]
    ends_by_itself: bool
    known_until: datetime | None
    returned: list[Returned]


class _Begun(msgspec.Struct, frozen=True):
    """What the audit says of the beginning of a recovery."""

    known_until: datetime | None = None


_BEGUN = msgspec.json.Decoder(_Begun)


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
    if device.branches == 1 and head.after.seq > device.seq:
        # though it has yet to tell all: an answer of this very epoch acknowledged that
        return f"event {head.after.seq} of it was acknowledged, and {device.seq} is the last that is known"
    return None


async def compare_leases(
    transaction: Transaction, ledger: Ledger, device: Device, head: SyncHead, *, now: datetime
) -> Ledger:
    """The same for the lease numbers of a device of which there is one: a copy of its files may hold what was granted
    before a restore that the other one reported after, and is no reason to stop everybody."""
    numbered = head.server_epoch == ledger.server_epoch and head.lease_number > device.lease_number
    if not numbered or device.branches > 1 or must_report(device, ledger):  # that one is about to tell
        return ledger
    why = f"it holds lease number {head.lease_number}, and {device.lease_number} is the last that is known"
    await suspect(transaction, device.id, why=why, now=now)
    return dataclasses.replace(await read_ledger(transaction), state="restore_suspected")


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


async def begin(transaction: Transaction, *, now: datetime, all_known: bool = False) -> Progress:
    """Declares that this database was restored from a backup; while one recovers, that it was restored once more.

    `all_known`: the operator's word that no device enrolled since the backup, so that it ends with the last known one.
    The epoch is the time: two restores of one backup begin two epochs.
    """
    row = (await transaction.execute(select(server).with_for_update())).one()
    epoch = max(row.server_epoch + 1, int(now.timestamp()))
    begun = {"server_epoch": epoch, "state": "recovering", "suspected_by": None, "recovery_ends": int(all_known)}
    known_until = await _known_until(transaction)
    await transaction.execute(update(server).values(**begun))
    detail = {"was": row.state, "was_epoch": row.server_epoch, "suspected_by": row.suspected_by, "server_epoch": epoch,
              "all_known": all_known, "known_until": known_until}  # fmt: skip
    who, about = auditing.OPERATOR, row.server_id
    await auditing.note(transaction, who=who, action=BEGIN, about=about, now=now, detail=detail)
    return await progress(transaction)


async def _known_until(transaction: Transaction) -> datetime | None:
    """When the newest thing happened that the database remembers: something audited, or a sync."""
    newest = [select(table.c.at).order_by(table.c.id.desc()).limit(1) for table in (audit, syncs)]
    found = [(await transaction.execute(query)).scalar_one_or_none() for query in newest]
    return max((at for at in found if at is not None), default=None)


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
    if state != "recovering":
        return
    found = await progress(transaction)
    if found.unreported:
        return
    if found.ends_by_itself:
        await _end(transaction, found, who=auditing.SERVER, now=now)
    else:
        LOG.warning("all known devices have reported", note=what_to_do(found))


async def note_reported(transaction: Transaction, device: Device, ledger: Ledger, *, now: datetime) -> Ledger:
    """All of the device's journal is stored in this epoch, and what it held is adopted. The ledger as it is then."""
    mine = update(devices).where(devices.c.id == device.id)
    await transaction.execute(mine.values(reported_epoch=ledger.server_epoch))
    await end_if_all_reported(transaction, now=now)
    return await read_ledger(transaction)


async def progress(transaction: Transaction) -> Progress:
    ledger = await read_ledger(transaction)
    ends = (await transaction.execute(select(server.c.recovery_ends))).scalar_one()
    query = select(devices).where(devices.c.state.in_(COUNTED)).order_by(devices.c.store_id, devices.c.id)
    rows = (await transaction.execute(query)).all()
    waiting = [
        Unreported(row.id, row.name, row.store_id, row.state, row.last_sync_at)
        for row in rows
        if ledger.server_epoch > max(row.reported_epoch, 1)
    ]
    newest = select(audit.c.id, audit.c.detail).where(audit.c.object == ledger.server_id, audit.c.action == BEGIN)
    begun = (await transaction.execute(newest.order_by(audit.c.id.desc()).limit(1))).one_or_none()
    known_until = None if begun is None else _BEGUN.decode(begun.detail).known_until
    returned = [] if begun is None else await _returned(transaction, begun.id)
    return Progress(ledger.state, ledger.server_epoch, len(rows), waiting, bool(ends), known_until, returned)


async def _returned(transaction: Transaction, since: int) -> list[Returned]:
    """`since`: the number in the audit after which they came."""
    came = select(audit.c.object).where(audit.c.action == AGAIN, audit.c.id > since)
    query = select(devices).where(devices.c.id.in_(came)).order_by(devices.c.store_id, devices.c.id)
    return [Returned(row.id, row.name, row.store_id, row.state) for row in await transaction.execute(query)]


def what_to_do(found: Progress) -> str:
    """In words, for an operator, while it recovers."""
    told = f"{found.devices - len(found.unreported)} of {found.devices} devices have reported"
    if found.ends_by_itself and found.devices:
        return f"{told}; it ends by itself when all have"
    late = "tills that enrolled after the backup are not known here and come back by themselves: wait for them"
    if found.unreported:
        return f"{told}; {late} too, then tallystick-server recovery end --yes"
    all_said = f"all {found.devices} known devices have reported" if found.devices else "this database knows no device"
    return f"{all_said}; {late}, then tallystick-server recovery end --yes, or at once if there are none"


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
    await transaction.execute(update(server).values(state="normal", recovery_ends=0))
    detail = {"server_epoch": found.server_epoch, "devices": found.devices,
              "unreported": [one.id for one in found.unreported]}  # fmt: skip
    await auditing.note(transaction, who=who, action="recovery.end", about=ledger.server_id, now=now, detail=detail)
