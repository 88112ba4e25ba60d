"""A second engine, written from engine.md alone: plain documents, Fractions, expanded units, no care for speed.

It shares nothing with the package, not even its model, so that a misreading in one shows as a difference. It knows
nothing of `why` and `detail`, of hours and of Unicode; those have tests of their own.
"""

from __future__ import annotations

from datetime import datetime
from fractions import Fraction
from typing import Any

Doc = dict[str, Any]
LANES = {"bogo": 0, "bundle_price": 0, "fixed_price": 0, "percentage": 1, "shipping": 2, "gift_card": 3}


def half_away(value: Fraction) -> int:
    return int(value + Fraction(1, 2))  # values here are never negative, int() cuts


def split(total: int, exact: list[Fraction]) -> list[int]:
    floors = [int(part) for part in exact]
    missing = total - sum(floors)
    order = sorted(range(len(exact)), key=lambda index: (-(exact[index] - floors[index]), index))
    for index in order[:missing]:
        floors[index] += 1
    return floors


def kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    return "str" if isinstance(value, str) else "list" if isinstance(value, list) else "none"


def equal(one: Any, other: Any) -> bool:
    if kind(one) == kind(other) == "list":
        return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))
    return bool(kind(one) == kind(other) and one == other)


def matches(line: Doc, items: Doc | None) -> bool:
    items = items or {}
    categories = line.get("category_ids", [])
    includes = []
    if items.get("product_ids"):
        includes.append(line["product_id"] in items["product_ids"])
    if items.get("category_ids"):
        includes.append(any(category in items["category_ids"] for category in categories))
    if items.get("attributes"):
        has = line.get("attributes", {})
        includes.append(all(name in has and equal(has[name], value) for name, value in items["attributes"].items()))
    if includes and not any(includes):
        return False
    if line["product_id"] in items.get("exclude_product_ids", []):
        return False
    return not any(category in items.get("exclude_category_ids", []) for category in categories)


class Oracle:
    def __init__(self, document: Doc) -> None:
        self.order: Doc = document["order"]
        self.lines: list[Doc] = self.order["lines"]
        self.at = datetime.fromisoformat(document["at"]).replace(microsecond=0)
        self.usage: Doc | None = document.get("usage")
        self.left: list[int] = [line["quantity"] * line["unit_price_minor"] for line in self.lines]
        self.subtotal = sum(self.left)
        self.shipping: int = self.order.get("shipping_minor", 0)
        self.paid = 0
        self.used = [0] * len(self.lines)
        self.caps: list[Fraction] = []

    # conditions

    def field(self, leaf: Doc) -> Any:
        name: str = leaf["field"]
        customer = self.order.get("customer") or {}
        if name.startswith("order.attributes."):
            return self.order.get("attributes", {}).get(name[len("order.attributes.") :])
        if name.startswith("customer.attributes."):
            return customer.get("attributes", {}).get(name[len("customer.attributes.") :])
        if name.startswith("items."):
            chosen = [line for line in self.lines if matches(line, leaf["items"])]
            if name == "items.quantity":
                return sum(line["quantity"] for line in chosen)
            return sum(line["quantity"] * line["unit_price_minor"] for line in chosen)
        known = {
            "order.subtotal_minor": self.subtotal,
            "order.remaining_minor": sum(self.left),
            "order.quantity": sum(line["quantity"] for line in self.lines),
            "order.currency": self.order["currency"],
            "order.store_id": self.order.get("store_id"),
            "order.channel": self.order.get("channel"),
            "customer.id": customer.get("id"),
            "customer.segments": customer.get("segments"),
        }
        return known[name]

    def holds(self, when: Doc | None) -> bool:
        if when is None:
            return True
        if "all" in when:
            return all(self.holds(inner) for inner in when["all"])
        if "any" in when:
            return any(self.holds(inner) for inner in when["any"])
        if "not" in when:
            return not self.holds(when["not"])
        op, value, actual = when["op"], when["value"], self.field(when)
        if op == "exists":
            return bool((actual is not None) is value)
        if actual is None:
            return bool(op in ("ne", "not_in"))
        if op.startswith("contains"):
            if kind(actual) != "list":
                return False
            wanted = [value] if op == "contains" else value
            found = [any(equal(one, inner) for inner in actual) for one in wanted]
            return any(found) if op == "contains_any" else all(found)
        if op in ("in", "not_in"):
            if kind(actual) != kind(value[0]):
                return False
            return bool(any(equal(actual, one) for one in value) == (op == "in"))
        if kind(actual) != kind(value):
            return False
        if op in ("eq", "ne"):
            return bool(equal(actual, value) == (op == "eq"))
        return bool({"gt": actual > value, "gte": actual >= value, "lt": actual < value, "lte": actual <= value}[op])

    # what a discount means

    def scope(self, *items: Doc | None) -> list[int]:
        return [
            index
            for index, line in enumerate(self.lines)
            if line["unit_price_minor"] > 0 and all(matches(line, one) for one in items)
        ]

    def resolve(self, discount: Doc) -> tuple[Doc, Doc | None] | str:
        if discount["type"] == "conditional":
            for case in discount["cases"]:
                if self.holds(case["when"]):
                    return case["discount"], None
            return (discount["otherwise"], None) if "otherwise" in discount else "CONDITION_NOT_MET"
        if discount["type"] != "tiered":
            return discount, None
        lines = self.scope(discount.get("items"))
        if not lines:
            return "NO_MATCHING_ITEM"
        by_amount = discount.get("basis", "amount") == "amount"
        each = [self.lines[index] for index in lines]
        basis = sum(line["quantity"] * (line["unit_price_minor"] if by_amount else 1) for line in each)
        reached = [tier for tier in discount["tiers"] if tier["min"] <= basis]
        return (reached[-1]["discount"], discount.get("items")) if reached else "BELOW_FIRST_TIER"

    def units(self, lines: list[int], fresh: bool) -> list[tuple[int, int]]:
        return [
            (self.lines[index]["unit_price_minor"], index)
            for index in lines
            for _ in range(self.lines[index]["quantity"] - (0 if fresh else self.used[index]))
        ]

    def take(self, discount: Doc, outer: Doc | None, fresh: bool) -> Any:
        """The amount, the exact shares by line before any cut, and the units it uses up."""
        what = discount["type"]
        if what == "shipping":
            amount = half_away(self.shipping * Fraction(str(discount.get("percent", 100))) / 100)
            amount = min(amount, discount.get("cap_minor", amount))
            return (amount, {}, []) if amount else "NOTHING_TO_DISCOUNT"
        if what == "gift_card":
            amount = min(discount["balance_minor"], sum(self.left) + self.shipping - self.paid)
            return (amount, {}, []) if amount else "NOTHING_TO_DISCOUNT"
        if what == "bogo":
            return self.take_bogo(discount, outer, fresh)
        lines = self.scope(discount.get("items"), outer)
        if not lines:
            return "NO_MATCHING_ITEM"
        if what == "bundle_price":
            return self.take_bundle(discount, lines, fresh)
        whole = sum(self.left[index] for index in lines)
        if what == "percentage":
            amount = half_away(whole * Fraction(str(discount["percent"])) / 100)
            amount = min(amount, discount.get("cap_minor", amount))
            exact = self.in_proportion(amount, {index: self.left[index] for index in lines})
        elif what == "fixed" and discount.get("per", "order") == "order":
            amount = min(discount["amount_minor"], whole)
            exact = self.in_proportion(amount, {index: self.left[index] for index in lines})
        else:
            exact = {index: Fraction(self.own_share(discount, index)) for index in lines}
            amount = half_away(sum(exact.values(), Fraction(0)))
        return (amount, exact, []) if amount else "NOTHING_TO_DISCOUNT"

    def own_share(self, discount: Doc, index: int) -> int:
        quantity: int = self.lines[index]["quantity"]
        if discount["type"] == "fixed_price":
            return max(0, int(self.left[index] - quantity * discount["unit_price_minor"]))
        times = quantity if discount["per"] == "unit" else 1
        return int(min(self.left[index], times * discount["amount_minor"]))

    def in_proportion(self, amount: int, weights: dict[int, int]) -> dict[int, Fraction]:
        whole = sum(weights.values())
        return {index: Fraction(amount * weight, whole) if whole else Fraction(0) for index, weight in weights.items()}

    def take_bundle(self, discount: Doc, lines: list[int], fresh: bool) -> Any:
        units = sorted(self.units(lines, fresh), key=lambda unit: (-unit[0], unit[1]))
        size, saved = int(discount["quantity"]), 0
        made: list[tuple[int, int]] = []
        if fresh and len(units) < size:
            return "NO_MATCHING_ITEM"
        for start in range(0, len(units) - size + 1, size):
            bundle = units[start : start + size]
            saving = sum(price for price, _ in bundle) - discount["price_minor"]
            if len(made) // size == discount.get("max_applications", len(units)) or saving <= 0:
                break
            made += bundle
            saved += saving
        in_bundles = {line: sum(price for price, owner in made if owner == line) for _, line in made}
        weights = {index: min(price, self.left[index]) for index, price in sorted(in_bundles.items())}
        amount = min(saved, sum(weights.values()))
        if not amount:
            return "NOTHING_TO_DISCOUNT"
        return amount, self.in_proportion(amount, weights), [owner for _, owner in made]

    def take_bogo(self, discount: Doc, outer: Doc | None, fresh: bool) -> Any:
        buy, get = discount["buy"], discount["get"]
        buyable, givable = self.scope(buy.get("items"), outer), self.scope(get.get("items"), outer)
        buy_units, get_units = self.units(buyable, fresh), self.units(givable, fresh)
        both = len(self.units([line for line in buyable if line in givable], fresh))

        def fits(times: int) -> bool:
            return any(
                times * buy["quantity"] <= len(buy_units) - both + bought
                and times * get["quantity"] <= len(get_units) - bought
                for bought in range(both + 1)
            )

        times = 0
        while fits(times + 1) and times < discount.get("max_applications", times + 1):
            times += 1
        if not times:
            return "NO_MATCHING_ITEM" if fresh else "NOTHING_TO_DISCOUNT"
        given: list[tuple[int, int]] = []
        to_buy = len(buy_units)
        for unit in sorted(get_units, key=lambda unit: (unit[0], -unit[1])):
            taken_from_buy = unit[1] in buyable
            if len(given) < times * get["quantity"] and (not taken_from_buy or to_buy - 1 >= times * buy["quantity"]):
                given.append(unit)
                to_buy -= taken_from_buy
        for unit in given:
            if unit in buy_units:
                buy_units.remove(unit)
        bought = sorted(buy_units, key=lambda unit: (-unit[0], unit[1]))[: times * buy["quantity"]]
        assert len(given) == times * get["quantity"]
        assert len(bought) == times * buy["quantity"]
        exact: dict[int, Fraction] = {}
        for price, line in given:
            rate = Fraction(str(get.get("percent", 100))) / 100
            off = Fraction(min(price, get["amount_minor"])) if "amount_minor" in get else price * rate
            exact[line] = exact.get(line, Fraction(0)) + off
        exact = {line: min(off, Fraction(self.left[line])) for line, off in sorted(exact.items())}
        amount = half_away(sum(exact.values(), Fraction(0)))
        return (amount, exact, [line for _, line in given + bought]) if amount else "NOTHING_TO_DISCOUNT"

    # one voucher

    def lane(self, discount: Doc) -> int:
        if discount["type"] == "fixed":
            return 1 if discount.get("per", "order") == "order" else 0
        return int(LANES[discount["type"]])

    def own_cap(self, voucher: Doc) -> Fraction:
        percent = voucher.get("stacking", {}).get("max_total_percent")
        return Fraction(1) if percent is None else Fraction(str(percent)) / 100

    def cut(self, amount: int, lane: int, caps: list[Fraction]) -> int:
        if lane >= 2:
            return amount
        return max(0, min(amount, int(self.subtotal * min(caps)) - (self.subtotal - sum(self.left))))

    def over_budget(self, voucher: Doc, amount: int) -> bool:
        budget = voucher.get("limits", {}).get("budget_minor")
        if budget is None or self.usage is None:
            return False
        return bool(amount > budget - self.usage.get(voucher["code"], {}).get("budget_minor", 0))

    def before_goods(self, voucher: Doc) -> str | None:
        limits = voucher.get("limits", {})
        used = None if self.usage is None else {"total": 0, "customer": 0, **self.usage.get(voucher["code"], {})}
        customer = (self.order.get("customer") or {}).get("id")
        if voucher.get("status") == "paused":
            return "INACTIVE"
        if "valid_from" in voucher and self.at < datetime.fromisoformat(voucher["valid_from"]):
            return "NOT_YET_VALID"
        if "valid_until" in voucher and self.at > datetime.fromisoformat(voucher["valid_until"]):
            return "EXPIRED"
        if "currency" in voucher and voucher["currency"] != self.order["currency"]:
            return "CURRENCY_MISMATCH"
        if used is not None and "total" in limits and used["total"] >= limits["total"]:
            return "LIMIT_REACHED"
        if "per_customer" in limits and (
            customer is None or (used is not None and used["customer"] >= limits["per_customer"])
        ):
            return "CUSTOMER_LIMIT_REACHED"
        return None if self.holds(voucher.get("when")) else "CONDITION_NOT_MET"

    def alone(self, voucher: Doc) -> tuple[Doc, Doc | None, int] | str:
        reason = self.before_goods(voucher)
        if reason is not None:
            return reason
        resolved = self.resolve(voucher["discount"])
        if isinstance(resolved, str):
            return resolved
        discount, outer = resolved
        taken = self.take(discount, outer, fresh=True)
        if isinstance(taken, str):
            return taken
        amount = self.cut(taken[0], self.lane(discount), [self.own_cap(voucher)])
        if not amount:
            return "NOTHING_TO_DISCOUNT"
        return "BUDGET_EXHAUSTED" if self.over_budget(voucher, amount) else (discount, outer, amount)


def evaluate(document: Doc) -> Doc:
    """The result without `why` and `detail`; `codes` are not read: every voucher is used."""
    oracle = Oracle(document)
    refused: dict[str, str] = {}
    candidates: list[tuple[Doc, Doc, Doc | None, int]] = []
    for voucher in document["vouchers"]:
        found = oracle.alone(voucher)
        if isinstance(found, str):
            refused[voucher["code"]] = found
        else:
            candidates.append((voucher, *found))
    kept = _stack(oracle, candidates, refused)
    kept.sort(
        key=lambda one: (oracle.lane(one[1]), -one[0].get("stacking", {}).get("priority", 0), one[0]["code"].lower())
    )
    applied = []
    for voucher, discount, outer, _ in kept:
        entry = _turn(oracle, voucher, discount, outer)
        if isinstance(entry, str):
            refused[voucher["code"]] = entry
        else:
            applied.append(entry)
    goods = sum(oracle.left)
    totals = [line["quantity"] * line["unit_price_minor"] for line in oracle.lines]
    shipping = oracle.order.get("shipping_minor", 0)
    return {
        "currency": oracle.order["currency"],
        "subtotal_minor": oracle.subtotal,
        "discount_minor": oracle.subtotal - goods,
        "shipping_minor": shipping,
        "shipping_discount_minor": shipping - oracle.shipping,
        "paid_by_gift_card_minor": oracle.paid,
        "total_minor": goods + oracle.shipping - oracle.paid,
        "lines": [
            {"id": line["id"], "discount_minor": total - left}
            for line, total, left in zip(oracle.lines, totals, oracle.left, strict=True)
        ],
        "applied": applied,
        "refused": [{"code": code, "reason": refused[code]} for code in sorted(refused, key=str.lower)],
    }


def _stack(oracle: Oracle, candidates: list[Any], refused: dict[str, str]) -> list[Any]:
    def stacking(entry: Any) -> Doc:
        found: Doc = entry[0].get("stacking", {})
        return found

    ranked = sorted(candidates, key=lambda one: (-stacking(one).get("priority", 0), -one[3], one[0]["code"].lower()))
    kept: list[Any] = []
    for one in ranked:

        def conflict(other: Any, one: Any = one) -> bool:
            if "gift_card" in (one[1]["type"], other[1]["type"]):
                return False
            if any(stacking(entry).get("mode") != "stackable" for entry in (one, other)):
                return True
            group = stacking(one).get("group")
            return group is not None and group == stacking(other).get("group")

        if any(conflict(other) for other in kept):
            refused[one[0]["code"]] = "STACKING_CONFLICT"
        else:
            kept.append(one)
    return kept


def _turn(oracle: Oracle, voucher: Doc, discount: Doc, outer: Doc | None) -> Doc | str:
    if not oracle.holds(voucher.get("when")):
        return "CONDITION_NOT_MET"
    taken = oracle.take(discount, outer, fresh=False)
    if isinstance(taken, str):
        return "NOTHING_TO_DISCOUNT"
    amount, exact, units = taken
    caps = [*oracle.caps, oracle.own_cap(voucher)]
    final = oracle.cut(amount, oracle.lane(discount), caps)
    if not final:
        return "NOTHING_TO_DISCOUNT"
    if oracle.over_budget(voucher, final):
        return "BUDGET_EXHAUSTED"
    oracle.caps = caps
    if discount["type"] == "shipping":
        oracle.shipping -= final
    elif discount["type"] == "gift_card":
        oracle.paid += final
    if final < amount:
        whole = sum(exact.values(), Fraction(0))
        exact = {line: share * final / whole for line, share in exact.items()}
    shares = split(final, list(exact.values())) if exact else []
    lines = []
    for line, share in zip(exact, shares, strict=True):
        oracle.left[line] -= share
        assert oracle.left[line] >= 0
        if share:
            lines.append({"id": oracle.lines[line]["id"], "discount_minor": share})
    for line in units:
        oracle.used[line] += 1
    return {"code": voucher["code"], "discount_minor": final, "lines": lines}
