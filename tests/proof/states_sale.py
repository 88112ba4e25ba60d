"""The model's own arithmetic: vouchers that are simple enough to reckon by hand, orders of one line, and time.

Written from engine.md and protocol.md; nothing here is shared with the product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

BEHIND_S = 600
STEP_S_MIN = 86_400


@dataclass(frozen=True)
class Terms:
    """A voucher: `fixed` amount off the order, `percent` of it, or a `card` that pays. Two equal ones are published as
    the same bytes."""

    code: str
    kind: str = "fixed"
    amount: int = 100
    priority: int | None = None
    total: int | None = None
    budget: int | None = None
    per_customer: int | None = None
    policy: str = ""
    max_units: int | None = None
    max_minor: int | None = None
    status: str = "active"
    starts: datetime | None = None
    ends: datetime | None = None

    @property
    def stackable(self) -> bool:
        """A priority says that it is."""
        return self.priority is not None

    @property
    def offline(self) -> str:
        if self.kind == "card" and not self.policy:
            return "online_only"
        return self.policy or ("open" if self.total is None and self.budget is None else "quota")

    @property
    def largest(self) -> int | None:
        """The largest discount that it can give."""
        return None if self.kind == "percent" else self.amount

    @property
    def currency(self) -> str | None:
        """Of what has a `_minor` field; such vouchers refuse an order in another one."""
        bounds = (self.budget, self.max_minor)
        return None if self.kind == "percent" and all(one is None for one in bounds) else "EUR"

    @property
    def limits(self) -> dict[str, int]:
        """By measure of its pool."""
        both = {"units": self.total, "minor": self.budget}
        return {measure: limit for measure, limit in both.items() if limit is not None}

    def document(self) -> dict[str, Any]:
        """As an operator publishes it."""
        discounts: dict[str, dict[str, Any]] = {
            "fixed": {"type": "fixed", "amount_minor": self.amount},
            "percent": {"type": "percentage", "percent": self.amount},
            "card": {"type": "gift_card", "balance_minor": self.amount},
        }
        limits = {"total": self.total, "budget_minor": self.budget, "per_customer": self.per_customer}
        offline = {"policy": self.policy, "max_units": self.max_units, "max_minor": self.max_minor}
        made: dict[str, Any] = {"code": self.code, "discount": discounts[self.kind], "status": self.status}
        if self.stackable:
            made["stacking"] = {"mode": "stackable", "priority": self.priority}
        if limits := {name: one for name, one in limits.items() if one is not None}:
            made["limits"] = limits
        if self.policy:
            made["offline"] = {name: one for name, one in offline.items() if one is not None}
        if self.starts is not None:
            made["valid_from"] = self.starts.isoformat()
        if self.ends is not None:
            made["valid_until"] = self.ends.isoformat()
        return made


@dataclass(frozen=True)
class Sale:
    """An order of one line, and the codes that were typed."""

    number: int
    price: int
    quantity: int
    customer: str | None
    currency: str
    codes: tuple[str, ...]

    @property
    def subtotal(self) -> int:
        return self.price * self.quantity

    def order(self) -> dict[str, Any]:
        line = {"id": "1", "product_id": "tea", "quantity": self.quantity, "unit_price_minor": self.price}
        made: dict[str, Any] = {"id": f"order-{self.number}", "currency": self.currency, "lines": [line]}
        return made if self.customer is None else made | {"customer": {"id": self.customer}}


@dataclass(frozen=True)
class Room:
    """What is left of a voucher for this sale. None: without a bound. `connected`: whoever asks is the server."""

    connected: bool
    units: int | None = None
    minor: int | None = None
    customer: int | None = None
    needs_connection: bool = False


@dataclass
class Said:
    """What the engine must say: `applied` minor by code, in the order of application; `refused` reason by code."""

    applied: dict[str, int]
    refused: dict[str, str]
    total: int


def plain(code: str) -> str:
    """The vouchers of this model have codes of ASCII capitals."""
    return code.strip().upper()


def reckon(sale: Sale, known: Mapping[str, Terms], room: Mapping[str, Room], at: datetime) -> Said:
    """Each code alone, then stacking, then one after the other."""
    said = Said({}, {}, sale.subtotal)
    alone: list[tuple[Terms, int]] = []
    unknown: dict[str, str] = {}
    for typed in sale.codes:
        code = plain(typed)
        if code not in known:
            unknown.setdefault(code, typed.strip())  # told once, as it was typed first
        elif all(terms.code != code for terms, _ in alone) and code not in said.refused:
            reason, amount = _alone(sale, known[code], room[code], at)
            if reason:
                said.refused[code] = reason
            else:
                alone.append((known[code], amount))
    said.refused |= dict.fromkeys(unknown.values(), "UNKNOWN_CODE")
    left = sale.subtotal
    for terms in _kept(alone, said):
        wanted = _share(terms, left)
        if not wanted:
            said.refused[terms.code] = "NOTHING_TO_DISCOUNT"
            continue
        said.applied[terms.code] = wanted
        left -= wanted
    said.total = left
    return said


def _share(terms: Terms, left: int) -> int:
    return (left * terms.amount * 2 + 100) // 200 if terms.kind == "percent" else min(terms.amount, left)


def _alone(sale: Sale, terms: Terms, room: Room, at: datetime) -> tuple[str, int]:
    amount = _share(terms, sale.subtotal)
    customer = terms.per_customer is not None
    reasons = (
        ("INACTIVE", terms.status != "active"),
        ("NOT_YET_VALID", terms.starts is not None and at < terms.starts),
        ("EXPIRED", terms.ends is not None and at > terms.ends),
        ("CURRENCY_MISMATCH", terms.currency not in (None, sale.currency)),
        ("LIMIT_REACHED", room.connected and room.units is not None and room.units <= 0),
        ("CUSTOMER_LIMIT_REACHED", customer and (sale.customer is None or (room.customer or 0) <= 0)),
        ("NEEDS_CONNECTION", room.needs_connection),
        ("NO_ALLOWANCE", not room.connected and (room.units == 0 or room.minor == 0)),
        ("NO_MATCHING_ITEM" if terms.kind != "card" else "NOTHING_TO_DISCOUNT", sale.subtotal == 0),
        ("NOTHING_TO_DISCOUNT", amount == 0),
        ("NO_ALLOWANCE", not room.connected and room.minor is not None and amount > room.minor),
        ("BUDGET_EXHAUSTED", room.connected and room.minor is not None and amount > room.minor),
        ("BUDGET_EXHAUSTED", terms.budget is not None and amount > terms.budget),
    )
    return next((reason for reason, holds in reasons if holds), ""), amount


def _kept(alone: Sequence[tuple[Terms, int]], said: Said) -> list[Terms]:
    """Those that go together, in the order in which they apply; the others are refused."""
    ranked = sorted(alone, key=lambda one: (-(one[0].priority or 0), -one[1], one[0].code))
    kept = [terms for terms, _ in ranked if terms.kind == "card"]
    best: Terms | None = None
    for terms, _ in ranked:
        if terms.kind == "card":
            continue
        if best is not None and not (best.stackable and terms.stackable):
            said.refused[terms.code] = "STACKING_CONFLICT"
            continue
        best = best or terms
        kept.append(terms)
    return sorted(kept, key=lambda one: (one.kind == "card", -(one.priority or 0), one.code))


def part_of(share: int, quantity: int, units: int) -> int:
    """What the first `units` of a line carry of its share: the first `share % quantity` units one more each."""
    return units * (share // quantity) + min(units, share % quantity)


# ---- time -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """A till's clock, as it shows."""

    wall: datetime
    boot: str
    ran_s: int


@dataclass(frozen=True)
class Mark:
    """The latest time a till is sure of, how the clock stood, and by how much unsigned time moved it in that boot."""

    at: datetime
    boot: str
    ran_s: int
    gained_s: int
    signed_at: datetime
    signed_boot: str

    def read(self, reading: Reading, step_s: int) -> Now:
        same = reading.boot == self.boot and reading.ran_s >= self.ran_s
        expected = self.at + timedelta(seconds=reading.ran_s - self.ran_s if same else 0)
        gained_s = self.gained_s if same else 0
        ahead_s = int((reading.wall - expected).total_seconds())
        at, anomaly = expected, ""
        if ahead_s < -BEHIND_S:
            anomaly = "CLOCK_BEHIND"
        elif ahead_s > 0 and gained_s + ahead_s <= max(step_s, STEP_S_MIN):
            at, gained_s = reading.wall, gained_s + ahead_s
        elif ahead_s > 0:
            anomaly = "CLOCK_AHEAD"
        latest = at if self.signed_boot == reading.boot else max(at, reading.wall)
        mark = Mark(at, reading.boot, reading.ran_s, gained_s, self.signed_at, self.signed_boot)
        return Now(at, latest, anomaly, mark)

    def signed(self, reading: Reading, told: datetime) -> Mark:
        at = max(told, self.signed_at)
        return Mark(at, reading.boot, reading.ran_s, 0, at, reading.boot)


@dataclass(frozen=True)
class Now:
    """The time a till uses, the latest it may be, and what is wrong with its clock. `mark` is kept with an event."""

    at: datetime
    latest: datetime
    anomaly: str
    mark: Mark
