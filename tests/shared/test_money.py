"""Rounding, shares, returns and how money is shown. Source: engine.md, "Rounding and shares"."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick_shared.money import (
    CURRENCY_EXPONENTS,
    apportion,
    format_minor,
    refund_minor,
    round_half_away,
    share,
)

AMOUNTS = st.integers(0, 10**13)


@pytest.mark.parametrize(
    ("numerator", "denominator", "rounded"),
    [
        (9990 * 15, 100, 1499),
        (3490 * 15, 100, 524),
        (1, 2, 1),
        (-1, 2, -1),
        (-3, 2, -2),
        (-1, 3, 0),
        (1, 3, 0),
        (0, 7, 0),
    ],
)
def test_halves_are_rounded_away_from_zero(numerator: int, denominator: int, rounded: int) -> None:
    """15 % of 99.90 is 14.99 and of 34.90 is 5.24, and below zero halves go down."""
    assert round_half_away(numerator, denominator) == rounded


@given(st.integers(-(10**20), 10**20), st.integers(1, 10**7))
def test_rounding_is_off_by_half_at_most(numerator: int, denominator: int) -> None:
    """The rounded number is the nearest, and of two as near the one farther from zero."""
    exact, rounded = Fraction(numerator, denominator), round_half_away(numerator, denominator)
    assert abs(exact - rounded) <= Fraction(1, 2)
    assert abs(exact - rounded) < Fraction(1, 2) or abs(rounded) > abs(exact)


@pytest.mark.parametrize(
    ("total", "weights", "shares"),
    [
        (102, [106, 206, 306, 406], [11, 21, 30, 40]),
        (400, [200, 200, 200], [134, 133, 133]),
        (1, [1, 1], [1, 0]),
        (0, [0, 0], [0, 0]),
        (5, [0, 3, 0], [0, 5, 0]),
        (0, [], []),
    ],
)
def test_shares_go_to_the_largest_remainders(total: int, weights: list[int], shares: list[int]) -> None:
    """The examples of engine.md: missing units go to the largest remainders, ties to the earlier line."""
    assert share(total, weights) == shares


def test_nothing_cannot_be_shared_over() -> None:
    """Sharing something over weights of 0 is misuse."""
    with pytest.raises(ValueError, match="every weight is 0"):
        share(1, [0, 0])


@given(AMOUNTS, st.lists(st.integers(0, 10**12), min_size=1, max_size=30).filter(any))
def test_shares_add_up_and_none_is_off_by_a_unit(total: int, weights: list[int]) -> None:
    """Shares add up to the total exactly, each less than one unit off, and a line of weight 0 gives nothing."""
    shares = share(total, weights)
    assert sum(shares) == total
    for part, weight in zip(shares, weights, strict=True):
        assert abs(part - Fraction(total * weight, sum(weights))) < 1
        assert weight or not part


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=20), st.integers(1, 10**6))
def test_exact_shares_of_a_rounded_total_add_up(numerators: list[int], denominator: int) -> None:
    """Exact shares whose sum was rounded, up or down, are each less than a unit off and add up to it."""
    total = round_half_away(sum(numerators), denominator)
    shares = apportion(total, numerators, denominator)
    assert sum(shares) == total
    assert all(abs(part - Fraction(n, denominator)) < 1 for part, n in zip(shares, numerators, strict=True))


def test_a_return_pays_the_first_units_less() -> None:
    """A line of 3 units at 2.00 carrying 0.05 gives back 1.98, 1.98 and 1.99."""
    assert [refund_minor(200, 3, 5, returned, 1) for returned in range(3)] == [198, 198, 199]
    assert refund_minor(200, 3, 5, 1, 2) == 397
    assert refund_minor(200, 3, 5, 3, 0) == 0


@given(st.integers(0, 10**6), st.integers(1, 40), st.data())
def test_returns_one_by_one_add_up_to_the_line(price: int, quantity: int, data: st.DataObject) -> None:
    """Units returned one by one, or in any lots, pay back what the line cost, and never less than nothing."""
    taken = data.draw(st.integers(0, price * quantity))
    returned, paid = 0, 0
    while returned < quantity:
        lot = data.draw(st.integers(1, quantity - returned))
        ones = [refund_minor(price, quantity, taken, returned + unit, 1) for unit in range(lot)]
        assert min(ones) >= 0
        assert sum(ones) == refund_minor(price, quantity, taken, returned, lot)
        paid, returned = paid + sum(ones), returned + lot
    assert paid == price * quantity - taken


@pytest.mark.parametrize("arguments", [(100, 2, 0, 1, 2), (100, 2, 0, -1, 1), (100, 2, 0, 0, -1), (100, 2, 201, 0, 1)])
def test_more_than_was_sold_does_not_come_back(arguments: tuple[int, int, int, int, int]) -> None:
    """Returning units that were not sold, or shares above the line's price, is misuse."""
    with pytest.raises(ValueError, match=r"return|shares"):
        refund_minor(*arguments)


@pytest.mark.parametrize(
    ("minor", "currency", "text"),
    [
        (500, "USD", "5.00"),
        (5, "EUR", "0.05"),
        (-105, "EUR", "-1.05"),
        (500, "JPY", "500"),
        (500, "KWD", "0.500"),
        (12345, "CLF", "1.2345"),
        (7, "???", "0.07"),
    ],
)
def test_money_is_shown_with_its_decimals(minor: int, currency: str, text: str) -> None:
    """JPY has no decimals, KWD three."""
    assert format_minor(minor, currency) == text


def test_currencies_are_three_capital_letters() -> None:
    """The table is well formed and holds the currencies engine.md names."""
    assert all(len(code) == 3 and code.isascii() and code.isupper() for code in CURRENCY_EXPONENTS)
    assert {CURRENCY_EXPONENTS[code] for code in ("USD", "EUR")} == {2}
    assert (CURRENCY_EXPONENTS["JPY"], CURRENCY_EXPONENTS["KWD"]) == (0, 3)
    assert len(CURRENCY_EXPONENTS) > 150
