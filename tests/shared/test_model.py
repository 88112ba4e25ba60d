"""The door: every kind of bad input is one error with the exact path. Source: engine.md, "Order" to "Conditions"."""

from __future__ import annotations

import decimal
import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tallystick_shared.engine import evaluate
from tallystick_shared.errors import InvalidInput
from tallystick_shared.model import (
    Order,
    Percent,
    Percentage,
    Usage,
    Voucher,
    load_voucher,
    order_json,
    parse_order,
    parse_request,
    parse_voucher,
    schema_hook,
    voucher_json,
)
from tests.shared import cases
from tests.shared.build import Doc, bogo, fixed, line, percentage, voucher

DATA = Path("/work/shared/data/complete-journey")


def refusal(parse: Callable[[Any], object], raw: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        parse(raw)
    assert len(str(caught.value)) < 400
    return caught.value


def euro(raw: Any) -> Voucher:
    return parse_voucher(raw, default_currency="EUR")


def nested(depth: int) -> Doc:
    tree: Doc = {"field": "order.quantity", "op": "gt", "value": 0}
    for _ in range(depth - 1):
        tree = {"not": tree}
    return tree


PERCENTAGE = "must be a percentage above 0 and at most 100, with at most 4 decimal places"
LEAF = {"field": "order.quantity", "op": "gt", "value": 0}
CLOCK = {"from": "08:00", "to": "09:00", "timezone": "Europe/Berlin"}


def tiered(*minimums: Any, **fields: Any) -> Doc:
    return {"type": "tiered", "tiers": [{"min": one, "discount": fixed(1)} for one in minimums], **fields}


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"code": ""}, "code"),
        ({"code": " "}, "code"),
        ({"code": "x" * 10_000}, "code"),
        ({"code": 5}, "code"),
        ({"code": "\u0378"}, "code"),
        ({"status": "on"}, "status"),
        ({"nonsense": 1}, "nonsense"),
        ({"campaign_id": ""}, "campaign_id"),
        ({"discount": None}, "discount"),
        ({"discount": {}}, "discount.type"),
        ({"discount": {"type": "half"}}, "discount.type"),
        ({"discount": {"type": "percentage"}}, "discount.percent"),
        ({"discount": percentage(0)}, "discount.percent"),
        ({"discount": percentage(-1)}, "discount.percent"),
        ({"discount": percentage("100.0001")}, "discount.percent"),
        ({"discount": percentage(1.00001)}, "discount.percent"),
        ({"discount": percentage("0.00001")}, "discount.percent"),
        ({"discount": percentage(True)}, "discount.percent"),
        ({"discount": percentage(None)}, "discount.percent"),
        ({"discount": percentage("NaN")}, "discount.percent"),
        ({"discount": percentage("１0")}, "discount.percent"),
        ({"discount": percentage("1_0")}, "discount.percent"),
        ({"discount": percentage(" 10")}, "discount.percent"),
        ({"discount": percentage("1e1")}, "discount.percent"),
        ({"discount": percentage([10])}, "discount.percent"),
        ({"discount": percentage(float("nan"))}, "discount.percent"),
        ({"discount": percentage(float("inf"))}, "discount.percent"),
        ({"discount": percentage(10, cap_minor=0)}, "discount.cap_minor"),
        ({"discount": percentage(10, cap_minor=1.5)}, "discount.cap_minor"),
        ({"discount": percentage(10, per="unit")}, "discount.per"),
        ({"discount": percentage(10, items=[])}, "discount.items"),
        ({"discount": percentage(10, items={"product_ids": "a"})}, "discount.items.product_ids"),
        ({"discount": percentage(10, items={"product_ids": ["a", 5]})}, "discount.items.product_ids[1]"),
        ({"discount": percentage(10, items={"product_ids": [""]})}, "discount.items.product_ids[0]"),
        ({"discount": percentage(10, items={"skus": []})}, "discount.items.skus"),
        ({"discount": percentage(10, items={"attributes": {"a": None}})}, "discount.items.attributes.a"),
        ({"discount": percentage(10, items={"attributes": {"a": {"b": 1}}})}, "discount.items.attributes.a"),
        ({"discount": fixed(0)}, "discount.amount_minor"),
        ({"discount": fixed(-5)}, "discount.amount_minor"),
        ({"discount": fixed(10**12 + 1)}, "discount.amount_minor"),
        ({"discount": fixed(10**400)}, "discount.amount_minor"),
        ({"discount": {"type": "fixed", "amount_minor": 5.0}}, "discount.amount_minor"),
        ({"discount": {"type": "fixed", "amount_minor": "5"}}, "discount.amount_minor"),
        ({"discount": {"type": "fixed", "amount_minor": True}}, "discount.amount_minor"),
        ({"discount": fixed(5, per="cart")}, "discount.per"),
        ({"discount": {"type": "fixed_price"}}, "discount.unit_price_minor"),
        ({"discount": {"type": "bundle_price", "quantity": 0, "price_minor": 1}}, "discount.quantity"),
        (
            {"discount": {"type": "bundle_price", "quantity": 2, "price_minor": 1, "max_applications": 0}},
            "discount.max_applications",
        ),
        ({"discount": bogo(0, 1)}, "discount.buy.quantity"),
        ({"discount": {"type": "bogo", "buy": {"quantity": 1}}}, "discount.get"),
        ({"discount": bogo(1, 1, percent=50, amount_minor=5)}, "discount.get"),
        ({"discount": bogo(1, 1, percent=101)}, "discount.get.percent"),
        ({"discount": bogo(1, 1, get_items={"attributes": {"a": 1.5e300}})}, "discount.get.items.attributes.a"),
        ({"discount": tiered()}, "discount.tiers"),
        ({"discount": tiered(-1)}, "discount.tiers[0].min"),
        ({"discount": tiered(5, 5)}, "discount.tiers[1].min"),
        ({"discount": tiered(1, 9, 5)}, "discount.tiers[2].min"),
        ({"discount": tiered(1, 2.5)}, "discount.tiers[1].min"),
        ({"discount": tiered(1, basis="weight")}, "discount.basis"),
        (
            {"discount": {"type": "tiered", "tiers": [{"min": 1, "discount": tiered(1)}]}},
            "discount.tiers[0].discount.type",
        ),
        (
            {"discount": {"type": "tiered", "tiers": [{"min": 1, "discount": bogo(1, 1, percent=5, amount_minor=5)}]}},
            "discount.tiers[0].discount.get",
        ),
        ({"discount": {"type": "conditional", "cases": []}}, "discount.cases"),
        (
            {"discount": {"type": "conditional", "cases": [{"when": {}, "discount": fixed(1)}]}},
            "discount.cases[0].when",
        ),
        (
            {
                "discount": {
                    "type": "conditional",
                    "cases": [{"when": LEAF, "discount": fixed(1)}],
                    "otherwise": tiered(1),
                }
            },
            "discount.otherwise.type",
        ),
        ({"discount": {"type": "shipping", "items": {}}}, "discount.items"),
        ({"discount": {"type": "gift_card", "balance_minor": -1}}, "discount.balance_minor"),
        ({"when": {}}, "when"),
        ({"when": []}, "when"),
        ({"when": {"all": []}}, "when.all"),
        ({"when": {"any": [LEAF, {"any": []}]}}, "when.any[1].any"),
        ({"when": {"all": None}}, "when.all"),
        ({"when": {"all": [LEAF], "any": [LEAF]}}, "when"),
        ({"when": {"all": [LEAF], "op": "eq"}}, "when.op"),
        ({"when": {"nor": [LEAF]}}, "when.nor"),
        ({"when": {"field": "order.quantity", "op": "gt"}}, "when.value"),
        ({"when": {"field": "order.quantity", "value": 1}}, "when.op"),
        ({"when": {**LEAF, "op": "~"}}, "when.op"),
        ({"when": {**LEAF, "field": "order.total"}}, "when.field"),
        ({"when": {**LEAF, "field": "order.attributes."}}, "when.field"),
        ({"when": {**LEAF, "value": None}}, "when.value"),
        ({"when": {**LEAF, "value": "1"}}, "when.value"),
        ({"when": {**LEAF, "value": True}}, "when.value"),
        ({"when": {**LEAF, "value": 1.5}}, "when.value"),
        ({"when": {**LEAF, "op": "in", "value": 1}}, "when.value"),
        ({"when": {**LEAF, "op": "in", "value": []}}, "when.value"),
        ({"when": {**LEAF, "op": "in", "value": [1, "a"]}}, "when.value[1]"),
        ({"when": {**LEAF, "op": "exists", "value": 1}}, "when.value"),
        ({"when": {**LEAF, "op": "contains", "value": 1}}, "when.op"),
        ({"when": {**LEAF, "items": {}}}, "when.items"),
        ({"when": {"field": "items.quantity", "op": "gt", "value": 1}}, "when.items"),
        ({"when": {"field": "customer.id", "op": "eq", "value": 5}}, "when.value"),
        ({"when": {"field": "customer.segments", "op": "in", "value": ["vip"]}}, "when.op"),
        ({"when": {"field": "customer.segments", "op": "contains", "value": 1}}, "when.value"),
        ({"when": {"field": "customer.segments", "op": "contains_any", "value": []}}, "when.value"),
        ({"when": {"field": "order.attributes.a", "op": "in", "value": [1, True]}}, "when.value[1]"),
        ({"when": {"field": "order.attributes.a", "op": "gt", "value": True}}, "when.value"),
        ({"when": {"field": "order.attributes.a", "op": "eq", "value": {"a": 1}}}, "when.value"),
        ({"when": {"field": "order.attributes.a", "op": "eq", "value": 10**30}}, "when.value"),
        ({"when": nested(9)}, ".".join(["when"] + ["not"] * 8)),
        ({"when": nested(400)}, ""),
        ({"when": {"all": [LEAF] * 65}}, "when"),
        ({"valid_from": "2026-06-01T00:00:00"}, "valid_from"),
        ({"valid_from": "2026-06-01"}, "valid_from"),
        ({"valid_from": "2026-02-30T00:00:00Z"}, "valid_from"),
        ({"valid_from": "2026-06-01T24:00:00Z"}, "valid_from"),
        ({"valid_from": "2026-06-01T00:00:00+25:00"}, "valid_from"),
        ({"valid_from": "0001-01-01T00:00:00Z"}, "valid_from"),
        ({"valid_from": 1780000000}, "valid_from"),
        ({"valid_from": "2026-06-02T00:00:00Z", "valid_until": "2026-06-01T23:59:59Z"}, "valid_until"),
        ({"hours": []}, "hours"),
        ({"hours": {}}, "hours"),
        ({"hours": [{**CLOCK, "from": "24:00"}]}, "hours[0].from"),
        ({"hours": [CLOCK, {**CLOCK, "to": "9:00"}]}, "hours[1].to"),
        ({"hours": [{**CLOCK, "to": "09:00:30"}]}, "hours[0].to"),
        ({"hours": [{**CLOCK, "timezone": "Mars/Base"}]}, "hours[0].timezone"),
        ({"hours": [{**CLOCK, "days": []}]}, "hours[0].days"),
        ({"hours": [{**CLOCK, "days": ["monday"]}]}, "hours[0].days[0]"),
        ({"hours": [{"from": "08:00", "to": "09:00"}]}, "hours[0].timezone"),
        ({"currency": "eur"}, "currency"),
        ({"currency": "EURO"}, "currency"),
        ({"currency": "ZZZ"}, "currency"),
        ({"limits": {"total": 0}}, "limits.total"),
        ({"limits": {"per_customer": 1.0}}, "limits.per_customer"),
        ({"limits": {"budget": 5}}, "limits.budget"),
        ({"limits": []}, "limits"),
        ({"stacking": {"mode": "both"}}, "stacking.mode"),
        ({"stacking": {"group": "g"}}, "stacking.group"),
        ({"stacking": {"priority": 0.5}}, "stacking.priority"),
        ({"stacking": {"priority": 10**9}}, "stacking.priority"),
        ({"stacking": {"max_total_percent": 0}}, "stacking.max_total_percent"),
        ({"offline": {"policy": "never"}}, "offline.policy"),
        ({"offline": {"policy": "quota"}}, "offline.policy"),
        ({"offline": {"policy": "exclusive"}}, "offline.policy"),
        ({"offline": {"policy": "soft"}}, "offline.max_units"),
        ({"offline": {"policy": "soft", "max_units": 5}}, "offline.max_minor"),
        ({"offline": {"policy": "open", "max_units": 5}}, "offline.max_units"),
        (
            {
                "discount": {"type": "gift_card", "balance_minor": 5},
                "limits": {"total": 1},
                "offline": {"policy": "quota"},
            },
            "offline.policy",
        ),
        ({"metadata": []}, "metadata"),
        ({"metadata": {"a": "x" * 9000}}, "metadata"),
    ],
)
def test_a_bad_voucher_is_refused_at_its_path(fields: Doc, path: str) -> None:
    """One field is wrong, and the error names that field and no other."""
    assert refusal(euro, {**voucher(fixed(5)), **fields}).path == path


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"", "must be JSON: it is empty"),
        (b"{", "must be JSON: it ends too early"),
        (b'{"code":"A",}', "must be JSON: a comma after the last field, at column 13"),
        (b'{\n "code": "A"\n "x": 1}', "must be JSON: expected ',' or '}', at line 3, column 2"),
        (b"[]", "must be an object, not an empty list"),
        (b"null", "must be an object, not null"),
        (b'"\xff"', "must be JSON in UTF-8, not other bytes"),
        (b'{"code":"\xff"}', "must be JSON in UTF-8, not other bytes"),
        (b"\xef\xbb\xbf{}", "must be JSON: something that is no JSON, at column 1"),
        (b'{"metadata":' + b"[" * 100_000, "must be JSON that is not nested so deeply"),
        (b'{"metadata":{"a":' + b"[" * 100_000, "must be JSON that is not nested so deeply"),
        (b'{"when":' + b'{"not":' * 100_000, "must be JSON that is not nested so deeply"),
        (
            b'{"code":"A","code":"B","discount":{"type":"fixed","amount_minor":5}}',
            'must not give the key "code" twice in one object',
        ),
        (
            b'{"code":"A","discount":{"type":"fixed","amount_minor":NaN}}',
            "must be JSON: something that is no JSON, at column 55",
        ),
        (
            b'{"code":"A","discount":{"type":"fixed","amount_minor":5.00}}',
            "discount.amount_minor: must be a whole number of minor units (cents), as 500 is for 5.00, not 5.00",
        ),
        (
            b'{"code":"A","discount":{"type":"percentage","percent":100.0001}}',
            f"discount.percent: {PERCENTAGE}, not 100.0001",
        ),
        (
            b'{"code":"A","discount":{"type":"percentage","percent":1e999999999}}',
            f"discount.percent: {PERCENTAGE}, not 1E+999999999",
        ),
        (
            b'{"code":"A","discount":{"type":"percentage","percent":1e-999999999}}',
            f"discount.percent: {PERCENTAGE}, not 1E-999999999",
        ),
        (
            b'{"code":"A","discount":{"type":"percentage","percent":0.1000000000000000000000000000000001}}',
            f"discount.percent: {PERCENTAGE}, not 0.1000000000000000000000000000000001",
        ),
        (
            b'{"code":"A","discount":{"type":"percentage","percent":1e99999999999999999999}}',
            "must hold only numbers of an ordinary size",
        ),
        (
            b'{"code":"A","discount":{"type":"shipping"},"metadata":{"x":-1e-99999999999999999999}}',
            "must hold only numbers of an ordinary size",
        ),
        (
            b'{"code":"A","discount":{"type":"shipping"},"metadata":{"x":' + b"1" * 5000 + b"}}",
            "must hold only numbers of an ordinary size",
        ),
        (b'{"discount":{"type":"percentage","percent":10}}', "code: is required"),
        (
            b'{"code":"A","discount":{"type":"fixed","amount_minor":5}}',
            "currency: is required, because of an amount in discount",
        ),
    ],
)
def test_bad_json_is_one_clear_line(raw: bytes, text: str) -> None:
    """What is not JSON, not UTF-8, too deep, ambiguous or inexact says so, and shows what it was."""
    assert str(refusal(parse_voucher, raw)) == text


def test_the_structs_have_a_json_schema() -> None:
    """What the server publishes in OpenAPI comes from the structs that read the documents."""
    for struct in (Order, Voucher):
        schema = msgspec.json.schema(struct, schema_hook=schema_hook)
        assert struct.__name__ in schema["$defs"]


def test_percentages_are_exact_whatever_the_decimal_context() -> None:
    """A host process that computes with two digits gets the same percentages."""
    with decimal.localcontext(decimal.Context(prec=2)):
        made = parse_voucher(voucher(percentage("33.3333")))
        assert isinstance(made.discount, Percentage)
        assert made.discount.percent.ten_thousandths == 333333
        assert refusal(parse_voucher, voucher(percentage("33.33333"))).path == "discount.percent"


@pytest.mark.parametrize("value", [object(), {1: 2}, b"bytes", {"a": {"b": {1, 2}}}, "\ud800", float("nan")])
def test_a_dict_that_json_cannot_hold_is_refused(value: Any) -> None:
    """Python objects, keys that are not text, lone surrogates and NaN are errors of the input."""
    assert refusal(euro, {**voucher(fixed(5)), "metadata": {"x": value}}).expected


def test_a_dict_that_holds_itself_is_refused() -> None:
    """Endless nesting is an error of the input, not of the interpreter."""
    endless: Doc = {}
    endless["x"] = endless
    assert refusal(euro, {**voucher(fixed(5)), "metadata": endless}).expected


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"id": ""}, "id"),
        ({"currency": "usd"}, "currency"),
        ({"lines": None}, "lines"),
        ({"lines": [line(5)]}, "lines[0].id"),
        ({"lines": [{"id": "1", **line(5)}, {"id": "1", **line(5)}]}, "lines[1].id"),
        ({"lines": [{"id": "1", **line(5, 0)}]}, "lines[0].quantity"),
        ({"lines": [{"id": "1", **line(5), "quantity": 1.5}]}, "lines[0].quantity"),
        ({"lines": [{"id": "1", **line(5), "quantity": True}]}, "lines[0].quantity"),
        ({"lines": [{"id": "1", **line(-1)}]}, "lines[0].unit_price_minor"),
        ({"lines": [{"id": "1", **line(10**12 + 1)}]}, "lines[0].unit_price_minor"),
        ({"lines": [{"id": "1", **line(10**12, 1001)}]}, "lines"),
        ({"lines": [{"id": "1", **line(5, attributes={"a": {"b": 1}})}]}, "lines[0].attributes.a"),
        ({"lines": [{"id": "1", **line(5, attributes={"a": [[1]]})}]}, "lines[0].attributes.a[0]"),
        ({"lines": [{"id": "1", **line(5, attributes={"": 1})}]}, "lines[0].attributes"),
        ({"lines": [{"id": "1", **line(5, attributes={"a": 1e-30})}]}, "lines[0].attributes.a"),
        ({"shipping_minor": -1}, "shipping_minor"),
        ({"shipping_minor": 4.9}, "shipping_minor"),
        ({"customer": "c"}, "customer"),
        ({"customer": {"id": 5}}, "customer.id"),
        ({"customer": {"segments": "vip"}}, "customer.segments"),
        ({"customer": {"attributes": {"a": float("inf")}}}, "customer.attributes.a"),
        ({"attributes": {"a": 10**19}}, "attributes.a"),
        ({"attributes": {str(n): n for n in range(101)}}, "attributes"),
        ({"total_minor": 5}, "total_minor"),
    ],
)
def test_a_bad_order_is_refused_at_its_path(fields: Doc, path: str) -> None:
    """Ids, quantities, prices, attributes: the error names the field."""
    assert refusal(parse_order, {"id": "o", "currency": "EUR", "lines": [], **fields}).path == path


def request(**fields: Any) -> Doc:
    order = {"id": "o", "currency": "EUR", "lines": [{"id": "1", **line(5)}]}
    return {"order": order, "vouchers": [voucher(percentage(10))], "at": "2026-06-01T00:00:00Z", **fields}


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"at": "2026-06-01T00:00:00"}, "at"),
        ({"at": None}, "at"),
        (
            {"order": {"id": "o", "currency": "EUR", "lines": [{"id": "1", **line(-5)}]}},
            "order.lines[0].unit_price_minor",
        ),
        ({"order": {"id": "o", "currency": "???", "lines": []}}, "order.currency"),
        (
            {"vouchers": [voucher(percentage(10)), voucher(tiered(5, 1), "B", currency="EUR")]},
            "vouchers[1].discount.tiers[1].min",
        ),
        ({"vouchers": [voucher(percentage(10), "x"), voucher(percentage(10), " X ")]}, "vouchers[1].code"),
        ({"vouchers": [voucher(fixed(10))]}, "vouchers[0].currency"),
        (
            {
                "vouchers": [
                    voucher({"type": "tiered", "tiers": [{"min": 1, "discount": {"type": "percentage", "percent": 0}}]})
                ]
            },
            "vouchers[0].discount.tiers[0].discount.percent",
        ),
        ({"vouchers": {}}, "vouchers"),
        ({"codes": "A"}, "codes"),
        ({"codes": ["A", ""]}, "codes[1]"),
        ({"codes": ["A", 5]}, "codes[1]"),
        ({"usage": []}, "usage"),
        ({"usage": {"A": {"total": -1}}}, 'usage["A"].total'),
        ({"usage": {"A": {"totals": 1}}}, 'usage["A"].totals'),
        ({"usage": {"A": 5}}, 'usage["A"]'),
        ({"usage": {" ": {}}}, 'usage[" "]'),
        ({"usage": {"A": {}, "a": {}}}, 'usage["a"]'),
        ({"now": 1}, "now"),
    ],
)
def test_a_bad_request_is_refused_at_its_path(fields: Doc, path: str) -> None:
    """Paths go from the outside in, as a user would write them."""
    assert refusal(parse_request, request(**fields)).path == path


def test_a_request_is_read_whole() -> None:
    """Codes as typed, usage by folded code, no codes and no usage as None."""
    read = parse_request(request(codes=[" Code ", "CODE"], usage={" Code ": {"total": 1}}))
    assert (read.codes, read.usage) == ((" Code ", "CODE"), {"code": Usage(total=1)})
    assert read.at.isoformat() == "2026-06-01T00:00:00+00:00"
    bare = parse_request(json.dumps(request()))
    assert (bare.codes, bare.usage, len(bare.vouchers)) == (None, None, 1)


@pytest.mark.parametrize(
    ("given", "written"),
    [
        (0.1, "0.1"),
        ("0.10", "0.1"),
        (100, "100"),
        ("100.0000", "100"),
        (12.5, "12.5"),
        ("0.0001", "0.0001"),
        (20, "20"),
    ],
)
def test_percentages_keep_their_text(given: Any, written: str) -> None:
    """0.1 is exactly 0.1, as number and as text, and is written one way only."""
    made = parse_voucher(voucher(percentage(given)))
    assert made.discount.percent == Percent(written)  # type: ignore[union-attr]  # it is a percentage
    assert f'"percent":{written}}}'.encode() in voucher_json(made)
    assert parse_voucher(voucher_json(made)) == made


@pytest.mark.parametrize("text", ["1e1", "1E1", "10.0", "10.00000000", "1000e-2"])
def test_any_spelling_of_a_json_number_is_a_percentage(text: str) -> None:
    """JSON writes ten in many ways."""
    raw = f'{{"code":"A","discount":{{"type":"percentage","percent":{text}}}}}'
    assert voucher_json(parse_voucher(raw)) == b'{"code":"A","discount":{"type":"percentage","percent":10}}'


@pytest.mark.parametrize(
    ("fields", "policy"),
    [
        ({}, "open"),
        ({"limits": {"per_customer": 1}}, "open"),
        ({"limits": {"total": 1}}, "quota"),
        ({"limits": {"budget_minor": 1}}, "quota"),
        ({"limits": {"total": 1}, "offline": {}}, "quota"),
        ({"limits": {"total": 1}, "offline": {"policy": "exclusive"}}, "exclusive"),
        ({"limits": {"total": 1}, "offline": {"policy": "soft", "max_units": 1, "max_minor": 9}}, "soft"),
        ({"discount": {"type": "gift_card", "balance_minor": 5}, "limits": {"total": 1}}, "online_only"),
        (
            {
                "discount": {
                    "type": "tiered",
                    "tiers": [{"min": 1, "discount": {"type": "gift_card", "balance_minor": 5}}],
                }
            },
            "online_only",
        ),
    ],
)
def test_the_offline_policy_follows_from_the_voucher(fields: Doc, policy: str) -> None:
    """quota where there is a limit, online_only for gift cards, else open; and written only where it differs."""
    made = euro({**voucher(fixed(5)), **fields})
    assert made.offline.policy == policy
    assert (b'"offline"' in voucher_json(made)) == (policy in ("soft", "exclusive"))
    assert euro(voucher_json(made)) == made


@pytest.mark.parametrize(
    ("fields", "needed"),
    [
        ({"discount": percentage(10)}, False),
        ({"discount": percentage(10, cap_minor=None)}, False),
        ({"discount": percentage(10, cap_minor=5)}, True),
        ({"discount": fixed(5)}, True),
        ({"discount": bogo(1, 1)}, False),
        ({"discount": bogo(1, 1, amount_minor=5)}, True),
        ({"discount": {"type": "shipping"}}, False),
        ({"discount": {"type": "shipping", "cap_minor": 5}}, True),
        ({"discount": {"type": "gift_card", "balance_minor": 5}}, True),
        ({"discount": {"type": "tiered", "tiers": [{"min": 1, "discount": percentage(10)}]}}, True),
        (
            {"discount": {"type": "tiered", "basis": "quantity", "tiers": [{"min": 1, "discount": percentage(10)}]}},
            False,
        ),
        ({"discount": {"type": "tiered", "basis": "quantity", "tiers": [{"min": 1, "discount": fixed(10)}]}}, True),
        ({"discount": {"type": "conditional", "cases": [{"when": LEAF, "discount": percentage(10)}]}}, False),
        (
            {
                "discount": {
                    "type": "conditional",
                    "cases": [{"when": {**LEAF, "field": "order.subtotal_minor"}, "discount": percentage(10)}],
                }
            },
            True,
        ),
        ({"when": {"not": {"field": "items.subtotal_minor", "op": "gt", "value": 1, "items": {}}}}, True),
        ({"when": {"field": "order.attributes.x_minor", "op": "gt", "value": 1}}, False),
        ({"limits": {"budget_minor": 5}}, True),
        ({"limits": {"total": 5}, "offline": {"policy": "soft", "max_units": 1, "max_minor": 5}}, True),
    ],
)
def test_a_currency_is_needed_by_amounts_only(fields: Doc, needed: bool) -> None:
    """Missing where it is needed it is filled in, or an error without a default; elsewhere it stays away."""
    raw = {"code": "A", "discount": percentage(10), **fields}
    assert euro(raw).currency == ("EUR" if needed else None)
    if needed:
        assert refusal(parse_voucher, raw).path == "currency"
    else:
        assert parse_voucher(raw).currency is None


def test_defaults_have_one_form() -> None:
    """What says nothing is written as nothing, so that equal vouchers are equal bytes."""
    loud = voucher(
        percentage(10, cap_minor=None, items=None),
        " Code ",
        status="active",
        when=None,
        hours=None,
        limits={"total": None},
        stacking={"mode": "exclusive", "priority": 0, "group": None, "max_total_percent": None},
        offline={"policy": "open"},
        metadata={},
    )
    assert voucher_json(parse_voucher(loud)) == voucher_json(parse_voucher(voucher(percentage(10), "Code")))


def test_the_example_of_the_contract_is_read_and_written() -> None:
    """The order and the voucher of engine.md come out as they went in, defaults left out."""
    order = {
        "id": "order-81",
        "currency": "USD",
        "store_id": "309",
        "channel": "pos",
        "lines": [
            {
                "id": "1",
                "product_id": "940996",
                "quantity": 2,
                "unit_price_minor": 125,
                "category_ids": ["GROCERY"],
                "attributes": {"brand": "National"},
            }
        ],
        "shipping_minor": 0,
        "customer": {"id": "2261", "segments": ["premium"], "attributes": {"birthday_month": 5}},
        "attributes": {"payment_method": "card"},
    }
    del order["shipping_minor"]
    assert json.loads(order_json(parse_order(order))) == order
    full = voucher(
        percentage(20),
        "SUMMER20",
        campaign_id="summer",
        when=LEAF,
        valid_from="2026-06-01T00:00:00+02:00",
        valid_until="2026-08-31T23:59:59+02:00",
        hours=[{"days": ["mon", "fri"], "from": "16:00", "to": "18:00", "timezone": "Europe/Berlin"}],
        currency="EUR",
        limits={"total": 1000, "per_customer": 1, "budget_minor": 500000},
        stacking={"mode": "stackable"},
    )
    assert json.loads(voucher_json(parse_voucher(full))) == full


def test_numbers_with_fractions_are_never_floats() -> None:
    """Attributes and metadata keep the text of their numbers."""
    raw = b'{"code":"A","discount":{"type":"shipping"},"metadata":{"x":0.1000000000000000055511151231257827}}'
    assert b"0.1000000000000000055511151231257827" in voucher_json(parse_voucher(raw))


def test_trusted_bytes_get_the_same_checks() -> None:
    """load_voucher reads what voucher_json wrote, and still refuses what makes no sense."""
    made = euro(voucher(fixed(5)))
    assert load_voucher(voucher_json(made)) == load_voucher(memoryview(voucher_json(made))) == made
    refusal(load_voucher, b'{"code":"A","discount":{"type":"tiered","tiers":[]}}')


@given(st.integers(0, 10**6))
@settings(max_examples=150, deadline=None)
def test_writing_and_reading_change_nothing(seed: int) -> None:
    """parse of dump is the identity, for vouchers and for orders, byte for byte."""
    document = cases.document(seed)
    order = parse_order(document["order"])
    assert parse_order(order_json(order)) == order
    for raw in document["vouchers"]:
        made = parse_voucher(raw)
        assert parse_voucher(voucher_json(made)) == made
        assert voucher_json(parse_voucher(voucher_json(made))) == voucher_json(made)


def _json(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.sampled_from(
        [
            "code",
            "discount",
            "type",
            "percent",
            "amount_minor",
            "items",
            "tiers",
            "min",
            "when",
            "all",
            "any",
            "not",
            "field",
            "op",
            "value",
            "cases",
            "buy",
            "get",
            "quantity",
            "limits",
            "total",
            "stacking",
            "hours",
            "metadata",
            "product_ids",
            "valid_from",
            "currency",
            "id",
            "lines",
            "order",
            "vouchers",
            "at",
            "usage",
        ]
    )
    return st.lists(children, max_size=3) | st.dictionaries(names | st.text(max_size=3), children, max_size=5)


WORDS = st.sampled_from(
    ["percentage", "fixed", "bogo", "tiered", "conditional", "order.quantity", "eq", "in", "EUR", "A"]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | WORDS
ANYTHING = st.recursive(SCALARS, _json, max_leaves=20)


@given(ANYTHING)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_document_is_read_or_refused(document: Any) -> None:
    """Arbitrary JSON gives a struct or InvalidInput, and nothing else, as text and as Python objects."""
    text = json.dumps(document)
    for parse in (parse_order, parse_voucher, parse_request):
        for raw in (text, text.encode(), document):
            try:
                assert parse(raw) is not None
            except InvalidInput:
                continue


@given(st.integers(0, 10**6), st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_voucher_is_read_or_refused(seed: int, data: st.DataObject) -> None:
    """A good voucher with one value replaced by anything gives a Voucher or InvalidInput."""
    document = cases.document(seed)
    spot: Any = {"x": document["vouchers"][0]}
    key: Any = "x"
    for _ in range(data.draw(st.integers(0, 5))):
        inner = spot[key]
        if not isinstance(inner, dict | list) or not inner:
            break
        spot, key = inner, data.draw(st.sampled_from(list(inner) if isinstance(inner, dict) else range(len(inner))))
    spot[key] = data.draw(ANYTHING)
    try:
        made = parse_voucher(document["vouchers"][0])
    except InvalidInput:
        return
    assert isinstance(made, Voucher)


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    """Bytes that are not JSON are InvalidInput."""
    with pytest.raises(InvalidInput):
        parse_voucher(raw)


@pytest.mark.skipif(not DATA.exists(), reason="the replay data is not here")
def test_the_replay_data_is_read() -> None:
    """Every real voucher, the largest with 14,477 products, and a thousand real orders come through the door."""
    with gzip.open(DATA / "vouchers.ndjson.gz") as rows:
        vouchers = [parse_voucher(row, default_currency="USD") for row in rows]
    assert len(vouchers) == 1197
    assert {made.offline.policy for made in vouchers} == {"quota"}
    with gzip.open(DATA / "orders.ndjson.gz") as rows:
        orders = [parse_order(json.loads(row)["order"]) for _, row in zip(range(1000), rows, strict=False)]
    assert all(isinstance(order, Order) for order in orders)


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        (b'{"lines":[{"id":1}],"lines":[]}', "lines"),
        (b'{"customer":{"id":5},"customer":null}', "customer"),
        (b'{"lines":5,"lines":[]}', "lines"),
    ],
)
def test_a_key_given_twice_is_named_whatever_else_is_wrong(raw: bytes, key: str) -> None:
    """What stands at the path may be the other of the two, and is not described."""
    with pytest.raises(InvalidInput, match=f'must not give the key "{key}" twice'):
        parse_order(raw)


def test_any_mapping_and_any_kind_of_text_and_number_is_read() -> None:
    """Read-only mappings, enumerations and other subclasses count as what they are."""

    class Kind(StrEnum):
        SHIPPING = "shipping"

    class Percents(IntEnum):
        TEN = 10

    document = MappingProxyType(
        {"code": "A", "discount": MappingProxyType({"type": Kind.SHIPPING, "percent": Percents.TEN})}
    )
    assert voucher_json(parse_voucher(document)) == b'{"code":"A","discount":{"type":"shipping","percent":10}}'


def test_codes_that_are_no_text_are_refused() -> None:
    """Also from a program without types."""
    codes: Any = [None]
    with pytest.raises(InvalidInput, match=r"codes\[0\]: must be a code, as text"):
        evaluate(parse_order({"id": "o", "currency": "EUR", "lines": []}), [], codes, at=datetime.now(UTC))


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ({"status": "a - at `$.foo"}, "status"),
        ({"a - at `$.lines[5]": 1}, "a - at `$.lines[5]"),
        ({"a - at `$.code": 1}, "a - at `$.code"),
        ({"a` - at `$.code.x": 1}, None),
        ({"discount": {"type": "a - at `$.foo[3]`"}}, "discount.type"),
        ({"discount": {"type": 5}}, "discount.type"),
        ({"discount": {"type": "shipping", "x - at `$.y": 1}}, "discount.x - at `$.y"),
    ],
)
def test_what_was_sent_is_never_taken_for_a_path(document: Doc, path: str | None) -> None:
    """Whatever a name or a value quotes, the error is one, and names the field that is wrong."""
    error = refusal(parse_voucher, {"code": "A", "discount": {"type": "shipping"}, **document})
    assert "Expected" not in error.expected
    if path is not None:
        assert error.path == path


def test_metadata_is_nested_to_a_fixed_depth() -> None:
    """The same for every caller, however deep in the stack it stands."""
    good: Any = 1
    for _ in range(31):
        good = [good]
    document = {"code": "A", "discount": {"type": "shipping"}}
    assert parse_voucher(json.dumps({**document, "metadata": {"a": good}}))
    error = refusal(parse_voucher, json.dumps({**document, "metadata": {"a": [good]}}))
    assert (error.path, error.expected) == ("metadata", "must not be nested deeper than 32")
