"""Seeded documents for the comparison with the oracle: small numbers, few ids, so that everything meets everything."""

from __future__ import annotations

import random
from typing import Any

Doc = dict[str, Any]
PRODUCTS = ["a", "b", "c"]
CATEGORIES = ["x", "y"]
PLAIN = ["percentage", "fixed", "fixed_price", "bundle_price", "bogo", "shipping", "gift_card"]


def document(seed: int) -> Doc:
    """One request; the same seed gives the same one."""
    chance = random.Random(seed)
    lines = [_line(chance, index) for index in range(chance.choice([1, 2, 3, 4, 6]))]
    order: Doc = {"id": "o", "currency": chance.choice(["EUR"] * 9 + ["USD"]), "lines": lines}
    if chance.random() < 0.5:
        order["shipping_minor"] = chance.choice([0, 1, 490, 999])
    if chance.random() < 0.7:
        order["customer"] = {"segments": chance.sample(["vip", "new"], chance.randint(0, 2))}
        if chance.random() < 0.8:
            order["customer"]["id"] = "c1"
        if chance.random() < 0.5:
            order["customer"]["attributes"] = {"n": chance.choice([1, 2, True, "1", None, [1, 2]])}
    if chance.random() < 0.3:
        order["store_id"] = chance.choice(["s1", "s2"])
    names = [f"{chance.choice('ABab')}{index}" for index in range(chance.choice([1, 1, 2, 3, 4, 5]))]
    made: Doc = {
        "order": order,
        "vouchers": [_voucher(chance, name) for name in names],
        "at": chance.choice(["2026-06-01T00:00:00+02:00", "2026-06-15T12:00:00.999Z", "2026-08-31T23:59:59.5+02:00"]),
    }
    if chance.random() < 0.6:
        made["usage"] = {
            name: {
                "total": chance.randint(0, 4),
                "customer": chance.randint(0, 2),
                "budget_minor": chance.choice([0, 100, 900]),
            }
            for name in names
            if chance.random() < 0.7
        }
    return made


def _line(chance: random.Random, index: int) -> Doc:
    line: Doc = {
        "id": f"l{index}",
        "product_id": chance.choice(PRODUCTS),
        "quantity": chance.choice([1, 1, 1, 2, 3, 5, 7]),
        "unit_price_minor": chance.choice([0, 1, 3, 100, 106, 200, 200, 333, 500, 500, 1000, 3490, 9990]),
    }
    if chance.random() < 0.6:
        line["category_ids"] = chance.sample(CATEGORIES, chance.randint(1, 2))
    if chance.random() < 0.3:
        line["attributes"] = {"brand": chance.choice(["n", 1, True])}
    return line


def _items(chance: random.Random) -> Doc:
    items: Doc = {}
    if chance.random() < 0.5:
        items["product_ids"] = chance.sample(PRODUCTS, chance.randint(1, 2))
    if chance.random() < 0.4:
        items["category_ids"] = chance.sample(CATEGORIES, 1)
    if chance.random() < 0.15:
        items["attributes"] = {"brand": chance.choice(["n", 1, True])}
    if chance.random() < 0.15:
        items["exclude_product_ids"] = chance.sample(PRODUCTS, 1)
    if chance.random() < 0.15:
        items["exclude_category_ids"] = chance.sample(CATEGORIES, 1)
    return items


def _maybe_items(chance: random.Random) -> Doc:
    return {"items": _items(chance)} if chance.random() < 0.5 else {}


def _percent(chance: random.Random) -> Any:
    return chance.choice([10, 15, 20, 50, 100, 0.5, 33.3333, "12.5", "0.0001", 7, 99.99])


def _plain(chance: random.Random, kind: str) -> Doc:
    most = {"max_applications": chance.randint(1, 3)} if chance.random() < 0.4 else {}
    cap = {"cap_minor": chance.choice([1, 50, 100, 777])} if chance.random() < 0.3 else {}
    if kind == "percentage":
        return {"type": kind, "percent": _percent(chance), **cap, **_maybe_items(chance)}
    if kind == "fixed":
        per = {"per": chance.choice(["order", "line", "unit"])} if chance.random() < 0.8 else {}
        return {"type": kind, "amount_minor": chance.choice([1, 2, 100, 400, 1000]), **per, **_maybe_items(chance)}
    if kind == "fixed_price":
        return {"type": kind, "unit_price_minor": chance.choice([0, 1, 99, 150, 400]), **_maybe_items(chance)}
    if kind == "bundle_price":
        price = chance.choice([0, 1, 200, 299, 400, 500, 1000, 2000])
        return {"type": kind, "quantity": chance.randint(1, 4), "price_minor": price, **_maybe_items(chance), **most}
    if kind == "bogo":
        get: Doc = {"quantity": chance.randint(1, 3), **_maybe_items(chance)}
        if chance.random() < 0.5:
            get["percent"] = _percent(chance)
        elif chance.random() < 0.4:
            get["amount_minor"] = chance.choice([1, 50, 400])
        return {"type": kind, "buy": {"quantity": chance.randint(1, 3), **_maybe_items(chance)}, "get": get, **most}
    if kind == "shipping":
        return {"type": kind, **({"percent": _percent(chance)} if chance.random() < 0.6 else {}), **cap}
    return {"type": kind, "balance_minor": chance.choice([0, 1, 500, 5000])}


def _discount(chance: random.Random) -> Doc:
    kind = chance.choice([*PLAIN[:5], *PLAIN[:5], "shipping", "gift_card", "tiered", "tiered", "conditional"])
    if kind == "tiered":
        basis = chance.choice(["amount", "quantity"])
        choices = [0, 100, 300, 500, 1000, 3000] if basis == "amount" else [0, 1, 2, 3, 5, 8]
        minimums = sorted(chance.sample(choices, chance.randint(1, 3)))
        tiers = [{"min": minimum, "discount": _plain(chance, chance.choice(PLAIN))} for minimum in minimums]
        return {"type": kind, "basis": basis, "tiers": tiers, **_maybe_items(chance)}
    if kind == "conditional":
        cases = [
            {"when": _when(chance, 3), "discount": _plain(chance, chance.choice(PLAIN))}
            for _ in range(chance.randint(1, 3))
        ]
        otherwise = {"otherwise": _plain(chance, chance.choice(PLAIN))} if chance.random() < 0.3 else {}
        return {"type": kind, "cases": cases, **otherwise}
    return _plain(chance, kind)


def _when(chance: random.Random, deepest: int) -> Doc:
    pick = chance.random()
    if deepest > 1 and pick < 0.3:
        kind = chance.choice(["all", "any"])
        return {kind: [_when(chance, deepest - 1) for _ in range(chance.randint(1, 3))]}
    if deepest > 1 and pick < 0.4:
        return {"not": _when(chance, deepest - 1)}
    order = chance.choice(["gt", "gte", "lt", "lte", "eq", "ne"])
    number: Doc = {"op": order, "value": chance.choice([0, 1, 3, 500, 1000, 1024])}
    leaf: Doc = chance.choice(
        [
            {"field": "order.remaining_minor", **number},
            {"field": "order.remaining_minor", "op": "gte", "value": chance.choice([1, 300, 900])},
            {"field": chance.choice(["order.subtotal_minor", "order.quantity"]), **number},
            {"field": "items.subtotal_minor", "items": _items(chance), **number},
            {"field": "items.quantity", "items": _items(chance), **number},
            {"field": "order.store_id", "op": chance.choice(["eq", "ne", "lt", "gte"]), "value": "s1"},
            {"field": "order.store_id", "op": chance.choice(["in", "not_in"]), "value": ["s1", "s3"]},
            {"field": "customer.segments", "op": "contains", "value": "vip"},
            {
                "field": "customer.segments",
                "op": chance.choice(["contains_any", "contains_all"]),
                "value": ["vip", "new"],
            },
            {"field": "customer.segments", "op": "exists", "value": chance.choice([True, False])},
            {"field": "customer.id", "op": "exists", "value": chance.choice([True, False])},
            {
                "field": "customer.attributes.n",
                "op": chance.choice(["eq", "ne", "contains"]),
                "value": chance.choice([1, True, "1"]),
            },
            {
                "field": "customer.attributes.n",
                "op": chance.choice(["in", "not_in", "contains_any"]),
                "value": chance.choice([[1, 2], ["1"]]),
            },
        ]
    )
    return leaf


def _voucher(chance: random.Random, name: str) -> Doc:
    made: Doc = {"code": name, "discount": _discount(chance), "currency": "EUR"}
    if chance.random() < 0.3:
        made["when"] = _when(chance, 3)
    if chance.random() < 0.1:
        made["valid_from"] = "2026-06-01T00:00:01+02:00"
    if chance.random() < 0.1:
        made["valid_until"] = "2026-08-31T23:59:59+02:00"
    if chance.random() < 0.03:
        made["status"] = "paused"
    if chance.random() < 0.25:
        limits = {
            "total": chance.randint(1, 4),
            "per_customer": chance.randint(1, 3),
            "budget_minor": chance.choice([100, 1000]),
        }
        made["limits"] = {key: limits[key] for key in chance.sample(sorted(limits), chance.randint(1, 2))}
    stacking: Doc = {}
    if chance.random() < 0.85:
        stacking["mode"] = "stackable"
        if chance.random() < 0.2:
            stacking["group"] = chance.choice(["g", "h"])
    if chance.random() < 0.3:
        stacking["priority"] = chance.randint(-1, 2)
    if chance.random() < 0.3:
        stacking["max_total_percent"] = chance.choice([30, 50, "12.5", 0.01, 100])
    if stacking:
        made["stacking"] = stacking
    return made
