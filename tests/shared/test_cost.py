"""What an evaluation costs, counted in executed lines and not in time. Source: issue 3, "Cost".

Linear in lines x vouchers; not in units, and not in how many products a voucher lists.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import msgspec
import pytest

from tallystick_shared.engine import CompiledVoucher, Result, compile_voucher, evaluate
from tallystick_shared.model import Order, Percentage, Voucher, parse_voucher
from tests.shared.build import NOON, Doc, bogo, calls_of, fixed, line, order, percentage, stackable

BUNDLE = {"type": "bundle_price", "quantity": 3, "price_minor": 250}
DISCOUNTS: dict[str, Doc] = {
    "percentage": percentage("12.5"),
    "fixed": fixed(100),
    "per line": fixed(100, per="line"),
    "per unit": fixed(1, per="unit"),
    "fixed_price": {"type": "fixed_price", "unit_price_minor": 90},
    "bundle_price": BUNDLE,
    "bogo": bogo(2, 1),
    "bogo in part": bogo(2, 1, percent="33.3333"),
    "tiered": {"type": "tiered", "basis": "quantity", "tiers": [{"min": 3, "discount": percentage(5)}]},
    "conditional": {
        "type": "conditional",
        "cases": [{"when": {"field": "order.quantity", "op": "gt", "value": 2}, "discount": BUNDLE}],
    },
}


def compiled(discount: Doc, code: str = "A", **fields: Any) -> CompiledVoucher:
    return compile_voucher(parse_voucher(stackable(discount, code, **fields), default_currency="EUR"))


def lines_run(call: Callable[[], Result]) -> tuple[int, Result]:
    """How many lines of Python a call executes."""
    count = 0

    def traced(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        count += event == "line"
        return traced

    before = sys.gettrace()
    sys.settrace(traced)
    try:
        result = call()
    finally:
        sys.settrace(before)
    return count, result


def cost(of: Order, *vouchers: CompiledVoucher) -> int:
    count, result = lines_run(lambda: evaluate(of, vouchers, at=NOON))
    assert result.applied
    return count


@pytest.mark.parametrize("discount", DISCOUNTS.values(), ids=DISCOUNTS)
def test_units_cost_nothing(discount: Doc) -> None:
    """A thousand million units of a line cost what nine cost: no work is done unit by unit."""
    voucher = compiled(discount)
    few, many = (order(line(100, units), line(70, units), 130) for units in (9, 999_999_999))
    assert cost(many, voucher) <= cost(few, voucher) * 1.2


@pytest.mark.parametrize("discount", DISCOUNTS.values(), ids=DISCOUNTS)
def test_lines_cost_in_proportion(discount: Doc) -> None:
    """Ten times the lines cost at most ten times as much, for every discount."""
    voucher = compiled(discount)
    few, many = (order(*(line(100 + number % 7, 1 + number % 5) for number in range(lines))) for lines in (100, 1000))
    assert cost(many, voucher) <= cost(few, voucher) * 10.5


def test_values_and_segments_are_looked_up_and_not_compared_in_pairs() -> None:
    """A thousand values against a thousand: a few lines for each value, not a million."""
    of = order(100, customer={"attributes": {"n": list(range(1000))}})
    when = {"field": "customer.attributes.n", "op": "contains_any", "value": [*range(1000, 1999), 5]}
    assert cost(of, compiled(percentage(5), when=when)) < 100_000  # some 5,000; more where the product is traced


def test_vouchers_cost_in_proportion() -> None:
    """Eight times the vouchers cost at most eight times as much."""
    of = order(*(line(10_000, 2) for _ in range(20)))
    some = [compiled(percentage(1), f"P{number}") for number in range(10)]
    many = [compiled(percentage(1), f"P{number}") for number in range(80)]
    assert cost(of, *many) <= cost(of, *some) * 8.5


class Watched(tuple[str, ...]):
    """A list of ids that knows how often somebody went through it."""

    walks = 0

    def __iter__(self) -> Iterator[str]:
        Watched.walks += 1
        return super().__iter__()


def test_a_long_list_of_products_is_read_once() -> None:
    """A voucher of 14,477 products is compiled once; no order reads its list again, nor does a refusal."""
    read = parse_voucher(stackable(percentage(10, items={"product_ids": ["p"]}), "A"))
    assert isinstance(read.discount, Percentage)
    assert read.discount.items is not None
    listed = Watched(["p", *(str(number) for number in range(14_477))])
    items = msgspec.structs.replace(read.discount.items, product_ids=listed)
    voucher: Voucher = msgspec.structs.replace(read, discount=msgspec.structs.replace(read.discount, items=items))
    Watched.walks = 0
    ready = compile_voucher(voucher)
    assert Watched.walks == 1
    of = order(100, 200)
    long = cost(of, ready)
    refused = evaluate(order(line(100, product_id="other")), [ready], at=NOON)
    assert refused.refused[0].detail["message"] == "add 1 unit of product p, 0, 1 or 14475 more"
    assert Watched.walks == 1
    assert long == cost(of, compiled(percentage(10, items={"product_ids": ["p"]})))


def test_the_next_opening_is_found_day_by_day() -> None:
    """A hundred windows that open tomorrow: each is asked about a few moments, not about two weeks of them."""
    hours = [{"from": f"0{n % 10}:{n // 10:02}", "to": "10:30", "timezone": "Europe/Berlin"} for n in range(100)]
    voucher = compiled(percentage(5), hours=hours)
    asked, result = calls_of("is_open", lambda: evaluate(order(100), [voucher], at=NOON))
    [refused] = result.refused
    assert refused.detail["opens_at"].isoformat() == "2026-06-16T00:00:00+02:00"
    assert asked < 100 * 5
