"""Journals that come as files (`tallystick_shared.journal_file`), from devices that will not be online again.

Each batch goes through the very same `sync`: signature, digests, chain and settling are those of the line, and so is
what becomes of it. What was stored before is passed over, so a file may be imported any number of times.

Of a till that is gone the file is all there is. So a server that was restored takes a file that was made before that,
if nothing is missing before it, and takes a device that it has forgotten in again by the proof in the file's header.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import msgspec
from sqlalchemy import select

from tallystick_server import devices as devices_of
from tallystick_server import enrolling_again
from tallystick_server.database import Transaction
from tallystick_server.operations import opened
from tallystick_server.server import Server, read_ledger
from tallystick_server.settings import Settings
from tallystick_server.sync import sync
from tallystick_server.tables import devices, events
from tallystick_shared.errors import CallerError, LineError, Untrusted
from tallystick_shared.journal_file import LINE_BYTES_MAX, FileHeader, read_batch, read_header
from tallystick_shared.signing import Typ, peek
from tallystick_shared.wire import DeviceState, SyncAnswer, SyncHead

_HEAD = msgspec.json.Decoder(SyncHead)
_ANSWER = msgspec.json.Decoder(SyncAnswer)


@dataclass
class Imported:
    """What one file brought. `stored`: events that were new, and `outcomes` what they came to; `known`: were there.

    `refused`: why the batch `refused_batch` and those after it were not taken, in one sentence; else empty. Those
    before it were. `refused_batch` 0 is the file as such. `final`: the till says, signed, that
    it is retired; once all of the file is taken it is revoked, and may still bring voids that it makes later.
    """

    file: Path
    device: str = ""
    name: str = ""
    final: bool = False
    batches: int = 0
    stored: int = 0
    known: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    refused: str = ""
    refused_batch: int = 0


async def import_journals(settings: Settings, files: list[Path], *, now: datetime) -> list[Imported]:
    """Brings in each file as far as it is sound; what is refused is said in the result.

    Raises `CallerError` (`NO_KEYS`, `NOT_INITIALISED`), `LineError`.
    """
    async with opened(settings, now) as server:
        # the answers never reach the tills, so what they granted would be held by nobody
        quiet = replace(server, grants=False)
        return [await _import(quiet, file) for file in files]


async def _import(server: Server, file: Path) -> Imported:
    done = Imported(file)
    number = 0
    try:
        lines = _lines(file)
        header = read_header(next(lines, b""))
        done.device, done.name, done.batches = header.device, header.name, header.batches
        await _take_back(server, header)
        for number, line in enumerate(lines, 1):
            if number > header.batches:
                raise Untrusted(
                    f"the file says that it has {header.batches} batches, and has more", code="DAMAGED_FILE"
                )
            await _take(server, header, done, read_batch(line))
        if number < header.batches:
            number += 1
            raise Untrusted("the file ends before it", code="DAMAGED_FILE")
    except (Untrusted, CallerError, LineError) as error:
        done.refused, done.refused_batch = f"{error} ({error.code})", number
    if done.final and not done.refused:
        await server.database.write(lambda transaction: _revoke(transaction, done.device, server.clock()))
    return done


async def _take_back(server: Server, header: FileHeader) -> None:
    """A device that this database has forgotten. Raises what `enrolling_again` does."""
    known = select(devices.c.id).where(devices.c.id == header.device)
    async with server.database.read() as connection:
        missing = (await connection.execute(known)).first() is None
    if missing and header.again is not None:
        await enrolling_again.enrol_again(server, header.again.encode())


async def _revoke(transaction: Transaction, device_id: str, now: datetime) -> None:
    """A retired device sells no more, so it is none of those among which units are shared out."""
    device = await devices_of.find(transaction, device_id, lock=True)
    if device.state not in (DeviceState.REVOKED, DeviceState.LOST):
        await devices_of.change_state(transaction, device_id, DeviceState.REVOKED, now=now)


async def _take(server: Server, header: FileHeader, done: Imported, body: bytes) -> None:
    head = _head_of(body)
    if head.device != header.device:
        raise Untrusted("it is of another device than the file says", code="DAMAGED_FILE")
    async with server.database.read() as connection:
        epoch = (await read_ledger(connection)).server_epoch
    if head.server_epoch > epoch:
        raise CallerError(
            f"it is of epoch {head.server_epoch}, and this server is in epoch {epoch}: where --epoch was mistyped, "
            "export again; else this server was restored from a backup, and needs tallystick-server recovery begin",
            code="WRONG_EPOCH",
        )
    before = await _outcomes(server, head)
    try:
        answer = await sync(server, body)
    except CallerError as error:
        # all of it is known: it was imported before, or the till itself has been online since
        if error.code != "STALE_REQUEST":
            raise
    else:
        _, payload = peek(answer, Typ.ANSWER)
        said = _ANSWER.decode(payload)
        if (seq := said.acknowledged.seq) < head.through.seq:
            raise CallerError(
                f"this server was restored from a backup, is in epoch {said.server_epoch} and knows this till only up "
                f"to event {seq}: export with --epoch {said.server_epoch} --after {seq}",
                code="RESTORED",
            )
    after = await _outcomes(server, head)
    new = Counter(outcome for place, outcome in after.items() if place not in before)
    done.stored += new.total()
    done.known += head.events.count - new.total()
    done.outcomes += new
    done.final = head.retired and head.through == head.head  # the number of batches is not signed


def _head_of(body: bytes) -> SyncHead:
    """Whose batch it says it is; `sync` verifies that. Raises `Untrusted`."""
    _, payload = peek(body.partition(b"\n")[0], Typ.SYNC)
    try:
        return _HEAD.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Untrusted("its first line is no head of a sync", code="MALFORMED") from error


async def _outcomes(server: Server, head: SyncHead) -> dict[tuple[int, int], str]:
    """What is stored at the places of this batch, in any branch: the outcome by branch and number."""
    query = select(events.c.branch, events.c.seq, events.c.outcome).where(
        events.c.device_id == head.device, events.c.seq > head.after.seq, events.c.seq <= head.through.seq
    )
    async with server.database.read() as connection:
        return {(row.branch, row.seq): row.outcome for row in await connection.execute(query)}


def _lines(file: Path) -> Iterator[bytes]:
    """Raises `CallerError` (`NO_FILE`)."""
    try:
        with file.open("rb") as reading:
            while line := reading.readline(LINE_BYTES_MAX):
                yield line
    except OSError as error:
        raise CallerError(f"the file cannot be read: {error.strerror}", code="NO_FILE") from error
