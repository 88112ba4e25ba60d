"""Where a batch belongs in a device's journal as it is stored, and the four signs of a fork (protocol.md, I5).

1. one sequence number with two hashes
2. what was acknowledged lies above the device's own head
3. a reported `u` below `k`
4. a start that is not on the stored chain

An honest request that the line delivered late shows the second sign too. So it is refused first, with a challenge that
depends on what is known now: a sync that carries it was made afterwards, and if its journal still ends too early it is
an older copy of the till's files.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import func, select

from tallystick_server.database import Transaction
from tallystick_server.devices import Device
from tallystick_server.recovery import must_report
from tallystick_server.server import Ledger
from tallystick_server.tables import events, leases
from tallystick_shared.errors import CallerError
from tallystick_shared.journal import Position, StoredEvent, chain_start
from tallystick_shared.signing import SigningKey
from tallystick_shared.wire import SyncHead


class Sign(StrEnum):
    """How a fork showed itself, in words for an operator."""

    TWO_HASHES = "two different events have the same number"
    OLDER_COPY = "it presented an older copy of its journal"
    USE_FORGOTTEN = "it reported less use of a lease than it had reported before"
    OFF_THE_CHAIN = "its events follow one that was never sent here"


class StaleRequest(CallerError):
    """The server knows later events of this device; `challenge` is for the nonce of its next sync."""

    def __init__(self, challenge: str) -> None:
        super().__init__(
            "the server knows later events of this till: this is an old request, or an old copy of the till's files",
            code="STALE_REQUEST",
        )
        self.challenge = challenge


@dataclass(frozen=True)
class Batch:
    """The events of a request, at the sequence numbers after `head.after`, with the chain's hash at each."""

    head: SyncHead
    events: list[StoredEvent]
    hashes: list[str]
    request_sha256: str

    def seq(self, index: int) -> int:
        return self.head.after.seq + 1 + index

    @property
    def positions(self) -> list[tuple[int, str]]:
        """Every place in the journal that the request shows: `after`, then each event."""
        after = (self.head.after.seq, self.head.after.hash)
        return [after, *((self.seq(index), chained) for index, chained in enumerate(self.hashes))]


@dataclass(frozen=True)
class Place:
    """Where the batch's new events go: from index `start` on, to `branch`. `sign`: why it is a fork, if it is one."""

    branch: int
    start: int
    sign: Sign | None = None


def challenge(key: SigningKey, device: Device) -> str:
    """Proof that a nonce was chosen after the server knew the journal up to where it knows it now; stores nothing."""
    secret = hashlib.sha256(b"tallystick-challenge-v1" + key.to_bytes()).digest()
    return hmac.new(secret, f"{device.id} {device.seq} {device.hash}".encode(), hashlib.sha256).hexdigest()


async def place(
    transaction: Transaction, device: Device, batch: Batch, ledger: Ledger, expected_nonce: str
) -> Place | None:
    """Where the batch belongs. None: it leaves a gap that a restore of this server explains, and is sent again.

    Raises `StaleRequest`.
    """
    head, positions = batch.head, batch.positions
    stored = await _stored(transaction, device.id, positions)
    anchored = await is_anchored(transaction, device, batch, ledger)
    forgetful = ledger.state != "normal" or must_report(device, ledger)
    if not anchored and forgetful and device.branches == 1 and device.seq < head.after.seq:
        return None
    new = next((i for i, position in enumerate(positions[1:]) if position not in stored), len(batch.events))
    if not anchored:
        return Place(await _new_branch(transaction, device), new, Sign.OFF_THE_CHAIN)
    older = device.branches == 1 and head.head.seq < device.seq
    if older and new == len(batch.events) and not hmac.compare_digest(head.nonce.encode(), expected_nonce.encode()):
        raise StaleRequest(expected_nonce)
    sign = Sign.OLDER_COPY if older else None
    if sign is None and device.branches == 1 and await _uses_went_down(transaction, device, head):
        sign = Sign.USE_FORGOTTEN
    if new == len(batch.events):
        return Place(0 if sign is None else await _new_branch(transaction, device), new, sign)
    branch = stored.get(positions[new], 0)
    if await _ends(transaction, device, branch, positions[new][0]):
        return Place(branch, new, sign)
    return Place(await _new_branch(transaction, device), new, Sign.TWO_HASHES)


async def is_anchored(transaction: Transaction, device: Device, batch: Batch, ledger: Ledger) -> bool:
    """Whether the batch begins at a place that is known of the device's journal, or at its start."""
    after = batch.positions[0]
    if after == (0, chain_start(ledger.server_id, device.id, device.key)):
        return True
    return bool(await _stored(transaction, device.id, [after]))


async def known_of(transaction: Transaction, device: Device, batch: Batch, ledger: Ledger) -> Position:
    """From where a device that learns of a new epoch is to send: the last place that is known of its own journal."""
    positions, tip = batch.positions, Position(device.seq, device.hash)
    differs = dict(positions).get(tip.seq, tip.hash) != tip.hash
    if device.branches == 1 and tip.seq <= batch.head.head.seq and not differs:
        return tip
    # a copy of its files: it hears of a place it has itself, so that it goes on and its own events come to light
    stored = await _stored(transaction, device.id, positions)
    both = next((position for position in reversed(positions) if position in stored), None)
    return Position(*(both or (0, chain_start(ledger.server_id, device.id, device.key))))


async def _stored(
    transaction: Transaction, device_id: str, positions: Sequence[tuple[int, str]]
) -> dict[tuple[int, str], int]:
    """The branch of each of these places in the journal that is stored; the lowest where several share it."""
    query = (
        select(events.c.seq, events.c.hash, events.c.branch)
        .where(events.c.device_id == device_id, events.c.seq >= positions[0][0], events.c.seq <= positions[-1][0])
        .order_by(events.c.branch.desc())
    )
    return {(row.seq, row.hash): row.branch for row in await transaction.execute(query)}


async def _last_seq(transaction: Transaction, device: Device, branch: int) -> int:
    top = select(func.max(events.c.seq)).where(events.c.device_id == device.id, events.c.branch == branch)
    return (await transaction.execute(top)).scalar_one() or 0


async def _ends(transaction: Transaction, device: Device, branch: int, seq: int) -> bool:
    if device.branches == 1:
        return seq == device.seq
    return await _last_seq(transaction, device, branch) == seq


async def _new_branch(transaction: Transaction, device: Device) -> int:
    """Its number: one higher than any, but a branch that has no event yet is not left behind."""
    newest = device.branches - 1
    return newest if newest and not await _last_seq(transaction, device, newest) else device.branches


async def _uses_went_down(transaction: Transaction, device: Device, head: SyncHead) -> bool:
    """Whether the device reports a u below k (I2): it forgot uses it had reported."""
    reported = {use.id: use for use in head.leases}
    known = select(leases.c.id, leases.c.known_units, leases.c.known_minor).where(
        leases.c.device_id == device.id, leases.c.state == "open", (leases.c.known_units + leases.c.known_minor) > 0
    )
    for row in await transaction.execute(known):
        use = reported.get(row.id)
        if use is not None and (use.units < row.known_units or use.minor < row.known_minor):
            return True
    return False
