"""What the engine costs: `make bench-engine`. Ratios within one run; the seconds of one machine say nothing of another.

The floor is plain Python written for exactly these five vouchers: no stacking rules, no windows, no conditions but the
one needed, no refusals, no texts, shares by weight. Source of the sizes: performance.md, first row.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from tallystick_shared.engine import CompiledVoucher, best, compile_voucher, evaluate, qualify
from tallystick_shared.model import Order, parse_order, parse_voucher

AT: Final = datetime(2026, 6, 15, 12, tzinfo=UTC)
FUEL_UNITS: Final = 32_623
LONG_LIST: Final = 14_477


def cart(lines: int, seed: int) -> list[dict[str, Any]]:
    """Lines with one to three units at 3.00 to 30.00, in three categories; the same seed gives the same ones."""
    made = []
    for number in range(lines):
        seed = (seed * 1103515245 + 12345) & 0x7FFFFFFF
        made.append(
            {
                "id": f"L{number}",
                "product_id": f"S{number}",
                "category_ids": [f"c{number % 3}"],
                "quantity": 1 + seed % 3,
                "unit_price_minor": 300 + (seed >> 8) % 2700,
            }
        )
    return made


def order_of(lines: list[dict[str, Any]]) -> Order:
    return parse_order({"id": "o", "currency": "USD", "lines": lines, "customer": {"id": "c", "segments": ["vip"]}})


def vouchers(groups: int) -> list[dict[str, Any]]:
    """Five kinds for each group: percent with a floor, fixed, bogo, tiers, percent of a category for a segment."""
    window = {"days": ["mon", "tue"], "from": "08:00", "to": "20:00", "timezone": "America/New_York"}
    valid = {"valid_from": "2026-06-01T00:00:00Z", "valid_until": "2026-06-30T23:59:59Z", "hours": [window]}
    made: list[dict[str, Any]] = []
    for group in range(groups):
        first = group * 3
        bogo = {"quantity": 1, "items": {"product_ids": [f"S{first + number}" for number in (1, 2, 3)]}}
        tiers = [(5000, 500), (10_000, 1000), (20_000, 1500)]
        discounts: list[dict[str, Any]] = [
            {"type": "percentage", "percent": 10 - group},
            {"type": "fixed", "amount_minor": 500 + 10 * group},
            {"type": "bogo", "buy": bogo, "get": bogo},
            {
                "type": "tiered",
                "tiers": [{"min": least, "discount": {"type": "fixed", "amount_minor": off}} for least, off in tiers],
            },
            {"type": "percentage", "percent": 7, "items": {"category_ids": [f"c{group % 3}"]}},
        ]
        whens = [{"field": "order.subtotal_minor", "op": "gte", "value": 5000 + 100 * group}, None, None, None]
        whens.append({"field": "customer.segments", "op": "contains", "value": "vip"})
        for number, (discount, when) in enumerate(zip(discounts, whens, strict=True)):
            voucher = {"code": f"V{group}-{number}", "discount": discount, "stacking": {"mode": "stackable"}, **valid}
            made.append(voucher if when is None else {**voucher, "when": when})
    return made


def compiled(documents: list[dict[str, Any]]) -> list[CompiledVoucher]:
    return [compile_voucher(parse_voucher(document, default_currency="USD")) for document in documents]


def floor(lines: list[dict[str, Any]], documents: list[dict[str, Any]]) -> int:
    """The same discounts by the shortest plain Python; what is left to pay."""
    left = [line["quantity"] * line["unit_price_minor"] for line in lines]
    subtotal = sum(left)
    for document in documents:
        discount = document["discount"]
        if discount["type"] == "bogo":
            products = discount["buy"]["items"]["product_ids"]
            units = sorted(
                (line["unit_price_minor"], number)
                for number, line in enumerate(lines)
                if line["product_id"] in products
                for _ in range(line["quantity"])
            )
            for price, number in units[: len(units) // 2]:
                left[number] -= min(price, left[number])
            continue
        categories = discount.get("items", {}).get("category_ids")
        touched = [n for n, line in enumerate(lines) if categories is None or line["category_ids"][0] in categories]
        whole = sum(left[number] for number in touched)
        if discount["type"] == "percentage":
            amount = (whole * discount["percent"] + 50) // 100
        elif discount["type"] == "fixed":
            amount = min(whole, discount["amount_minor"])
        else:
            reached = [tier for tier in discount["tiers"] if tier["min"] <= subtotal]
            amount = min(whole, reached[-1]["discount"]["amount_minor"])
        shares = [amount * left[number] // whole for number in touched]
        shares[0] += amount - sum(shares)
        for number, share in zip(touched, shares, strict=True):
            left[number] -= share
    return sum(left)


def seconds(call: Callable[[], object], rounds: int = 9) -> float:
    """The median of a call, over rounds long enough to be measured."""
    started = time.perf_counter()
    call()
    times = max(1, int(0.03 / max(1e-7, time.perf_counter() - started)))
    measured = []
    for _ in range(rounds):
        gc.collect()
        gc.disable()
        started = time.perf_counter()
        for _ in range(times):
            call()
        measured.append((time.perf_counter() - started) / times)
        gc.enable()
    return statistics.median(measured)


def against_the_floor(lines: int, groups: int) -> tuple[float, float]:
    document, given = cart(lines, 7), vouchers(groups)
    of, ready = order_of(document), compiled(given)
    applied = evaluate(of, ready, at=AT).applied
    assert len(applied) == len(ready), "every voucher applies, so that both sides do the work"
    return seconds(lambda: evaluate(of, ready, at=AT)), seconds(lambda: floor(document, given))


def growth() -> list[tuple[str, float, float]]:
    """What is compared, and the seconds of the larger and of the smaller."""

    def timed(lines: list[dict[str, Any]], given: list[dict[str, Any]]) -> float:
        of, ready = order_of(lines), compiled(given)
        return seconds(lambda: evaluate(of, ready, at=AT))

    def listing(products: int) -> list[dict[str, Any]]:
        listed = [f"S{number}" for number in range(products)]
        return [{"code": "LIST", "discount": {"type": "fixed", "amount_minor": 5, "items": {"product_ids": listed}}}]

    def percentages(count: int) -> list[dict[str, Any]]:
        discount = {"type": "percentage", "percent": 1}
        return [{"code": f"P{n}", "discount": discount, "stacking": {"mode": "stackable"}} for n in range(count)]

    ten = cart(10, 7)
    fuel = [{**line, "quantity": FUEL_UNITS} for line in ten]
    five = vouchers(1)
    return [
        (f"{FUEL_UNITS} units a line, not 1 to 3 (10 lines, 5 vouchers)", timed(fuel, five), timed(ten, five)),
        (f"a list of {LONG_LIST} products, not 10", timed(ten, listing(LONG_LIST)), timed(ten, listing(10))),
        ("1,000 lines, not 100 (5 vouchers)", timed(cart(1000, 7), five), timed(cart(100, 7), five)),
        ("80 vouchers, not 10 (10 lines)", timed(ten, percentages(80)), timed(ten, percentages(10))),
    ]


def main() -> None:
    table = Table("measured", "this", "against", "ratio", title="Engine: medians of 9 rounds, one process")

    def row(name: str, ours: float, other: float) -> None:
        table.add_row(name, f"{ours * 1e6:,.1f} us", f"{other * 1e6:,.1f} us", f"{ours / other:.2f}")

    for lines, groups in ((10, 1), (100, 4)):
        ours, other = against_the_floor(lines, groups)
        row(f"evaluate, {lines} lines x {groups * 5} vouchers, against the floor", ours, other)
    for name, larger, smaller in growth():
        row(name, larger, smaller)
    of, ready = order_of(cart(10, 7)), compiled(vouchers(2) + vouchers(3)[-2:])
    one = seconds(lambda: evaluate(of, ready, at=AT))
    row("best of 12 (4,096 sets), against one evaluate", seconds(lambda: best(of, ready, at=AT), rounds=3), one)
    row("qualify of 12, against one evaluate", seconds(lambda: qualify(of, ready, at=AT)), one)
    Console().print(table)


if __name__ == "__main__":
    main()
