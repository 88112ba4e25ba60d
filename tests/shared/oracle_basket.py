"""The oracle's order: what a voucher means on it, alone and at its turn. Source: engine.md; see oracle.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from tests.shared.oracle_rules import (
    ZERO,
    Doc,
    compares,
    fold,
    half_away,
    in_proportion,
    is_open,
    matches,
    moment,
    rate,
    split,
    trimmed,
)

ITEMS, ORDER, SHIPPING, GIFT = range(4)  # the lanes
LANES = {"bogo": ITEMS, "bundle_price": ITEMS, "fixed_price": ITEMS, "percentage": ORDER} | {
    "shipping": SHIPPING,
    "gift_card": GIFT,
}
Units = list[tuple[int, int]]  # how many of which line


@dataclass(frozen=True)
class Taken:
    """What a discount takes before any cut: the exact shares by line, and the units it uses up."""

    amount: int
    exact: dict[int, Fraction] = field(default_factory=dict)
    units: Units = field(default_factory=list)


@dataclass(frozen=True)
class Entry:
    """A voucher that applies alone: what it resolved to, and what it takes alone."""

    code: str
    voucher: Doc
    discount: Doc
    outer: Doc | None
    amount: int

    @property
    def lane(self) -> int:
        return lane(self.discount)

    @property
    def stacking(self) -> Doc:
        found: Doc = self.voucher.get("stacking", {})
        return found

    @property
    def turn(self) -> tuple[int, int, str]:
        return self.lane, -self.stacking.get("priority", 0), self.code

    @property
    def rank(self) -> tuple[int, int, str]:
        return -self.stacking.get("priority", 0), -self.amount, self.code

    def conflicts(self, other: Entry) -> bool:
        if GIFT in (self.lane, other.lane):
            return False
        one, two = self.stacking, other.stacking
        if one.get("mode") != "stackable" or two.get("mode") != "stackable":
            return True
        return one.get("group") is not None and one.get("group") == two.get("group")


def lane(discount: Doc) -> int:
    if discount["type"] == "fixed":
        return ORDER if discount.get("per", "order") == "order" else ITEMS
    return LANES[discount["type"]]


class Oracle:
    """One order, and what is left of it while vouchers are applied one after the other."""

    def __init__(self, document: Doc) -> None:
        self.order: Doc = document["order"]
        self.customer: Doc = self.order.get("customer") or {}
        self.lines: list[Doc] = self.order["lines"]
        self.prices: list[int] = [line["unit_price_minor"] for line in self.lines]
        self.quantities: list[int] = [line["quantity"] for line in self.lines]
        self.totals = [price * quantity for price, quantity in zip(self.prices, self.quantities, strict=True)]
        self.subtotal = sum(self.totals)
        self.at = moment(document["at"])
        usage, allowance = document.get("usage"), document.get("allowance")
        self.usage = None if usage is None else {fold(code): used for code, used in usage.items()}
        self.allowance: Doc = {fold(code): allowed for code, allowed in (allowance or {}).items()}
        vouchers = {fold(voucher["code"]): voucher for voucher in document["vouchers"]}
        codes = document.get("codes")
        typed: dict[str, str] = {}
        for code in [voucher["code"] for voucher in document["vouchers"]] if codes is None else codes:
            typed.setdefault(fold(code), trimmed(code))
        self.known = {code: vouchers[code] for code in typed if code in vouchers}
        self.unknown = {code: first for code, first in typed.items() if code not in vouchers}
        self.start()

    def start(self) -> None:
        self.left = list(self.totals)
        self.used = [0] * len(self.lines)
        self.shipping: int = self.order.get("shipping_minor", 0)
        self.paid = 0
        self.caps: list[Fraction] = []
        self.exact: dict[str, dict[str, Fraction]] = {}

    # conditions

    def actual(self, leaf: Doc) -> Any:
        name: str = leaf["field"]
        if name.startswith("order.attributes."):
            return (self.order.get("attributes") or {}).get(name[len("order.attributes.") :])
        if name.startswith("customer.attributes."):
            return (self.customer.get("attributes") or {}).get(name[len("customer.attributes.") :])
        if name.startswith("items."):
            chosen = [index for index, line in enumerate(self.lines) if matches(line, leaf["items"])]
            return sum((self.quantities if name == "items.quantity" else self.totals)[index] for index in chosen)
        if name.startswith("customer."):
            return self.customer.get(name[len("customer.") :])
        if name == "order.subtotal_minor":
            return self.subtotal
        if name == "order.remaining_minor":
            return sum(self.left)
        return sum(self.quantities) if name == "order.quantity" else self.order.get(name[len("order.") :])

    def holds(self, when: Doc | None) -> bool:
        if when is None:
            return True
        if "all" in when:
            return all(self.holds(inner) for inner in when["all"])
        if "any" in when:
            return any(self.holds(inner) for inner in when["any"])
        if "not" in when:
            return not self.holds(when["not"])
        return compares(when["op"], when["value"], self.actual(when))

    # what a discount means

    def scope(self, *items: Doc | None) -> list[int]:
        """The lines with a price that match all of these."""
        return [
            index
            for index, line in enumerate(self.lines)
            if self.prices[index] > 0 and all(matches(line, one) for one in items)
        ]

    def resolve(self, discount: Doc) -> tuple[Doc, Doc | None] | str:
        if discount["type"] == "conditional":
            for case in discount["cases"]:
                if self.holds(case["when"]):
                    return case["discount"], None
            otherwise = discount.get("otherwise")
            return (otherwise, None) if otherwise is not None else "CONDITION_NOT_MET"
        if discount["type"] != "tiered":
            return discount, None
        lines = self.scope(discount.get("items"))
        if not lines:
            return "NO_MATCHING_ITEM"
        counted = self.totals if discount.get("basis", "amount") == "amount" else self.quantities
        basis = sum(counted[index] for index in lines)
        reached = [tier for tier in discount["tiers"] if tier["min"] <= basis]
        return (reached[-1]["discount"], discount.get("items")) if reached else "BELOW_FIRST_TIER"

    def take(self, discount: Doc, outer: Doc | None) -> Taken | str:
        what = discount["type"]
        if what == "shipping":
            amount = half_away(self.shipping * rate(discount.get("percent", 100)))
            return Taken(min(amount, discount.get("cap_minor", amount)))
        if what == "gift_card":
            return Taken(min(discount["balance_minor"], sum(self.left) + self.shipping - self.paid))
        if what == "bogo":
            return self.take_bogo(discount, outer)
        lines = self.scope(discount.get("items"), outer)
        if not lines:
            return "NO_MATCHING_ITEM"
        if what == "bundle_price":
            return self.take_bundle(discount, lines)
        if lane(discount) == ITEMS:
            shares = {index: self.own_share(discount, index) for index in lines}
            return Taken(sum(shares.values()), {index: Fraction(share) for index, share in shares.items()})
        costs = {index: self.left[index] for index in lines}
        if what == "percentage":
            amount = half_away(sum(costs.values()) * rate(discount["percent"]))
            amount = min(amount, discount.get("cap_minor", amount))
        else:
            amount = min(discount["amount_minor"], sum(costs.values()))
        return Taken(amount, in_proportion(amount, costs))

    def own_share(self, discount: Doc, index: int) -> int:
        if discount["type"] == "fixed_price":
            return max(0, self.left[index] - self.quantities[index] * int(discount["unit_price_minor"]))
        times = self.quantities[index] if discount["per"] == "unit" else 1
        return min(self.left[index], times * int(discount["amount_minor"]))

    def free(self, index: int) -> int:
        return self.quantities[index] - self.used[index]

    def dearest(self, lines: list[int]) -> Units:
        """The free units of these lines, the dearest first, of equal prices the earlier line's."""
        return [(self.free(index), index) for index in sorted(lines, key=lambda index: (-self.prices[index], index))]

    def take_bundle(self, discount: Doc, lines: list[int]) -> Taken | str:
        size, price = int(discount["quantity"]), int(discount["price_minor"])
        queue = [list(units) for units in self.dearest(lines) if units[0]]
        if sum(count for count, _ in queue) < size:
            return "NO_MATCHING_ITEM"
        most = discount.get("max_applications")
        made: dict[int, int] = {}
        saved = bundles = 0
        while sum(count for count, _ in queue) >= size and (most is None or bundles < most):
            alike = max(1, queue[0][0] // size)  # so many bundles of units of one line alone
            alike = alike if most is None else min(alike, most - bundles)
            bundle: Units = []
            while (missing := size * alike - sum(count for count, _ in bundle)) > 0:
                count = min(missing, queue[0][0])
                bundle.append((count, queue[0][1]))
                queue[0][0] -= count
                if not queue[0][0]:
                    queue.pop(0)
            saving = sum(count * self.prices[index] for count, index in bundle) - alike * price
            if saving <= 0:
                break
            saved, bundles = saved + saving, bundles + alike
            for count, index in bundle:
                made[index] = made.get(index, 0) + count
        weights = {index: min(made[index] * self.prices[index], self.left[index]) for index in sorted(made)}
        amount = min(saved, sum(weights.values()))
        return Taken(amount, in_proportion(amount, weights), [(count, index) for index, count in made.items()])

    def take_bogo(self, discount: Doc, outer: Doc | None) -> Taken | str:
        buy, get = discount["buy"], discount["get"]
        buyable, givable = self.scope(buy.get("items"), outer), self.scope(get.get("items"), outer)
        to_buy, to_give = (sum(self.free(index) for index in lines) for lines in (buyable, givable))
        both = sum(self.free(index) for index in buyable if index in givable)
        # n fit: so many of the units that are both can be bought that neither side lacks any
        times = to_buy // buy["quantity"]
        times = min(times, to_give // get["quantity"])
        times = min(times, (to_buy + to_give - both) // (buy["quantity"] + get["quantity"]))
        times = min(times, discount.get("max_applications", times))
        if not times:
            return "NO_MATCHING_ITEM"
        bought_needed, given_needed = times * buy["quantity"], times * get["quantity"]
        given: dict[int, int] = {}
        for index in sorted(givable, key=lambda index: (self.prices[index], -index)):
            count = min(self.free(index), given_needed)
            if index in buyable:
                count = min(count, to_buy - bought_needed)
                to_buy -= count
            given_needed -= count
            if count:
                given[index] = count
        used = dict(given)
        for units, index in self.dearest(buyable):
            count = min(units - given.get(index, 0), bought_needed)
            bought_needed -= count
            used[index] = used.get(index, 0) + count
        assert not given_needed
        assert not bought_needed
        exact: dict[int, Fraction] = {}
        for index in sorted(given):
            price = self.prices[index]
            off = rate(get.get("percent", 100)) * price
            if "amount_minor" in get:
                off = Fraction(min(price, get["amount_minor"]))
            exact[index] = min(given[index] * off, Fraction(self.left[index]))
        amount = half_away(sum(exact.values(), ZERO))
        return Taken(amount, exact, [(count, index) for index, count in used.items()])

    # one voucher, alone and at its turn

    def cut(self, amount: int, discount: Doc, caps: list[Fraction]) -> int:
        if lane(discount) >= SHIPPING or not caps:
            return amount
        most = self.subtotal * min(caps)
        return max(0, min(amount, most.numerator // most.denominator - (self.subtotal - sum(self.left))))

    def with_cap(self, voucher: Doc) -> list[Fraction]:
        percent = voucher.get("stacking", {}).get("max_total_percent")
        return self.caps if percent is None else [*self.caps, rate(percent)]

    def too_much(self, code: str, voucher: Doc, amount: int) -> str | None:
        minor = self.allowance.get(code, {}).get("minor")
        if minor is not None and amount > minor:
            return "NO_ALLOWANCE"
        budget = voucher.get("limits", {}).get("budget_minor")
        if budget is None or self.usage is None:
            return None
        spent = self.usage.get(code, {}).get("budget_minor", 0)
        return "BUDGET_EXHAUSTED" if amount > budget - spent else None

    def before_conditions(self, code: str, voucher: Doc) -> Iterator[tuple[bool, str]]:
        """Whether it is refused, and why, in the order of the checks."""
        limits, allowed = voucher.get("limits", {}), self.allowance.get(code, {})
        used = None if self.usage is None else self.usage.get(code, {})
        yield voucher.get("status") == "paused", "INACTIVE"
        yield "valid_from" in voucher and self.at < moment(voucher["valid_from"]), "NOT_YET_VALID"
        yield "valid_until" in voucher and self.at > moment(voucher["valid_until"]), "EXPIRED"
        yield "hours" in voucher and not is_open(voucher["hours"], self.at), "OUTSIDE_HOURS"
        yield voucher.get("currency", self.order["currency"]) != self.order["currency"], "CURRENCY_MISMATCH"
        if used is not None and "total" in limits:
            yield used.get("total", 0) >= limits["total"], "LIMIT_REACHED"
        if "per_customer" in limits:
            yield self.customer.get("id") is None, "CUSTOMER_LIMIT_REACHED"
            yield used is not None and used.get("customer", 0) >= limits["per_customer"], "CUSTOMER_LIMIT_REACHED"
        yield allowed.get("needs_connection", False), "NEEDS_CONNECTION"
        yield 0 in (allowed.get("units"), allowed.get("minor")), "NO_ALLOWANCE"
        yield not self.holds(voucher.get("when")), "CONDITION_NOT_MET"

    def alone(self, code: str, voucher: Doc) -> Entry | str:
        """Only on an order from which nothing was taken."""
        for refused, reason in self.before_conditions(code, voucher):
            if refused:
                return reason
        resolved = self.resolve(voucher["discount"])
        if isinstance(resolved, str):
            return resolved
        discount, outer = resolved
        taken = self.take(discount, outer)
        if isinstance(taken, str):
            return taken
        amount = self.cut(taken.amount, discount, self.with_cap(voucher))
        if not amount:
            return "NOTHING_TO_DISCOUNT"
        return self.too_much(code, voucher, amount) or Entry(code, voucher, discount, outer, amount)

    def turn(self, entry: Entry) -> Doc | str:
        if not self.holds(entry.voucher.get("when")):
            return "CONDITION_NOT_MET"
        taken = self.take(entry.discount, entry.outer)
        if isinstance(taken, str):
            return "NOTHING_TO_DISCOUNT"
        caps = self.with_cap(entry.voucher)
        final = self.cut(taken.amount, entry.discount, caps)
        if not final:
            return "NOTHING_TO_DISCOUNT"
        reason = self.too_much(entry.code, entry.voucher, final)
        if reason is not None:
            return reason
        self.caps = caps
        if entry.lane == SHIPPING:
            self.shipping -= final
        elif entry.lane == GIFT:
            self.paid += final
        exact = taken.exact
        if exact and final < taken.amount:
            whole = sum(exact.values(), ZERO)
            exact = {index: share * final / whole for index, share in exact.items()}
        names = [self.lines[index]["id"] for index in exact]
        self.exact[entry.code] = dict(zip(names, exact.values(), strict=True))
        shares = split(final, list(exact.values())) if exact else []
        for index, share in zip(exact, shares, strict=True):
            self.left[index] -= share
            assert self.left[index] >= 0
        for count, index in taken.units:
            self.used[index] += count
        lines = [{"id": name, "discount_minor": share} for name, share in zip(names, shares, strict=True) if share]
        return {"code": trimmed(entry.voucher["code"]), "discount_minor": final, "lines": lines}

    def turns(self, entries: Sequence[Entry]) -> list[tuple[Entry, Doc | str]]:
        self.start()
        return [(entry, self.turn(entry)) for entry in sorted(entries, key=lambda entry: entry.turn)]
