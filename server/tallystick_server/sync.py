"""One sync: a device's events in, a signed answer out, in one transaction (protocol.md, section 7).

1. the device and its signature over line 1; the digest and size of what follows; only then it is unpacked
2. the same request once more gets the same answer
3. the chain: what is stored already is passed over, a place with two hashes is a fork (I5)
4. and 5. every event is stored and settled; one that cannot be settled is quarantined, and no other with it
6. leases: granted, recalled, or all of them told again
7. the answer, signed and stored; its number is the ledger mark
"""

from __future__ import annotations

import io
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
import zstandard
from sqlalchemy import func, insert, select, tuple_, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from tallystick_server import devices as devices_of
from tallystick_server import leases as leases_of
from tallystick_server import posting
from tallystick_server.database import Transaction
from tallystick_server.devices import Device
from tallystick_server.ledger import note_demand
from tallystick_server.logs import LOG
from tallystick_server.server import Ledger, Server, read_ledger, suspect_restore
from tallystick_server.settling import Rules, Settled, open_envelope, quarantined, settle
from tallystick_server.tables import devices, events, leases, scopes, syncs
from tallystick_shared.errors import CallerError, Untrusted
from tallystick_shared.journal import (
    BATCH_BYTES_MAX,
    BATCH_EVENTS_MAX,
    EVENT_BYTES_MAX,
    Position,
    StoredEvent,
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
_HEAD = msgspec.json.Decoder(SyncHead)


@dataclass(frozen=True)
class _Batch:
    """The events of a request, at the sequence numbers after `head.after`, with the chain's hash at each."""

    head: SyncHead
    events: list[StoredEvent]
    hashes: list[str]
    request_sha256: str

    def seq(self, index: int) -> int:
        return self.head.after.seq + 1 + index


@dataclass(frozen=True)
class _Place:
    """Where the batch's new events go: from index `start` on, to `branch`. `known` is what the device's tip becomes."""

    branch: int
    start: int
    forked: bool


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


def _open(head: SyncHead, packed: bytes, request_sha256: str) -> _Batch:
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
    return _Batch(head, found, hashes, request_sha256)


def _unpack(packed: bytes) -> bytes:
    try:
        with zstandard.ZstdDecompressor(max_window_size=2**23).stream_reader(io.BytesIO(packed)) as reader:
            raw = reader.read(_UNPACKED_BYTES_MAX + 1)
    except zstandard.ZstdError as error:
        raise Untrusted("the events are not one zstd frame", code="MALFORMED") from error
    if len(raw) > _UNPACKED_BYTES_MAX:
        raise CallerError(f"a batch has at most {BATCH_BYTES_MAX} bytes", code="TOO_LARGE")
    return raw


async def _settle(server: Server, transaction: Transaction, device_id: str, batch: _Batch, now: datetime) -> bytes:
    device = await devices_of.find(transaction, device_id, lock=True)
    # 2. seen before?
    seen = select(syncs.c.answer).where(syncs.c.request_sha256 == batch.request_sha256)
    if (row := (await transaction.execute(seen)).one_or_none()) is not None:
        if row.answer is None:
            raise CallerError("this request was answered long ago", code="STALE_REQUEST")
        return bytes(row.answer)
    ledger = await read_ledger(transaction)
    if batch.head.ledger_mark > ledger.mark or batch.head.server_epoch > ledger.server_epoch:
        await suspect_restore(transaction, device.id)
        ledger = Ledger(ledger.server_id, ledger.server_epoch, "restore_suspected", ledger.mark)
    # 3. the chain
    place = await _place(transaction, device, batch, ledger)
    if place is None:
        return await _answer(server, transaction, device, batch, ledger, [], Position(device.seq, device.hash), now)
    state = device.state
    if place.forked:
        state = DeviceState.SUSPENDED if state is DeviceState.ACTIVE else state
        await leases_of.burn(transaction, device.id, by="forked")
        LOG.warning("fork", device=device.id, branch=place.branch, seq=batch.seq(place.start))
    # 4. and 5. store and settle
    settled = await _store(server, transaction, device, batch, place, now)
    await _advance(transaction, device, batch, place, state, settled, now)
    known = await _known_outcomes(transaction, device, batch, place.start)
    device = await devices_of.find(transaction, device.id)
    after = batch.head.through
    return await _answer(server, transaction, device, batch, ledger, [*known, *settled], after, now)


async def _place(transaction: Transaction, device: Device, batch: _Batch, ledger: Ledger) -> _Place | None:
    """Where the batch belongs. None: it leaves a gap that a restore of this server explains, and is sent again."""
    head = batch.head
    start = chain_start(ledger.server_id, device.id, device.key)
    positions = [(head.after.seq, head.after.hash)]
    positions += [(batch.seq(index), chained) for index, chained in enumerate(batch.hashes)]
    stored = await _stored(transaction, device.id, positions)
    anchored = positions[0] == (0, start) or positions[0] in stored
    if not anchored and ledger.state == "restore_suspected" and device.seq < head.after.seq:
        return None
    new = next((i for i, position in enumerate(positions[1:]) if position not in stored), len(batch.events))
    behind = device.branches == 1 and head.head.seq < device.seq
    if behind and anchored and new == len(batch.events):
        # An older request that the line delivered late, or a journal restored from an older copy. It says nothing that
        # is not known, so it proves no fork: a copy shows itself with its first event of its own.
        raise CallerError(
            "the server knows later events of this till: this is an old request, or an old copy of the till's files",
            code="STALE_REQUEST",
        )
    went_back = behind or (device.branches == 1 and await _uses_went_down(transaction, device, head))
    if not anchored:
        return _Place(device.branches, new, forked=True)
    if new == len(batch.events):
        return _Place(0, new, forked=went_back)
    previous = positions[new]
    branch = stored.get(previous, 0)
    ends_there = await _ends(transaction, device, branch, previous[0])
    if ends_there and not went_back:
        return _Place(branch, new, forked=False)
    return _Place(branch if ends_there else device.branches, new, forked=True)


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


async def _ends(transaction: Transaction, device: Device, branch: int, seq: int) -> bool:
    if device.branches == 1:
        return seq == device.seq
    top = select(func.max(events.c.seq)).where(events.c.device_id == device.id, events.c.branch == branch)
    return ((await transaction.execute(top)).scalar_one() or 0) == seq


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


async def _store(
    server: Server, transaction: Transaction, device: Device, batch: _Batch, place: _Place, now: datetime
) -> list[Settled]:
    """Settles and stores what is new: all at once, or, where that fails, one by one."""
    fresh = list(range(place.start, len(batch.events)))
    if not fresh:
        return []
    try:
        async with transaction.begin_nested():
            return await _store_some(server, transaction, device, batch, place, fresh, now)
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
            async with transaction.begin_nested():
                settled += await _store_some(server, transaction, device, batch, place, [index], now)
        except Exception as error:  # noqa: BLE001 - as above; the log has it, the event is kept for an operator
            _must_be_the_events_fault(error)
            LOG.error(
                "an event is quarantined",
                device=device.id,
                seq=batch.seq(index),
                traceback="".join(traceback.format_exception(error)),
            )
            settled += await _store_some(server, transaction, device, batch, place, [index], now, quarantine=True)
    return settled


def _must_be_the_events_fault(error: Exception) -> None:
    """A database that is gone, full or deadlocked is nobody's event."""
    if isinstance(error, DBAPIError) and not isinstance(error, IntegrityError):
        orig = getattr(error.orig, "sqlstate", None) or ""
        if not orig.startswith("22"):  # 22: a value that the database cannot hold
            raise error


async def _store_some(
    server: Server,
    transaction: Transaction,
    device: Device,
    batch: _Batch,
    place: _Place,
    indexes: Sequence[int],
    now: datetime,
    *,
    quarantine: bool = False,
) -> list[Settled]:
    settings = server.settings
    last_contact = device.last_sync_at or device.enrolled_at
    rules = Rules(
        store_id=device.store_id,
        now=now,
        clock_ahead=timedelta(seconds=settings.clock_ahead_s),
        clock_back=timedelta(seconds=settings.clock_back_s),
        # a manifest was at most this old when the device last had contact
        late_after=last_contact
        + timedelta(seconds=settings.manifest_ttl_s + settings.offline_s + settings.clock_ahead_s),
    )
    envelopes = [open_envelope(batch.events[index], batch.seq(index)) for index in indexes]
    facts = await posting.load(transaction, server.revisions, device, [] if quarantine else envelopes)
    settled = []
    for index, envelope in zip(indexes, envelopes, strict=True):
        step = (batch.events[index], batch.seq(index), envelope, facts)
        settled.append(quarantined(*step) if quarantine else settle(*step, rules))
    hashes = [batch.hashes[index] for index in indexes]
    await posting.write(transaction, device, place.branch, settled, hashes, facts, now=now)
    return settled


async def _advance(
    transaction: Transaction,
    device: Device,
    batch: _Batch,
    place: _Place,
    state: DeviceState,
    settled: Sequence[Settled],
    now: datetime,
) -> None:
    values: dict[str, Any] = {
        "state": state.value,
        "last_sync_at": now,
        "branches": max(device.branches, place.branch + 1),
    }
    if settled and place.branch == 0:
        values.update(seq=batch.head.through.seq, hash=batch.head.through.hash)
    if times := [one.envelope.at for one in settled if one.envelope is not None]:
        values["last_event_at"] = times[-1]
    await transaction.execute(update(devices).where(devices.c.id == device.id).values(**values))


async def _known_outcomes(transaction: Transaction, device: Device, batch: _Batch, count: int) -> list[EventOutcome]:
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
    server: Server,
    transaction: Transaction,
    device: Device,
    batch: _Batch,
    ledger: Ledger,
    outcomes: Sequence[EventOutcome | Settled],
    acknowledged: Position,
    now: datetime,
) -> bytes:
    # 6. leases
    granted, recall, full, digest = await _leases(server, transaction, device, batch.head, ledger, now)
    # 7. the answer
    row = {"device_id": device.id, "request_sha256": batch.request_sha256, "at": now}
    mark = int((await transaction.execute(insert(syncs).returning(syncs.c.id), row)).scalar_one())
    version = select(scopes.c.version).where(scopes.c.name == device.scope)
    replicated = server.settings.backup == "replicated"
    start = Position(0, chain_start(ledger.server_id, device.id, device.key))
    answer = SyncAnswer(
        device=device.id,
        request_sha256=batch.request_sha256,
        state=device.state,
        acknowledged=acknowledged,
        durable=acknowledged if replicated else start,
        exceptions=[_outcome(one) for one in outcomes if one.outcome is not Outcome.APPLIED],
        leases=granted,
        leases_full=full,
        leases_digest=digest,
        recall=recall,
        server_epoch=ledger.server_epoch,
        ledger_mark=mark,
        server_time=now,
        root_version=server.keys.root_version,
        scope=device.scope,
        manifest_version=(await transaction.execute(version)).scalar_one(),
        retry_after_s=RETRY_AFTER_S,
    )
    signed = server.keys.receipt.sign(Typ.ANSWER, encode(answer))
    await transaction.execute(update(syncs).where(syncs.c.id == mark).values(answer=signed))
    mine = select(syncs.c.id).where(syncs.c.device_id == device.id).order_by(syncs.c.id.desc())
    oldest = (await transaction.execute(mine.offset(ANSWERS_KEPT).limit(1))).scalar_one_or_none()
    if oldest is not None:
        await transaction.execute(update(syncs).where(syncs.c.id == oldest).values(answer=None))
    return signed


def _outcome(one: EventOutcome | Settled) -> EventOutcome:
    if isinstance(one, EventOutcome):
        return one
    return EventOutcome(one.seq, "" if one.envelope is None else one.envelope.id, one.outcome, one.reasons)


async def _leases(
    server: Server, transaction: Transaction, device: Device, head: SyncHead, ledger: Ledger, now: datetime
) -> tuple[list[Lease], list[str], bool, str]:
    """Leases to tell of, those to close, whether these are all of them, and the digest over all."""
    open_now = [leases_of.as_lease(row) for row in await leases_of.open_leases(transaction, device.id)]
    full = digest_of(open_now) != head.leases_digest
    if device.state is not DeviceState.ACTIVE:
        return (open_now if full else []), [one.id for one in open_now], full, digest_of(open_now)
    wants = {want.voucher_id: want.units for want in head.wants if want.units}
    await note_demand(transaction, device.id, wants, now=now)
    granted: list[Lease] = []
    if ledger.state == "normal":
        asking = leases_of.Asking(device.id, device.scope, max(device.lease_number, head.lease_number), set(wants))
        granted = await leases_of.allot(transaction, server.settings, asking, now=now)
    recall = await leases_of.to_recall(transaction, server.settings, device.id, now=now)
    everything = [*open_now, *granted]
    return (everything if full else granted), recall, full, digest_of(everything)
