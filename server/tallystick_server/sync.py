"""One sync: a device's events in, a signed answer out, in one transaction (protocol.md, section 7).

1. the device and its signature over line 1; the digest and size of what follows; only then it is unpacked
2. the same request once more gets the same answer
3. whether this database knows as much as the device has seen (`recovery`), and where in its chain the batch belongs
   (`placing`): what is stored already is passed over, a fork is kept on a branch of its own (I5)
4. and 5. every event is stored and settled; one that cannot be settled is quarantined, and no other with it
6. leases: granted, recalled, or all of them told again
7. the answer, signed and stored; its number is the ledger mark
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
import zstandard
from sqlalchemy import func, insert, select, tuple_, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from tallystick_server import adopting, forks, placing, posting, recovery
from tallystick_server import devices as devices_of
from tallystick_server import leases as leases_of
from tallystick_server.database import Transaction
from tallystick_server.devices import Device
from tallystick_server.ledger import note_demand
from tallystick_server.logs import LOG
from tallystick_server.placing import Batch, Place
from tallystick_server.reading import open_envelope
from tallystick_server.server import Ledger, Server, read_ledger
from tallystick_server.settling import Rules, Settled, quarantined, settle
from tallystick_server.tables import devices, events, scopes, syncs
from tallystick_shared.errors import CallerError, Untrusted
from tallystick_shared.journal import (
    BATCH_BYTES_MAX,
    BATCH_EVENTS_MAX,
    EVENT_BYTES_MAX,
    Position,
    chain_next,
    chain_start,
    encode,
    split_events,
)
from tallystick_shared.signing import Typ, sha256_hex
from tallystick_shared.wire import DeviceState, EventOutcome, Lease, Outcome, SyncAnswer, SyncHead, digest_of

ANSWERS_KEPT: Final = 2
RETRY_AFTER_S: Final = 0
_UNPACKED_BYTES_MAX: Final = BATCH_BYTES_MAX + 2 * EVENT_BYTES_MAX
_UNPACK_STEP_BYTES: Final = 256
"""Packed; they unpack to 8 MiB at most."""
_HEAD = msgspec.json.Decoder(SyncHead)


@dataclass(frozen=True)
class _Round:
    """One request as it is settled, in one transaction. `ledger`: as it stood when the request was compared with it."""

    server: Server
    transaction: Transaction
    batch: Batch
    ledger: Ledger
    now: datetime


async def sync(server: Server, body: bytes) -> bytes:
    """The request's body in, the signed answer out. Raises `Untrusted` or `CallerError` where nothing was stored."""
    # 1. the device, its signature, and then what follows
    line, newline, packed = body.partition(b"\n")
    if not newline:
        raise Untrusted("line 1 must be ended by a newline", code="MALFORMED")
    head, device = await devices_of.signed_by(server, line, Typ.SYNC, _HEAD)
    batch = _open(head, packed, sha256_hex(body))
    now = server.clock()
    return await server.database.write(lambda transaction: _settle(server, transaction, device.id, batch, now))


def _open(head: SyncHead, packed: bytes, request_sha256: str) -> Batch:
    """Unpacks the events, capped, and follows the chain over them. Raises `Untrusted`, `CallerError` (`TOO_LARGE`)."""
    if head.events.bytes != len(packed) or (packed and head.events.sha256 != sha256_hex(packed)):
        raise Untrusted("the events are not those that line 1 names", code="WRONG_DIGEST")
    if head.events.count > BATCH_EVENTS_MAX:
        raise CallerError(f"a batch has at most {BATCH_EVENTS_MAX} events", code="TOO_LARGE")
    found = split_events(_unpack(packed)) if packed else []
    bounds_hold = head.after.seq + len(found) == head.through.seq <= head.head.seq
    if len(found) != head.events.count or not bounds_hold:
        raise Untrusted("the number of events does not fit after, through and head", code="MALFORMED")
    hashes: list[str] = []
    previous = head.after.hash
    for event in found:
        previous = chain_next(previous, event.envelope)
        hashes.append(previous)
    if previous != head.through.hash:
        raise Untrusted("the chain over the events does not lead to through", code="BROKEN_CHAIN")
    return Batch(head, found, hashes, request_sha256)


def _unpack(packed: bytes) -> bytes:
    """One whole zstd frame and nothing else, as a till unpacks a blob. Raises `Untrusted`, `CallerError`."""
    raw, start = bytearray(), 0
    frame = zstandard.ZstdDecompressor(max_window_size=2**23).decompressobj()
    try:
        while start < len(packed) and not frame.eof:
            raw += frame.decompress(packed[start : start + _UNPACK_STEP_BYTES])
            start += _UNPACK_STEP_BYTES
            if len(raw) > _UNPACKED_BYTES_MAX:
                raise CallerError(f"a batch has at most {BATCH_BYTES_MAX} bytes", code="TOO_LARGE")
    except zstandard.ZstdError as error:
        raise Untrusted("the events are not one zstd frame", code="MALFORMED") from error
    if not frame.eof or frame.unused_data or start < len(packed) or not packed.startswith(zstandard.FRAME_HEADER):
        raise Untrusted("the events are not one zstd frame", code="MALFORMED")
    return bytes(raw)


async def _settle(server: Server, transaction: Transaction, device_id: str, batch: Batch, now: datetime) -> bytes:
    device = await devices_of.find(transaction, device_id, lock=True)
    # 2. seen before?
    seen = select(syncs.c.answer).where(syncs.c.request_sha256 == batch.request_sha256)
    if (row := (await transaction.execute(seen)).one_or_none()) is not None:
        if row.answer is None:
            raise CallerError("this request was answered long ago", code="STALE_REQUEST")
        return bytes(row.answer)
    # 3. what is known, and the chain
    ledger = await recovery.compare(transaction, await read_ledger(transaction), device, batch.head, now=now)
    this = _Round(server, transaction, batch, ledger, now)
    if batch.head.server_epoch < ledger.server_epoch and not await _is_settled_as_it_is(this, device):
        return await _answer(this, device, [], await placing.known_of(transaction, device, batch, ledger))
    # one that an operator has yet to confirm brings events, and claims nothing
    believed = device.state is not DeviceState.PENDING and batch.head.held is not None
    reporting = believed and recovery.must_report(device, ledger)
    nonce = placing.challenge(server.keys.receipt, device)
    place = await placing.place(transaction, device, batch, ledger, nonce)
    if place is None:
        return await _answer(this, device, [], Position(device.seq, device.hash))
    if place.sign is None:
        ledger = await recovery.compare_leases(transaction, ledger, device, batch.head, now=now)
        this = replace(this, ledger=ledger)
    if reporting:
        await adopting.adopt(transaction, server.settings, device, batch.head, ledger, now=now)
    if place.sign is not None:
        await leases_of.burn(transaction, device.id, by="forked")
    # 4. and 5. store and settle
    settled = await _store(this, device, place)
    await _advance(this, device, place, settled)
    if place.sign is not None:
        await forks.note(transaction, server, device.id, place.sign, place.branch, now=now)
    known = await _known_outcomes(transaction, device, batch, place.start)
    device = await devices_of.find(transaction, device.id)
    if reporting:
        this = await _report(this, device)
        device = await devices_of.find(transaction, device.id)
    return await _answer(this, device, [*known, *settled], batch.head.through)


async def _is_settled_as_it_is(this: _Round, device: Device) -> bool:
    """Of an older epoch, but in a file, of which there is no other: taken if nothing is missing before it."""
    in_a_file = not this.server.grants
    return in_a_file and await placing.is_anchored(this.transaction, device, this.batch, this.ledger)


async def _report(this: _Round, device: Device) -> _Round:
    """In a recovery: what follows from the events that were just settled, and whether these were the last."""
    await adopting.take_up(this.transaction, device)
    head = this.batch.head
    if head.through != head.head or (head.server_epoch < this.ledger.server_epoch and not head.retired):
        return this  # more is to come; a till that goes on has not said its last word in a file
    ledger = await recovery.note_reported(this.transaction, device, this.ledger, now=this.now)
    return replace(this, ledger=ledger)


async def _store(this: _Round, device: Device, place: Place) -> list[Settled]:
    """Settles and stores what is new: all at once, or, where that fails, one by one."""
    fresh = list(range(place.start, len(this.batch.events)))
    if not fresh:
        return []
    try:
        async with this.transaction.begin_nested():
            return await _store_some(this, device, place, fresh)
    except Exception as error:  # noqa: BLE001 - whatever it is, it must not keep the other events from being stored
        _must_be_the_events_fault(error)
        LOG.error(
            "a batch could not be settled at once",
            device=device.id,
            traceback="".join(traceback.format_exception(error)),
        )
    settled: list[Settled] = []
    for index in fresh:
        try:
            async with this.transaction.begin_nested():
                settled += await _store_some(this, device, place, [index])
        except Exception as error:  # noqa: BLE001 - as above; the log has it, the event is kept for an operator
            _must_be_the_events_fault(error)
            LOG.error(
                "an event is quarantined",
                device=device.id,
                seq=this.batch.seq(index),
                traceback="".join(traceback.format_exception(error)),
            )
            settled += await _store_some(this, device, place, [index], quarantine=True)
    return settled


def _must_be_the_events_fault(error: Exception) -> None:
    """A database that is gone, full or deadlocked is nobody's event."""
    if isinstance(error, DBAPIError) and not isinstance(error, IntegrityError):
        orig = getattr(error.orig, "sqlstate", None) or ""
        if not orig.startswith("22"):  # 22: a value that the database cannot hold
            raise error


async def _store_some(
    this: _Round, device: Device, place: Place, indexes: Sequence[int], *, quarantine: bool = False
) -> list[Settled]:
    batch, transaction = this.batch, this.transaction
    rules = _rules(this, device)
    envelopes = [open_envelope(batch.events[index], batch.seq(index)) for index in indexes]
    named = [] if quarantine else [(batch.events[index], one) for index, one in zip(indexes, envelopes, strict=True)]
    facts = await posting.load(transaction, this.server.revisions, device, named)
    settled = []
    for index, envelope in zip(indexes, envelopes, strict=True):
        step = (batch.events[index], batch.seq(index), envelope, facts)
        settled.append(quarantined(*step) if quarantine else settle(*step, rules))
    hashes = [batch.hashes[index] for index in indexes]
    await posting.write(transaction, device, place.branch, settled, hashes, facts, now=this.now)
    return settled


def _rules(this: _Round, device: Device) -> Rules:
    settings = this.server.settings
    last_contact = device.last_sync_at or device.enrolled_at
    if recovery.must_report(device, this.ledger):
        last_contact = this.now  # when it really was has been forgotten with the events that come now
    return Rules(
        store_id=device.store_id,
        now=this.now,
        clock_ahead=timedelta(seconds=settings.clock_ahead_s),
        clock_back=timedelta(seconds=settings.clock_back_s),
        # a manifest was at most this old when the device last had contact
        late_after=last_contact
        + timedelta(seconds=settings.manifest_ttl_s + settings.offline_s + settings.clock_ahead_s),
    )


async def _advance(this: _Round, device: Device, place: Place, settled: Sequence[Settled]) -> None:
    forked = place.sign is not None
    through, replicated = this.batch.head.through, this.server.settings.backup == "replicated"
    values: dict[str, Any] = {
        "state": (DeviceState.SUSPENDED if forked and device.state is DeviceState.ACTIVE else device.state).value,
        "last_sync_at": this.now,
        "branches": max(device.branches, place.branch + 1, 2 if forked else 1),
    }
    if settled and place.branch == 0:
        values.update(seq=through.seq, hash=through.hash)
        if replicated:
            values.update(durable_seq=through.seq, durable_hash=through.hash)
    if times := [one.envelope.at for one in settled if one.envelope is not None]:
        values["last_event_at"] = times[-1]
    await this.transaction.execute(update(devices).where(devices.c.id == device.id).values(**values))


async def _known_outcomes(transaction: Transaction, device: Device, batch: Batch, count: int) -> list[EventOutcome]:
    """What was said of those events of the batch that were stored before: a device that asks again is told again."""
    places = [(batch.seq(index), batch.hashes[index]) for index in range(count)]
    if not places:
        return []
    query = (
        select(events.c.seq, events.c.event_id, events.c.outcome, events.c.reasons)
        .where(events.c.device_id == device.id, tuple_(events.c.seq, events.c.hash).in_(places))
        .order_by(events.c.seq)
    )
    return [
        EventOutcome(row.seq, row.event_id or "", Outcome(row.outcome), msgspec.json.decode(row.reasons, type=list))
        for row in await transaction.execute(query)
        if row.outcome != Outcome.APPLIED.value
    ]


async def _answer(
    this: _Round, device: Device, outcomes: Sequence[EventOutcome | Settled], acknowledged: Position
) -> bytes:
    server, transaction, ledger = this.server, this.transaction, this.ledger
    # 6. leases
    granted, recall, full, digest = await _leases(this, device)
    # 7. the answer
    row = {"device_id": device.id, "request_sha256": this.batch.request_sha256, "at": this.now}
    mark = int((await transaction.execute(insert(syncs).returning(syncs.c.id), row)).scalar_one())
    version = select(scopes.c.version).where(scopes.c.name == device.scope)
    answer = SyncAnswer(
        device=device.id,
        request_sha256=this.batch.request_sha256,
        state=device.state,
        acknowledged=acknowledged,
        durable=await _durable(this, device, acknowledged),
        exceptions=[_outcome(one) for one in outcomes if one.outcome is not Outcome.APPLIED],
        leases=granted,
        leases_full=full,
        leases_digest=digest,
        recall=recall,
        server_epoch=ledger.server_epoch,
        ledger_mark=mark,
        server_time=this.now,
        root_version=server.keys.root_version,
        scope=device.scope,
        manifest_version=(await transaction.execute(version)).scalar_one(),
        retry_after_s=RETRY_AFTER_S,
        recovering=ledger.state == "recovering" or recovery.must_report(device, ledger),
    )
    signed = server.keys.receipt.sign(Typ.ANSWER, encode(answer))
    await transaction.execute(update(syncs).where(syncs.c.id == mark).values(answer=signed))
    mine = select(syncs.c.id).where(syncs.c.device_id == device.id).order_by(syncs.c.id.desc())
    oldest = (await transaction.execute(mine.offset(ANSWERS_KEPT).limit(1))).scalar_one_or_none()
    if oldest is not None:
        await transaction.execute(update(syncs).where(syncs.c.id == oldest).values(answer=None))
    return signed


async def _durable(this: _Round, device: Device, acknowledged: Position) -> Position:
    """How far the device's own journal is in every backup; never beyond what is acknowledged."""
    if this.server.settings.backup == "replicated":
        return acknowledged
    start = Position(0, chain_start(this.ledger.server_id, device.id, device.key))
    if device.branches > 1:
        # a copy shares only what lies before the first event in which the branches differ
        apart = select(func.min(events.c.seq)).where(events.c.device_id == device.id, events.c.branch > 0)
        first = (await this.transaction.execute(apart)).scalar_one_or_none()
        if first is not None and first <= device.durable_seq:
            return start
    if device.durable_hash is None:
        return start
    if acknowledged.seq <= device.durable_seq:
        return acknowledged
    return Position(device.durable_seq, device.durable_hash)


def _outcome(one: EventOutcome | Settled) -> EventOutcome:
    if isinstance(one, EventOutcome):
        return one
    return EventOutcome(one.seq, "" if one.envelope is None else one.envelope.id, one.outcome, [*one.reasons])


async def _leases(this: _Round, device: Device) -> tuple[list[Lease], list[str], bool, str]:
    """Leases to tell of, those to close, whether these are all of them, and the digest over all."""
    transaction, settings, head, ledger = this.transaction, this.server.settings, this.batch.head, this.ledger
    open_now = [leases_of.as_lease(row) for row in await leases_of.open_leases(transaction, device.id)]
    digest = digest_of(open_now)
    if head.server_epoch < ledger.server_epoch:
        return [], [], False, digest  # it has yet to tell what it holds
    # Numbers rise: with a higher one it holds leases that are forgotten here. Told that these are all, it gave it up.
    forgotten = head.lease_number > device.lease_number or recovery.must_report(device, ledger)
    full = digest != head.leases_digest and not forgotten
    told = open_now if full else []
    if device.state is not DeviceState.ACTIVE:
        return told, [one.id for one in open_now], full, digest
    wants = {want.voucher_id: want.units for want in head.wants if want.units}
    await note_demand(transaction, device.id, wants, now=this.now)
    quiet = head.retired or not this.server.grants
    if quiet or ledger.state != "normal" or recovery.must_report(device, ledger):
        return told, [], full, digest  # nothing is granted, so nothing is recalled to be granted anew
    asking = leases_of.Asking(device.id, device.scope, device.lease_number, set(wants))
    granted = await leases_of.allot(transaction, settings, asking, now=this.now)
    recall = await leases_of.to_recall(transaction, settings, device.id, now=this.now)
    everything = [*open_now, *granted]
    return (everything if full else granted), recall, full, digest_of(everything)
