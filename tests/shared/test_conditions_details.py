"""The detail of a leaf that does not hold, in full: what it asks for, what there is, and the sentence for people.

Source: engine.md, "Conditions" and "Result".
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.shared.build import Doc, document, fixed, line, order, run, voucher
from tests.shared.test_conditions import leaf

X: Doc = {"category_ids": ["x"]}
ODD: Doc = {**X, "attributes": {"size": "L", "organic": True}}
CUSTOMER: Doc = {"id": "c", "segments": ["a"], "attributes": {"n": 5, "t": "x", "l": [1]}}
N, T, L, SEGMENTS = "customer.attributes.n", "customer.attributes.t", "customer.attributes.l", "customer.segments"


def detail_of(when: Doc) -> Doc:
    of = order(line(300, 2, category_ids=["x"]), 500, customer=CUSTOMER)
    [refused] = document(run(of, voucher(fixed(1), when=when)))["refused"]
    assert refused["reason"] == "CONDITION_NOT_MET"
    found: Doc = refused["detail"]
    return found


@pytest.mark.parametrize(
    ("field", "op", "value", "actual", "message"),
    [
        (SEGMENTS, "eq", ["b", "c"], ["a"], "the customer's segments must be [b, c]"),
        (L, "eq", [1, 2, 3, 4], [1], "the customer's l must be [1, 2, 3, ...]"),
        (L, "eq", [1, 2, 3], [1], "the customer's l must be [1, 2, 3]"),
        (L, "contains_all", [1, True, "b", "c", "d"], [1], "the customer's l must include 1, true, b and 2 more"),
        ("customer.attributes.gone", "eq", "", None, 'the customer\'s gone must be ""'),
        (N, "lte", 4, 5, "the customer's n must be at most 4"),
        (N, "gte", 5.5, 5, "the customer's n must be at least 5.5"),
        (N, "eq", 0.0000001, 5, "the customer's n must be 0.0000001"),
        (N, "eq", False, 5, "the customer's n must be true or false and be false"),
        (N, "contains_any", [1, 2], 5, "the customer's n must be a list and include 1 or 2"),
        (T, "lt", "a", "x", "the customer's t must be below a"),
        (T, "gte", 3, "x", "the customer's t must be a number and be at least 3"),
        ("customer.id", "exists", False, "c", "the customer must not be given"),
        ("order.store_id", "exists", True, None, "the store must be given"),
        ("order.subtotal_minor", "lte", 1000, 1100, "spend 1.00 less"),
        ("order.subtotal_minor", "gt", 1100, 1100, "spend 0.01 more"),
        ("order.remaining_minor", "eq", 7, 1100, "the goods after other discounts must be 0.07"),
        ("order.quantity", "lt", 3, 3, "take out 1 unit"),
        ("order.quantity", "eq", 7, 3, "the number of units must be 7"),
    ],
)
def test_a_leaf_tells_what_it_expects_and_what_there_is(
    field: str, op: str, value: Any, actual: Any, message: str
) -> None:
    """Field, operator, the value expected, the value there, and the sentence."""
    expected = {"field": field, "expected": value, "actual": actual, "op": op, "message": message}
    assert detail_of(leaf(field, op, value)) == expected


@pytest.mark.parametrize(
    ("field", "op", "value", "actual", "message"),
    [
        (SEGMENTS, "contains_any", ["a", "b"], ["a"], "the customer's segments must not include a or b"),
        (SEGMENTS, "contains_all", ["a"], ["a"], "the customer's segments must not include all of a"),
        (N, "eq", 5, 5, "the customer's n must not be 5"),
        (N, "ne", 6, 5, "the customer's n must be 6"),
        (N, "in", [5, 6], 5, "the customer's n must not be 5 or 6"),
        (N, "not_in", [6, 7], 5, "the customer's n must be 6 or 7"),
        (N, "gt", 4, 5, "the customer's n must be at most 4"),
        (N, "gte", 4, 5, "the customer's n must be below 4"),
        (N, "lt", 6, 5, "the customer's n must be at least 6"),
        (N, "lte", 5, 5, "the customer's n must be above 5"),
        ("order.quantity", "in", [3, 4], 3, "the number of units must not be 3 or 4"),
        ("order.quantity", "lte", 3, 3, "add 1 unit"),
        ("order.quantity", "gt", 1, 3, "take out 2 units"),
    ],
)
def test_a_leaf_under_not_tells_the_opposite(field: str, op: str, value: Any, actual: Any, message: str) -> None:
    """The operator as it was written, and the sentence of what has to be so instead."""
    expected = {"field": field, "expected": value, "actual": actual, "op": f"not {op}", "message": message}
    assert detail_of({"not": leaf(field, op, value)}) == expected


@pytest.mark.parametrize(
    ("field", "op", "value", "items", "actual", "message"),
    [
        ("items.quantity", "ne", 2, X, 2, "the number of units of category x must not be 2"),
        ("items.quantity", "in", [5, 6, 7], X, 2, "the number of units of category x must be 5, 6 or 7"),
        ("items.quantity", "lte", 1, X, 2, "take out 1 unit of category x"),
        ("items.subtotal_minor", "lt", 600, X, 600, "spend 0.01 less on units of category x"),
        (
            "items.subtotal_minor",
            "eq",
            500,
            ODD,
            600,
            "the price of units of category x or with size L and organic true must be 5.00",
        ),
    ],
)
def test_a_leaf_with_items_tells_which(field: str, op: str, value: Any, items: Doc, actual: int, message: str) -> None:
    """The selector for a program, and its words in the sentence."""
    expected = {"field": field, "expected": value, "actual": actual, "op": op, "items": items, "message": message}
    assert detail_of(leaf(field, op, value, items=items)) == expected


def test_a_long_name_is_cut_in_the_sentence_only() -> None:
    """Of an attribute 40 characters, and of its value 37 and dots."""
    items = {"attributes": {"n" * 41: "v" * 41}}
    detail = detail_of(leaf("items.quantity", "gte", 1, items=items))
    assert detail["message"] == f"add 1 unit with {'n' * 40} {'v' * 37}..."
    assert detail["items"] == items
