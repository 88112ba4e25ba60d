"""Rules that hold for every order and every set of vouchers. Source: engine.md, "Rounding", "Applying"."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick_shared.codes import fold
from tallystick_shared.engine import (
    Result,
    compile_voucher,
    evaluate,
    max_discount_minor,
    refund_minor,
    result_json,
)
from tallystick_shared.model import parse_request
from tests.shared import cases
from tests.shared.build import Doc

SEEDS = st.integers(0, 10**9)
MANY = settings(max_examples=250, deadline=None)


def run(document: Doc) -> Result:
    request = parse_request(document)
    vouchers = [compile_voucher(voucher) for voucher in request.vouchers]
    return evaluate(request.order, vouchers, request.codes, at=request.at, usage=request.usage)


@given(SEEDS)
@MANY
def test_sums_are_exact_and_nothing_is_below_zero(seed: int) -> None:
    """Shares add up to each discount, discounts to the totals, and no line and no total goes below 0."""
    document = cases.document(seed)
    result = run(document)
    costs = {line["id"]: line["quantity"] * line["unit_price_minor"] for line in document["order"]["lines"]}
    by_line = dict.fromkeys(costs, 0)
    apart = 0
    for applied in result.applied:
        assert applied.discount_minor > 0
        assert all(share.discount_minor > 0 for share in applied.lines)
        if applied.lines:
            assert sum(share.discount_minor for share in applied.lines) == applied.discount_minor
        else:
            apart += applied.discount_minor
        for share in applied.lines:
            by_line[share.id] += share.discount_minor
    assert {line.id: line.discount_minor for line in result.lines} == by_line
    assert all(0 <= by_line[name] <= costs[name] for name in costs)
    assert result.discount_minor == sum(by_line.values())
    assert result.shipping_discount_minor + result.paid_by_gift_card_minor == apart
    assert 0 <= result.shipping_discount_minor <= result.shipping_minor
    assert result.total_minor >= 0
    assert result.total_minor == (
        result.subtotal_minor
        - result.discount_minor
        + result.shipping_minor
        - result.shipping_discount_minor
        - result.paid_by_gift_card_minor
    )


@given(SEEDS)
@MANY
def test_every_code_is_applied_or_refused_once(seed: int) -> None:
    """No code is lost, none is answered twice, and refusals are ordered by folded code."""
    document = cases.document(seed)
    result = run(document)
    answered = [*(entry.code for entry in result.applied), *(entry.code for entry in result.refused)]
    assert sorted(answered) == sorted(voucher["code"] for voucher in document["vouchers"])
    refused = [fold(entry.code) for entry in result.refused]
    assert refused == sorted(refused)


@given(SEEDS, st.randoms(use_true_random=False))
@MANY
def test_the_order_of_codes_and_vouchers_never_matters(seed: int, chance: random.Random) -> None:
    """Any order of the vouchers and of the codes typed gives the same bytes."""
    document = cases.document(seed)
    codes = [voucher["code"] for voucher in document["vouchers"]]
    document["codes"] = codes
    before = result_json(run(document))
    vouchers = document["vouchers"].copy()
    chance.shuffle(vouchers)
    shuffled = [*codes, *codes]
    chance.shuffle(shuffled)
    assert result_json(run({**document, "vouchers": vouchers, "codes": shuffled})) == before


@given(SEEDS, st.randoms(use_true_random=False))
@MANY
def test_a_single_voucher_takes_the_same_whatever_the_order_of_lines(seed: int, chance: random.Random) -> None:
    """One voucher alone: shuffled lines change which line carries an odd unit, never what is paid."""
    document = cases.document(seed)
    document["vouchers"] = document["vouchers"][:1]
    before = run(document)
    chance.shuffle(document["order"]["lines"])
    after = run(document)
    assert (after.total_minor, after.discount_minor) == (before.total_minor, before.discount_minor)
    assert [entry.reason for entry in after.refused] == [entry.reason for entry in before.refused]


@given(SEEDS)
@MANY
def test_splitting_a_line_into_units_changes_no_total(seed: int) -> None:
    """A single voucher that is not per line takes the same from a line of q units and from q lines of one."""
    document = cases.document(seed)
    voucher = document["vouchers"][0]
    if '"per": "line"' in str(voucher).replace("'", '"') or "fixed_price" in str(voucher):
        return
    document["vouchers"] = [voucher]
    before = run(document)
    document["order"]["lines"] = [
        {**line, "id": f"{line['id']}-{unit}", "quantity": 1}
        for line in document["order"]["lines"]
        for unit in range(line["quantity"])
    ]
    assert run(document).total_minor == before.total_minor


@given(SEEDS)
@MANY
def test_returning_every_unit_pays_the_whole_back(seed: int) -> None:
    """Unit by unit, the returns of all lines add up to what was paid for the goods."""
    document = cases.document(seed)
    result = run(document)
    back = 0
    for line, lowered in zip(document["order"]["lines"], result.lines, strict=True):
        units = [
            refund_minor(line["unit_price_minor"], line["quantity"], lowered.discount_minor, unit, 1)
            for unit in range(line["quantity"])
        ]
        assert min(units) >= 0
        back += sum(units)
    assert back == result.subtotal_minor - result.discount_minor


@given(SEEDS)
@MANY
def test_no_discount_is_above_the_largest_one(seed: int) -> None:
    """Where the largest possible discount of a voucher is known, no order gives more."""
    document = cases.document(seed)
    request = parse_request(document)
    bounds = {voucher.code: max_discount_minor(voucher) for voucher in request.vouchers}
    for applied in run(document).applied:
        bound = bounds[applied.code]
        assert bound is None or applied.discount_minor <= bound


@given(
    st.lists(st.integers(1, 10**6), min_size=1, max_size=12),
    st.integers(1, 1_000_000),
)
@MANY
def test_no_share_is_off_by_a_unit(prices: list[int], rate: int) -> None:
    """Each line's share of a percentage is within one minor unit of the exact one."""
    percent = f"{rate // 10_000}.{rate % 10_000:04d}"
    lines: list[Any] = [
        {"id": str(index), "product_id": "p", "quantity": 1, "unit_price_minor": price}
        for index, price in enumerate(prices)
    ]
    document = {
        "order": {"id": "o", "currency": "EUR", "lines": lines},
        "vouchers": [{"code": "A", "discount": {"type": "percentage", "percent": percent}}],
        "at": "2026-06-01T00:00:00Z",
    }
    result = run(document)
    total = sum(prices)
    exact = Fraction(total * rate, 1_000_000)
    assert abs(result.discount_minor - exact) <= Fraction(1, 2)
    for price, line in zip(prices, result.lines, strict=True):
        assert abs(line.discount_minor - Fraction(result.discount_minor * price, total)) < 1
