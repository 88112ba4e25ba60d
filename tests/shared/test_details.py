"""What a refusal's detail says is true, and doing it helps. Source: engine.md, "Result", "Applying"."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tallystick_shared.engine import Reason, evaluate
from tests.shared import cases, oracle
from tests.shared.chance import Chance, Drawn, Seeded
from tests.shared.comparing import called, full
from tests.shared.discount_cases import PLAIN, discount, items, plain
from tests.shared.following import CannotFollow, add, as_condition, follow, leaves, satisfy
from tests.shared.oracle_rules import Doc, fold, is_open, moment

MANY = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
DOCUMENTS = cases.documents()
STEPS = 6  # two more for each further tier, which goods that were added can lead into, and one for each other code
OP_FOR = {True: ["gte", "gt"], False: ["lt", "lte"]}


def result_of(document: Doc) -> Doc:
    return full(called(evaluate, document))


# vouchers that some order can have: leaves on different fields, goods only asked to be more


def followable(chance: Chance, *, several: bool = False) -> Doc:
    """A document with vouchers that nothing but the order, or another voucher, keeps from being applied."""
    count = chance.integer(2, 4) if several else 1
    while True:
        vouchers = [_voucher(chance, f"V{number}", several) for number in range(count)]
        order = cases.order(chance, "EUR")
        document = {"order": order, "vouchers": vouchers, "at": "2026-06-15T12:00:00Z"}
        if any("budget_minor" in voucher.get("limits", {}) for voucher in vouchers):
            document["usage"] = {"V0": {"budget_minor": chance.choice([0, 40])}}
        if cases.admitted(document).dropped == 0:
            return document


def _voucher(chance: Chance, code: str, several: bool) -> Doc:
    made: Doc = {"code": code, "discount": _discount(chance), "currency": "EUR"}
    fields = FIELDS
    if chance.maybe(15):
        made["limits"] = {"per_customer": 2}
        fields = [field for field in FIELDS if field != "customer.id"]
    if made["discount"]["type"] == "percentage" and chance.maybe(20):
        made["limits"] = {"budget_minor": chance.choice([50, 900])}
    elif chance.maybe(60):
        made["when"] = _tree(chance, chance.sample(fields, chance.integer(1, 4)), True, 4)
    stacking: Doc = {"mode": "stackable"} if several and chance.maybe(80) else {}
    if "mode" in stacking and chance.maybe(30):
        stacking["group"] = "g"
    if made["discount"]["type"] not in ("shipping", "gift_card") and chance.maybe(25):
        stacking["max_total_percent"] = chance.choice([10, "0.01", 50])
    return {**made, "stacking": stacking} if stacking else made


def _discount(chance: Chance) -> Doc:
    made = discount(chance) if chance.maybe(60) else plain(chance, chance.choice(PLAIN))
    if made["type"] == "conditional":
        for number, case in enumerate(made["cases"]):
            case["when"] = _tree(chance, [f"order.attributes.case{number}"], True, 2)
    text = str(made)
    return plain(chance, "percentage") if "'balance_minor': 0" in text else made


FIELDS = ["order.quantity", "order.subtotal_minor", "order.remaining_minor", "items.quantity", "items.subtotal_minor"]
FIELDS += ["order.store_id", "order.channel", "customer.id", "customer.segments"]
FIELDS += ["customer.attributes.n", "order.attributes.pay"]


def _tree(chance: Chance, fields: list[str], positive: bool, deepest: int) -> Doc:
    """A condition on these fields; what asks for goods asks for more of them, under `not` as well."""
    if deepest > 1 and chance.maybe(20):
        return {"not": _tree(chance, fields, not positive, deepest - 1)}
    if len(fields) > 1:
        cut = chance.integer(1, len(fields) - 1)
        parts = [_tree(chance, some, positive, max(1, deepest - 1)) for some in (fields[:cut], fields[cut:])]
        return {chance.choice(["all", "any"]): parts}
    return _leaf(chance, fields[0], positive)


def _leaf(chance: Chance, field: str, positive: bool) -> Doc:
    if field.endswith((".quantity", "_minor")):
        value: Any = chance.choice([1, 5, 8] if "quantity" in field else [1, 900, 3000, 12_345])
        made: Doc = {"field": field, "op": chance.choice(OP_FOR[positive]), "value": value}
        return {**made, "items": items(chance)} if field.startswith("items.") else made
    if field == "customer.segments":
        op = chance.choice(["contains", "contains_any", "contains_all", "eq", "ne"])
        return {
            "field": field,
            "op": op,
            "value": "vip" if op == "contains" else chance.choice([["vip", "new"], ["a"]]),
        }
    if chance.maybe(15) or field == "customer.id":  # whose other values a detail does not name
        return {"field": field, "op": "exists", "value": chance.maybe(50)}
    op = chance.choice(["eq", "ne", "gt", "gte", "lt", "lte", "in", "not_in"])
    texts = [["s1"], ["m", "s1"], ["n", "k", "s2"]]
    numbers: list[list[Any]] = [[5], [1.5, 2], [-3]]
    several = chance.choice([*texts, *numbers] if ".attributes." in field else texts)
    return {"field": field, "op": op, "value": several if op in ("in", "not_in") else several[0]}


def refusal_of(result: Doc, code: str) -> Doc | None:
    return next((one for one in result["refused"] if fold(one["code"]) == fold(code)), None)


def steps(document: Doc, code: str) -> int:
    given = next(voucher["discount"] for voucher in document["vouchers"] if voucher["code"] == code)
    return STEPS + 2 * (len(given.get("tiers", [0])) - 1) + len(document["vouchers"]) - 1


def followed(document: Doc, code: str, price: int) -> list[str]:
    """The reasons met while following the details until the code is applied; fails where that takes too long."""
    reasons: list[str] = []
    refusals = []
    first = document
    for _ in range(steps(document, code) + 1):
        refusal = refusal_of(result_of(document), code)
        if refusal is None:
            return reasons
        refusals.append(refusal)
        reasons.append(refusal["reason"])
        try:
            document = follow(document, refusal, price=price)
        except CannotFollow:
            break
    raise AssertionError(f"{code} cannot be applied after {refusals} on {json.dumps(first)}")


@given(st.composite(lambda draw: followable(Drawn(draw)))(), st.sampled_from([500, 1, 30]))
@MANY
def test_doing_what_the_detail_says_gets_a_voucher_applied(document: Doc, price: int) -> None:
    """A voucher that only the order stands against is applied after at most six changes that details name."""
    assert len(followed(document, "V0", price)) <= steps(document, "V0")


@given(st.composite(lambda draw: followable(Drawn(draw), several=True))())
@MANY
def test_doing_what_the_details_say_gets_any_of_several_applied(document: Doc) -> None:
    """The same among other vouchers, which are left out where the detail says so."""
    for voucher in document["vouchers"]:
        assert len(followed(document, voucher["code"], 500)) <= steps(document, voucher["code"])


def test_following_meets_every_reason_that_the_order_causes() -> None:
    """700 seeds reach all of them, so that the two tests above mean something."""
    met: set[str] = set()
    for seed in range(700):
        document = followable(Seeded(seed), several=seed % 2 == 0)
        for voucher in document["vouchers"]:
            met.update(followed(document, voucher["code"], 500))
    assert met == {
        "CURRENCY_MISMATCH",
        "CUSTOMER_LIMIT_REACHED",
        "CONDITION_NOT_MET",
        "NO_MATCHING_ITEM",
        "BELOW_FIRST_TIER",
        "NOTHING_TO_DISCOUNT",
        "BUDGET_EXHAUSTED",
        "STACKING_CONFLICT",
    }


# any voucher


def check_detail(document: Doc, result: Doc, refusal: Doc) -> None:
    """What one detail says is so, and goes away when that is changed."""
    code, detail, codes = fold(refusal["code"]), refusal["detail"], {fold(one["code"]) for one in result["applied"]}
    message = detail["message"]
    assert isinstance(message, str)
    assert message.strip() == message
    assert 0 < len(message) <= 200
    assert message.isprintable()
    if "after" in detail:
        after = {fold(one) for one in detail["after"]}
        assert after & codes
        assert code not in after
        beside = result_of({**document, "codes": [*(codes - after), refusal["code"]]})
        assert (
            refusal_of(beside, code) is None
        )  # others that had lost may come in besides when nothing else is left out
    elif refusal["reason"] == Reason.STACKING_CONFLICT.value:
        assert fold(detail["conflicts_with"]) == oracle.beaten(document)[code]
        again = refusal_of(result_of(follow(document, refusal)), code)
        assert again is None or again["detail"].get("conflicts_with") != detail["conflicts_with"]
    elif refusal["reason"] == Reason.CONDITION_NOT_MET.value:
        check_leaves(document, detail)


def check_leaves(document: Doc, detail: Doc) -> None:
    for leaf in leaves(detail):
        if "expected" not in leaf:  # which customers a voucher is for is not for every till to read
            assert leaf["field"] == "customer.id"
            assert leaf["actual"] == (document["order"].get("customer") or {}).get("id")
            continue
        condition = as_condition(leaf)
        plain_leaf = condition.get("not", condition)
        assert leaf["actual"] == oracle.actual(document, plain_leaf)
        assert not oracle.holds(document, condition)
        changed = follow({**document, "vouchers": []}, {"detail": {**leaf, "and": []}})
        assert oracle.holds(changed, condition)


@given(DOCUMENTS)
@MANY
def test_what_a_detail_says_is_so(document: Doc) -> None:
    """A message of one line; leaves that do not hold and do once followed; codes without which it works."""
    result = result_of(document)
    for refusal in result["refused"]:
        check_detail(document, result, refusal)


def test_every_reason_has_a_detail_that_is_so() -> None:
    """The same on seeds that reach every reason, at its turn too."""
    met: set[tuple[str, bool]] = set()
    for seed in range(2000):
        document = cases.case(seed).document
        result = result_of(document)
        for refusal in result["refused"]:
            met.add((refusal["reason"], "after" in refusal["detail"]))
            check_detail(document, result, refusal)
    assert {reason for reason, _ in met} == {reason.value for reason in Reason}
    assert {reason for reason, late in met if late} >= {"CONDITION_NOT_MET", "NOTHING_TO_DISCOUNT", "BUDGET_EXHAUSTED"}


def is_leaf(detail: Doc) -> bool:
    return "op" in detail and "after" not in detail and "expected" in detail


def lied(change: Callable[[Doc], Doc]) -> int:
    """How many of the details of 300 cases are noticed when each is changed like this."""
    noticed = 0
    for seed in range(300):
        document = cases.case(seed).document
        result = result_of(document)
        for refusal in result["refused"]:
            detail = change(refusal["detail"])
            if detail == refusal["detail"]:
                continue
            try:
                check_detail(document, result, {**refusal, "detail": detail})
            except (AssertionError, CannotFollow):
                noticed += 1
            else:
                return -1
    return noticed


@pytest.mark.parametrize(
    "change",
    [
        lambda detail: {**detail, "message": ""},
        lambda detail: {**detail, "message": "one line\nand another"},
        lambda detail: {**detail, **({"after": ["nobody"]} if "after" in detail else {})},
        lambda detail: {**detail, **({"conflicts_with": "nobody"} if "conflicts_with" in detail else {})},
        lambda detail: {**detail, **({"actual": "nothing"} if is_leaf(detail) else {})},
        lambda detail: {**detail, **({"op": f"not {detail['op']}".replace("not not ", "")} if is_leaf(detail) else {})},
    ],
    ids=["no message", "two lines", "after", "conflict", "actual", "op"],
)
def test_a_wrong_detail_is_noticed(change: Callable[[Doc], Doc]) -> None:
    """None of the details of 300 cases can be changed like this without notice."""
    assert lied(change) > 5


def test_a_detail_that_asks_for_too_little_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A threshold that is one too low leaves the voucher refused, and following it fails."""

    def modest(document: Doc) -> Doc:
        result = full(called(evaluate, document))
        for refusal in result["refused"]:
            if refusal["reason"] == "BELOW_FIRST_TIER":
                refusal["detail"]["expected"] -= 1
        return result

    monkeypatch.setitem(globals(), "result_of", modest)
    noticed = 0
    for seed in range(600):
        try:
            followed(followable(Seeded(seed)), "V0", 500)
        except AssertionError:
            noticed += 1
    assert noticed > 1


@given(DOCUMENTS)
@MANY
def test_a_time_that_a_detail_names_is_a_good_one(document: Doc) -> None:
    """At the instant named the voucher has begun, or its hours have, and at none before it that was tried."""
    by_code = {fold(voucher["code"]): voucher for voucher in document["vouchers"]}
    for refusal in result_of(document)["refused"]:
        name = {"NOT_YET_VALID": "valid_from", "OUTSIDE_HOURS": "opens_at"}.get(refusal["reason"], "")
        if refusal["detail"].get(name) is None:
            continue
        opens = refusal["detail"][name]
        assert moment(opens) > moment(document["at"])
        later = refusal_of(result_of({**document, "at": opens, "codes": [refusal["code"]]}), refusal["code"])
        assert later is None or later["reason"] != refusal["reason"]
        if name == "opens_at":
            closed = range(0, int((moment(opens) - moment(document["at"])).total_seconds()), 1740)
            hours = by_code[fold(refusal["code"])]["hours"]
            assert not any(is_open(hours, moment(document["at"]) + timedelta(seconds=step)) for step in closed)
            assert not is_open(hours, moment(opens) - timedelta(seconds=1))


# following itself


def test_following_changes_what_it_should() -> None:
    """`follow` leaves the document it was given as it is, and says so where a detail names nothing to do."""
    order: Doc = {"id": "o", "currency": "EUR", "lines": []}
    document = {"order": order, "vouchers": [{"code": "A"}], "at": "2026-06-15T12:00:00Z"}
    changed = follow(document, {"detail": {"field": "currency", "expected": "USD", "actual": "EUR"}})
    assert (order["currency"], changed["order"]["currency"]) == ("EUR", "USD")
    for detail in ({"message": "wait"}, {"after": ["B"]}, {"field": "order.quantity", "op": "lt", "expected": 0}):
        with pytest.raises(CannotFollow):
            follow(document, {"detail": detail})


@pytest.mark.parametrize("op", ["eq", "gte", "not lt", "in"])
@pytest.mark.parametrize("field", ["items.quantity", "items.subtotal_minor", "order.quantity", "order.subtotal_minor"])
def test_goods_are_set_exactly(field: str, op: str) -> None:
    """A number of units or an amount, above or below what is there, is what it should be afterwards."""
    for expected in (0, 1, 7, 100, 1234):
        order: Doc = {"id": "o", "currency": "EUR", "lines": []}
        add(order, 3, 33, {"product_ids": ["a"]})
        add(order, 2, 35, {"product_ids": ["a"], "category_ids": ["x"]}, {"category_ids": ["y"]})
        leaf: Doc = {"field": field, "op": op, "expected": [expected] if op == "in" else expected, "actual": 0}
        if field.startswith("items."):
            leaf["items"] = {"category_ids": ["y"]}
        document = {"order": order, "vouchers": [], "at": "2026-06-15T12:00:00Z"}
        if not oracle.holds(document, as_condition(leaf)):
            satisfy(order, leaf)
        assert oracle.holds(document, as_condition(leaf))
