"""Settling: what each event of a batch means for the accounts. Pure: `posting` reads what
it needs and writes what it decides.

An offline redemption is a fact: it is always counted, and only classified. The steps of a redemption, in this order,
share their numbers with the comments below and with the tests:

1. identifier: a redemption id has one effect (I8); the same event again is a duplicate, another one is flagged;
   an online attempt under the same id is moved from `online` to the device's own cover, so that it counts once
2. body: its digest is the envelope's, it can be read, and it agrees with the envelope's uses
3. cover: from a lease of this device as long as k + use <= q (I2), freely where the policy says so, else without cover
4. price: the engine says the same for the same order, revision and time (I7)
5. circumstances: too late, withdrawn, over the customer's limit, at an uncertain time
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from tallystick_server.facts import Facts, RedemptionFacts, UseFacts
from tallystick_server.reading import Sale, read_body
from tallystick_shared.codes import fold
from tallystick_shared.engine import evaluate
from tallystick_shared.errors import InvalidInput
from tallystick_shared.journal import (
    Envelope,
    EventType,
    StoredEvent,
    Use,
)
from tallystick_shared.wire import Flag, Outcome


@dataclass(frozen=True)
class Rules:
    """What settling needs to know of the device and the settings. `late_after`: past it the offline cap was broken."""

    store_id: str
    now: datetime
    clock_ahead: timedelta
    clock_back: timedelta
    late_after: datetime


@dataclass(frozen=True)
class Settled:
    """One event and how it was classified; `envelope` is None where it cannot be read."""

    stored: StoredEvent
    seq: int
    envelope: Envelope | None
    outcome: Outcome
    reasons: list[Flag]


def quarantined(stored: StoredEvent, seq: int, envelope: Envelope | None, facts: Facts) -> Settled:
    """Its raw bytes are kept for an operator, and what it may have used stays held."""
    if envelope is None:
        facts.all_leases_blocked = True
    else:
        facts.blocked_leases.update(use.lease for use in envelope.uses if use.lease is not None)
    return Settled(stored, seq, envelope, Outcome.QUARANTINED, [Flag.UNREADABLE])


def settle(stored: StoredEvent, seq: int, envelope: Envelope | None, facts: Facts, rules: Rules) -> Settled:
    """Classify one event and note its effects in `facts`. Never refuses: what cannot be read is quarantined."""
    if envelope is None:
        return quarantined(stored, seq, None, facts)
    flags: set[Flag] = set()
    if envelope.type is EventType.REDEEM:
        outcome = _redeem(stored, envelope, facts, rules, flags)
    elif envelope.type is EventType.VOID:
        outcome = _void(envelope, facts, flags)
    elif envelope.type is EventType.LEASE_CLOSE:
        outcome = _close(envelope, facts, flags)
    else:
        outcome = Outcome.APPLIED  # a clock anomaly is only on record
    if envelope.type is EventType.REDEEM and outcome is Outcome.APPLIED:
        _time(envelope, facts, rules, flags)
    facts.last_event_at = envelope.at
    if flags and outcome is Outcome.APPLIED:
        outcome = Outcome.FLAGGED
    return Settled(stored, seq, envelope, outcome, sorted(flags))


def _redeem(stored: StoredEvent, envelope: Envelope, facts: Facts, rules: Rules, flags: set[Flag]) -> Outcome:
    sale = read_body(stored, envelope)
    # 1. identifier
    before = facts.redemptions.get(envelope.id)
    if before is not None and not before.online:
        if before.body_sha256 == envelope.body_sha256:
            return Outcome.DUPLICATE
        flags.add(Flag.IDENTIFIER_REUSED)
        return Outcome.FLAGGED
    if before is not None and (sale is None or sale.content_sha256 != before.content_sha256):
        flags.add(Flag.IDENTIFIER_REUSED)
        return Outcome.FLAGGED
    carried = {} if before is None else _take_back_online(before, envelope, facts)
    # 2. body
    if sale is None:
        flags.add(Flag.UNREADABLE)
        sale = Sale()
    elif not _agrees(envelope, sale, facts):
        flags.add(Flag.PRICE_MISMATCH)
    customer = None if sale.order is None or sale.order.customer is None else sale.order.customer.id
    # 4. price; before 3, because each use is stored with both figures
    settled = _settled_minor(envelope, sale, facts, flags)
    uses: dict[str, UseFacts] = {}
    for use in envelope.uses:
        # 3. cover
        cover = _cover(envelope, use, facts, flags)
        figure = settled.get(use.voucher_id)
        uses[use.voucher_id] = UseFacts(
            use.voucher_id, use.revision_sha256, use.units, use.minor, figure, use.lease, cover,
            *carried.get(use.voucher_id, (0, 0)),
        )  # fmt: skip
        # 5. circumstances
        _withdrawn(envelope, use, facts, flags)
        _count_customer(use, customer, facts, flags)
        facts.sold[use.voucher_id] = facts.sold.get(use.voucher_id, 0) + use.units
    facts.redemptions[envelope.id] = RedemptionFacts(
        id=envelope.id,
        at=envelope.at,
        store_id=rules.store_id,
        customer_id=customer,
        online=False,
        content_sha256=sale.content_sha256,
        body_sha256=envelope.body_sha256,
        result=sale.result,
        uses=uses,
        is_new=True,
        replaces=before is not None,
    )
    return Outcome.APPLIED


def _take_back_online(before: RedemptionFacts, envelope: Envelope, facts: Facts) -> dict[str, tuple[int, int]]:
    """Undoes what an online attempt took; the units and minor of each use that were voided, and stay voided.

    What was voided beyond the new uses came back already and is not given back again.
    """
    new = {use.voucher_id: use for use in envelope.uses}
    carried: dict[str, tuple[int, int]] = {}
    for use in before.uses.values():
        same = new.get(use.voucher_id)
        units = 0 if same is None else min(use.voided_units, same.units)
        minor = 0 if same is None else min(use.voided_minor, same.minor)
        carried[use.voucher_id] = units, minor
        parts = (("units", use.units, use.voided_units - units), ("minor", use.minor, use.voided_minor - minor))
        for measure, taken, over in parts:
            facts.moves.add(use.voucher_id, measure, free=taken - over, online=-taken, voided=-over)
        if before.customer_id is not None:
            _move_customer((use.voucher_id, before.customer_id), use.voided_units - use.units - units, facts)
    return carried


def _folded(code: str) -> str:
    """What is no code is left as it is: it is no voucher's, and so agrees with none."""
    try:
        return fold(code)
    except InvalidInput:
        return code


def _agrees(envelope: Envelope, sale: Sale, facts: Facts) -> bool:
    """Whether the body's result gives each use its amount; the code of an unknown revision may be any."""
    amounts = {_folded(one.code): one.discount_minor for one in sale.applied}
    if len(amounts) != len(envelope.uses):
        return False
    unknown: list[int] = []
    for use in envelope.uses:
        compiled = facts.revisions.get((use.voucher_id, use.revision_sha256 or ""))
        if compiled is None:
            unknown.append(use.minor)
        elif amounts.pop(compiled.folded, None) != use.minor:
            return False
    return sorted(amounts.values()) == sorted(unknown)


def _settled_minor(envelope: Envelope, sale: Sale, facts: Facts, flags: set[Flag]) -> dict[str, int]:
    """What this engine says each use is worth; a different amount or share is flagged, never overwritten.

    Nothing where a revision is not known: what one voucher leaves to the next depends on all of them.
    """
    if sale.order is None:
        return {}
    named = {use.voucher_id: facts.revisions.get((use.voucher_id, use.revision_sha256 or "")) for use in envelope.uses}
    known = {voucher_id: compiled for voucher_id, compiled in named.items() if compiled is not None}
    if len(known) != len(named):
        flags.add(Flag.UNKNOWN_REVISION)
        return {}
    try:
        result = evaluate(sale.order, list(known.values()), at=envelope.at)
    except InvalidInput:
        flags.add(Flag.PRICE_MISMATCH)
        return {}
    ours = {fold(one.code): one for one in result.applied}
    theirs = {_folded(one.code): one for one in sale.applied}
    for compiled in known.values():
        mine, other = ours.get(compiled.folded), theirs.get(compiled.folded)
        if mine is None or other is None or mine.discount_minor != other.discount_minor:
            flags.add(Flag.PRICE_MISMATCH)
            continue
        shares = [{"id": line.id, "discount_minor": line.discount_minor} for line in mine.lines]
        if shares != other.lines:
            flags.add(Flag.PRICE_MISMATCH)
    return {
        voucher_id: ours[compiled.folded].discount_minor if compiled.folded in ours else 0
        for voucher_id, compiled in known.items()
    }


def _cover(envelope: Envelope, use: Use, facts: Facts, flags: set[Flag]) -> str:
    """`lease`, `open` or `none`; only what no lease covers touches the pool."""
    lease, voucher = facts.leases.get(use.lease or ""), facts.vouchers.get(use.voucher_id)
    if lease is not None and lease.voucher_id == use.voucher_id and lease.state in ("open", "burned"):
        units, minor = lease.known_units + use.units, lease.known_minor + use.minor
        if (lease.units is None or units <= lease.units) and (lease.minor is None or minor <= lease.minor):
            lease.known_units, lease.known_minor, lease.changed = units, minor, True
            for measure, granted, amount in (("units", lease.units, use.units), ("minor", lease.minor, use.minor)):
                if granted is None and voucher is not None and measure in voucher.free:  # a limit newer than the lease
                    facts.moves.add(use.voucher_id, measure, free=-amount, uncovered=amount)
            if envelope.at > lease.expires_at:
                flags.add(Flag.LATE)
            return "lease"
    amounts = {"units": use.units, "minor": use.minor}
    within = voucher is not None
    for measure, amount in amounts.items():
        if voucher is not None and measure in voucher.free:
            within = within and voucher.free[measure] + facts.moves.free(use.voucher_id, measure) >= amount
            facts.moves.add(use.voucher_id, measure, free=-amount, uncovered=amount)
    policy = _policy(use, facts)
    if policy == "open" or (policy == "soft" and within):
        return "open"
    flags.add(Flag.WITHOUT_COVER)
    return "none"


def _policy(use: Use, facts: Facts) -> str:
    """By the revision the event names, or the current one where it names none that was published."""
    compiled = facts.revisions.get((use.voucher_id, use.revision_sha256 or ""))
    if compiled is not None:
        return compiled.voucher.offline.policy
    voucher = facts.vouchers.get(use.voucher_id)
    return "" if voucher is None else voucher.policy


def _withdrawn(envelope: Envelope, use: Use, facts: Facts, flags: set[Flag]) -> None:
    voucher = facts.vouchers.get(use.voucher_id)
    if voucher is None:
        return
    if voucher.deactivated_at is not None and voucher.deactivated_at < envelope.at:
        flags.add(Flag.REVOKED_VOUCHER)
    if voucher.sha256 != use.revision_sha256 and voucher.revised_at < envelope.at:
        over = voucher.valid_until is not None and voucher.valid_until < envelope.at
        if voucher.status != "active" or over:
            flags.add(Flag.REVOKED_VOUCHER)


def _count_customer(use: Use, customer_id: str | None, facts: Facts, flags: set[Flag]) -> None:
    compiled = facts.revisions.get((use.voucher_id, use.revision_sha256 or ""))
    limit = None if compiled is None else compiled.voucher.limits.per_customer
    if customer_id is None:
        if limit is not None:
            flags.add(Flag.CUSTOMER_LIMIT)
        return
    key = (use.voucher_id, customer_id)
    _move_customer(key, use.units, facts)
    if limit is not None and facts.customer_units.get(key, 0) + facts.customer_moves[key] > limit:
        flags.add(Flag.CUSTOMER_LIMIT)


def _move_customer(key: tuple[str, str], units: int, facts: Facts) -> None:
    facts.customer_moves[key] = facts.customer_moves.get(key, 0) + units


def _time(envelope: Envelope, facts: Facts, rules: Rules, flags: set[Flag]) -> None:
    if envelope.at > rules.late_after:
        flags.add(Flag.LATE)
    ahead = envelope.at > rules.now + rules.clock_ahead
    back = facts.last_event_at is not None and envelope.at < facts.last_event_at - rules.clock_back
    if ahead or back:
        flags.add(Flag.TIME_UNCERTAIN)


def _void(envelope: Envelope, facts: Facts, flags: set[Flag]) -> Outcome:
    """Units and minor return to the pool once (I3); a partial return gives back minor only.

    Without uses it is of an online attempt whose answer was lost: all of it returns that has not yet. If the attempt
    itself was lost, its id is used up, so that a copy of the request that is still on its way takes nothing.
    """
    redemption = facts.redemptions.get(envelope.ref or "")
    if redemption is None and envelope.ref is not None and not envelope.uses:
        # nothing came under that id, and nothing may come now: the customer has gone without it
        facts.redemptions[envelope.ref] = _never_redeemed(envelope.ref, envelope.at)
        return Outcome.APPLIED
    if redemption is None or any(use.voucher_id not in redemption.uses for use in envelope.uses):
        flags.add(Flag.WITHOUT_COVER)  # it voids what this device never redeemed
        return Outcome.FLAGGED
    asked = {use.voucher_id: (use.units, use.minor) for use in envelope.uses}
    asked = asked or {mine.voucher_id: mine.left for mine in redemption.uses.values()}
    for voucher_id, wanted in asked.items():
        mine = redemption.uses[voucher_id]
        units, minor = min(wanted[0], mine.left[0]), min(wanted[1], mine.left[1])
        if (units, minor) != wanted:
            flags.add(Flag.ALREADY_VOIDED)
        mine.voided_units += units
        mine.voided_minor += minor
        mine.changed = True
        facts.moves.add(voucher_id, "units", free=units, voided=units)
        facts.moves.add(voucher_id, "minor", free=minor, voided=minor)
        if redemption.customer_id is not None and units:
            _move_customer((voucher_id, redemption.customer_id), -units, facts)
    return Outcome.FLAGGED if flags else Outcome.APPLIED


def _never_redeemed(redemption_id: str, at: datetime) -> RedemptionFacts:
    return RedemptionFacts(
        id=redemption_id, at=at, store_id=None, customer_id=None, online=True, content_sha256="", body_sha256=None,
        result=b"null", uses={}, is_new=True,
    )  # fmt: skip


def _close(envelope: Envelope, facts: Facts, flags: set[Flag]) -> Outcome:
    """The rest of a lease returns to the pool, once for each lease (I3)."""
    use = envelope.uses[0] if len(envelope.uses) == 1 else None
    lease = None if use is None else facts.leases.get(use.lease or "")
    if use is None or lease is None or lease.voucher_id != use.voucher_id:
        flags.add(Flag.WITHOUT_COVER)
        return Outcome.FLAGGED
    returnable = lease.state == "open" or (lease.state == "burned" and lease.burned_by == "lost")
    if not returnable or lease.close_seq is not None:
        return Outcome.DUPLICATE
    u_units, u_minor = use.units, use.minor
    too_little = u_units < lease.known_units or u_minor < lease.known_minor
    too_much = (lease.units is not None and u_units > lease.units) or (
        lease.minor is not None and u_minor > lease.minor
    )
    if too_little or too_much or facts.all_leases_blocked or lease.id in facts.blocked_leases:
        # I2 is broken, or uses may lie in what cannot be read: the units stay held until a person decides
        lease.close_seq, lease.changed = envelope.seq, True
        flags.add(Flag.UNREADABLE if not (too_little or too_much) else Flag.WITHOUT_COVER)
        return Outcome.FLAGGED
    for measure, granted, used in (("units", lease.units, u_units), ("minor", lease.minor, u_minor)):
        if granted is not None:
            facts.moves.add(lease.voucher_id, measure, free=granted - used, held=-granted, closed_used=used)
    lease.known_units, lease.known_minor = u_units, u_minor
    lease.state, lease.changed = "closed", True
    return Outcome.APPLIED
