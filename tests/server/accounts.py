"""Accounts, events and bodies for settling without a server."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import msgspec

from tallystick_server.facts import Facts, LeaseFacts, RedemptionFacts, UseFacts, VoucherFacts
from tallystick_server.reading import content_digest
from tallystick_server.settling import Rules, Settled, settle
from tallystick_shared.engine import compile_voucher, evaluate, result_json
from tallystick_shared.journal import (
    ENVELOPE_VERSION,
    Envelope,
    EventType,
    RedeemBody,
    StoredEvent,
    Use,
    encode,
)
from tallystick_shared.model import Order, order_json, parse_voucher
from tallystick_shared.signing import sha256_hex
from tests.shared.build import NOON, fixed, order, voucher

TEA, JAM, LEASE, SALE, EVENT, OTHER = (f"00000000-0000-7000-8000-{number:012d}" for number in range(6))
REVISION = "0" * 64
MINUTE, SECOND = timedelta(minutes=1), timedelta(seconds=1)
RULES = Rules("store-1", NOON, 5 * MINUTE, 5 * MINUTE, NOON + timedelta(days=7))
PATIENT = Rules("store-1", NOON + timedelta(days=1), 5 * MINUTE, 5 * MINUTE, NOON + timedelta(days=7))
ORDER = order(1000)
ANNA = order(1000, customer={"id": "anna"})


def compiled(code: str, **limits: int) -> Any:
    read = parse_voucher(voucher(fixed(100), code=code, limits={"total": 9} | limits), default_currency="EUR")
    return compile_voucher(read)


def facts(*, free: dict[str, int] | None = None, policy: str = "quota", **limits: int) -> Facts:
    """One voucher, `tea`, with these pools, and nothing else."""
    known = Facts(revisions={(TEA, REVISION): compiled("tea", **limits)})
    known.vouchers[TEA] = VoucherFacts(policy, REVISION, "active", NOON, None, None, free or {})
    return known


def lease(
    units: int | None = 5, minor: int | None = None, *, known: tuple[int, int] = (0, 0), state: str = "open"
) -> LeaseFacts:
    return LeaseFacts(LEASE, TEA, units, minor, *known, state, None, NOON + timedelta(days=1), None)


def with_lease(found: Facts, held: LeaseFacts) -> Facts:
    found.leases[LEASE] = held
    return found


def event(
    kind: EventType, uses: list[Use], *, body: bytes = b"{}", at: datetime = NOON, ref: str | None = None
) -> tuple[StoredEvent, Envelope]:
    identifier = SALE if kind is EventType.REDEEM else EVENT
    envelope = Envelope(
        ENVELOPE_VERSION, kind, identifier, 1, at, "boot", 0, 1, "1", uses, sha256_hex(body), ref
    )  # fmt: skip
    return StoredEvent(encode(envelope), body), envelope


def use(units: int = 1, minor: int = 100, *, of: str | None = LEASE, voucher_id: str = TEA) -> Use:
    return Use(voucher_id, REVISION, of, units, minor)


def body_of(sold: Order = ORDER, codes: tuple[str, ...] = ("tea",), result: bytes | None = None) -> bytes:
    """What a till writes that sold by the same engine; or with another `result`."""
    said = result or result_json(evaluate(sold, [compiled(code) for code in codes], at=NOON))
    return encode(RedeemBody(msgspec.Raw(order_json(sold)), list(codes), msgspec.Raw(said), "salt"))


def redeem(found: Facts, *uses: Use, body: bytes | None = None, at: datetime = NOON, rules: Rules = RULES) -> Settled:
    stored, envelope = event(EventType.REDEEM, list(uses or (use(),)), body=body or body_of(), at=at)
    return settle(stored, 1, envelope, found, rules)


def moves(found: Facts) -> dict[tuple[str, str], dict[str, int]]:
    """By voucher and measure, what is not 0."""
    return {
        (move.voucher_id, move.measure): changed
        for move in found.moves
        if (changed := {name: n for name, n in asdict(move).items() if isinstance(n, int) and n})
    }


def online(*uses: UseFacts, sold: Order = ORDER, customer: str | None = None) -> RedemptionFacts:
    content = content_digest(sold, ["tea"])
    by_id = {one.voucher_id: one for one in uses}
    return RedemptionFacts(SALE, NOON, None, customer, True, content, None, b"{}", by_id)
