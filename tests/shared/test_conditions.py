"""Conditions: types, missing fields, and what would have made them true. Source: engine.md, "Conditions"."""

from __future__ import annotations

from typing import Any

import pytest

from tallystick_shared.engine import compile_voucher, evaluate, result_json
from tallystick_shared.model import parse_voucher, voucher_json
from tests.shared.build import NOON, Doc, document, fixed, line, order, percentage, run, voucher

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
    return not run(of, voucher(percentage(100), when=when)).refused


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
        ("customer.attributes.list", "contains_all", [1, "a", False], True),
        ("customer.attributes.list", "contains_all", [1, True], False),
        ("customer.attributes.list", "contains_any", [0, 2, True], False),
        ("customer.attributes.text", "contains", 5, False),
        ("customer.attributes.none", "contains", 5, False),
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


X = {"category_ids": ["x"]}


@pytest.mark.parametrize(
    ("when", "message"),
    [
        (leaf("order.subtotal_minor", "gte", 1600), "spend 5.00 more"),
        (leaf("order.subtotal_minor", "lt", 1100), "spend 0.01 less"),
        ({"not": leaf("order.subtotal_minor", "gte", 1100)}, "spend 0.01 less"),
        (leaf("order.subtotal_minor", "in", [5, 600]), "the goods before discounts must be 0.05 or 6.00"),
        (leaf("order.quantity", "gt", 5), "add 2 units"),
        (leaf("order.quantity", "lte", 2), "take out 2 units"),
        (leaf("order.quantity", "ne", 4), "the number of units must not be 4"),
        (leaf("items.quantity", "gte", 3, items=X), "add 1 unit of category x"),
        (leaf("items.subtotal_minor", "gt", 600, items=X), "spend 0.01 more on units of category x"),
        (leaf("order.store_id", "in", ["s1", "s2"]), "the store must be s1 or s2"),
        ({"not": leaf("order.channel", "in", ["pos", "web"])}, "the channel must not be pos or web"),
        (leaf("order.channel", "gt", "x"), "the channel must be above x"),
        (leaf("order.channel", "exists", False), "the channel must not be given"),
        ({"not": leaf("order.store_id", "exists", False)}, "the store must be given"),
        (
            leaf("customer.segments", "contains_any", ["p", "q", "r", "s", "t"]),
            "the customer's segments must include p, q, r or 2 more",
        ),
        (leaf("customer.segments", "contains_all", ["p", "q"]), "the customer's segments must include p and q"),
        ({"not": leaf("customer.segments", "contains", "vip")}, "the customer's segments must not include vip"),
        (leaf("customer.attributes.half", "eq", 7.25), "the customer's half must be 7.25"),
        (leaf("order.store_id", "eq", "s" * 40), f"the store must be {'s' * 40}"),
        (leaf("order.store_id", "eq", "s" * 41), f"the store must be {'s' * 37}..."),
        (leaf("order.attributes.card", "eq", True), "the order's card must be true"),
        (leaf("customer.attributes.text", "ne", 5), "the customer's text must be a number and not be 5"),
        (leaf("customer.attributes.text", "contains", "5"), "the customer's text must be a list and include 5"),
        (leaf("customer.attributes.n", "in", ["5"]), "the customer's n must be text and be 5"),
        # the first of the two is what no order can do
        ({"any": [leaf("order.quantity", "exists", False), leaf("order.quantity", "gt", 5)]}, "add 2 units"),
        ({"not": {"all": [leaf("order.quantity", "gte", 0), leaf("order.quantity", "lt", 5)]}}, "add 1 unit"),
    ],
)
def test_a_message_says_what_would_have_made_it_work(when: Doc, message: str) -> None:
    """In money as people write it, in units, or as the value that a field should have had."""
    of = order(line(300, 2, category_ids=["x"]), 500, line(0), customer=CUSTOMER, channel="pos")
    assert document(run(of, voucher(fixed(1), when=when)))["refused"][0]["detail"]["message"] == message


def test_a_detail_names_every_leaf_of_the_easiest_way() -> None:
    """Of an `any` the branch that changes the fewest leaves, of an `all` each leaf that fails, through any `not`."""
    store = leaf("order.store_id", "eq", "s1")
    hard = {"all": [leaf("order.quantity", "gt", 7), store, leaf("order.channel", "eq", "web")]}
    easy = {"not": {"any": [leaf("order.quantity", "lt", 6), {"not": store}]}}
    found = document(run(order(300), voucher(fixed(1), when={"any": [hard, easy]})))["refused"][0]["detail"]
    second = {
        "field": "order.store_id",
        "expected": "s1",
        "actual": None,
        "op": "eq",
        "message": "the store must be s1",
    }
    assert found == {
        "field": "order.quantity",
        "expected": 6,
        "actual": 1,
        "op": "not lt",
        "message": "add 5 units; the store must be s1",
        "and": [second],
    }


def test_the_way_that_a_detail_names_can_be_gone() -> None:
    """A branch that the rest of the tree, or the voucher's own `when`, rules out is not what is asked for."""
    spend_more, web = leaf("order.subtotal_minor", "gte", 10_000), leaf("order.channel", "eq", "web")
    little = leaf("order.subtotal_minor", "lt", 5000)
    when = {"all": [{"any": [spend_more, web]}, little]}
    message = "the channel must be web"
    [refused] = run(order(1000), voucher(fixed(1), when=when)).refused
    assert refused.detail["message"] == message
    cases = [{"when": {"any": [spend_more, web]}, "discount": fixed(1)}]
    [refused] = run(order(1000), voucher({"type": "conditional", "cases": cases}, when=little)).refused
    assert refused.detail["message"] == message


@pytest.mark.parametrize(
    "when",
    [
        leaf("customer.id", "in", ["ann", "bob"]),
        leaf("customer.id", "eq", "ann"),
        {"not": leaf("customer.id", "not_in", ["ann", "bob"])},
        {"not": leaf("customer.id", "ne", "ann")},
    ],
)
def test_a_detail_names_no_other_customer(when: Doc) -> None:
    """Whom a voucher is for is not told to whoever types its code."""
    [refused] = run(order(1000, customer={"id": "eve"}), voucher(fixed(1), when=when)).refused
    assert refused.detail["message"] == "use another code: this one is for other customers"
    assert (refused.detail["actual"], "expected" in refused.detail) == ("eve", False)


def test_what_is_done_to_a_detail_changes_no_voucher() -> None:
    """Lists in it are copies: the voucher stays as it was signed, the order as it was given."""
    segments = ["old"]
    when = leaf("customer.segments", "contains_all", ["a", "b"])
    compiled = compile_voucher(parse_voucher(voucher(percentage(1), when=when)))
    of = order(1000, customer={"segments": segments})
    [refused] = evaluate(of, [compiled], at=NOON).refused
    refused.detail["expected"].pop()
    refused.detail["actual"].append("a")
    assert evaluate(of, [compiled], at=NOON).refused[0].detail["expected"] == ["a", "b"]
    assert b'["a","b"]' in voucher_json(compiled.voucher)


def test_a_detail_holds_no_long_lists() -> None:
    """Of what was expected and what was there the first five, of the leaves five, of selectors' attributes five."""
    customer = {"segments": [f"segment {number}" for number in range(1000)]}
    values = [f"other {number}" for number in range(1000)]
    attributes = {f"name {number}": ["x" * 200] * 1000 for number in range(100)}
    leaves = [leaf("customer.segments", "contains_any", values) for _ in range(60)]
    leaves.append(leaf("items.quantity", "gt", 0, items={"attributes": attributes}))
    result = run(order(1000, customer=customer), voucher(fixed(1), when={"all": leaves}))
    assert len(result_json(result)) < 2500
    [last] = run(order(1000), voucher(fixed(1, items={"attributes": attributes}))).refused
    assert len(str(last.detail)) < 8000


def test_a_detail_stays_small_whatever_the_voucher_lists() -> None:
    """The first five of each list, and a message of one line of at most 200 characters."""
    many = {"product_ids": [f"a\nproduct of a very long name {number}" for number in range(9_000)]}
    when = leaf("items.quantity", "gte", 1, items={**many, "attributes": {"brand" * 50: "n" * 250}})
    detail = document(run(order(300), voucher(fixed(1, items=many), when=when)))["refused"][0]["detail"]
    assert len(detail["items"]["product_ids"]) == 5
    assert len(detail["message"]) == 200
    assert "\n" not in detail["message"]
    [refused] = document(run(order(300), voucher(fixed(1, items=many))))["refused"]
    assert refused["detail"]["message"].endswith(
        "0, a\\x0aproduct of a very long name 1, a\\x0aproduct of a very long name 2 or 8997 more"
    )
