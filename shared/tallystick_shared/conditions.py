"""Conditions: what a `when` tree means, compiled once into functions, and what would have to change for it to hold.

Source: engine.md, "Conditions". Unlike types compare false, for `ne` and `not_in` too; a missing field (null is
missing) makes a leaf false, but for `exists: false`, `ne` and `not_in`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import cache
from typing import Any, Final, TypeAlias

from msgspec import UNSET

from .basket import Basket, compile_items
from .checks import NUMBER_FIELDS
from .details import Detail, leaf_detail
from .feasible import Facts, facts, possible
from .terms import Condition
from .values import key_of, kind_of, same

Test: TypeAlias = Callable[[Basket, int], bool]
"""Whether it holds for a basket of which the goods still cost that much, in minor units."""
_Reader: TypeAlias = Callable[[Basket, int], Any]
_Compare: TypeAlias = Callable[[Any], bool]
_Needs: TypeAlias = Callable[[Basket, int], list[Detail]]
"""The details of the leaves that would have to change; empty where the node turns out as it has to."""

_ORDERING: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}


class Rule:
    """A compiled tree. `holds` is asked for each order, `needs` only where it does not hold.

    `needs` gives every leaf that has to change, by the way that changes the fewest. `beside` has to hold as well.
    """

    __slots__ = ("holds", "needs")

    def __init__(self, condition: Condition, beside: Condition | None = None) -> None:
        known = cache(lambda: facts(condition, facts(beside, Facts())))
        self.holds, self.needs = _compile(condition, True, known)


def reads_remaining(condition: Condition | None) -> bool:
    """Whether it can turn out otherwise once other vouchers have been applied."""
    if condition is None:
        return False
    inner = [*(condition.all_of or ()), *(condition.any_of or ())]
    if condition.negated is not UNSET:
        inner.append(condition.negated)
    return condition.field == "order.remaining_minor" or any(map(reads_remaining, inner))


def _compile(condition: Condition, wanted: bool, known: Callable[[], Facts]) -> tuple[Test, _Needs]:
    """The tree as two functions; `wanted` says whether this node has to hold or, under a `not`, must not.

    It comes through the door: no node is of two kinds and none is too deep.
    """
    if condition.all_of is not UNSET:
        every, needs = _compile_each(condition.all_of, wanted, wanted, known)
        return (lambda basket, remaining: all(test(basket, remaining) for test in every)), needs
    if condition.any_of is not UNSET:
        some, needs = _compile_each(condition.any_of, wanted, not wanted, known)
        return (lambda basket, remaining: any(test(basket, remaining) for test in some)), needs
    if condition.negated is not UNSET:
        negated, needs = _compile(condition.negated, not wanted, known)
        return (lambda basket, remaining: not negated(basket, remaining)), needs
    return _compile_leaf(condition, wanted)


def _compile_each(
    conditions: tuple[Condition, ...], wanted: bool, every_one: bool, known: Callable[[], Facts]
) -> tuple[list[Test], _Needs]:
    """Their tests; and what they need where every one has to turn out as wanted, or where one of them is enough."""
    compiled = [_compile(condition, wanted, known) for condition in conditions]
    tests, each = [test for test, _ in compiled], [needs for _, needs in compiled]
    if every_one:
        return tests, lambda basket, remaining: [detail for needs in each for detail in needs(basket, remaining)]

    @cache
    def ways() -> list[_Needs]:
        """Those that an order can go which meets the rest of the tree; looked for when first asked."""
        pairs = zip(conditions, each, strict=True)
        return [needs for condition, needs in pairs if possible(condition, wanted, known())] or each

    return tests, lambda basket, remaining: min([needs(basket, remaining) for needs in ways()], key=len)


def _compile_leaf(leaf: Condition, wanted: bool) -> tuple[Test, _Needs]:
    read = _reader(leaf)
    test = _leaf_test(leaf, read)

    def needs(basket: Basket, remaining: int) -> list[Detail]:
        if test(basket, remaining) is wanted:
            return []
        return [leaf_detail(leaf, read(basket, remaining), basket.order.currency, wanted)]

    return test, needs


def _leaf_test(leaf: Condition, read: _Reader) -> Test:
    if leaf.field in NUMBER_FIELDS and leaf.op in _ORDERING:
        # never missing and of like type, as the door saw to: no need to look at types for each order
        ordering, value = _ORDERING[leaf.op], leaf.value
        return lambda basket, remaining: ordering(read(basket, remaining), value)
    compare = _comparison(str(leaf.op), leaf.value)
    return lambda basket, remaining: compare(read(basket, remaining))


def _reader(leaf: Condition) -> _Reader:
    field = str(leaf.field)
    if field.startswith("order.attributes."):
        name = field.removeprefix("order.attributes.")
        return lambda basket, _: basket.order.attributes.get(name)
    if field.startswith("customer.attributes."):
        name = field.removeprefix("customer.attributes.")
        return lambda basket, _: basket.order.customer and basket.order.customer.attributes.get(name)
    if field.startswith("items."):
        return _items_reader(leaf)
    return _READERS[field]


def _items_reader(leaf: Condition) -> _Reader:
    matcher = compile_items(leaf.items or None)

    def read(basket: Basket, _: int) -> int:
        # every line counts here, those of price 0 too: a condition is not a discount
        lines = range(len(basket.lines))
        column = basket.quantities if leaf.field == "items.quantity" else basket.totals
        return sum(column[index] for index in (matcher(basket, lines) if matcher else lines))

    return read


_READERS: Final[dict[str, _Reader]] = {
    "order.subtotal_minor": lambda basket, _: basket.subtotal,
    "order.remaining_minor": lambda _, remaining: remaining,
    "order.quantity": lambda basket, _: sum(basket.quantities),
    "order.currency": lambda basket, _: basket.order.currency,
    "order.store_id": lambda basket, _: basket.order.store_id,
    "order.channel": lambda basket, _: basket.order.channel,
    "customer.id": lambda basket, _: basket.order.customer and basket.order.customer.id,
    "customer.segments": lambda basket, _: basket.order.customer and basket.order.customer.segments,
}


def _comparison(op: str, value: Any) -> _Compare:
    kind = kind_of(value)
    if op == "exists":
        return lambda actual: (actual is not None) == value
    if op == "eq":
        return lambda actual: actual is not None and same(actual, value)
    if op == "ne":
        return lambda actual: actual is None or (kind_of(actual) == kind and not same(actual, value))
    if op in _ORDERING:
        ordering = _ORDERING[op]
        # "number" or "text" only: the door keeps true, false and lists out of `value`
        return lambda actual: kind_of(actual) == kind and ordering(actual, value)
    if op in ("in", "not_in"):
        return _membership(op, value)
    return _containment(op, value)


def _membership(op: str, values: list[Any]) -> _Compare:
    kind, among = kind_of(values[0]), frozenset(values)  # of one type: the door sees to it
    if op == "in":
        return lambda actual: kind_of(actual) == kind and actual in among
    return lambda actual: actual is None or (kind_of(actual) == kind and actual not in among)


def _containment(op: str, value: Any) -> _Compare:
    values = [value] if op == "contains" else value
    if all(isinstance(one, str) for one in values):
        # text equals only text, so that a plain look-up is exact
        texts = frozenset(values)
        if op == "contains_any":
            return lambda actual: isinstance(actual, list | tuple) and not texts.isdisjoint(actual)
        return lambda actual: isinstance(actual, list | tuple) and texts.issubset(actual)
    wanted = frozenset(map(key_of, values))

    def compare(actual: Any) -> bool:
        if not isinstance(actual, list | tuple):
            return False
        found = frozenset(map(key_of, actual))
        return not wanted.isdisjoint(found) if op == "contains_any" else wanted <= found

    return compare
