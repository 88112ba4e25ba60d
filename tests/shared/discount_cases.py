"""Generated discounts and conditions, the part of cases.py that says what a voucher does and when."""

from __future__ import annotations

from typing import Any

from tests.shared.chance import Chance

Doc = dict[str, Any]
PRODUCTS = ["a", "b", "c"]
CATEGORIES = ["x", "y", "z"]
GOODS = ["percentage", "fixed", "fixed_price", "bundle_price", "bogo"]
PLAIN = [*GOODS, "shipping", "gift_card"]
PERCENTS = [10, 15, 20, 50, 100, 0.5, 33.3333, "12.5", "0.0001", 7, 99.99, 1.0]


def items(chance: Chance) -> Doc:
    made: Doc = {}
    products = chance.sample(PRODUCTS, 3)
    if chance.maybe(50):
        made["product_ids"] = products[: chance.integer(1, 2)]
    if chance.maybe(40):
        made["category_ids"] = [chance.choice(CATEGORIES[:2])]
    if chance.maybe(15):
        made["attributes"] = {"brand": chance.choice(["n", 1, True, ["n"]])}
    if chance.maybe(15):
        made["exclude_product_ids"] = products[2:]
    if chance.maybe(15):
        made["exclude_category_ids"] = ["z" if "category_ids" in made else chance.choice(CATEGORIES)]
    return made


def _maybe_items(chance: Chance) -> Doc:
    return {"items": items(chance)} if chance.maybe(50) else {}


def discount(chance: Chance) -> Doc:
    kind = chance.choice([*GOODS, *GOODS, "shipping", "gift_card", "tiered", "tiered", "conditional"])
    if kind == "tiered":
        basis = chance.choice(["amount", "quantity"])
        choices = [0, 100, 300, 500, 1000, 3000] if basis == "amount" else [0, 1, 2, 3, 5, 8]
        minimums = sorted(chance.sample(choices, chance.integer(1, 3)))
        tiers = [{"min": minimum, "discount": plain(chance, chance.choice(PLAIN))} for minimum in minimums]
        return {"type": kind, "basis": basis, "tiers": tiers, **_maybe_items(chance)}
    if kind == "conditional":
        cases = [
            {"when": when(chance, 3), "discount": plain(chance, chance.choice(PLAIN))}
            for _ in range(chance.integer(1, 3))
        ]
        otherwise = {"otherwise": plain(chance, chance.choice(PLAIN))} if chance.maybe(30) else {}
        return {"type": kind, "cases": cases, **otherwise}
    return plain(chance, kind)


def plain(chance: Chance, kind: str) -> Doc:
    """A discount that holds no other."""
    made: Doc = {"type": kind}
    if kind in ("percentage", "shipping"):
        if kind == "percentage" or chance.maybe(60):
            made["percent"] = chance.choice(PERCENTS)
        if chance.maybe(30):
            made["cap_minor"] = chance.choice([1, 50, 100, 777])
    if kind == "fixed":
        made["amount_minor"] = chance.choice([100, 1, 2, 400, 1000])
        if chance.maybe(80):
            made["per"] = chance.choice(["order", "line", "unit"])
    if kind == "fixed_price":
        made["unit_price_minor"] = chance.choice([99, 0, 1, 150, 400])
    if kind == "bundle_price":
        made |= {"quantity": chance.integer(1, 4), "price_minor": chance.choice([0, 1, 200, 299, 400, 500, 1000, 2000])}
    if kind == "gift_card":
        made["balance_minor"] = chance.choice([500, 1, 5000, 0])
    if kind == "bogo":
        get: Doc = {"quantity": chance.integer(1, 3), **_maybe_items(chance)}
        if chance.maybe(50):
            get["percent"] = chance.choice(PERCENTS)
        elif chance.maybe(40):
            get["amount_minor"] = chance.choice([50, 1, 400])
        made |= {"buy": {"quantity": chance.integer(1, 3), **_maybe_items(chance)}, "get": get}
    elif kind in GOODS:
        made |= _maybe_items(chance)
    if kind in ("bogo", "bundle_price") and chance.maybe(40):
        made["max_applications"] = chance.integer(1, 3)
    return made


# conditions


def when(chance: Chance, deepest: int) -> Doc:
    pick = chance.integer(0, 99)
    if deepest > 1 and pick >= 70:
        return {chance.choice(["all", "any"]): [when(chance, deepest - 1) for _ in range(chance.integer(1, 3))]}
    if deepest > 1 and pick >= 60:
        return {"not": when(chance, deepest - 1)}
    return leaf(chance)


def leaf(chance: Chance) -> Doc:
    family = chance.integer(0, 9)
    if family <= 4:
        return _number_leaf(chance, family)
    if family <= 6:
        return _text_leaf(chance)
    return _segments_leaf(chance) if family == 7 else _attribute_leaf(chance)


def _number_leaf(chance: Chance, family: int) -> Doc:
    field = [
        "order.remaining_minor",
        "order.subtotal_minor",
        "order.quantity",
        "items.subtotal_minor",
        "items.quantity",
    ][family]
    values = [1, 3, 0, 5, 8] if "quantity" in field else [500, 0, 1, 300, 900, 1000, 1024, 3000]
    op = chance.choice(["gte", "gt", "gte", "lt", "lte", "eq", "ne", "in", "not_in", "exists"])
    value: Any = chance.choice(values)
    if op in ("in", "not_in"):
        value = chance.sample(values, chance.integer(1, 3))
    elif op == "exists":
        value = chance.maybe(60)
    made: Doc = {"field": field, "op": op, "value": value}
    return {**made, "items": items(chance)} if family >= 3 else made


def _text_leaf(chance: Chance) -> Doc:
    field, value, other = chance.choice(
        [
            ("order.store_id", "s1", "s3"),
            ("order.channel", "pos", "app"),
            ("customer.id", "c1", "c3"),
            ("order.currency", "EUR", "JPY"),
        ]
    )
    op = chance.choice(["eq", "ne", "lt", "lte", "gt", "gte", "in", "not_in", "exists"])
    if op in ("in", "not_in"):
        return {"field": field, "op": op, "value": [value, other]}
    return {"field": field, "op": op, "value": chance.maybe(60) if op == "exists" else value}


def _segments_leaf(chance: Chance) -> Doc:
    op = chance.choice(["contains", "contains_any", "contains_all", "exists", "eq", "ne"])
    value: Any = chance.choice([["vip", "new"], ["vip"], ["new", "vip", "vip"]])
    if op in ("contains", "exists"):
        value = "vip" if op == "contains" else chance.maybe(60)
    return {"field": "customer.segments", "op": op, "value": value}


def _attribute_leaf(chance: Chance) -> Doc:
    field = chance.choice(["customer.attributes.n", "order.attributes.pay"])
    op = chance.choice(
        ["eq", "ne", "gt", "gte", "lt", "lte", "in", "not_in", "contains", "contains_any", "contains_all", "exists"]
    )
    if op == "exists":
        return {"field": field, "op": op, "value": chance.maybe(60)}
    if op in ("in", "not_in"):
        return {"field": field, "op": op, "value": chance.choice([[1, 2], ["1"], [True], [1.5, 0], ["é", "z"]])}
    if op in ("contains_any", "contains_all"):
        return {"field": field, "op": op, "value": chance.choice([[1], ["1"], [True, 1], [2, 1]])}
    if op in ("gt", "gte", "lt", "lte"):
        return {"field": field, "op": op, "value": chance.choice([1, 1.5, "1", "é", -1])}
    one: Any = chance.choice([1, True, "1", 1.5, 0, "é"])
    if op in ("eq", "ne") and chance.maybe(25):
        one = chance.choice([[1, 2], [], ["1"]])
    return {"field": field, "op": op, "value": one}
