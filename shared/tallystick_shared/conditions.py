"""Conditions: what a `when` tree means, compiled once into functions, and what would have to change for it to hold.

Source: engine.md, "Conditions". Unlike types compare false, for `ne` and `not_in` too; a missing field (null is
missing) makes a leaf false, but for `exists: false`, `ne` and `not_in`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from msgspec import UNSET

from .basket import Basket, compile_items
from .checks import NUMBER_FIELDS, kind_of, same
from .details import Detail, leaf_detail
from .feasible import possible
from .terms import Condition

Test: TypeAlias = Callable[[Basket, int], bool]
"""Whether it holds for a basket of which the goods still cost that much, in minor units."""
_Reader: TypeAlias = Callable[[Basket, int], Any]
_Compare: TypeAlias = Callable[[Any], bool]
_Needs: TypeAlias = Callable[[Basket, int, bool], list[Detail]]
"""The details of the leaves that would have to change for the node to hold, or not to hold; empty where it does."""

_ORDERING: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}


class Rule:
    """A compiled tree. `holds` is asked for each order, `needs` only where it does not hold."""

    __slots__ = ("_needs", "holds")

    def __init__(self, condition: Condition) -> None:
        self.holds, self._needs = _compile(condition)

    def needs(self, basket: Basket, remaining: int) -> list[Detail]:
        """Every leaf that has to change for it to hold, by the way that changes the fewest."""
        return self._needs(basket, remaining, True)


def reads_remaining(condition: Condition | None) -> bool:
    """Whether it can turn out otherwise once other vouchers have been applied."""
    if condition is None:
        return False
    inner = [*(condition.all_of or ()), *(condition.any_of or ())]
    if condition.negated is not UNSET:
        inner.append(condition.negated)
    return condition.field == "order.remaining_minor" or any(map(reads_remaining, inner))


def _compile(condition: Condition) -> tuple[Test, _Needs]:
    """The tree as two functions. It comes through the door: no node is of two kinds and none is too deep."""
    if condition.all_of is not UNSET:
        every, needs = _compile_each(condition.all_of, True)
        return (lambda basket, remaining: all(test(basket, remaining) for test in every)), needs
    if condition.any_of is not UNSET:
        some, needs = _compile_each(condition.any_of, False)
        return (lambda basket, remaining: any(test(basket, remaining) for test in some)), needs
    if condition.negated is not UNSET:
        negated, need = _compile(condition.negated)
        return (
            lambda basket, remaining: not negated(basket, remaining),
            lambda basket, remaining, wanted: need(basket, remaining, not wanted),
        )
    return _compile_leaf(condition)


def _compile_each(conditions: tuple[Condition, ...], conjunction: bool) -> tuple[list[Test], _Needs]:
    """Their tests; and all that they need for an `all` that is to hold and an `any` that is not.

    Otherwise one of them is enough: of those that some order can meet the one with the fewest leaves to change.
    """
    compiled = [_compile(condition) for condition in conditions]
    every = [needs for _, needs in compiled]
    ways = [needs for needs, one in zip(every, conditions, strict=True) if possible(one, not conjunction)] or every

    def needs(basket: Basket, remaining: int, wanted: bool) -> list[Detail]:
        if wanted is conjunction:
            return [detail for need in every for detail in need(basket, remaining, wanted)]
        return min([need(basket, remaining, wanted) for need in ways], key=len)

    return [test for test, _ in compiled], needs


def _compile_leaf(leaf: Condition) -> tuple[Test, _Needs]:
    read = _reader(leaf)
    test = _leaf_test(leaf, read)

    def needs(basket: Basket, remaining: int, wanted: bool) -> list[Detail]:
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
    wanted = [value] if op == "contains" else value
    holds = any if op == "contains_any" else all
    if all(isinstance(one, str) for one in wanted):
        # text equals only text, so that the plain `in` is exact, and fast for segments
        return lambda actual: isinstance(actual, list | tuple) and holds(one in actual for one in wanted)

    def compare(actual: Any) -> bool:
        return isinstance(actual, list | tuple) and holds(any(same(one, inner) for inner in actual) for one in wanted)

    return compare
