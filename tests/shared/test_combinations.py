"""`best` and `qualify`. Source: engine.md, "Two more calls". The oracle's properties go further, in test_properties."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tallystick_shared.engine import (
    Best,
    Usage,
    best,
    best_json,
    compile_voucher,
    evaluate,
    qualified_json,
    qualify,
    result_json,
)
from tallystick_shared.model import Order, parse_voucher
from tests.shared.build import NOON, Doc, bogo, calls_of, fixed, line, order, percentage, stackable, voucher


def best_of(of: Order, *vouchers: Doc, **fields: Any) -> Best:
    return best(
        of, [compile_voucher(parse_voucher(one, default_currency="EUR")) for one in vouchers], at=NOON, **fields
    )


def test_the_stackable_ones_together_beat_a_larger_exclusive_one() -> None:
    """`evaluate` keeps the exclusive 30.00, which is larger than either alone; two of 20.00 and 16.00 save more."""
    found = best_of(order(10_000), voucher(fixed(3000), "BIG"), *(stackable(percentage(20), code) for code in "AB"))
    assert (found.codes, found.saved_minor, found.exact) == (("A", "B"), 3600, True)
    assert [one.code for one in found.result.applied] == ["A", "B"]


def test_a_set_of_which_one_is_refused_is_no_combination() -> None:
    """B holds only where 16.00 remain: A and B never go together, and C makes A the better choice."""
    when = {"field": "order.remaining_minor", "op": "gte", "value": 1600}
    a, b = stackable(fixed(500, per="line"), "A"), stackable(fixed(600), "B", when=when)
    assert best_of(order(2000), a, b).codes == ("B",)
    assert best_of(order(2000), a, b, stackable(fixed(200), "C")).codes == ("B", "C")
    assert best_of(order(2000), a, b, stackable(fixed(450, per="line"), "C")).codes == ("A", "C")


def test_of_equal_savings_the_fewer_vouchers_then_the_smaller_codes() -> None:
    """Shipping counts as goods do; a voucher that adds nothing is not in it."""
    of = order(1000, shipping_minor=300)
    assert best_of(of, voucher({"type": "shipping"}, "b"), voucher(fixed(300), "A")).codes == ("A",)
    assert best_of(of, voucher(fixed(300), "x"), *(stackable(fixed(150), code) for code in "AB")).codes == ("x",)
    assert best_of(order(0), voucher(fixed(300), "A")).codes == ()


def test_gift_cards_are_kept_and_not_chosen() -> None:
    """They pay what is left after the best combination, and one that finds nothing left to pay is not in it."""
    cards = [voucher({"type": "gift_card", "balance_minor": 700}, f"CARD{number}") for number in (1, 2, 3)]
    found = best_of(order(1000), *cards, stackable(percentage(10), "TEN"))
    assert (found.codes, found.saved_minor) == (("TEN", "CARD1", "CARD2"), 100)
    assert (found.result.paid_by_gift_card_minor, found.result.total_minor, found.result.refused) == (900, 0, ())


def test_what_is_printed_can_be_redeemed_as_it_is() -> None:
    """`evaluate` of the codes of `best` gives its result, byte for byte."""
    of = order(line(500, 3), 990, shipping_minor=490)
    vouchers = [stackable(bogo(1, 1), "B"), voucher(percentage(35), "P"), voucher({"type": "shipping"}, "S")]
    compiled = [compile_voucher(parse_voucher(one, default_currency="EUR")) for one in vouchers]
    found = best(of, compiled, at=NOON)
    assert result_json(evaluate(of, compiled, found.codes, at=NOON)) == result_json(found.result)
    printed = json.loads(best_json(found))
    assert list(printed) == ["codes", "saved_minor", "exact", "result"]


@pytest.mark.parametrize(("count", "exact"), [(12, True), (13, False)])
def test_the_search_is_exact_up_to_twelve_and_says_when_it_is_not(count: int, exact: bool) -> None:
    """Twelve that all go together have 4,096 sets; past that the best set is grown."""
    found = best_of(order(10_000), *(stackable(percentage(1), f"P{number}") for number in range(count)))
    assert (len(found.codes), found.exact) == (count, exact)


def test_many_that_exclude_each_other_are_searched_exactly() -> None:
    """A thousand exclusive vouchers, and thirty in three groups, leave few sets to look at."""
    assert best_of(order(10_000), *(voucher(fixed(1 + one), f"X{one}") for one in range(1000))).exact
    grouped = [stackable(fixed(1 + one), f"G{one}", stacking={"group": str(one % 3)}) for one in range(30)]
    found = best_of(order(10_000), *grouped)
    assert (set(found.codes), found.exact) == ({"G29", "G28", "G27"}, True)


def test_a_set_that_is_grown_is_never_worse_than_what_evaluate_keeps() -> None:
    """Twenty stackable vouchers and one exclusive one that is larger than each, and than all but together."""
    vouchers = [stackable(percentage(2), f"P{number}") for number in range(20)]
    found = best_of(order(10_000), *vouchers, voucher(percentage(30), "ALONE"))
    assert (found.exact, len(found.codes)) == (False, 20)
    found = best_of(order(10_000), *vouchers, voucher(percentage(40), "ALONE"))
    assert (found.exact, found.codes) == (False, ("ALONE",))


def test_the_search_grows_slowly_where_it_is_not_exact() -> None:
    """Of 100 stackable vouchers the few best sets are built on, turn by turn: some thousand turns, not a million."""
    turns, found = calls_of(
        "take_turn", lambda: best_of(order(10_000), *(stackable(percentage(1 + n % 3), f"P{n}") for n in range(100)))
    )
    assert not found.exact
    assert turns < 100 * 20


def test_a_set_that_is_built_leaves_out_what_is_in_the_way() -> None:
    """A goes first and spoils the larger B, whose condition needs 16.00 to remain: past twelve candidates too."""
    when = {"field": "order.remaining_minor", "op": "gte", "value": 1600}
    few = [stackable(fixed(1), f"P{number}") for number in range(13)]
    found = best_of(order(2000), stackable(fixed(300, per="unit"), "A"), stackable(fixed(300, per="line"), "AA"),
                    stackable(fixed(900), "B", when=when, priority=1), *few)  # fmt: skip
    assert not found.exact
    assert {"B"} < set(found.codes)
    assert len({"A", "AA"} & set(found.codes)) == 1
    assert found.saved_minor == 1213


def test_qualify_answers_for_each_voucher_alone() -> None:
    """What it would take, or why it does not apply and what would help; by folded code, unknown codes too."""
    vouchers = [
        voucher(percentage(10), "b"),
        voucher(fixed(300), "A"),
        voucher(percentage(10), "c", limits={"total": 1}),
        voucher(fixed(100), "d", when={"field": "order.subtotal_minor", "op": "gte", "value": 1500}),
    ]
    compiled = [compile_voucher(parse_voucher(one, default_currency="EUR")) for one in vouchers]
    found = qualify(order(1000), compiled, ["B", "a", "C", "D", "?"], at=NOON, usage={"c": Usage(total=1)})
    assert [(one.code, one.discount_minor, one.reason) for one in found] == [
        ("?", None, "UNKNOWN_CODE"),
        ("A", 300, None),
        ("b", 100, None),
        ("c", None, "LIMIT_REACHED"),
        ("d", None, "CONDITION_NOT_MET"),
    ]
    printed = json.loads(qualified_json(found))["vouchers"]
    assert printed[1] == {"code": "A", "discount_minor": 300}
    assert printed[4]["detail"]["message"] == "spend 5.00 more"
