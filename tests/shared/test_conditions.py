"""Conditions: types, missing fields, and what would have made them true. Source: engine.md, "Conditions"."""

from __future__ import annotations

from typing import Any

import pytest

from tests.shared.build import Doc, document, fixed, line, order, run, voucher

CUSTOMER: Doc = {
    "id": "c1",
    "segments": ["vip", "new"],
    "attributes": {"n": 5, "half": 2.5, "yes": True, "text": "5", "none": None, "list": [1, "a", False]},
}


def leaf(field: str, op: str, value: Any, **fields: Any) -> Doc:
    return {"field": field, "op": op, "value": value, **fields}


def holds(when: Doc, **fields: Any) -> bool:
    of = order(
        line(300, 2, product_id="a"),
        line(0, 1, product_id="a"),
        line(500, category_ids=["x"]),
        **{"store_id": "309", "channel": "pos", "customer": CUSTOMER, "attributes": {"payment": "card"}, **fields},
    )
    return not run(of, voucher(fixed(1), when=when)).refused


@pytest.mark.parametrize(
    ("field", "op", "value", "expected"),
    [
        ("order.subtotal_minor", "gte", 1100, True),
        ("order.subtotal_minor", "gt", 1100, False),
        ("order.subtotal_minor", "lt", 1101, True),
        ("order.subtotal_minor", "lte", 1099, False),
        ("order.remaining_minor", "eq", 1100, True),
        ("order.quantity", "eq", 4, True),
        ("order.quantity", "in", [3, 4], True),
        ("order.quantity", "not_in", [3, 4], False),
        ("order.currency", "eq", "EUR", True),
        ("order.currency", "ne", "EUR", False),
        ("order.store_id", "in", ["1", "309"], True),
        ("order.channel", "not_in", ["web"], True),
        ("order.channel", "gt", "poR", True),
        ("order.channel", "lt", "POS", False),
        ("order.attributes.payment", "eq", "card", True),
        ("order.attributes.missing", "eq", "card", False),
        ("customer.id", "exists", True, True),
        ("customer.segments", "contains", "vip", True),
        ("customer.segments", "contains", "VIP", False),
        ("customer.segments", "contains_any", ["x", "new"], True),
        ("customer.segments", "contains_all", ["vip", "x"], False),
        ("customer.segments", "contains_all", ["new", "vip"], True),
        ("customer.segments", "eq", ["vip", "new"], True),
        ("customer.segments", "ne", ["new", "vip"], True),
        ("customer.attributes.n", "gte", 5, True),
        ("customer.attributes.n", "gt", 4.5, True),
        ("customer.attributes.half", "lt", 3, True),
        ("customer.attributes.half", "eq", 2.5, True),
        ("customer.attributes.list", "contains", "a", True),
        ("customer.attributes.list", "contains", True, False),
        ("customer.attributes.list", "contains", 0, False),
        ("customer.attributes.list", "contains", False, True),
        ("customer.attributes.list", "contains_any", ["b", False], True),
        ("customer.attributes.list", "eq", [1, "a", False], True),
        ("customer.attributes.list", "eq", [1, "a", 0], False),
    ],
)
def test_operators(field: str, op: str, value: Any, expected: bool) -> None:
    """Numbers by size, text by code point, lists by their members, each by its own type."""
    assert holds(leaf(field, op, value)) is expected


@pytest.mark.parametrize("op", ["eq", "ne", "gt", "gte", "lt", "lte", "in", "not_in"])
@pytest.mark.parametrize(
    ("name", "value"), [("n", "5"), ("text", 5), ("yes", 1), ("n", True), ("list", "a"), ("n", "")]
)
def test_unlike_types_compare_false(op: str, name: str, value: Any) -> None:
    """A number is not text, true is not 1: false for `ne` and `not_in` too, and `not` around it turns it true."""
    if value is True and op in ("gt", "gte", "lt", "lte"):
        value = "x"  # ordering true and false is refused at the door
    unlike = leaf(f"customer.attributes.{name}", op, [value] if op in ("in", "not_in") else value)
    assert not holds(unlike)
    assert holds({"not": unlike})


@pytest.mark.parametrize(
    ("op", "value", "expected"),
    [
        ("eq", "a", False),
        ("ne", "a", True),
        ("gt", 1, False),
        ("gte", 1, False),
        ("lt", 1, False),
        ("lte", "a", False),
        ("in", ["a"], False),
        ("not_in", ["a"], True),
        ("contains", "a", False),
        ("contains_any", ["a"], False),
        ("contains_all", ["a"], False),
        ("exists", True, False),
        ("exists", False, True),
    ],
)
@pytest.mark.parametrize("field", ["customer.attributes.none", "customer.attributes.nowhere", "order.attributes.a.b"])
def test_a_missing_field_makes_a_leaf_false(field: str, op: str, value: Any, expected: bool) -> None:
    """But for `exists: false`, `ne` and `not_in`; null is missing."""
    assert holds(leaf(field, op, value)) is expected
    assert holds(leaf(field, op, value), customer=None) is expected


@pytest.mark.parametrize("field", ["order.store_id", "order.channel", "customer.id", "customer.segments"])
def test_absent_parts_of_an_order_are_missing(field: str) -> None:
    """No customer, no store, no channel: the fields do not exist; an empty list of segments does."""
    assert holds(leaf(field, "exists", False), store_id=None, channel=None, customer=None)
    assert holds(leaf("customer.segments", "exists", True), customer={"segments": []})
    assert holds(leaf("customer.segments", "exists", False), customer={"id": "c"})


def test_items_beside_a_leaf() -> None:
    """Quantity and list price of the lines that match, lines of price 0 counted."""
    assert holds(leaf("items.quantity", "eq", 3, items={"product_ids": ["a"]}))
    assert holds(leaf("items.subtotal_minor", "eq", 600, items={"product_ids": ["a"]}))
    assert holds(leaf("items.subtotal_minor", "eq", 500, items={"category_ids": ["x"]}))
    assert holds(leaf("items.quantity", "eq", 0, items={"product_ids": ["none"]}))
    assert holds(leaf("items.quantity", "eq", 4, items={}))


def test_trees() -> None:
    """All, any and not, nested."""
    yes, no = leaf("order.quantity", "gt", 1), leaf("order.quantity", "gt", 99)
    assert holds({"all": [yes, {"any": [no, yes]}, {"not": no}]})
    assert not holds({"all": [yes, no]})
    assert not holds({"any": [no, {"not": yes}]})


@pytest.mark.parametrize(
    ("when", "detail"),
    [
        (
            leaf("order.subtotal_minor", "gte", 1600),
            {
                "field": "order.subtotal_minor",
                "expected": 1600,
                "actual": 1100,
                "op": "gte",
                "message": "spend 5.00 more",
            },
        ),
        (
            leaf("order.quantity", "gt", 5),
            {"field": "order.quantity", "expected": 5, "actual": 4, "op": "gt", "message": "add 2 more"},
        ),
        (
            {"all": [leaf("order.quantity", "gt", 1), {"any": [leaf("order.currency", "eq", "USD")]}]},
            {"field": "order.currency", "expected": "USD", "actual": "EUR"},
        ),
        (
            {"not": {"all": [leaf("order.channel", "eq", "pos")]}},
            {"field": "order.channel", "expected": "pos", "actual": "pos", "op": "not eq"},
        ),
        (
            leaf("customer.attributes.half", "eq", 7.25),
            {"field": "customer.attributes.half", "expected": 7.25, "actual": 2.5},
        ),
    ],
)
def test_detail_says_what_would_have_made_it_work(when: Doc, detail: Doc) -> None:
    """The first leaf in the way, what it wants, what there was, and how much more to spend or add."""
    of = order(line(300, 2), 500, line(0), customer=CUSTOMER, channel="pos")
    assert document(run(of, voucher(fixed(1), when=when)))["refused"][0]["detail"] == detail
