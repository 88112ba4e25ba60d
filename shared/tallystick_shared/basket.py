"""An order laid out for the engine, which lines are meant by `items`, and how things stand while vouchers apply.

Lines are named by their index. Source: engine.md, "Items".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import mul
from typing import Final, TypeAlias

from .terms import Items, Line, Order
from .values import same

WHOLE: Final = 1_000_000
"""100 %, in the unit percentages are counted in: ten-thousandths of a percent."""


class Basket:
    """Columns of an order. `live` are the lines above price 0: units of price 0 are not in any discount."""

    __slots__ = ("ids", "lines", "live", "order", "prices", "product_ids", "quantities", "subtotal", "totals")

    def __init__(self, order: Order) -> None:
        lines = order.lines
        self.order = order
        self.lines = lines
        self.ids = [line.id for line in lines]
        self.prices = prices = [line.unit_price_minor for line in lines]
        self.quantities = quantities = [line.quantity for line in lines]
        self.product_ids = [line.product_id for line in lines]
        self.totals: list[int] = list(map(mul, prices, quantities))
        self.subtotal: int = sum(self.totals)
        self.live: Sequence[int] = range(len(lines))
        if 0 in prices:
            self.live = [index for index, price in enumerate(prices) if price]


class Standing:
    """What is left at one moment: of each line and of shipping in minor units, and of each line in free units.

    `free` counts the units that no bogo and no bundle has taken yet; `cap` is the strictest `max_total_percent` so far.
    """

    __slots__ = ("cap", "free", "goods", "left", "paid", "shipping")

    def __init__(self, basket: Basket) -> None:
        self.left: list[int] = basket.totals.copy()
        self.free = basket.quantities.copy()
        self.goods: int = basket.subtotal
        self.shipping = basket.order.shipping_minor
        self.paid = 0
        self.cap = WHOLE

    def copy(self) -> Standing:
        """For a search that comes back to this moment."""
        copied: Standing = object.__new__(Standing)
        copied.left, copied.free = self.left.copy(), self.free.copy()
        copied.goods, copied.shipping, copied.paid, copied.cap = self.goods, self.shipping, self.paid, self.cap
        return copied


Matcher: TypeAlias = Callable[[Basket, Sequence[int]], Sequence[int]]
"""The candidates that match, in order."""


def compile_items(items: Items | None) -> Matcher | None:
    """A matcher, or None where every line is meant."""
    if items is None or items == Items():
        return None
    if items.product_ids and not (items.category_ids or items.attributes or _excludes(items)):
        return _by_product(frozenset(items.product_ids))
    if items.category_ids and not (items.product_ids or items.attributes or _excludes(items)):
        return _by_category(frozenset(items.category_ids))
    return _by_all(items)


def _excludes(items: Items) -> bool:
    return bool(items.exclude_product_ids or items.exclude_category_ids)


def _by_product(products: frozenset[str]) -> Matcher:
    def match(basket: Basket, candidates: Sequence[int]) -> Sequence[int]:
        product_ids = basket.product_ids
        return [index for index in candidates if product_ids[index] in products]

    return match


def _by_category(categories: frozenset[str]) -> Matcher:
    def match(basket: Basket, candidates: Sequence[int]) -> Sequence[int]:
        lines = basket.lines
        return [index for index in candidates if not categories.isdisjoint(lines[index].category_ids)]

    return match


def _by_all(items: Items) -> Matcher:
    products, categories = frozenset(items.product_ids), frozenset(items.category_ids)
    attributes = tuple(items.attributes.items())
    no_products, no_categories = frozenset(items.exclude_product_ids), frozenset(items.exclude_category_ids)
    every = not (products or categories or attributes)

    def included(line: Line) -> bool:
        if every or line.product_id in products or not categories.isdisjoint(line.category_ids):
            return True
        return bool(attributes) and all(same(line.attributes.get(name), value) for name, value in attributes)

    def match(basket: Basket, candidates: Sequence[int]) -> Sequence[int]:
        lines = basket.lines
        return [
            index
            for index in candidates
            if included(lines[index])
            and lines[index].product_id not in no_products
            and no_categories.isdisjoint(lines[index].category_ids)
        ]

    return match
