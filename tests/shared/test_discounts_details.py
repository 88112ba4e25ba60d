"""What a discount says of itself, in full: `why` it took what it took, and what an order lacks for it.

Source: engine.md, "Result". People read the sentences at the till, and programs the rest.
"""

from __future__ import annotations

from typing import Any

import pytest

from tallystick_shared.model import Order
from tests.shared.build import Doc, bogo, document, fixed, line, order, percentage, run, voucher

X: Doc = {"category_ids": ["x"]}
AB: Doc = {"product_ids": ["a", "b"]}
TWO = order(300, 500)
SENT = order(300, shipping_minor=490)
CARD: Doc = {"type": "gift_card", "balance_minor": 1234}
ODD: Doc = {
    "product_ids": ["a"],
    "category_ids": ["x", "y"],
    "attributes": {"size": "L", "organic": True},
    "exclude_product_ids": ["c"],
}


def shipping(**fields: Any) -> Doc:
    return {"type": "shipping", **fields}


def bundle(quantity: int, price_minor: int, **fields: Any) -> Doc:
    return {"type": "bundle_price", "quantity": quantity, "price_minor": price_minor, **fields}


def each(price: int) -> Doc:
    return {"type": "fixed_price", "unit_price_minor": price}


def tiered(basis: str, *tiers: tuple[int, Doc], **fields: Any) -> Doc:
    found = [{"min": least, "discount": discount} for least, discount in tiers]
    return {"type": "tiered", "basis": basis, "tiers": found, **fields}


@pytest.mark.parametrize(
    ("of", "discount", "taken", "why"),
    [
        (TWO, percentage(10), 80, "10 % of 8.00"),
        (TWO, percentage("12.3456"), 99, "12.3456 % of 8.00"),
        (TWO, percentage("0.5"), 4, "0.5 % of 8.00"),
        (TWO, percentage(100), 800, "100 % of 8.00"),
        (TWO, percentage(10, cap_minor=50), 50, "10 % of 8.00, at most 0.50"),
        (TWO, fixed(100), 100, "1.00 off"),
        (TWO, fixed(100, per="unit"), 200, "1.00 off each unit"),
        (TWO, fixed(100, per="line"), 200, "1.00 off each line"),
        (TWO, each(90), 620, "0.90 each"),
        (TWO, bundle(2, 750), 50, "2 for 7.50"),
        (order(line(300, 4)), bundle(2, 500), 200, "2 for 5.00, 2 times"),
        (order(line(300, 2)), bogo(1, 1), 300, "buy 1, get 1 free"),
        (order(line(300, 4)), bogo(1, 1, amount_minor=50), 100, "buy 1, get 1 at 0.50 off each, 2 times"),
        (SENT, shipping(), 490, "100 % of shipping 4.90"),
        (SENT, shipping(percent=50, cap_minor=100), 100, "50 % of shipping 4.90, at most 1.00"),
        (TWO, CARD, 800, "paid from a balance of 12.34"),
        (TWO, tiered("amount", (500, fixed(100)), (801, fixed(200))), 100, "from 5.00: 1.00 off"),
        (TWO, tiered("quantity", (1, fixed(100)), (2, percentage(5))), 40, "from 2 units: 5 % of 8.00"),
        (order(300), tiered("quantity", (1, fixed(100)), (2, percentage(5))), 100, "from 1 unit: 1.00 off"),
    ],
)
def test_why_names_the_terms_of_the_discount(of: Order, discount: Doc, taken: int, why: str) -> None:
    """What it is worth, of how much, its bound, and how often it was applied."""
    [applied] = document(run(of, voucher(discount)))["applied"]
    assert (applied["discount_minor"], applied["why"]) == (taken, why)


@pytest.mark.parametrize(
    ("currency", "why"),
    [("JPY", "from 500: 100 off"), ("KWD", "from 0.500: 0.100 off"), ("USD", "from 5.00: 1.00 off")],
)
def test_the_amount_of_a_tier_is_written_in_the_vouchers_currency(currency: str, why: str) -> None:
    """With as many decimals as the currency has."""
    discount = tiered("amount", (500, fixed(100)))
    [applied] = run(order(1000, currency=currency), voucher(discount, currency=currency)).applied
    assert applied.why == why


NO_MATCH, NOTHING = "NO_MATCHING_ITEM", "NOTHING_TO_DISCOUNT"


@pytest.mark.parametrize(
    ("of", "discount", "reason", "add", "message"),
    [
        (TWO, fixed(100, items=X), NO_MATCH, [{"quantity": 1, "items": X}], "add 1 unit of category x"),
        (order(0), fixed(100), NO_MATCH, [{"quantity": 1}], "add 1 unit of any product above price 0"),
        (
            order(line(300, product_id="a", category_ids=["x"])),
            fixed(1, items={"exclude_product_ids": ["a", "b"], "exclude_category_ids": ["x"]}),
            NO_MATCH,
            [{"quantity": 1, "items": {"exclude_product_ids": ["a", "b"], "exclude_category_ids": ["x"]}}],
            "add 1 unit not of product a or b or of category x",
        ),
        (
            TWO,
            fixed(100, items=ODD),
            NO_MATCH,
            [{"quantity": 1, "items": ODD}],
            "add 1 unit of product a or of category x or y or with size L and organic true but not of product c",
        ),
        (
            TWO,
            tiered("quantity", (3, fixed(100, items=AB)), items=X),
            NO_MATCH,
            [{"quantity": 1, "items": AB, "within": X}],
            "add 1 unit of product a or b and of category x",
        ),
        (
            TWO,
            tiered("quantity", (3, fixed(100, items=X)), items=X),
            NO_MATCH,
            [{"quantity": 1, "items": X, "within": X}],
            "add 1 unit of category x",
        ),
        (
            TWO,
            tiered("quantity", (3, shipping()), items=X),
            NO_MATCH,
            [{"quantity": 1, "items": X}],
            "add 1 unit of category x",
        ),
        (TWO, bundle(5, 250), NO_MATCH, [{"quantity": 3}], "add 3 units of any product above price 0"),
        (order(300), bogo(2, 1), NO_MATCH, [{"quantity": 2}], "add 2 units of any product above price 0"),
        (
            order(300),
            bogo(2, 1, buy_items=X, get_items=AB),
            NO_MATCH,
            [{"quantity": 2, "items": X}, {"quantity": 1, "items": AB}],
            "add 2 units of category x and 1 unit of product a or b",
        ),
        (
            order(line(300, 2, category_ids=["x"])),
            bogo(2, 1, buy_items=X, get_items=AB),
            NO_MATCH,
            [{"quantity": 1, "items": AB}],
            "add 1 unit of product a or b",
        ),
        (
            order(line(50, 5)),
            bundle(3, 250, items={"product_ids": ["p"]}),
            NOTHING,
            [{"quantity": 3, "items": {"product_ids": ["p"]}, "unit_price_minor": 84}],
            "add 3 units of product p at 0.84 or more each",
        ),
        (
            order(1, 1),
            percentage(10),
            NOTHING,
            [{"quantity": 1, "unit_price_minor": 3}],
            "add 1 unit of any product above price 0 at 0.03 or more",
        ),
        (
            order(50),
            each(90),
            NOTHING,
            [{"quantity": 1, "unit_price_minor": 91}],
            "add 1 unit of any product above price 0 at 0.91 or more",
        ),
    ],
)
def test_what_to_add_is_told_in_full(of: Order, discount: Doc, reason: str, add: list[Doc], message: str) -> None:
    """How many units of what, at which price or more, within which items of a tier: nothing besides."""
    [refused] = document(run(of, voucher(discount)))["refused"]
    assert (refused["reason"], refused["detail"]) == (reason, {"add": add, "message": message})


SHIP_5 = {"field": "shipping_minor", "expected": 5, "message": "have shipping of at least 0.05"}
DEAR = "use it on dearer units: those it gives cost 0.02, and of less than 0.05 it gives nothing"


@pytest.mark.parametrize(
    ("of", "discount", "detail"),
    [
        (order(line(1, 4)), bogo(1, 1, percent=10), {"given_minor": 2, "expected_minor": 5, "message": DEAR}),
        (
            order(50),
            shipping(),
            {"field": "shipping_minor", "expected": 1, "actual": 0, "message": "add shipping: this order has none"},
        ),
        (order(50), shipping(percent=10), {**SHIP_5, "actual": 0}),
        (order(50, shipping_minor=4), shipping(percent=10), {**SHIP_5, "actual": 4}),
        (
            TWO,
            {"type": "gift_card", "balance_minor": 0},
            {"balance_minor": 0, "message": "use another gift card: nothing is left on this one"},
        ),
        (
            order(0),
            CARD,
            {"field": "total_minor", "expected": 1, "actual": 0, "message": "leave something to pay"},
        ),
    ],
)
def test_what_is_too_little_is_told_in_full(of: Order, discount: Doc, detail: Doc) -> None:
    """What there is, and how much of it the discount needs to take anything."""
    [refused] = document(run(of, voucher(discount)))["refused"]
    assert (refused["reason"], refused["detail"]) == (NOTHING, detail)


MIXED = order(line(300, category_ids=["x"]), 500)


@pytest.mark.parametrize(
    ("of", "discount", "detail"),
    [
        (
            TWO,
            tiered("amount", (5000, fixed(100))),
            {"basis": "amount", "expected": 5000, "actual": 800, "message": "spend 42.00 more"},
        ),
        (
            MIXED,
            tiered("amount", (5000, fixed(100)), items=X),
            {
                "basis": "amount",
                "expected": 5000,
                "actual": 300,
                "items": X,
                "message": "spend 47.00 more on units of category x",
            },
        ),
        (
            MIXED,
            tiered("quantity", (3, fixed(100)), items=X),
            {"basis": "quantity", "expected": 3, "actual": 1, "items": X, "message": "add 2 units of category x"},
        ),
    ],
)
def test_what_the_first_tier_lacks_is_told_in_full(of: Order, discount: Doc, detail: Doc) -> None:
    """By money or by units, of the items that count."""
    [refused] = document(run(of, voucher(discount)))["refused"]
    assert (refused["reason"], refused["detail"]) == ("BELOW_FIRST_TIER", detail)


YEN = {"currency": "JPY"}


@pytest.mark.parametrize(
    ("discount", "why"),
    [
        (percentage(10, cap_minor=500), "10 % of 1000, at most 500"),
        (fixed(100), "100 off"),
        (fixed(100, per="line"), "100 off each line"),
        (each(200), "200 each"),
        (bundle(4, 900), "4 for 900"),
        (bogo(3, 1, amount_minor=50), "buy 3, get 1 at 50 off each"),
        (shipping(percent=50, cap_minor=300), "50 % of shipping 490, at most 300"),
        (CARD, "paid from a balance of 1234"),
    ],
)
def test_amounts_in_why_are_written_in_the_orders_currency(discount: Doc, why: str) -> None:
    """Yen have no decimals."""
    [applied] = run(order(line(250, 4), shipping_minor=490, **YEN), voucher(discount, **YEN)).applied
    assert applied.why == why


@pytest.mark.parametrize(
    ("of", "discount", "message"),
    [
        (order(1, 1, **YEN), percentage(1), "add 1 unit of any product above price 0 at 48 or more"),
        (order(50, **YEN), each(90), "add 1 unit of any product above price 0 at 91 or more"),
        (order(line(50, 3), **YEN), bundle(3, 250), "add 3 units of any product above price 0 at 84 or more each"),
        (order(50, shipping_minor=4, **YEN), shipping(percent=10), "have shipping of at least 5"),
        (order(line(1, 4), **YEN), bogo(1, 1, percent=10), DEAR.replace("0.0", "")),
        (order(50, **YEN), tiered("amount", (5000, fixed(100))), "spend 4950 more"),
    ],
)
def test_amounts_in_a_detail_are_written_in_the_orders_currency(of: Order, discount: Doc, message: str) -> None:
    """Yen have no decimals."""
    [refused] = run(of, voucher(discount, **YEN)).refused
    assert refused.detail["message"] == message
