"""Reads what settling a batch needs, in one query a table, and writes what it decided."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from sqlalchemy import and_, bindparam, case, delete, exists, func, insert, literal, select, tuple_, update

from tallystick_server.customers import customer_of
from tallystick_server.database import Transaction, chunks
from tallystick_server.devices import Device
from tallystick_server.facts import Facts, LeaseFacts, RedemptionFacts, UseFacts, VoucherFacts
from tallystick_server.ledger import count_customers, move_pools, note_demand
from tallystick_server.reading import open_envelope
from tallystick_server.revisions import Revisions
from tallystick_server.settling import Settled
from tallystick_server.tables import (
    customer_uses,
    events,
    flags,
    leases,
    pools,
    redemption_uses,
    redemptions,
    vouchers,
)
from tallystick_shared.errors import Untrusted
from tallystick_shared.journal import EVENT_BYTES_MAX, Envelope, EventType, StoredEvent
from tallystick_shared.terms import TEXT_MAX
from tallystick_shared.wire import Outcome

BLOCKED_PAGE: Final = 10
BLOCKED_MAX: Final = 500
"""Quarantined envelopes that are read for one batch; where more wait for a person, no lease of the device closes."""


async def load(
    transaction: Transaction,
    revisions: Revisions,
    device: Device,
    batch: Sequence[tuple[StoredEvent, Envelope | None]],
) -> Facts:
    """Everything these events name, and nothing that grows with what others did: no more than a batch can name."""
    readable = [envelope for _, envelope in batch if envelope is not None]
    refs = sorted({envelope.id for envelope in readable} | {envelope.ref for envelope in readable if envelope.ref})
    uses = [use for envelope in readable for use in envelope.uses]
    lease_ids = sorted({use.lease for use in uses if use.lease})
    facts = Facts(last_event_at=device.last_event_at)
    facts.redemptions = await _redemptions(transaction, device.id, refs)
    voucher_ids = {use.voucher_id for use in uses}
    voucher_ids |= {voucher_id for one in facts.redemptions.values() for voucher_id in one.uses}
    query = select(leases).where(leases.c.id.in_(lease_ids), leases.c.device_id == device.id)
    for row in await transaction.execute(query):
        facts.leases[row.id] = LeaseFacts(
            row.id, row.voucher_id, row.units, row.minor, row.known_units, row.known_minor, row.state, row.burned_by,
            row.expires_at, row.close_seq,
        )  # fmt: skip
    facts.vouchers = await _vouchers(transaction, sorted(voucher_ids))
    named = {(use.voucher_id, use.revision_sha256) for use in uses if use.revision_sha256 is not None}
    facts.revisions = await revisions.get(transaction, named)
    limited = {voucher_id for (voucher_id, _), one in facts.revisions.items() if one.voucher.limits.per_customer}
    facts.customer_units = await _customer_units(transaction, batch, limited)
    if any(envelope.type is EventType.LEASE_CLOSE for envelope in readable):  # nothing else asks
        await _note_blocked(transaction, device.id, facts)
    return facts


async def _customer_units(
    transaction: Transaction, batch: Sequence[tuple[StoredEvent, Envelope | None]], limited: set[str]
) -> dict[tuple[str, str], int]:
    """What the customers of these redemptions have used of those of their vouchers that are `limited`."""
    pairs: set[tuple[str, str]] = set()
    for stored, envelope in batch:
        if envelope is None or envelope.type is not EventType.REDEEM:
            continue
        asked = limited & {use.voucher_id for use in envelope.uses}
        customer = _storable_customer(stored.body) if asked else None
        if customer is not None:
            pairs |= {(voucher_id, customer) for voucher_id in asked}
    found: dict[tuple[str, str], int] = {}
    for part in chunks(sorted(pairs)):
        key = tuple_(customer_uses.c.voucher_id, customer_uses.c.customer_id)
        for row in await transaction.execute(select(customer_uses).where(key.in_(part))):
            found[row.voucher_id, row.customer_id] = row.units
    return found


def _storable_customer(body: bytes) -> str | None:
    """None too where settling will not read one: an unreadable body, or an id that no order may carry."""
    try:
        customer = customer_of(body)
    except Untrusted:
        return None
    fits = customer is not None and len(customer) <= TEXT_MAX and "\0" not in customer
    return customer if fits else None


async def _redemptions(transaction: Transaction, issuer: str, ids: Sequence[str]) -> dict[str, RedemptionFacts]:
    query = select(redemptions).where(redemptions.c.issuer == issuer, redemptions.c.redemption_id.in_(ids))
    found = {
        row.redemption_id: RedemptionFacts(
            id=row.redemption_id,
            at=row.at,
            store_id=row.store_id,
            customer_id=row.customer_id,
            online=bool(row.online),
            content_sha256=row.content_sha256,
            body_sha256=row.body_sha256,
            result=row.result,
            uses={},
        )
        for row in await transaction.execute(query)
    }
    if found:
        mine = (redemption_uses.c.issuer == issuer) & redemption_uses.c.redemption_id.in_(list(found))
        for row in await transaction.execute(select(redemption_uses).where(mine)):
            found[row.redemption_id].uses[row.voucher_id] = UseFacts(
                row.voucher_id, row.revision_sha256, row.units, row.minor, row.settled_minor, row.lease_id, row.cover,
                row.voided_units, row.voided_minor,
            )  # fmt: skip
    return found


async def _vouchers(transaction: Transaction, ids: Sequence[str]) -> dict[str, VoucherFacts]:
    found: dict[str, VoucherFacts] = {}
    for part in chunks(ids):
        for row in await transaction.execute(select(vouchers).where(vouchers.c.id.in_(part))):
            found[row.id] = VoucherFacts(
                row.policy, row.sha256, row.status, row.revised_at, row.valid_until, row.deactivated_at, {}
            )
        free = select(pools.c.voucher_id, pools.c.measure, pools.c.free).where(pools.c.voucher_id.in_(part))
        for row in await transaction.execute(free):
            found[row.voucher_id].free[row.measure] = row.free
    return found


async def _note_blocked(transaction: Transaction, device_id: str, facts: Facts) -> None:
    """Which leases earlier quarantined events may have used; a person who resolves one lifts that.

    Reads envelopes only, and no page after the first one that cannot be read: that one blocks all leases.
    """
    waiting = exists().where(
        and_(
            flags.c.device_id == events.c.device_id,
            flags.c.branch == events.c.branch,
            flags.c.seq == events.c.seq,
            flags.c.state == "open",
        )
    )
    # an event that is too large cannot be read either, and need not be fetched to know it
    too_large = func.length(events.c.envelope) + func.length(events.c.body) > EVENT_BYTES_MAX
    envelopes = case((too_large, literal(b"", events.c.envelope.type)), else_=events.c.envelope)
    query = (
        select(envelopes.label("envelope"), events.c.seq)
        .where(events.c.device_id == device_id, events.c.outcome == Outcome.QUARANTINED.value, waiting)
        .order_by(events.c.branch, events.c.seq)
        .limit(BLOCKED_PAGE)
    )
    for start in range(0, BLOCKED_MAX, BLOCKED_PAGE):
        page = (await transaction.execute(query.offset(start))).all()
        for row in page:
            envelope = open_envelope(StoredEvent(row.envelope, b""), row.seq)
            if envelope is None:
                facts.all_leases_blocked = True
                return
            facts.blocked_leases.update(use.lease for use in envelope.uses if use.lease is not None)
        if len(page) < BLOCKED_PAGE:
            return
    facts.all_leases_blocked = True


async def write(
    transaction: Transaction,
    device: Device,
    branch: int,
    settled: Sequence[Settled],
    hashes: Sequence[str],
    facts: Facts,
    *,
    now: datetime,
) -> None:
    """Stores the events with their outcomes, and every effect noted in `facts`."""
    await _write_events(transaction, device.id, branch, settled, hashes, now)
    changed = [
        {"p_id": one.id, "known_units": one.known_units, "known_minor": one.known_minor, "state": one.state,
         "close_seq": one.close_seq}
        for one in facts.leases.values() if one.changed
    ]  # fmt: skip
    if changed:
        await transaction.execute(update(leases).where(leases.c.id == bindparam("p_id")), changed)
    await _write_redemptions(transaction, device.id, facts)
    await count_customers(transaction, facts.customer_moves)
    await note_demand(transaction, device.id, facts.sold, now=now)
    await move_pools(transaction, facts.moves)


async def _write_events(
    transaction: Transaction,
    device_id: str,
    branch: int,
    settled: Sequence[Settled],
    hashes: Sequence[str],
    now: datetime,
) -> None:
    rows: list[dict[str, Any]] = []
    raised: list[dict[str, Any]] = []
    for one, chained in zip(settled, hashes, strict=True):
        # nothing an event says can keep its own quarantine from being written
        envelope = None if one.outcome is Outcome.QUARANTINED else one.envelope
        place = {"device_id": device_id, "branch": branch, "seq": one.seq}
        rows.append(
            {
                **place,
                "event_id": None if envelope is None else envelope.id,
                "type": None if envelope is None else envelope.type.value,
                "at": None if envelope is None else envelope.at,
                "envelope": one.stored.envelope,
                "body": one.stored.body,
                "hash": chained,
                "outcome": one.outcome.value,
                "reasons": msgspec.json.encode(one.reasons).decode(),
                "received_at": now,
            }
        )
        raised += [{**place, "reason": reason.value, "state": "open", "raised_at": now} for reason in one.reasons]
    await transaction.execute(insert(events), rows)
    if raised:
        await transaction.execute(insert(flags), raised)


async def _write_redemptions(transaction: Transaction, device_id: str, facts: Facts) -> None:
    replaced = [one.id for one in facts.redemptions.values() if one.replaces]
    for table in (redemption_uses, redemptions):
        if replaced:
            mine = (table.c.issuer == device_id) & table.c.redemption_id.in_(replaced)
            await transaction.execute(delete(table).where(mine))
    new = [one for one in facts.redemptions.values() if one.is_new]
    if new:
        await transaction.execute(insert(redemptions), [redemption_row(device_id, device_id, one) for one in new])
        if uses := [row for one in new for row in use_rows(device_id, one)]:
            await transaction.execute(insert(redemption_uses), uses)
    voided = [
        {"p_redemption_id": one.id, "p_voucher_id": use.voucher_id, "voided_units": use.voided_units,
         "voided_minor": use.voided_minor}
        for one in facts.redemptions.values() if not one.is_new
        for use in one.uses.values() if use.changed
    ]  # fmt: skip
    if voided:
        change = update(redemption_uses).where(
            redemption_uses.c.issuer == device_id,
            redemption_uses.c.redemption_id == bindparam("p_redemption_id"),
            redemption_uses.c.voucher_id == bindparam("p_voucher_id"),
        )
        await transaction.execute(change, voided)


def redemption_row(issuer: str, device_id: str | None, one: RedemptionFacts) -> dict[str, Any]:
    return {
        "issuer": issuer,
        "redemption_id": one.id,
        "at": one.at,
        "device_id": device_id,
        "store_id": one.store_id,
        "customer_id": one.customer_id,
        "online": int(one.online),
        "content_sha256": one.content_sha256,
        "body_sha256": one.body_sha256,
        "result": one.result,
    }


def use_rows(issuer: str, one: RedemptionFacts) -> list[dict[str, Any]]:
    return [
        {
            "issuer": issuer,
            "redemption_id": one.id,
            "voucher_id": use.voucher_id,
            "revision_sha256": use.revision_sha256,
            "units": use.units,
            "minor": use.minor,
            "settled_minor": use.settled_minor,
            "lease_id": use.lease_id,
            "cover": use.cover,
            "voided_units": use.voided_units,
            "voided_minor": use.voided_minor,
        }
        for use in one.uses.values()
    ]
