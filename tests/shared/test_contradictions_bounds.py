"""Conditions whose bounds just meet, or just do not. Source: engine.md, "Conditions"."""

from __future__ import annotations

import pytest

from tallystick_shared.errors import InvalidInput
from tallystick_shared.model import parse_voucher
from tests.shared.build import Doc, fixed, voucher
from tests.shared.test_contradictions import REST, SPEND, UNITS, A, B, leaf

N, L = "order.attributes.n", "customer.attributes.l"


def every(*conditions: Doc) -> Doc:
    return {"all": list(conditions)}


MAY = [
    *(
        every(leaf(N, op, one), leaf(N, op, other))
        for op in ("gt", "gte", "lt", "lte")
        for one, other in ((5, 3), (3, 5))
    ),
    *(every(leaf(N, op, "b"), leaf(N, op, "a")) for op in ("gt", "gte", "lt", "lte")),
    every(leaf(N, "gte", 5), leaf(N, "lte", 5)),
    every(leaf(N, "eq", 5), leaf(N, "gte", 5), leaf(N, "lte", 5)),
    every(leaf(N, "not_in", [5]), leaf(N, "gte", 4)),
    every({"not": leaf(N, "gt", 5)}, {"not": leaf(N, "lt", 6)}),
    every(leaf(UNITS, "in", [3, 8]), leaf(UNITS, "gt", 3), leaf(UNITS, "lte", 8)),
    every(leaf(UNITS, "in", [3, 8]), leaf(UNITS, "gte", 3), leaf(UNITS, "lt", 8)),
    every(leaf(UNITS, "not_in", [1, 2]), leaf(UNITS, "lt", 4)),
    every(leaf(SPEND, "lte", 500), leaf("items.subtotal_minor", "gte", 500, items=A)),
    every(leaf(SPEND, "lt", 5), leaf("items.quantity", "gte", 500, items=A)),
    every(leaf("items.quantity", "gte", 5, items=A), leaf("items.quantity", "lte", 5, items=A)),
    every(leaf("items.quantity", "gte", 5, items=A), leaf("items.subtotal_minor", "lte", 4, items=A)),
    every(leaf(L, "contains_any", ["a", "b"]), {"not": leaf(L, "contains_all", ["a", "b"])}),
    every(leaf(L, "contains", 1), {"not": leaf(L, "contains", "1")}),
    every(leaf("order.store_id", "in", ["1", "2"]), leaf("order.store_id", "not_in", ["2"])),
    every(leaf("order.store_id", "not_in", ["1"]), leaf("order.store_id", "exists", False)),
    every(leaf("customer.id", "exists", True), leaf("order.store_id", "exists", False)),
    {"not": every(leaf(UNITS, "gte", 1), leaf(SPEND, "gte", 1))},
    {"any": [leaf(UNITS, "lt", 0), leaf(UNITS, "gt", 0)]},
]

NEVER = [
    every(leaf(UNITS, "in", [3, 9]), leaf(UNITS, "gte", 4), leaf(UNITS, "lte", 8)),
    every(leaf(UNITS, "in", [3, 8]), leaf(UNITS, "gt", 3), leaf(UNITS, "lt", 8)),
    every(leaf(N, "gte", 5), leaf(N, "lte", 4)),
    every(leaf(N, "eq", 5), leaf(N, "gt", 6)),
    every(leaf(N, "eq", 5), leaf(N, "lt", 4)),
    every(leaf(SPEND, "lte", 499), leaf("items.subtotal_minor", "gte", 500, items=A)),
    every(leaf(REST, "gte", 500), leaf(SPEND, "lt", 500)),
    every(leaf(UNITS, "lt", 5), leaf("items.quantity", "eq", 5, items={})),
    every(leaf("items.quantity", "gte", 5, items=A), leaf("items.quantity", "lt", 5, items=A)),
    every(leaf(L, "contains_all", ["a", "b"]), {"not": leaf(L, "contains", "b")}),
    every(leaf(L, "contains_any", ["a"]), {"not": leaf(L, "contains_all", ["a"])}),
    every(leaf(L, "contains", "a"), leaf(L, "exists", False)),
    every(leaf("order.store_id", "in", ["1", "2"]), leaf("order.store_id", "not_in", ["2", "1"])),
    every(leaf("order.store_id", "in", ["1", "2"]), leaf("order.store_id", "in", ["3"])),
    every(leaf("order.store_id", "gt", "a"), leaf("order.store_id", "exists", False)),
    {"not": {"any": [leaf(UNITS, "gte", 3), leaf(UNITS, "lte", 2)]}},
    {"not": {"not": every(leaf(UNITS, "gte", 3), leaf(UNITS, "lte", 2))}},
    {"any": [leaf(UNITS, "lt", 0), every(leaf("items.quantity", "gt", 2, items=B), leaf(UNITS, "lt", 2))]},
]


@pytest.mark.parametrize("when", MAY)
def test_bounds_that_some_order_meets_are_taken(when: Doc) -> None:
    """Two of the same side are one; what counts is the narrower, and the bound itself where it is within."""
    assert parse_voucher(voucher(fixed(1), when=when), default_currency="EUR")


@pytest.mark.parametrize("when", NEVER)
def test_bounds_that_no_order_meets_are_refused(when: Doc) -> None:
    """By one unit or cent, between two values, or against the whole order."""
    with pytest.raises(InvalidInput, match="can never hold"):
        parse_voucher(voucher(fixed(1), when=when), default_currency="EUR")
