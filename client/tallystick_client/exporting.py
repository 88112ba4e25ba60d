"""A till's journal as a file (`tallystick_shared.journal_file`), for one that will not be online again. No network.

The file holds what the server has not acknowledged, in batches that are signed and built exactly as a sync builds them,
so that it is taken with the same checks. What the server has already, because an answer was lost, it passes over.

It may be the only one that there is, and the server may be restored from a backup: so every batch tells the leases that
were held where it begins, and the header proves the enrolment.
"""

from __future__ import annotations

import os
import secrets
from datetime import datetime
from pathlib import Path

import msgspec

from tallystick_client import exchange, requests
from tallystick_client.chain import position_at
from tallystick_client.directory import write_whole
from tallystick_client.errors import CallerError, LineError
from tallystick_client.journal import Writing
from tallystick_client.keeper import Keeper
from tallystick_client.schema import on_disk
from tallystick_client.timekeeping import read_clock
from tallystick_shared.journal import BATCH_EVENTS_MAX, Position
from tallystick_shared.journal_file import FORMAT, VERSION, FileHeader, write_batch, write_header


class Exported(msgspec.Struct, frozen=True):
    """What was written. `closed`: leases that `final` gave back; `pending`: online redemptions without an answer."""

    events: int
    batches: int
    first_seq: int
    closed: int
    pending: int


class Restored(msgspec.Struct, frozen=True):
    """What a server that was restored from a backup says when it refuses a file: its epoch, and what it still knows."""

    epoch: int
    after: int


def export(keeper: Keeper, file: Path, *, final: bool, restored: Restored | None = None) -> Exported:
    """Writes everything after the last acknowledged event to `file`, 0600, whole or not at all.

    For a server that was `restored`, everything that it does not know, with the leases held then; the till itself goes
    on believing no epoch that it was not told of in a signed answer.

    `final` first closes every lease and retires the till, durably: whatever becomes of the file, it redeems no more.
    But where no file can be made, nothing is done. Voids go on; they are in the next file. Raises `CallerError`
    (`EXISTS`, `PURGED`), `LineError` (`SYNC_RUNNING`), `StorageError`.
    """
    if os.path.lexists(file):
        raise CallerError(f"{file} is there already; an export overwrites nothing", code="EXISTS")
    lock = keeper.directory.lock()
    try:
        if not lock.take():
            raise LineError("this till is syncing: try again when that is done", code="SYNC_RUNNING")
        return _export(keeper, file, final, restored)
    finally:
        lock.release()


def _export(keeper: Keeper, file: Path, final: bool, restored: Restored | None) -> Exported:
    with keeper.journal.read() as view:
        if restored is not None:
            _known(view, restored)
    _must_be_writable(file)
    closed = _retire(keeper) if final else 0
    with keeper.journal.read() as view:
        # `view` is only read: its state is set to what it is where a batch begins
        view.state = msgspec.structs.replace(view.state, batch_events_max=BATCH_EVENTS_MAX, recovering=True)
        if restored is not None:
            _go_back(view, restored)
        state = view.state
        at = keeper.terminal.judged(view).at
        (pending,) = view.run("SELECT count(*) FROM attempts WHERE state = 'pending'").fetchone()
        bodies = _bodies(keeper, view)
        again = _again(keeper, view)
    events = state.head_seq - state.acknowledged_seq
    header = _header(keeper, at, batches=len(bodies), events=events, final=state.retired, again=again)
    write_whole(file, [write_header(header), *map(write_batch, bodies)])
    return Exported(events, len(bodies), state.acknowledged_seq + 1, closed, pending)


def _retire(keeper: Keeper) -> int:
    with keeper.journal.write() as writing:
        writing.change(retired=True)
        return exchange.close_done_leases(writing, keeper.terminal.judged(writing))


def _must_be_writable(file: Path) -> None:
    """Makes the file under the name that it has while it is written. Raises `StorageError`."""
    making = file.with_name(f"{file.name}.new")
    with on_disk(f"{file} cannot be written"):
        making.unlink(missing_ok=True)
        os.close(os.open(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def _known(view: Writing, restored: Restored) -> Position:
    """The place after which a restored server knows nothing. Raises `CallerError` (`PURGED`)."""
    known = position_at(view, restored.after)
    if known is None:
        raise CallerError(
            f"this till keeps its journal from event {view.state.base_seq} to {view.state.head_seq}, "
            f"not event {restored.after}",
            code="PURGED",
        )
    return known


def _go_back(view: Writing, restored: Restored) -> None:
    known = _known(view, restored)
    epoch = max(restored.epoch, view.state.server_epoch)
    view.state = msgspec.structs.replace(
        view.state, server_epoch=epoch, acknowledged_seq=known.seq, acknowledged_hash=known.hash
    )


def _again(keeper: Keeper, view: Writing) -> str | None:
    """What makes this till known again; None where an older version enrolled it, which kept no proof."""
    proof = exchange.proof(view)
    if proof is None:
        return None
    return requests.enrol_again(keeper.config.device, keeper.key, proof, secrets.token_urlsafe(24)).body.decode()


def _bodies(keeper: Keeper, view: Writing) -> list[bytes]:
    """Of one view of the journal; one at least, though it may hold no event."""
    bodies: list[bytes] = []
    clock = read_clock(keeper.clock)
    while not bodies or view.state.acknowledged_seq < view.state.head_seq:
        reading = exchange.reading(view)
        bodies.append(requests.sync_body(keeper.config.device, keeper.key, reading, clock, secrets.token_urlsafe(24)))
        through = reading.through
        view.state = msgspec.structs.replace(view.state, acknowledged_seq=through.seq, acknowledged_hash=through.hash)
    return bodies


def _header(keeper: Keeper, at: datetime, *, batches: int, events: int, final: bool, again: str | None) -> FileHeader:
    config = keeper.config
    return FileHeader(
        format=FORMAT,
        v=VERSION,
        device=config.device,
        server=config.server,
        name=config.name,
        store_id=config.store_id,
        made_at=at,
        batches=batches,
        events=events,
        final=final,
        again=again,
    )
