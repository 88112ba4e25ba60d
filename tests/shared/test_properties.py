"""Rules that hold for every order and every set of vouchers. Source: engine.md, "Rounding", "Applying", "Result"."""

from __future__ import annotations

import copy
import json
import random
from fractions import Fraction
from itertools import combinations
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tallystick_shared.engine import (
    Result,
    best,
    compile_voucher,
    evaluate,
    max_discount_minor,
    qualify,
    refund_minor,
    result_json,
)
from tests.shared import cases, oracle
from tests.shared.chance import Seeded
from tests.shared.comparing import allowances, bare, called
from tests.shared.oracle_rules import Doc, fold, moment

MANY = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
DOCUMENTS = cases.documents()
RANDOMS = st.randoms(use_true_random=False)
OTHER_CURRENCY = {"EUR": "JPY", "JPY": "KWD", "KWD": "EUR", "USD": "BHD"}  # other exponents, one to one


def run(document: Doc) -> Result:
    result: Result = called(evaluate, document)
    return result


def saved(result: Result) -> int:
    return result.discount_minor + result.shipping_discount_minor


# sums and shares


@given(DOCUMENTS)
@MANY
def test_sums_are_exact_and_nothing_is_below_zero(document: Doc) -> None:
    """Shares add up to each discount, discounts to the totals, none is 0, and no line and no total goes below 0."""
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


@given(DOCUMENTS)
@MANY
def test_every_share_is_its_exact_one_rounded(document: Doc) -> None:
    """No share is off the exact one, which the oracle has as a fraction, by a whole minor unit."""
    exact = oracle.exact_shares(document)
    for applied in run(document).applied:
        shares = {share.id: share.discount_minor for share in applied.lines}
        meant = exact[fold(applied.code)]
        assert shares.keys() <= meant.keys()
        assert all(abs(shares.get(name, 0) - share) < 1 for name, share in meant.items())


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=12), st.integers(1, 1_000_000))
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


@given(DOCUMENTS)
@MANY
def test_no_discount_is_above_the_largest_one(document: Doc) -> None:
    """Where the largest possible discount of a voucher is known, no order gives more."""
    bounds = {fold(voucher.code): max_discount_minor(voucher) for voucher in cases.read(document).vouchers}
    for applied in run(document).applied:
        bound = bounds[fold(applied.code)]
        assert bound is None or applied.discount_minor <= bound


# what does not matter


@given(DOCUMENTS)
@MANY
def test_every_code_is_applied_or_refused_once(document: Doc) -> None:
    """No code is lost, none is answered twice, and refusals are ordered by folded code."""
    result = run(document)
    answered = [fold(one.code) for one in result.applied] + [fold(one.code) for one in result.refused]
    codes = document.get("codes", [voucher["code"] for voucher in document["vouchers"]])
    assert sorted(answered) == sorted({fold(code) for code in codes})
    refused = [fold(entry.code) for entry in result.refused]
    assert refused == sorted(refused)


@given(DOCUMENTS, RANDOMS)
@MANY
def test_the_order_of_codes_and_vouchers_never_matters(document: Doc, chance: random.Random) -> None:
    """Any order of the vouchers and of the codes typed, once or more often, gives the same bytes."""
    codes = [voucher["code"] for voucher in document["vouchers"]]
    before = result_json(run({**document, "codes": codes}))
    vouchers = document["vouchers"].copy()
    chance.shuffle(vouchers)
    shuffled = [*codes, *codes]
    chance.shuffle(shuffled)
    assert result_json(run({**document, "vouchers": vouchers, "codes": shuffled})) == before


@given(DOCUMENTS, RANDOMS)
@MANY
def test_a_single_voucher_takes_the_same_whatever_the_order_of_lines(document: Doc, chance: random.Random) -> None:
    """One voucher alone: shuffled lines change which line carries an odd unit, never what is paid."""
    document["vouchers"] = document["vouchers"][:1]
    before = run(document)
    chance.shuffle(document["order"]["lines"])
    after = run(document)
    assert (after.total_minor, after.discount_minor) == (before.total_minor, before.discount_minor)
    assert [entry.reason for entry in after.refused] == [entry.reason for entry in before.refused]


@given(DOCUMENTS)
@MANY
def test_splitting_a_line_into_units_changes_no_total(document: Doc) -> None:
    """A single voucher that is not per line takes the same from a line of q units and from q lines of one."""
    text = json.dumps(document["vouchers"][0])
    lines = document["order"]["lines"]
    if '"per": "line"' in text or "fixed_price" in text or sum(line["quantity"] for line in lines) > 100:
        return
    document["vouchers"] = document["vouchers"][:1]
    before = run(document)
    document["order"]["lines"] = [
        {**line, "id": f"{line['id']}-{unit}", "quantity": 1} for line in lines for unit in range(line["quantity"])
    ]
    assert run(document).total_minor == before.total_minor


@given(DOCUMENTS)
@MANY
def test_the_name_of_the_currency_changes_nothing(document: Doc) -> None:
    """In a currency with other decimals the same minor units give the same minor units; only texts differ."""
    if "order.currency" in json.dumps(document):
        return
    other = copy.deepcopy(document)
    for holder in (other["order"], *other["vouchers"]):
        if "currency" in holder:
            holder["currency"] = OTHER_CURRENCY[holder["currency"]]
    before, after = bare(run(document)), bare(run(other))
    assert after.pop("currency") == OTHER_CURRENCY[before.pop("currency")]
    assert before == after


@given(DOCUMENTS)
@MANY
def test_a_call_changes_nothing_and_repeats(document: Doc) -> None:
    """The same call gives the same bytes again, and what it was given is as it was."""
    request = cases.read(document)
    compiled = [compile_voucher(voucher) for voucher in request.vouchers]
    codes = None if request.codes is None else list(request.codes)
    usage = None if request.usage is None else dict(request.usage)
    allowance = allowances(document)
    given_things = (request.order, request.vouchers, codes, usage, allowance)
    before = repr(given_things)
    for call in (evaluate, best, qualify):
        answers = {
            repr(call(request.order, compiled, codes, at=request.at, usage=usage, allowance=allowance))
            for _ in range(2)
        }
        assert len(answers) == 1
    assert repr(given_things) == before


@given(DOCUMENTS)
@MANY
def test_what_fails_alone_refuses_nobody(document: Doc) -> None:
    """Leaving out the codes that do not apply alone changes nothing for the others."""
    result = bare(run(document))
    alone = [one.code for one in called(qualify, document) if one.reason is None]
    without = bare(run({**document, "codes": alone}))
    refused = {fold(one["code"]): one for one in result.pop("refused")}
    assert all(refused.pop(fold(one["code"])) == one for one in without.pop("refused"))
    assert without == result
    assert not refused.keys() & {fold(code) for code in alone}


# best, qualify


def held(document: Doc) -> list[int]:
    """What every set of the vouchers that apply alone saves, where none is refused."""
    request, allowance = cases.read(document), allowances(document)
    compiled = [compile_voucher(voucher) for voucher in request.vouchers]
    alone = [one.code for one in called(qualify, document) if one.reason is None]
    found = []
    for size in range(len(alone) + 1):
        for codes in combinations(alone, size):
            result = evaluate(request.order, compiled, codes, at=request.at, usage=request.usage, allowance=allowance)
            if not result.refused:
                found.append(saved(result))
    return found


@given(DOCUMENTS)
@MANY
def test_no_combination_saves_more_than_the_best(document: Doc) -> None:
    """Every set of codes is tried with `evaluate`: where it refuses none, it saves no more, and one saves as much."""
    chosen = called(best, document)
    found = held(document) if len(document["vouchers"]) <= 6 else [0, chosen.saved_minor]
    assert max(found) == chosen.saved_minor
    assert chosen.exact


@given(DOCUMENTS)
@MANY
def test_the_best_is_what_evaluate_gives_for_its_codes(document: Doc) -> None:
    """`best` refuses none of its codes, names them in the order of application, and adds nothing up on its own."""
    chosen = called(best, document)
    again = run({**document, "codes": list(chosen.codes)})
    assert result_json(chosen.result) == result_json(again)
    assert (again.refused, [one.code for one in again.applied]) == ((), list(chosen.codes))
    assert chosen.saved_minor == saved(again)


def crowded(seed: int, count: int) -> Doc:
    """So many vouchers that hardly conflict, on one order, not all of them worth it together."""
    chance = Seeded(seed)
    document = cases.admitted(cases.generated(chance)).document
    at = "2026-06-15T12:00:00Z"
    vouchers: list[Doc] = []
    while len(vouchers) < count:
        made = cases.voucher(chance, f"C{len(vouchers)}", "EUR", moment(at))
        made = {key: made[key] for key in ("code", "discount", "currency", "when") if key in made}
        limit = {"max_total_percent": chance.choice([20, 40])} if chance.maybe(30) else {}
        made["stacking"] = {"mode": "stackable", "priority": chance.integer(0, 2), **limit}
        one = {**document, "vouchers": [made], "order": {**document["order"], "currency": "EUR"}, "at": at}
        one = {key: one[key] for key in ("order", "vouchers", "at")}
        if cases.passes(made) and run(one).discount_minor:
            vouchers.append(made)
        elif chance.maybe(2):
            document = cases.admitted(cases.generated(chance)).document
            vouchers = []
    return {**one, "vouchers": vouchers}


@pytest.mark.parametrize("seed", range(2))
def test_of_twelve_candidates_the_best_is_exact(seed: int) -> None:
    """All 4,096 sets of twelve vouchers are tried, and none saves more."""
    document = crowded(seed, 12)
    chosen = called(best, document)
    assert [one.reason for one in called(qualify, document)] == [None] * 12
    assert chosen.exact
    assert max(held(document)) == chosen.saved_minor


@pytest.mark.parametrize("seed", range(6))
def test_past_twelve_candidates_the_best_is_good(seed: int) -> None:
    """With 13 to 18 vouchers it refuses none and is never worse than one voucher alone, or than all codes given."""
    document = crowded(100 + seed, 13 + seed)
    chosen = called(best, document)
    assert result_json(run({**document, "codes": list(chosen.codes)})) == result_json(chosen.result)
    assert chosen.result.refused == ()
    assert chosen.saved_minor >= saved(run(document))
    assert all(chosen.saved_minor >= one.discount_minor for one in called(qualify, document))


@pytest.mark.parametrize(("free", "grouped", "exact"), [(10, 3, True), (5, 12, True), (10, 4, False)])
def test_the_best_is_exact_up_to_4096_sets(free: int, grouped: int, exact: bool) -> None:
    """Past twelve candidates it is exact where the sets without a stacking conflict are at most 4,096, and says so."""
    document = crowded(7, free + grouped)
    for voucher in document["vouchers"][free:]:
        voucher["stacking"]["group"] = "one of these"
    chosen = called(best, document)
    assert chosen.exact is exact
    if exact:
        meant = oracle.best(document)
        assert (list(chosen.codes), chosen.saved_minor) == (meant["codes"], meant["saved_minor"])


@given(DOCUMENTS)
@MANY
def test_qualify_is_evaluate_of_each_code_alone(document: Doc) -> None:
    """What `qualify` says of a code, its detail included, is what `evaluate` says when no other is typed."""
    found = called(qualify, document)
    assert [fold(one.code) for one in found] == sorted(fold(one.code) for one in found)
    for one in found:
        result = run({**document, "codes": [one.code]})
        applied = [(entry.code, entry.discount_minor, None, None) for entry in result.applied]
        refused = [(entry.code, None, entry.reason, entry.detail) for entry in result.refused]
        assert [*applied, *refused] == [(one.code, one.discount_minor, one.reason, one.detail)]


# returns


@given(DOCUMENTS, RANDOMS)
@MANY
def test_returning_every_unit_pays_the_whole_back(document: Doc, chance: random.Random) -> None:
    """One by one, or in any parts, the returns of all lines add up to what was paid for the goods."""
    result = run(document)
    one_by_one = in_parts = 0
    for line, lowered in zip(document["order"]["lines"], result.lines, strict=True):
        price, quantity = line["unit_price_minor"], line["quantity"]
        units = [refund_minor(price, quantity, lowered.discount_minor, unit, 1) for unit in range(quantity)]
        assert min(units) >= 0
        assert max(units) - min(units) <= 1
        one_by_one += sum(units)
        returned = 0
        while returned < quantity:
            part = chance.randint(1, quantity - returned)
            in_parts += refund_minor(price, quantity, lowered.discount_minor, returned, part)
            returned += part
    assert one_by_one == in_parts == result.subtotal_minor - result.discount_minor
