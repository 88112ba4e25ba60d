"""Why a voucher is refused, in full: reason and detail of every step but conditions and discounts.

Source: engine.md, "Applying several vouchers" and "Result".
"""

from __future__ import annotations

from typing import Any

import pytest

from tallystick_shared.engine import Allowance, Usage
from tallystick_shared.errors import InvalidInput
from tests.shared.build import NOON, Doc, document, fixed, order, percentage, run, shares, stackable, taken, voucher
from tests.shared.test_conditions import leaf

ANNA: Doc = {"id": "anna"}
AGAIN = "connect to the server for another allowance"


def refused(*vouchers: Doc, of: Doc | None = None, **given: Any) -> list[tuple[str, str, Doc]]:
    """Code, reason and detail of each that is refused, on an order of 3.00."""
    found = document(run(order(300, **(of or {})), *vouchers, **given))["refused"]
    return [(one["code"], one["reason"], one["detail"]) for one in found]


@pytest.mark.parametrize(
    ("fields", "given", "reason", "detail"),
    [
        (
            {"status": "paused"},
            {},
            "INACTIVE",
            {
                "expected": "active",
                "actual": "paused",
                "message": "ask the shop: it is paused and can be made active again",
            },
        ),
        (
            {"valid_from": "2026-06-16T08:00:00+02:00"},
            {},
            "NOT_YET_VALID",
            {"valid_from": "2026-06-16T08:00:00+02:00", "message": "come back from 2026-06-16 08:00:00 +02:00"},
        ),
        (
            {"valid_until": "2026-06-15T13:59:59+02:00"},
            {},
            "EXPIRED",
            {
                "valid_until": "2026-06-15T13:59:59+02:00",
                "message": "use another code: it was valid until 2026-06-15 13:59:59 +02:00",
            },
        ),
        (
            {"currency": "EUR"},
            {"of": {"currency": "USD"}},
            "CURRENCY_MISMATCH",
            {"field": "currency", "expected": "EUR", "actual": "USD", "message": "pay in EUR"},
        ),
        (
            {"limits": {"total": 2}},
            {"usage": {"CODE": Usage(3, 0, 0)}},
            "LIMIT_REACHED",
            {"limit": 2, "used": 3, "message": "use another code: all its uses have been made"},
        ),
        (
            {"limits": {"per_customer": 2}},
            {},
            "CUSTOMER_LIMIT_REACHED",
            {
                "field": "customer.id",
                "expected": "a customer",
                "actual": None,
                "message": "name the customer: it is counted for each",
            },
        ),
        (
            {"limits": {"per_customer": 2}},
            {"of": {"customer": ANNA}, "usage": {"CODE": Usage(0, 3, 0)}},
            "CUSTOMER_LIMIT_REACHED",
            {
                "limit": 2,
                "used": 3,
                "message": "use another code: this customer has used it as often as one customer may",
            },
        ),
        (
            {},
            {"allowance": {"CODE": Allowance(needs_connection=True)}},
            "NEEDS_CONNECTION",
            {"message": "connect to the server"},
        ),
        ({}, {"allowance": {"CODE": Allowance(units=0)}}, "NO_ALLOWANCE", {"message": AGAIN}),
        ({}, {"allowance": {"CODE": Allowance(minor=0)}}, "NO_ALLOWANCE", {"message": AGAIN}),
        (
            {},
            {"allowance": {"CODE": Allowance(units=1, minor=99)}},
            "NO_ALLOWANCE",
            {"discount_minor": 100, "left_minor": 99, "message": AGAIN},
        ),
        (
            {"limits": {"budget_minor": 900}},
            {"usage": {"CODE": Usage(0, 0, 901)}},
            "BUDGET_EXHAUSTED",
            {"discount_minor": 100, "left_minor": 0, "message": "use another code: its budget is used up"},
        ),
        (
            {"limits": {"budget_minor": 900}},
            {"usage": {"CODE": Usage(0, 0, 801)}},
            "BUDGET_EXHAUSTED",
            {
                "discount_minor": 100,
                "left_minor": 99,
                "message": "have a smaller order: 0.99 of its budget is left, and this order takes 1.00",
            },
        ),
        (
            {"stacking": {"max_total_percent": "0.1"}},
            {},
            "NOTHING_TO_DISCOUNT",
            {
                "field": "subtotal_minor",
                "expected": 1000,
                "actual": 300,
                "message": "spend 7.00 more: it may take 0.1 % at most",
            },
        ),
    ],
)
def test_a_refusal_is_told_in_full(fields: Doc, given: Doc, reason: str, detail: Doc) -> None:
    """The reason, what was expected and what there is, and one sentence of what would help."""
    assert refused(voucher(fixed(100), **fields), **given) == [("CODE", reason, detail)]


def test_what_just_fits_is_applied() -> None:
    """One use, one unit and the very amount left of an allowance or a budget are enough; as is the last second."""
    limits = {"total": 2, "per_customer": 2, "budget_minor": 900}
    one = voucher(fixed(100), limits=limits, valid_from=NOON.isoformat(), valid_until=NOON.isoformat())
    result = run(
        order(300, customer=ANNA),
        one,
        usage={"CODE": Usage(1, 1, 800)},
        allowance={"CODE": Allowance(units=1, minor=100)},
    )
    assert taken(result) == {"CODE": 100}


def test_a_code_that_is_unknown_is_named_as_it_was_typed() -> None:
    """Once, without the spaces around it."""
    detail = {"message": "check the spelling: there is no voucher with this code"}
    assert refused(codes=[" Nope ", "nope"]) == [("Nope", "UNKNOWN_CODE", detail)]


@pytest.mark.parametrize(
    ("first", "second", "reason", "detail"),
    [
        (
            stackable(fixed(300), "A", priority=1),
            stackable(fixed(5), "B"),
            "NOTHING_TO_DISCOUNT",
            {"message": "leave out A: nothing is left to take off", "after": ["A"]},
        ),
        (
            stackable(fixed(30), "A", priority=1, stacking={"max_total_percent": 10}),
            stackable(fixed(5), "B"),
            "NOTHING_TO_DISCOUNT",
            {
                "max_total_percent": "10",
                "message": "leave out A: no more than 10 % may be taken off together",
                "after": ["A"],
            },
        ),
        (
            stackable(fixed(30), "A", priority=1),
            stackable(fixed(5), "B", stacking={"max_total_percent": "0.5"}),
            "NOTHING_TO_DISCOUNT",
            {
                "max_total_percent": "0.5",
                "message": "leave out A: no more than 0.5 % may be taken off together",
                "after": ["A"],
            },
        ),
        (
            stackable(fixed(30), "A", priority=1, stacking={"group": "g"}),
            stackable(fixed(5), "B", stacking={"group": "g"}),
            "STACKING_CONFLICT",
            {"conflicts_with": "A", "message": "use it without A, which goes before it"},
        ),
        (
            stackable(fixed(30), "A", priority=1),
            stackable(fixed(5), "B", when=leaf("order.remaining_minor", "gte", 271)),
            "CONDITION_NOT_MET",
            {
                "field": "order.remaining_minor",
                "expected": 271,
                "actual": 270,
                "op": "gte",
                "message": "leave out A: with it the goods come to 2.70",
                "after": ["A"],
            },
        ),
    ],
)
def test_what_another_voucher_took_is_told_in_full(first: Doc, second: Doc, reason: str, detail: Doc) -> None:
    """Which one to leave out, and what it left."""
    assert refused(first, second) == [("B", reason, detail)]


@pytest.mark.parametrize("exclusive", ["A", "B"])
def test_an_exclusive_voucher_stands_alone_whichever_is_better(exclusive: str) -> None:
    """Where it wins the other one is refused, and where it loses it is itself."""
    vouchers = [
        voucher(fixed(amount), code) if code == exclusive else stackable(fixed(amount), code)
        for code, amount in (("A", 30), ("B", 20))
    ]
    detail = {"conflicts_with": "A", "message": "use it without A, which goes before it"}
    assert refused(*vouchers) == [("B", "STACKING_CONFLICT", detail)]


def test_amounts_of_a_refusal_are_written_in_the_orders_currency() -> None:
    """Yen have no decimals."""

    def message(*vouchers: Doc, **given: Any) -> str:
        [*_, (_, _, detail)] = refused(*vouchers, of={"currency": "JPY"}, **given)
        found: str = detail["message"]
        return found

    yen: Doc = {"currency": "JPY"}
    tight = voucher(fixed(100), limits={"budget_minor": 99}, **yen)
    told = "have a smaller order: 99 of its budget is left, and this order takes 100"
    assert message(tight, usage={}) == told
    assert message(voucher(fixed(1), stacking={"max_total_percent": "0.1"}, **yen)) == (
        "spend 700 more: it may take 0.1 % at most"
    )
    first = stackable(fixed(30), "A", priority=1, **yen)
    after = stackable(fixed(5), "B", when=leaf("order.remaining_minor", "gte", 271), **yen)
    assert message(first, after) == "leave out A: with it the goods come to 270"
    assert message(voucher(fixed(1), when=leaf("order.subtotal_minor", "gte", 1600), **yen)) == "spend 1300 more"
    assert message(voucher(fixed(1), when=leaf("order.subtotal_minor", "eq", 7), **yen)) == (
        "the goods before discounts must be 7"
    )
    cut = run(order(300, **yen), voucher(fixed(100), stacking={"max_total_percent": 10}, **yen))
    assert cut.applied[0].why == "100 off, cut to 30 by max_total_percent"


def test_two_vouchers_share_what_is_left_line_by_line() -> None:
    """The second takes its part of what the first left of each line, and each line carries both."""
    of = order(1000, 500)
    first, second = stackable(percentage(10), "A", priority=1), stackable(percentage(50), "B")
    result = run(of, first, second)
    assert (taken(result), shares(result)) == ({"A": 150, "B": 675}, [550, 275])
    assert [one.why for one in result.applied] == ["10 % of 15.00", "50 % of 13.50"]


def test_what_cannot_be_evaluated_is_refused_with_its_place() -> None:
    """Two vouchers of one code, a code that is none, and a time without an offset or out of range."""
    one = voucher(fixed(1))
    with pytest.raises(InvalidInput) as equal:
        run(order(300), voucher(fixed(1), "X"), one, voucher(fixed(2), "code"))
    assert (equal.value.path, equal.value.expected) == ("vouchers[2].code", "must not be equal to vouchers[1].code")
    with pytest.raises(InvalidInput) as no_code:
        run(order(300), one, codes=["CODE", ""])
    assert no_code.value.path == "codes[1]"
    with pytest.raises(InvalidInput) as naive:
        run(order(300), one, at=NOON.replace(tzinfo=None))
    assert (naive.value.path, naive.value.expected) == ("at", "must be a time with an offset")
    assert "2026-06-15T12:00:00" in str(naive.value)
    with pytest.raises(InvalidInput) as far:
        run(order(300), one, at=NOON.replace(year=1899))
    assert (far.value.path, far.value.expected) == ("at", "must be a time between the years 1900 and 9998")
    assert "1899-06-15T12:00:00" in str(far.value)
