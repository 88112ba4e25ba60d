"""Several vouchers on one order, refusals, and the result. Source: engine.md, "Applying" and "Result"."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest
import tzdata  # type: ignore[import-untyped]  # it has a version and data, no types

from tallystick_shared.engine import (
    ENGINE_VERSION,
    Allowance,
    Reason,
    Usage,
    compile_voucher,
    evaluate,
    max_discount_minor,
    refund_minor,
    result_json,
)
from tallystick_shared.errors import InvalidInput
from tallystick_shared.model import parse_voucher
from tests.shared.build import (
    NOON,
    Doc,
    bogo,
    document,
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


def test_the_result_is_the_document_of_the_contract() -> None:
    """The example of engine.md, byte for byte, with what a detail says besides: keys in order, no spaces."""
    vouchers = [
        stackable(percentage(10), "SUMMER20"),
        stackable(fixed(5), "VIP", when={"field": "customer.segments", "op": "contains", "value": "vip"}),
    ]
    result = run(order(106, 206, 306, 406, customer={"segments": []}), *vouchers)
    assert result_json(result).decode() == (
        '{"currency":"EUR","subtotal_minor":1024,"discount_minor":102,"shipping_minor":0,"shipping_discount_minor":0,'
        '"paid_by_gift_card_minor":0,"total_minor":922,"lines":[{"id":"1","discount_minor":11},'
        '{"id":"2","discount_minor":21},{"id":"3","discount_minor":30},{"id":"4","discount_minor":40}],'
        '"applied":[{"code":"SUMMER20","discount_minor":102,"lines":[{"id":"1","discount_minor":11},'
        '{"id":"2","discount_minor":21},{"id":"3","discount_minor":30},{"id":"4","discount_minor":40}],'
        '"why":"10 % of 10.24"}],"refused":[{"code":"VIP","reason":"CONDITION_NOT_MET",'
        '"detail":{"field":"customer.segments","expected":"vip","actual":[],"op":"contains",'
        '"message":"the customer\'s segments must include vip"}}]}'
    )


def test_each_works_on_what_the_one_before_left() -> None:
    """10 % then 20 % of 100.00 is 28.00 off."""
    result = run(order(10_000), stackable(percentage(10), "A"), stackable(percentage(20), "B"))
    assert (taken(result), result.discount_minor) == ({"A": 1000, "B": 1800}, 2800)


def test_lanes_come_before_priority() -> None:
    """Items, order, shipping, gift cards; in a lane the higher priority, then the smaller folded code."""
    result = run(
        order(line(1000, 2), shipping_minor=500),
        voucher({"type": "gift_card", "balance_minor": 100}, "a", stacking={"priority": 9}),
        stackable({"type": "shipping"}, "b", priority=8),
        stackable(percentage(10), "d", priority=7),
        stackable(fixed(10), "C", priority=7),
        stackable(fixed(10), "e", priority=8),
        stackable(fixed(10, per="unit"), "z"),
        stackable(bogo(1, 1), "y"),
    )
    assert list(taken(result)) == ["y", "z", "e", "C", "d", "b", "a"]


def test_an_exclusive_voucher_stands_alone() -> None:
    """It beats all it outranks, or loses to the best one kept."""
    big, small = voucher(percentage(50), "BIG"), [stackable(percentage(10), "A"), stackable(percentage(20), "B")]
    result = run(order(1000), big, *small)
    assert (taken(result), reasons(result)) == ({"BIG": 500}, {"A": "STACKING_CONFLICT", "B": "STACKING_CONFLICT"})
    result = run(order(1000), voucher(percentage(5), "BIG"), *small)
    assert taken(result) == {"A": 100, "B": 180}
    assert document(result)["refused"][0]["detail"]["conflicts_with"] == "B"


def test_of_a_group_one_voucher() -> None:
    """Two of one group: the better one; another group is free to join; detail names the winner."""
    group = {"group": "g"}
    result = run(
        order(1000),
        stackable(percentage(10), "A", stacking=group),
        stackable(percentage(20), "B", stacking=group),
        stackable(percentage(5), "C", stacking={"group": "h"}),
        stackable(percentage(50), "D"),
    )
    assert set(taken(result)) == {"B", "C", "D"}
    assert document(result)["refused"] == [
        {
            "code": "A",
            "reason": "STACKING_CONFLICT",
            "detail": {"conflicts_with": "B", "message": "use it without B, which goes before it"},
        }
    ]


def test_rank_is_priority_then_size_then_code() -> None:
    """A higher priority wins over a larger discount, of equal ones the larger, of equal sizes the smaller code."""
    assert set(taken(run(order(1000), voucher(fixed(1), "A", stacking={"priority": 1}), voucher(fixed(9), "B")))) == {
        "A"
    }
    assert set(taken(run(order(1000), voucher(fixed(8), "A"), voucher(fixed(9), "B")))) == {"B"}
    assert set(taken(run(order(1000), voucher(fixed(9), "b"), voucher(fixed(9), "A")))) == {"A"}
    assert set(taken(run(order(1000), voucher(fixed(9), "B"), voucher(fixed(9), "a")))) == {"a"}


def test_the_size_that_ranks_is_under_its_own_cap_and_counts_shipping() -> None:
    """50 % cut to 10 % of the subtotal is worth 1.00 and loses to 2.00 of shipping."""
    capped = voucher(percentage(50), "A", stacking={"max_total_percent": 10})
    result = run(order(1000, shipping_minor=200), capped, voucher({"type": "shipping"}, "B"))
    assert (taken(result), reasons(result)) == ({"B": 200}, {"A": "STACKING_CONFLICT"})


def test_a_gift_card_conflicts_with_nothing() -> None:
    """Two gift cards and an exclusive voucher apply together."""
    cards = [voucher({"type": "gift_card", "balance_minor": 300}, code) for code in ("G1", "G2")]
    result = run(order(1000), *cards, voucher(percentage(50), "X"))
    assert (taken(result), result.total_minor) == ({"X": 500, "G1": 300, "G2": 200}, 0)


def test_the_strictest_total_percent_limits_the_later_one() -> None:
    """30 % in all: after 20 % the next 20 % takes 10 % of the subtotal, rounded down; the first does not give way."""
    result = run(
        order(999),
        stackable(percentage(20), "A", stacking={"max_total_percent": 30}),
        stackable(percentage(20), "B"),
        stackable({"type": "shipping"}, "S"),
    )
    assert taken(result) == {"A": 200, "B": 99}
    late = run(
        order(1000), stackable(percentage(50), "A"), stackable(percentage(20), "B", stacking={"max_total_percent": 30})
    )
    assert (taken(late), reasons(late)) == ({"A": 500}, {"B": "NOTHING_TO_DISCOUNT"})


def test_a_cut_discount_shares_in_proportion_to_its_exact_shares() -> None:
    """1.00 off each of 3 lines, cut to 1.00 in all, is 0.34/0.33/0.33; shipping and gift cards are not limited."""
    result = run(
        order(300, 300, 400, shipping_minor=500),
        stackable(fixed(100, per="line"), "A", stacking={"max_total_percent": 10}),
        stackable({"type": "shipping"}, "S"),
        voucher({"type": "gift_card", "balance_minor": 100}, "G"),
    )
    assert (shares(result), taken(result)) == ([34, 33, 33], {"A": 100, "S": 500, "G": 100})
    assert result.applied[0].why == "1.00 off each line, cut to 1.00 by max_total_percent"


def test_a_condition_is_checked_again_at_its_turn() -> None:
    """Both apply alone; after the first 15.00 are left of 20.00 and the second needs 16.00."""
    needs = {"field": "order.remaining_minor", "op": "gte", "value": 1600}
    result = run(order(2000), stackable(fixed(500), "A"), stackable(fixed(100), "B", when=needs))
    assert (taken(result), reasons(result)) == ({"A": 500}, {"B": "CONDITION_NOT_MET"})
    detail = document(result)["refused"][0]["detail"]
    assert (detail["after"], detail["message"]) == (["A"], "leave out A: with it the goods come to 15.00")


def test_what_to_leave_out_includes_what_would_come_in_its_place() -> None:
    """A beats B of its group; without A alone B would apply, and V still not."""
    needs = {"field": "order.remaining_minor", "op": "gte", "value": 800}
    group = {"group": "g"}
    vouchers = [
        stackable(fixed(300, per="line"), "A", stacking=group),
        stackable(fixed(250, per="line"), "B", stacking=group),
        stackable(fixed(100), "V", when=needs, priority=-5),
    ]
    [_, refused] = run(order(1000), *vouchers).refused
    assert (refused.code, refused.detail["after"]) == ("V", ["A", "B"])
    assert refused.detail["message"] == "leave out A and B: with them the goods come to 7.00"
    assert taken(run(order(1000), *vouchers, codes=["V"])) == {"V": 100}


def test_what_was_beaten_stays_beaten() -> None:
    """The winner of a group fails at its turn; the one it beat is not taken instead."""
    needs = {"field": "order.remaining_minor", "op": "gte", "value": 1600}
    group = {"group": "g"}
    result = run(
        order(2000),
        stackable(fixed(500, per="line"), "A"),
        stackable(fixed(300), "B", when=needs, stacking=group),
        stackable(fixed(100), "C", stacking=group),
    )
    assert (taken(result), reasons(result)) == (
        {"A": 500},
        {"B": "CONDITION_NOT_MET", "C": "STACKING_CONFLICT"},
    )


def test_a_budget_is_checked_alone_and_at_its_turn() -> None:
    """A discount above what is left is refused and not cut; what others take first may bring it below."""
    limits = {"limits": {"budget_minor": 1000}}
    spent = {"B": Usage(budget_minor=850)}
    alone = run(order(2000), voucher(percentage(10), "B", **limits), usage=spent)
    assert reasons(alone) == {"B": "BUDGET_EXHAUSTED"}
    message = "have a smaller order: 1.50 of its budget is left, and this order takes 2.00"
    detail = {"discount_minor": 200, "left_minor": 150, "message": message}
    assert document(alone)["refused"][0]["detail"] == detail
    assert taken(run(order(1500), voucher(percentage(10), "B", **limits), usage=spent)) == {"B": 150}
    assert taken(run(order(2000), voucher(percentage(10), "B", **limits))) == {"B": 200}


def test_a_dearer_unit_at_its_turn_can_exceed_the_budget() -> None:
    """Alone it would give 1.00, at its turn only units of 9.00 are left, and its budget has 1.50."""
    cheap = {"product_ids": ["c"]}
    lines = (line(100, 2, product_id="c"), line(900, 2, product_id="d"))
    first = stackable(bogo(1, 1, buy_items=cheap, get_items=cheap), "A", priority=1)
    second = stackable(bogo(1, 1, max_applications=1), "B", limits={"budget_minor": 150})
    assert taken(run(order(*lines), second, usage={})) == {"B": 100}
    both = run(order(*lines), first, second, usage={})
    assert (taken(both), reasons(both)) == ({"A": 100}, {"B": "BUDGET_EXHAUSTED"})
    allowed = run(order(*lines), first, second, allowance={"B": Allowance(minor=150)})
    assert (taken(allowed), reasons(allowed)) == ({"A": 100}, {"B": "NO_ALLOWANCE"})


@pytest.mark.parametrize(
    ("limits", "usage", "customer", "reason"),
    [
        ({"total": 3}, {"x": Usage(total=3)}, None, "LIMIT_REACHED"),
        ({"total": 3}, {"X": Usage(total=2, customer=9)}, None, None),
        ({"total": 3}, {}, None, None),
        ({"total": 3}, None, None, None),
        ({"per_customer": 1}, None, None, "CUSTOMER_LIMIT_REACHED"),
        ({"per_customer": 1}, None, {"segments": []}, "CUSTOMER_LIMIT_REACHED"),
        ({"per_customer": 1}, None, {"id": "c"}, None),
        ({"per_customer": 1}, {"X": Usage(customer=1)}, {"id": "c"}, "CUSTOMER_LIMIT_REACHED"),
        ({"total": 1, "per_customer": 1}, {"X": Usage(total=1)}, None, "LIMIT_REACHED"),
    ],
)
def test_limits(limits: Doc, usage: Any, customer: Any, reason: str | None) -> None:
    """Checked only with usage, a code missing in it has used nothing; per_customer always wants a customer's id."""
    result = run(order(1000, customer=customer), voucher(fixed(1), "X", limits=limits), usage=usage)
    assert reasons(result) == ({"X": reason} if reason else {})


@pytest.mark.parametrize(
    ("allowance", "reason"),
    [
        (None, None),
        ({}, None),
        ({"X": Allowance()}, None),
        ({"X": Allowance(needs_connection=True, units=0)}, "NEEDS_CONNECTION"),
        ({"X": Allowance(units=0)}, "NO_ALLOWANCE"),
        ({"X": Allowance(units=1, minor=99)}, "NO_ALLOWANCE"),
        ({"X": Allowance(units=1, minor=100)}, None),
        ({"X": Allowance(minor=0)}, "NO_ALLOWANCE"),
    ],
)
def test_an_allowance_restricts_a_device(allowance: Any, reason: str | None) -> None:
    """Without one, or for a code missing in it, nothing is restricted; a discount above `minor` is refused, not cut."""
    result = run(order(1000), voucher(fixed(100), "X"), allowance=allowance)
    assert reasons(result) == ({"X": reason} if reason else {})


def test_the_first_reason_of_the_list_is_given() -> None:
    """A voucher wrong in every way is refused for the reason that stands first, one after the other."""
    wrong: list[tuple[Reason, Doc, Doc]] = [
        (Reason.INACTIVE, {"status": "paused"}, {}),
        (Reason.NOT_YET_VALID, {"valid_from": "2027-01-01T00:00:00Z"}, {}),
        (Reason.EXPIRED, {"valid_until": "2026-01-01T00:00:00Z"}, {}),
        (Reason.OUTSIDE_HOURS, {"hours": [{"from": "01:00", "to": "02:00", "timezone": "Etc/UTC"}]}, {}),
        (Reason.CURRENCY_MISMATCH, {"currency": "USD"}, {}),
        (Reason.LIMIT_REACHED, {"limits": {"total": 1, "per_customer": 1, "budget_minor": 1}}, {}),
        (Reason.CUSTOMER_LIMIT_REACHED, {"limits": {"per_customer": 1, "budget_minor": 1}}, {}),
        (Reason.NEEDS_CONNECTION, {}, {"needs_connection": True, "units": 0}),
        (Reason.NO_ALLOWANCE, {}, {"units": 0}),
        (Reason.CONDITION_NOT_MET, {"when": {"field": "order.quantity", "op": "gt", "value": 9}}, {}),
        (Reason.NO_MATCHING_ITEM, {"discount": fixed(500, items={"product_ids": ["none"]})}, {}),
        (Reason.BELOW_FIRST_TIER, {"discount": {"type": "tiered", "tiers": [{"min": 9999, "discount": fixed(9)}]}}, {}),
        (Reason.NOTHING_TO_DISCOUNT, {"discount": {"type": "fixed_price", "unit_price_minor": 9999}}, {}),
        (Reason.BUDGET_EXHAUSTED, {"limits": {"budget_minor": 1}}, {}),
    ]
    for start, (reason, _, _) in enumerate(wrong):
        fields: Doc = {"discount": fixed(500)}
        allowed: Doc = {}
        for _, some, restricted in reversed(wrong[start:]):
            fields.update({key: value for key, value in some.items() if key != "valid_from" or start <= 1})
            allowed.update(restricted)
        if reason is Reason.NOT_YET_VALID or reason is Reason.INACTIVE:
            del fields["valid_until"]  # a voucher cannot have bounds that exclude each other
        if start > 7:
            allowed.pop("needs_connection", None)
        usage = {"X": Usage(total=1, customer=1, budget_minor=1)}
        result = run(order(1000), {"code": "X", **fields}, usage=usage, allowance={"X": Allowance(**allowed)})
        assert reasons(result) == {"X": reason.value}
    listed = [reason for reason, _, _ in wrong]
    assert [Reason.UNKNOWN_CODE, *listed, Reason.STACKING_CONFLICT] == list(Reason)


def test_each_reason_is_transient_or_final() -> None:
    """Waiting, connecting or resuming can help only where the order and the voucher need not change."""
    assert {reason.value for reason in Reason if reason.transient} == {
        "INACTIVE",
        "NOT_YET_VALID",
        "OUTSIDE_HOURS",
        "NEEDS_CONNECTION",
        "NO_ALLOWANCE",
    }
    assert all(reason.transient != reason.final for reason in Reason)


def test_codes_pick_vouchers_and_unknown_ones_are_reported() -> None:
    """Typed twice counts once, an unknown one is trimmed as first typed, refusals are ordered by folded code."""
    vouchers = [stackable(fixed(1), "Save20"), stackable(fixed(2), "other")]
    result = run(order(1000), *vouchers, codes=[" SAVE20 ", "zzz", "save20", " Nope ", "NOPE", "b"])
    assert taken(result) == {"Save20": 1}
    assert list(reasons(result).items()) == [("b", "UNKNOWN_CODE"), ("Nope", "UNKNOWN_CODE"), ("zzz", "UNKNOWN_CODE")]
    assert run(order(1000), *vouchers, codes=[]).applied == ()
    assert set(taken(run(order(1000), *vouchers))) == {"Save20", "other"}


def test_misuse_is_an_error() -> None:
    """Equal vouchers, codes that cannot be one and times without an offset name what is wrong."""
    with pytest.raises(InvalidInput) as caught:
        run(order(1), voucher(fixed(1), "a"), voucher(fixed(1), " A"))
    assert caught.value.path == "vouchers[1].code"
    with pytest.raises(InvalidInput) as caught:
        run(order(1), codes=["ok", " "])
    assert caught.value.path == "codes[1]"
    with pytest.raises(InvalidInput) as caught:
        run(order(1), at=datetime(2026, 1, 1))  # noqa: DTZ001  # that it has no offset is the point
    assert caught.value.path == "at"


@pytest.mark.parametrize(
    ("discount", "largest"),
    [
        (fixed(500), 500),
        (fixed(500, per="unit"), None),
        (fixed(500, per="line"), None),
        (percentage(10), None),
        (percentage(10, cap_minor=7), 7),
        ({"type": "shipping", "cap_minor": 9}, 9),
        ({"type": "shipping"}, None),
        ({"type": "gift_card", "balance_minor": 50}, 50),
        (bogo(1, 2, amount_minor=5, max_applications=3), 30),
        (bogo(1, 2, amount_minor=5), None),
        (bogo(1, 1, max_applications=1), None),
        ({"type": "fixed_price", "unit_price_minor": 5}, None),
        ({"type": "tiered", "tiers": [{"min": 1, "discount": fixed(3)}, {"min": 2, "discount": fixed(2)}]}, 3),
        ({"type": "tiered", "tiers": [{"min": 1, "discount": fixed(3)}, {"min": 2, "discount": percentage(2)}]}, None),
    ],
)
def test_the_largest_discount_is_known_where_it_can_be(discount: Doc, largest: int | None) -> None:
    """An amount, a cap or a balance bounds a discount; percentages and per-unit amounts are unbounded."""
    assert max_discount_minor(parse_voucher(voucher(discount), default_currency="EUR")) == largest


def test_the_version_names_the_rules_and_the_time_zones() -> None:
    """The version of tzdata is part of the engine's."""
    assert ENGINE_VERSION.split("+") == ["2", f"tzdata{tzdata.__version__}"]


def test_frozen_shares_pay_a_return() -> None:
    """Shares of two vouchers on one line, returned unit by unit, pay the line back."""
    result = run(order(line(333, 3), 500), stackable(percentage(10), "A"), stackable(fixed(77), "B"))
    carried = shares(result)[0]
    assert sum(refund_minor(333, 3, carried, unit, 1) for unit in range(3)) == 999 - carried


def test_equal_inputs_give_equal_bytes() -> None:
    """The same call twice, with a voucher compiled once or twice, gives the same bytes."""
    docs = [stackable(percentage("12.5"), "A"), stackable(bogo(1, 1, percent=50), "B")]
    compiled = [compile_voucher(parse_voucher(doc)) for doc in docs]
    of = order(line(333, 3), 501, shipping_minor=3)
    first = result_json(evaluate(of, compiled, at=NOON))
    assert first == result_json(evaluate(of, compiled, at=NOON)) == result_json(run(of, *docs))
    assert json.loads(first)["applied"][0]["why"] == "buy 1, get 1 at 50 % off, 2 times"
