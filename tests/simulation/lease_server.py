"""The server's side of one event in the lease search: the real `settle` over real envelopes, remembered.

What `settle` looks at is small (one lease, one redemption, what is free), so each distinct case is settled once and its
effect is kept; the search then meets the same few hundred cases millions of times.
"""

from __future__ import annotations

from datetime import timedelta
from functools import cache
from typing import NamedTuple

import msgspec

from tallystick_server.facts import Facts, LeaseFacts, RedemptionFacts, UseFacts, VoucherFacts
from tallystick_server.reading import content_digest, open_envelope
from tallystick_server.settling import Rules, settle
from tallystick_shared.engine import compile_voucher, evaluate, result_json
from tallystick_shared.journal import ENVELOPE_VERSION, Envelope, EventType, RedeemBody, StoredEvent, Use, encode
from tallystick_shared.model import order_json, parse_voucher
from tallystick_shared.signing import sha256_hex
from tests.shared.build import NOON, fixed, order, voucher

VOUCHER, LEASE, SALE, EVENT = (f"00000000-0000-7000-8000-{number:012d}" for number in range(4))
_REVISION = "0" * 64
_ORDER = order(1000)
_COMPILED = compile_voucher(parse_voucher(voucher(fixed(100), limits={"total": 9}), default_currency="EUR"))
_BODY = encode(
    RedeemBody(
        order=msgspec.Raw(order_json(_ORDER)),
        codes=["CODE"],
        result=msgspec.Raw(result_json(evaluate(_ORDER, [_COMPILED], at=NOON))),
        salt="",
    )
)
_RULES = Rules(
    store_id="s",
    now=NOON,
    clock_ahead=timedelta(minutes=5),
    clock_back=timedelta(minutes=5),
    late_after=NOON + timedelta(days=99),
)


class Effect(NamedTuple):
    """What one event changed: the pool's fields, the lease's k and state, the redemption and its voided units."""

    free: int
    online: int
    uncovered: int
    voided: int
    held: int
    closed_used: int
    known: int
    state: str
    server: str
    voided_units: int


@cache
def settled(
    kind: EventType, units: int, lease: tuple[int, int, str] | None, sale: tuple[str, int], free: int
) -> Effect:
    """One event of a device. `units`: u of a close, 0 of a void that names no use, else 1. `lease`: q, k and state.

    States of a lease are `open`, `closed`, `released`, `lost` and `forked` (burned, and by what), and `waits` (open,
    its close kept for a person). `sale`: the redemption with this id as the server knows it, `""`, `online`, `used` or
    `never` (voided before it came), and how many units of it are voided.
    """
    facts = Facts(revisions={(VOUCHER, _REVISION): _COMPILED})
    facts.vouchers[VOUCHER] = VoucherFacts("quota", _REVISION, "active", NOON, None, None, {"units": free})
    if lease is not None:
        granted, known, state = lease
        burned_by = state if state in ("lost", "forked") else None
        real = "burned" if burned_by else "open" if state == "waits" else state
        close_seq = 1 if state == "waits" else None
        facts.leases[LEASE] = LeaseFacts(
            LEASE, VOUCHER, granted, None, known, 0, real, burned_by, NOON + timedelta(days=1), close_seq
        )
    server, voided = sale
    body = _BODY if kind is EventType.REDEEM else b"{}"
    if server:
        facts.redemptions[SALE] = _known(server, voided)
    uses = [] if kind is EventType.VOID and not units else [_use(kind, units, lease is not None)]
    stored = StoredEvent(encode(_envelope(kind, uses, body)), body)
    settle(stored, 1, open_envelope(stored, 1), facts, _RULES)
    return _effect(facts, sale)


def _known(server: str, voided: int) -> RedemptionFacts:
    online = server == "online"
    use = UseFacts(VOUCHER, _REVISION, 1, 100, 100, None, "online" if online else "lease", voided, 100 * voided)
    return RedemptionFacts(
        id=SALE,
        at=NOON,
        store_id="s",
        customer_id=None,
        online=online or server == "never",
        content_sha256="" if server == "never" else content_digest(_ORDER, ["CODE"]),
        body_sha256=sha256_hex(_BODY) if server == "used" else None,
        result=b"{}",
        uses={} if server == "never" else {VOUCHER: use},
    )


def _use(kind: EventType, units: int, leased: bool) -> Use:
    minor = 0 if kind is EventType.LEASE_CLOSE else 100 * units
    return Use(VOUCHER, _REVISION, LEASE if leased else None, units, minor)


def _envelope(kind: EventType, uses: list[Use], body: bytes) -> Envelope:
    return Envelope(
        v=ENVELOPE_VERSION,
        type=kind,
        id=SALE if kind is EventType.REDEEM else EVENT,
        seq=1,
        at=NOON,
        boot_id="b",
        monotonic_s=0,
        bundle_version=1,
        engine_version="1",
        uses=uses,
        body_sha256=sha256_hex(body),
        ref=SALE if kind is EventType.VOID else None,
    )


def _effect(facts: Facts, sale: tuple[str, int]) -> Effect:
    move = next((one for one in facts.moves if one.measure == "units"), None)
    moved = (
        (0,) * 6 if move is None else (move.free, move.online, move.uncovered, move.voided, move.held, move.closed_used)
    )
    lease = facts.leases.get(LEASE)
    known, state = 0, ""
    if lease is not None:
        state = lease.burned_by or lease.state if lease.state == "burned" else lease.state
        if state == "open" and lease.close_seq is not None:
            state = "waits"
        known = lease.known_units
    redemption = facts.redemptions.get(SALE)
    if redemption is None:
        return Effect(*moved, known, state, *sale)
    if not redemption.uses:
        return Effect(*moved, known, state, "never", 0)
    voided = redemption.uses[VOUCHER].voided_units
    return Effect(*moved, known, state, "online" if redemption.online else "used", voided)
