"""What each discount takes, example by example. Source: engine.md, "Items", "Discounts" and "Rounding and shares"."""

from __future__ import annotations

from typing import Any

import pytest

from tallystick_shared.engine import Result
from tallystick_shared.errors import InvalidInput
from tests.shared.build import (
    Doc,
    bogo,
    fixed,
    line,
    order,
    percentage,
    reasons,
    run,
    shares,
    stackable,
    taken,
    voucher,
)


def alone(discount: Doc, *lines: Doc | int, **fields: Any) -> Result:
    return run(order(*lines, **fields), voucher(discount))


def test_a_percentage_shares_by_largest_remainder() -> None:
    """10 % of 1.06 + 2.06 + 3.06 + 4.06 is 1.02, shared .11/.21/.30/.40."""
    assert shares(alone(percentage(10), 106, 206, 306, 406)) == [11, 21, 30, 40]


@pytest.mark.parametrize(("price", "off"), [(9990, 1499), (3490, 524)])
def test_a_percentage_is_rounded_once_half_away_from_zero(price: int, off: int) -> None:
    """15 % of 99.90 is 14.99, of 34.90 is 5.24."""
    assert taken(alone(percentage(15), price)) == {"CODE": off}


def test_a_fixed_amount_shares_with_ties_to_the_earlier_line() -> None:
    """4.00 over three lines of 2.00 is 1.34/1.33/1.33."""
    assert shares(alone(fixed(400), 200, 200, 200)) == [134, 133, 133]


def test_a_fixed_amount_never_takes_more_than_there_is() -> None:
    """9.00 off an order of 5.00 is 5.00."""
    assert shares(alone(fixed(900), 200, 300)) == [200, 300]


def test_a_fixed_amount_off_each_line_or_unit() -> None:
    """Per line once a line, per unit times the quantity, never more than the line costs."""
    lines = (line(100, 3), line(40, 2))
    assert shares(alone(fixed(70, per="line"), *lines)) == [70, 70]
    assert shares(alone(fixed(70, per="unit"), *lines)) == [210, 80]


def test_a_cap_limits_a_percentage() -> None:
    """50 % of 10.00, at most 3.00, is 3.00, and shares add up to that."""
    assert shares(alone(percentage(50, cap_minor=300), 500, 500)) == [150, 150]


@pytest.mark.parametrize("percent", [0.1, "0.1", "0.10", 0.0999999])
def test_percentages_are_exact(percent: Any) -> None:
    """0.1 % is exactly a thousandth; what is not of 4 places is refused and never rounded."""
    if percent == 0.0999999:
        with pytest.raises(InvalidInput):
            alone(percentage(percent), 50_000)
    else:
        assert taken(alone(percentage(percent), 50_000)) == {"CODE": 50}
        assert taken(alone(percentage(percent), 49_999)) == {"CODE": 50}
        assert taken(alone(percentage(percent), 49_499)) == {"CODE": 49}


def test_includes_are_alternatives_and_excludes_win() -> None:
    """A line matches by product, category or all attributes, and no exclude."""
    lines = [
        line(100, product_id="a"),
        line(100, product_id="b", category_ids=["x", "y"]),
        line(100, product_id="c", attributes={"brand": "n", "size": 1}),
        line(100, product_id="d", attributes={"brand": "n", "size": True}),
        line(100, product_id="e", category_ids=["x", "z"]),
        line(100, product_id="f", category_ids=["x"]),
    ]
    items = {
        "product_ids": ["a"],
        "category_ids": ["x"],
        "attributes": {"brand": "n", "size": 1},
        "exclude_product_ids": ["f"],
        "exclude_category_ids": ["z"],
    }
    assert shares(alone(percentage(10, items=items), *lines)) == [10, 10, 10, 0, 0, 0]


@pytest.mark.parametrize(
    "discount",
    [
        percentage(10),
        fixed(5),
        fixed(5, per="unit"),
        bogo(1, 1),
        {"type": "tiered", "tiers": [{"min": 0, "discount": fixed(5)}]},
    ],
)
def test_free_units_are_in_no_discount(discount: Doc) -> None:
    """Lines of price 0 are not matched, not bought, not given and not counted."""
    assert reasons(alone(discount, line(0, 9))) == {"CODE": "NO_MATCHING_ITEM"}


def test_free_units_are_not_counted_by_a_tier() -> None:
    """Two units at a price and five for nothing are two units."""
    tiers = {"type": "tiered", "basis": "quantity", "tiers": [{"min": 3, "discount": fixed(5)}]}
    assert reasons(alone(tiers, line(0, 5), line(100, 2))) == {"CODE": "BELOW_FIRST_TIER"}


# bogo


def test_buy_two_get_two_gives_the_two_cheapest() -> None:
    """Over 5.00/5.00/10.00/10.00 it gives both 5.00s; with three units it applies to nothing."""
    assert shares(alone(bogo(2, 2), 500, 500, 1000, 1000)) == [500, 500, 0, 0]
    assert reasons(alone(bogo(2, 2), 500, 1000, 1000)) == {"CODE": "NO_MATCHING_ITEM"}


def test_of_equal_prices_the_later_line_gives_first() -> None:
    """Three equal lines, buy two get one: the last one is free."""
    assert shares(alone(bogo(2, 1), 500, 500, 500)) == [0, 0, 500]


def test_a_given_unit_is_passed_over_where_buy_would_lack_it() -> None:
    """Buy A get A or B: the cheapest unit is the only A to buy, so a B is given."""
    lines = (line(100, product_id="a"), line(300, product_id="b"), line(200, product_id="b"))
    discount = bogo(1, 1, buy_items={"product_ids": ["a"]})
    assert shares(alone(discount, *lines)) == [0, 0, 200]


def test_bought_and_given_units_are_never_the_same() -> None:
    """Buy 1 A get 1 A needs two of them, however often the sides overlap."""
    both = {"product_ids": ["p"]}
    assert reasons(alone(bogo(1, 1, buy_items=both, get_items=both), line(100))) == {"CODE": "NO_MATCHING_ITEM"}
    assert shares(alone(bogo(1, 1, buy_items=both, get_items=both), line(100, 5))) == [200]


def test_applications_are_limited() -> None:
    """Six units, buy one get one, at most twice: two are free."""
    assert shares(alone(bogo(1, 1, max_applications=2), line(100, 6))) == [200]


def test_given_units_may_cost_a_part() -> None:
    """A percentage of the given units is rounded once on its total; an amount is never above a unit's price."""
    assert shares(alone(bogo(1, 1, percent="33.3333"), 500, line(101, 1))) == [0, 34]
    assert shares(alone(bogo(1, 2, percent=50), 900, 101, 101)) == [0, 51, 50]
    assert shares(alone(bogo(1, 2, amount_minor=150), 900, 101, 200)) == [0, 101, 150]


def test_a_part_of_a_percent_is_said_in_full() -> None:
    """`why` names the percentage as it is, its decimals too."""
    [applied] = alone(bogo(1, 1, percent="12.5"), line(1000, 2)).applied
    assert (applied.discount_minor, applied.why) == (125, "buy 1, get 1 at 12.5 % off")


def test_selectors_that_differ_only_in_type_are_different() -> None:
    """True is not 1: what is bought is there, what would be given is not."""
    sides = {"buy_items": {"attributes": {"n": True}}, "get_items": {"attributes": {"n": 1}}}
    assert reasons(alone(bogo(1, 1, **sides), line(100, 2, attributes={"n": True}))) == {"CODE": "NO_MATCHING_ITEM"}


def test_units_once_bought_or_given_take_no_part_again() -> None:
    """Of four units the first bogo uses two and the second the others; a third finds none."""
    vouchers = [stackable(bogo(1, 1, max_applications=1), code) for code in "ABC"]
    result = run(order(line(100, 4)), *vouchers)
    assert (taken(result), reasons(result)) == ({"A": 100, "B": 100}, {"C": "NOTHING_TO_DISCOUNT"})


def test_a_line_never_gives_more_than_it_still_costs() -> None:
    """After 1.50 off each line, a unit of 2.00 has 0.50 left to give."""
    first, second = stackable(fixed(150, per="line"), "A", priority=1), stackable(bogo(1, 1), "B")
    assert taken(run(order(500, 200), first, second)) == {"A": 300, "B": 50}


def test_thousands_of_units_cost_no_more_than_one() -> None:
    """A line of a billion units is worked on as one entry, in bogo and in bundles."""
    assert taken(alone(bogo(2, 1), line(1, 10**9))) == {"CODE": 10**9 // 3}
    bundle = {"type": "bundle_price", "quantity": 3, "price_minor": 1}
    assert taken(alone(bundle, line(1, 10**9))) == {"CODE": 10**9 // 3 * 2}


# bundle_price, fixed_price


def test_a_bundle_takes_the_dearest_first() -> None:
    """3 for 20.00 over 5.00, 10.00, 9.00 and 8.00 bundles the three dearest and saves 7.00, shared by list price."""
    result = alone({"type": "bundle_price", "quantity": 3, "price_minor": 2000}, 500, 1000, 900, 800)
    assert shares(result) == [0, 259, 233, 208]


def test_a_bundle_says_its_price_in_its_currency() -> None:
    """With the decimals of the order's currency, and how often where it is more than once."""
    bundle = {"type": "bundle_price", "quantity": 2, "price_minor": 500}
    for currency, why in (("EUR", "2 for 5.00"), ("JPY", "2 for 500"), ("KWD", "2 for 0.500")):
        [applied] = run(order(line(400, 3), currency=currency), voucher(bundle, currency=currency)).applied
        assert applied.why == why
        [twice] = run(order(line(400, 4), currency=currency), voucher(bundle, currency=currency)).applied
        assert twice.why == f"{why}, 2 times"


def test_a_bundle_that_saves_nothing_is_not_made() -> None:
    """The second bundle would cost more than its units."""
    result = alone({"type": "bundle_price", "quantity": 2, "price_minor": 500}, line(400, 2), line(200, 2))
    assert shares(result) == [300, 0]
    even = alone({"type": "bundle_price", "quantity": 2, "price_minor": 500}, 400, 400, 300, 200)
    assert shares(even) == [150, 150, 0, 0]  # 3.00 + 2.00 for 5.00 saves nothing, and carries no share
    none = alone({"type": "bundle_price", "quantity": 2, "price_minor": 800}, line(400, 2))
    assert reasons(none) == {"CODE": "NOTHING_TO_DISCOUNT"}


def test_bundles_are_limited_and_need_enough_units() -> None:
    """At most one application; and two units are no bundle of three."""
    assert shares(
        alone({"type": "bundle_price", "quantity": 2, "price_minor": 1, "max_applications": 1}, line(10, 6))
    ) == [19]
    few = alone({"type": "bundle_price", "quantity": 3, "price_minor": 1}, line(10, 2))
    assert reasons(few) == {"CODE": "NO_MATCHING_ITEM"}


def test_a_fixed_price_takes_what_is_above_it() -> None:
    """Each unit for 3.00: lines below that give nothing."""
    assert shares(alone({"type": "fixed_price", "unit_price_minor": 300}, line(500, 2), line(200, 3))) == [400, 0]


# tiered, conditional


@pytest.mark.parametrize(("quantity", "reason_or_off"), [(4, "BELOW_FIRST_TIER"), (5, 50), (9, 90), (10, 200)])
def test_a_boundary_belongs_to_the_tier_it_opens(quantity: int, reason_or_off: int | str) -> None:
    """From 5 units 10 %, from 10 units 20 %; below 5 it is refused."""
    tiers = [{"min": 5, "discount": percentage(10)}, {"min": 10, "discount": percentage(20)}]
    result = alone({"type": "tiered", "basis": "quantity", "tiers": tiers}, line(100, quantity))
    assert (reasons(result) or taken(result)) == {"CODE": reason_or_off}


def test_the_items_of_a_tier_limit_basis_and_discount() -> None:
    """Only matching lines count, and the tier's discount touches only lines that match its own items too."""
    lines = (line(300, product_id="a", category_ids=["x"]), line(300, product_id="b", category_ids=["x"]), 900)
    inner = percentage(10, items={"product_ids": ["b", "p"]})
    discount = {"type": "tiered", "items": {"category_ids": ["x"]}, "tiers": [{"min": 600, "discount": inner}]}
    assert shares(alone(discount, *lines)) == [0, 30, 0]
    discount["tiers"] = [{"min": 601, "discount": inner}]
    assert reasons(alone(discount, *lines)) == {"CODE": "BELOW_FIRST_TIER"}


def test_the_items_of_a_tier_limit_bought_and_given_units() -> None:
    """A bogo in a tier buys and gives only units that match the tier's items."""
    discount = {
        "type": "tiered",
        "basis": "quantity",
        "items": {"product_ids": ["a"]},
        "tiers": [{"min": 1, "discount": bogo(1, 1)}],
    }
    assert reasons(alone(discount, line(100, product_id="a"), 50)) == {"CODE": "NO_MATCHING_ITEM"}
    assert shares(alone(discount, line(100, 2, product_id="a"), 50)) == [100, 0]


def test_the_basis_is_the_price_before_any_discount() -> None:
    """A voucher applied earlier does not lower the tier."""
    tiers = {"type": "tiered", "tiers": [{"min": 1000, "discount": fixed(100)}]}
    result = run(order(1000), stackable(fixed(500, per="line"), "A"), stackable(tiers, "B"))
    assert taken(result) == {"A": 500, "B": 100}


def test_the_first_case_that_holds_applies() -> None:
    """Of two that hold the first; none: otherwise; none of that either: CONDITION_NOT_MET."""

    def above(value: int) -> Doc:
        return {"field": "order.subtotal_minor", "op": "gte", "value": value}

    cases = [{"when": above(1000), "discount": fixed(30)}, {"when": above(500), "discount": fixed(10)}]
    discount = {"type": "conditional", "cases": cases}
    assert taken(alone(discount, 1200)) == {"CODE": 30}
    assert taken(alone(discount, 700)) == {"CODE": 10}
    assert reasons(alone(discount, 400)) == {"CODE": "CONDITION_NOT_MET"}
    assert taken(alone({**discount, "otherwise": fixed(1)}, 400)) == {"CODE": 1}


def test_a_resolved_discount_keeps_its_lane() -> None:
    """A conditional that resolves to bogo applies with the items, before a percentage, and keeps its resolution."""
    case = {"when": {"field": "order.remaining_minor", "op": "gte", "value": 1000}, "discount": bogo(1, 1)}
    result = run(
        order(line(500, 2)),
        stackable(percentage(10), "A", priority=9),
        stackable({"type": "conditional", "cases": [case]}, "Z"),
    )
    assert list(taken(result).items()) == [("Z", 500), ("A", 50)]


# shipping, gift_card


def test_shipping_is_its_own_money() -> None:
    """Half of 4.90 shipping is 2.45, in no line and not in discount_minor."""
    result = alone({"type": "shipping", "percent": 50}, 1000, shipping_minor=490)
    assert (result.shipping_discount_minor, result.discount_minor, result.total_minor) == (245, 0, 1245)
    assert result.applied[0].lines == ()
    assert reasons(alone({"type": "shipping"}, 1000)) == {"CODE": "NOTHING_TO_DISCOUNT"}


def test_a_gift_card_pays_goods_and_shipping() -> None:
    """Up to the balance, or up to what is left."""
    result = alone({"type": "gift_card", "balance_minor": 5000}, 1000, shipping_minor=490)
    assert (result.paid_by_gift_card_minor, result.total_minor, shares(result)) == (1490, 0, [0])
    assert taken(alone({"type": "gift_card", "balance_minor": 300}, 1000)) == {"CODE": 300}
    assert reasons(alone({"type": "gift_card", "balance_minor": 0}, 1000)) == {"CODE": "NOTHING_TO_DISCOUNT"}


def test_a_discount_that_rounds_to_nothing_is_refused() -> None:
    """1 % of 0.10 is nothing, and nothing is ever applied with 0."""
    assert reasons(alone(percentage(1), 10)) == {"CODE": "NOTHING_TO_DISCOUNT"}
    assert taken(alone(percentage(5), 10)) == {"CODE": 1}


def test_an_empty_order_has_nothing_to_discount() -> None:
    """No lines: nothing matches, and the result is all zeros."""
    result = alone(percentage(10))
    assert (reasons(result), result.total_minor, result.lines) == ({"CODE": "NO_MATCHING_ITEM"}, 0, ())
