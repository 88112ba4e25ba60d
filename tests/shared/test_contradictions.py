"""What is well formed and can never do what it says is refused when it is published. Source: engine.md, "Fields"."""

from __future__ import annotations

from typing import Any

import pytest

from tallystick_shared.errors import InvalidInput
from tallystick_shared.model import load_voucher, parse_voucher
from tests.shared.build import Doc, bogo, calls_of, fixed, percentage, voucher

A, B, X = {"product_ids": ["a"]}, {"product_ids": ["b"]}, {"category_ids": ["x"]}
NOT_A, NOT_X = {"exclude_product_ids": ["a", "b"]}, {"exclude_category_ids": ["x"]}


def leaf(field: str, op: str, value: Any, **fields: Any) -> Doc:
    return {"field": field, "op": op, "value": value, **fields}


def tiered(*tiers: tuple[int, Doc], **fields: Any) -> Doc:
    return {"type": "tiered", "tiers": [{"min": least, "discount": discount} for least, discount in tiers], **fields}


def cases(*conditions: Doc, **fields: Any) -> Doc:
    made = [{"when": when, "discount": fixed(100 + number)} for number, when in enumerate(conditions)]
    return {"type": "conditional", "cases": made, **fields}


def window(days: list[str], opens: str, closes: str) -> Doc:
    return {"days": days, "from": opens, "to": closes, "timezone": "Europe/Berlin"}


def bundle(quantity: int, **fields: Any) -> Doc:
    return {"type": "bundle_price", "quantity": quantity, "price_minor": 100, **fields}


SPEND, UNITS, REST = "order.subtotal_minor", "order.quantity", "order.remaining_minor"
# a Saturday and the Sunday after it
WEEKEND = {"valid_from": "2026-06-06T00:00:00+02:00", "valid_until": "2026-06-07T23:59:59+02:00"}

CONTRADICTIONS: list[tuple[str, Doc]] = [
    ("limits.per_customer", voucher(fixed(1), limits={"total": 3, "per_customer": 4})),
    ("discount.cap_minor", voucher(percentage(10, cap_minor=501), limits={"budget_minor": 500})),
    ("discount.cap_minor", voucher({"type": "shipping", "cap_minor": 501}, limits={"budget_minor": 500})),
    (
        "discount.otherwise.cap_minor",
        voucher(cases(leaf(UNITS, "gt", 3), otherwise=percentage(10, cap_minor=501)), limits={"budget_minor": 500}),
    ),
    ("discount.cap_minor", voucher(percentage(10, cap_minor=501), when=leaf(SPEND, "lte", 5000))),
    ("discount.tiers[0].discount.cap_minor", voucher(tiered((0, percentage(10, cap_minor=501)), (5000, fixed(1))))),
    (
        "discount.cases[0].discount.cap_minor",
        voucher(
            {
                "type": "conditional",
                "cases": [{"when": leaf(SPEND, "lt", 5000), "discount": percentage(10, cap_minor=501)}],
            }
        ),
    ),
    ("stacking.max_total_percent", voucher({"type": "shipping"}, stacking={"max_total_percent": 50})),
    ("stacking.group", voucher(fixed(1), stacking={"group": "g"})),
    ("hours", voucher(fixed(1), hours=[window(["mon", "fri"], "16:00", "18:00")], **WEEKEND)),
    # the one night in its week on which the clock jumps over it
    (
        "hours",
        voucher(
            fixed(1),
            hours=[window(["sun"], "02:10", "02:50")],
            valid_from="2026-03-27T00:00:00+01:00",
            valid_until="2026-04-01T00:00:00+02:00",
        ),
    ),
    ("discount.items.exclude_product_ids[0]", voucher(tiered((0, fixed(1)), items={**A, **NOT_A}))),
    (
        "discount.cases[0].when.items.exclude_category_ids[0]",
        voucher(cases(leaf("items.quantity", "gt", 1, items={**X, **NOT_X}))),
    ),
    (
        "discount.tiers[0].discount.cap_minor",
        voucher(tiered((0, percentage(10, cap_minor=501))), limits={"budget_minor": 500}),
    ),
    ("discount.items.exclude_product_ids[1]", voucher(fixed(1, items={**A, "exclude_product_ids": ["z", "a"]}))),
    ("discount.items.exclude_category_ids[0]", voucher(fixed(1, items={**A, **X, **NOT_X}))),
    ("discount.get.items.exclude_product_ids[0]", voucher(bogo(1, 1, get_items={**A, **NOT_A}))),
    (
        "when.all[1].items.exclude_category_ids[0]",
        voucher(fixed(1), when={"all": [leaf(UNITS, "gt", 1), leaf("items.quantity", "gt", 1, items={**X, **NOT_X})]}),
    ),
    ("discount.tiers[0].discount.items", voucher(tiered((0, fixed(1, items=B)), items=A))),
    ("discount.tiers[0].discount.items", voucher(tiered((0, fixed(1, items=A)), items=NOT_A))),
    ("discount.tiers[1].discount.items", voucher(tiered((0, fixed(1)), (5, fixed(1, items=NOT_X)), items=X))),
    (
        "discount.tiers[0].discount.items",
        voucher(tiered((0, fixed(1, items={**X, "product_ids": ["c"]})), items={**A, **NOT_X})),
    ),
    ("discount.tiers[0].discount.get.items", voucher(tiered((0, bogo(1, 1, get_items=B)), items=A))),
    ("discount.tiers[0].discount", voucher(tiered((1, bogo(2, 2)), (4, fixed(1)), basis="quantity"))),
    (
        "discount.tiers[1].discount.quantity",
        voucher(tiered((0, fixed(1)), (2, bundle(5)), (5, fixed(1)), basis="quantity")),
    ),
    ("discount.quantity", voucher(bundle(3), when=leaf(UNITS, "lt", 3))),
    ("discount", voucher(bogo(2, 2), when=leaf(UNITS, "lte", 3))),
    ("when.all[0].value", voucher(fixed(1), when={"all": [leaf("order.currency", "in", ["EUR", "eur"])]})),
    ("discount.tiers[1].min", voucher(tiered((0, fixed(1)), (5001, fixed(2))), when=leaf(SPEND, "lte", 5000))),
    ("discount.tiers[0]", voucher(tiered((0, fixed(1)), (5000, fixed(2))), when=leaf(SPEND, "gte", 5000))),
    ("discount.tiers[0].min", voucher(tiered((7, fixed(2)), basis="quantity"), when=leaf(UNITS, "lt", 7))),
    ("discount.cases[1].when", voucher(cases(leaf(UNITS, "gt", 3), leaf(UNITS, "gt", 3)))),
    ("discount.cases[2].when", voucher(cases(leaf(UNITS, "gte", 5), leaf(SPEND, "gt", 3), leaf(UNITS, "gte", 10)))),
    (
        "discount.cases[1].when",
        voucher(cases({"all": [leaf(UNITS, "gt", 3)]}, {"all": [leaf(UNITS, "gt", 3), leaf(SPEND, "gt", 3)]})),
    ),
    ("discount.cases[0].when", voucher(cases(leaf(SPEND, "gte", 0), leaf(UNITS, "gt", 3)))),
    ("discount.cases[0].when", voucher(cases(leaf("order.currency", "exists", True), otherwise=fixed(1)))),
    ("discount.cases[0].when", voucher(cases(leaf(SPEND, "lt", 500)), when=leaf(SPEND, "gte", 500))),
]

NEVER: list[Doc] = [
    leaf(SPEND, "lt", 0),
    leaf(SPEND, "gt", 10**15),
    {"all": [leaf("order.attributes.n", "gt", 5.5), leaf("order.attributes.n", "lt", 3)]},
    {"all": [leaf("order.attributes.n", "eq", -5), leaf("order.attributes.n", "gt", -4)]},
    leaf(UNITS, "eq", -1),
    {"all": [leaf(SPEND, "gt", 500), leaf(SPEND, "lte", 500)]},
    {"all": [leaf(SPEND, "gt", 500), {"all": [leaf(REST, "lt", 500)]}]},
    {"not": {"any": [leaf(UNITS, "gte", 5), leaf(UNITS, "lt", 5)]}},
    {"all": [leaf(UNITS, "in", [1, 2]), leaf(UNITS, "not_in", [1, 2, 3])]},
    {"all": [leaf(UNITS, "in", [1, 2]), leaf(UNITS, "gt", 2)]},
    {"all": [leaf(UNITS, "lt", 3), leaf("items.quantity", "gte", 3, items=A)]},
    {
        "all": [
            leaf(UNITS, "lt", 3),
            leaf("items.quantity", "gte", 3, items=A),
            leaf("items.quantity", "lt", 9, items=A),
        ]
    },
    {"all": [{"not": leaf("order.store_id", "ne", "1")}, leaf("order.store_id", "eq", "2")]},
    {"all": [leaf(SPEND, "lt", 3), leaf("items.subtotal_minor", "eq", 3, items={})]},
    {"all": [leaf("order.store_id", "eq", "1"), leaf("order.store_id", "in", ["2", "3"])]},
    {"all": [leaf("order.store_id", "eq", "1"), leaf("order.store_id", "exists", False)]},
    {"all": [leaf("order.store_id", "eq", "1"), {"not": leaf("order.store_id", "eq", "1")}]},
    {"all": [leaf("order.channel", "lt", "b"), leaf("order.channel", "exists", False)]},
    {"all": [leaf("order.attributes.n", "eq", 1), leaf("order.attributes.n", "eq", "1")]},
    {"all": [leaf("order.attributes.n", "eq", 1), leaf("order.attributes.n", "ne", 1)]},
    {"all": [leaf("customer.segments", "contains", "vip"), {"not": leaf("customer.segments", "contains", "vip")}]},
    {
        "all": [
            leaf("customer.segments", "contains_all", ["vip", "new"]),
            {"not": leaf("customer.segments", "contains_any", ["new", "old"])},
        ]
    },
    {"all": [leaf(UNITS, "gt", 5), {"any": [leaf(UNITS, "lt", 3), leaf(UNITS, "eq", 4)]}]},
    leaf("order.currency", "exists", False),
    leaf("items.quantity", "exists", False, items=A),
    leaf("order.currency", "eq", "USD"),
    leaf("customer.id", "exists", False),
    {"all": [{"not": leaf(UNITS, "not_in", [1, 2])}, leaf(UNITS, "gt", 2)]},
    {"all": [{"not": leaf("order.store_id", "not_in", ["1", "2"])}, leaf("order.store_id", "eq", "3")]},
    {"all": [{"not": leaf("order.attributes.n", "ne", 1)}, leaf("order.attributes.n", "exists", False)]},
    {"all": [leaf(UNITS, "gt", 5), leaf(UNITS, "lt", 3), {"not": {"any": [leaf(SPEND, "lt", 1)]}}]},
    {"all": [leaf(UNITS, "gt", 5), leaf(UNITS, "lt", 3), {"all": [leaf(SPEND, "gt", 1)]}]},
]

MAY: list[Doc] = [
    {"all": [leaf(UNITS, "gt", 5), {"any": [leaf(UNITS, "lt", 3), leaf(UNITS, "eq", 7)]}]},
    {"all": [leaf(UNITS, "gte", 5), leaf(UNITS, "lte", 5)]},
    {"not": {"all": [leaf(UNITS, "gte", 5), leaf(UNITS, "lt", 5)]}},
    {"all": [leaf("order.attributes.n", "ne", 1), leaf("order.attributes.n", "ne", 2)]},
    {"all": [{"not": leaf("order.store_id", "eq", "1")}, leaf("order.store_id", "exists", False)]},
    {"all": [leaf("order.attributes.n", "eq", 1), leaf("order.attributes.n", "in", [1.0, 2])]},
    {"all": [leaf("items.quantity", "gt", 5, items=A), leaf("items.quantity", "lt", 5, items=B)]},
    {
        "all": [
            leaf("customer.segments", "contains_any", ["a", "b"]),
            {"not": leaf("customer.segments", "contains", "a")},
        ]
    },
    {
        "all": [
            leaf("customer.segments", "contains", "a"),
            {"not": leaf("customer.segments", "contains_all", ["a", "b"])},
        ]
    },
    {"not": leaf("order.attributes.n", "ne", 1)},
    leaf("order.currency", "in", ["EUR", "USD"]),
    leaf(UNITS, "lt", 1),
    leaf(SPEND, "eq", 0),
    {"all": [{"not": leaf("order.attributes.n", "ne", 1)}, leaf("order.attributes.n", "eq", "of another type")]},
    leaf("order.attributes.n", "lt", -5),
    {"all": [leaf("order.attributes.n", "gt", 5), leaf("order.attributes.n", "lt", 6)]},
    {"all": [leaf("order.attributes.n", "gte", "b"), leaf("order.attributes.n", "gt", "a")]},
    {"any": [leaf("order.attributes.n", "gt", 5), leaf("order.attributes.n", "gt", "a")]},
    leaf("items.quantity", "eq", 0, items=A),
    {"all": [{"not": leaf("order.channel", "lt", "b")}, leaf("order.channel", "exists", False)]},
]

GOOD: list[Doc] = [
    # soft accepts what lies beyond the limit
    voucher(fixed(1), limits={"total": 3}, offline={"policy": "soft", "max_units": 4, "max_minor": 1}),
    voucher(fixed(1), limits={"total": 3, "per_customer": 3}),
    voucher(percentage(10, cap_minor=500), limits={"budget_minor": 500}, when=leaf(SPEND, "lte", 5000)),
    voucher(tiered((0, percentage(10, cap_minor=500)), (5000, fixed(1)))),
    voucher(fixed(1, items={**A, "exclude_category_ids": ["x"]})),
    voucher(fixed(1, items={**X, "exclude_product_ids": ["a"]})),
    voucher(tiered((0, fixed(1, items=X)), items=A)),
    voucher(tiered((0, fixed(1, items={**A, **X})), items=B)),
    voucher(tiered((0, fixed(1, items={"attributes": {"n": 1}})), items=A)),
    voucher(tiered((0, fixed(1, items=X)), items={"exclude_category_ids": ["y"], "exclude_product_ids": ["a"]})),
    voucher(tiered((0, fixed(1, items={"product_ids": ["a", "c"]})), items=NOT_A)),
    voucher(tiered((0, fixed(1)), (5000, fixed(2))), when=leaf(SPEND, "lte", 5000)),
    voucher(tiered((0, fixed(1)), (5000, fixed(2))), when=leaf(SPEND, "gte", 4999)),
    voucher(tiered((1, bogo(1, 2)), (4, bundle(9)), basis="quantity")),
    voucher(tiered((0, fixed(1)), (5000, fixed(2)), items=A), when=leaf(SPEND, "gte", 5000)),
    # a condition counts units of price 0 and a tier does not
    voucher(tiered((1, fixed(1)), (5, fixed(2)), basis="quantity"), when=leaf(UNITS, "gte", 5)),
    voucher(bundle(3), when=leaf(UNITS, "lte", 3)),
    voucher(tiered((0, fixed(1)), (1, fixed(2)))),
    voucher(fixed(1), hours=[window(["fri"], "23:00", "01:00")], **WEEKEND),
    voucher(fixed(1), hours=[window(["sun"], "23:59", "00:01")], **WEEKEND),
    voucher(cases(leaf(SPEND, "gte", 500), leaf(SPEND, "gte", 400), otherwise=fixed(1))),
    voucher(cases(leaf(SPEND, "gte", 0))),
    voucher(cases(leaf(UNITS, "gte", 10), leaf(UNITS, "gte", 5))),
    voucher(cases(leaf("order.attributes.n", "gt", 5), leaf("order.attributes.n", "gt", "a"))),
    voucher(cases(leaf("order.attributes.n", "eq", True), leaf("order.attributes.n", "eq", 1))),
]


@pytest.mark.parametrize(("path", "doc"), CONTRADICTIONS)
def test_a_contradiction_is_refused_with_its_path(path: str, doc: Doc) -> None:
    """One sentence names the field and says what to do; the same voucher, once signed, is still read by a till."""
    with pytest.raises(InvalidInput) as caught:
        parse_voucher(doc, default_currency="EUR")
    assert caught.value.path == path
    if path != "stacking.group":
        assert caught.value.code == "CONTRADICTION"
    assert "must" in caught.value.expected or "can never" in caught.value.expected or "always" in caught.value.expected
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("when", NEVER)
def test_a_condition_that_no_order_meets_is_refused(when: Doc) -> None:
    """Whether by one leaf or by several, through `not` and `any`, or against the voucher's currency and limits."""
    with pytest.raises(InvalidInput, match="can never hold"):
        parse_voucher(voucher(fixed(1), when=when, currency="EUR", limits={"per_customer": 1}))


def test_a_contradiction_says_what_it_was() -> None:
    """With what the field held."""
    with pytest.raises(InvalidInput, match=r"must be at most 3, which is limits\.total, or be left out, not 4$"):
        parse_voucher(voucher(percentage(1), limits={"total": 3, "per_customer": 4}))


def test_what_a_condition_contradicts_is_named() -> None:
    """The currency that was filled in, or the limit that needs a customer."""
    pounds = voucher(fixed(1), when=leaf("order.currency", "eq", "GBP"))
    with pytest.raises(InvalidInput, match="can never hold beside the voucher's currency EUR: change one of them"):
        parse_voucher(pounds, default_currency="EUR")
    unknown = voucher(percentage(1), when=leaf("customer.id", "exists", False), limits={"per_customer": 1})
    with pytest.raises(InvalidInput, match=r"beside limits\.per_customer, which needs a customer: change"):
        parse_voucher(unknown)


@pytest.mark.parametrize("when", MAY)
def test_a_condition_that_some_order_meets_is_taken(when: Doc) -> None:
    """Nothing is called a contradiction that is none."""
    assert parse_voucher(voucher(fixed(1), when=when, currency="EUR", limits={"per_customer": 1}))


@pytest.mark.parametrize("doc", GOOD)
def test_what_only_looks_like_a_contradiction_is_taken(doc: Doc) -> None:
    """Bounds that just meet, selectors that can still share a line, windows that open at the last minute."""
    assert parse_voucher(doc, default_currency="EUR")


def test_a_till_reads_what_was_signed_before_the_rule_was_made() -> None:
    """The rules concern whoever publishes: a bundle is not refused for them."""
    assert load_voucher(
        b'{"code":"A","discount":{"type":"percentage","percent":5},"limits":{"total":1,"per_customer":2}}'
    )


def test_many_conditions_are_judged_in_moments() -> None:
    """Conditions of 62,000 values beside a hundred cases: what is known is gathered once, not for each case."""
    when = {"all": [leaf(f"order.attributes.a{number}", "in", list(range(1000))) for number in range(62)]}
    doc = voucher(cases(*(leaf(UNITS, "gt", 100 - number) for number in range(100))), when=when)
    gathered, _ = calls_of("key_of", lambda: parse_voucher(doc, default_currency="EUR"))
    assert gathered == 62_000
