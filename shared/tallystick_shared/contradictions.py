"""What is well formed and can still never do what it says: refused when a voucher is published, with what to do.

Source: engine.md, "Fields below are the contract": contradictory settings are refused at the door. A till that reads a
signed voucher does not ask here: what was once published is not called wrong by a newer version.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from msgspec import UNSET

from .checks import condition_nodes, plain_discounts
from .discounts import percent_of, percent_text
from .door import encode, shown
from .errors import InvalidInput
from .feasible import Facts, facts, possible
from .money import CURRENCY_EXPONENTS, ORDER_TOTAL_MAX
from .terms import (
    Bogo,
    BundlePrice,
    Condition,
    Conditional,
    Fixed,
    FixedPrice,
    GiftCard,
    Items,
    Percentage,
    PlainDiscount,
    Shipping,
    Tiered,
    Voucher,
)
from .validity import OpeningHours, epoch_second

CODE: Final = "CONTRADICTION"
COMPARED_BYTES_MAX: Final = 64 * 1024
"""Of JSON: the cases of a larger discount are not compared with each other, which takes the square of their number."""


def refuse_contradictions(voucher: Voucher) -> None:
    """Raises `InvalidInput` with the code CONTRADICTION where a setting can never have an effect, or never apply.

    The voucher has come through `checks`.
    """
    _check_numbers(voucher)
    _check_hours(voucher)
    for items, path in _selectors(voucher):
        _check_items(items, path)
    for node, path in _leaves(voucher):
        _check_currencies(node, path)
    whole = facts(voucher.when, _known(voucher))
    if not whole.possible:
        raise _contradiction("when", _why_never(voucher))
    discount = voucher.discount
    if isinstance(discount, Tiered):
        _check_tiers(discount, whole)
    elif isinstance(discount, Conditional):
        _check_cases(discount, whole, alone=voucher.when is None)
    else:
        _check_bounds(discount, whole, "discount")


def _why_never(voucher: Voucher) -> str:
    if voucher.when is None or not possible(voucher.when):
        return "can never hold: let no two of its conditions exclude each other"
    beside = [] if voucher.currency is None else [f"the voucher's currency {voucher.currency}"]
    beside += [] if voucher.limits.per_customer is None else ["limits.per_customer, which needs a customer"]
    return f"can never hold beside {' and '.join(beside)}: change one of them"


def _contradiction(path: str, text: str, was: object = None) -> InvalidInput:
    return InvalidInput(path, text, None if was is None else str(was), code=CODE)


def _check_numbers(voucher: Voucher) -> None:
    limits = voucher.limits
    if limits.per_customer is not None and limits.total is not None and limits.per_customer > limits.total:
        text = f"must be at most {limits.total}, which is limits.total, or be left out"
        raise _contradiction("limits.per_customer", text, limits.per_customer)
    for discount, path in _plain(voucher):
        cap = discount.cap_minor if isinstance(discount, Percentage | Shipping) else None
        budget = limits.budget_minor
        if cap is not None and budget is not None and cap > budget:
            raise _contradiction(f"{path}.cap_minor", f"must be at most {budget}, which is limits.budget_minor", cap)
    if voucher.stacking.max_total_percent is not None and all(
        isinstance(discount, Shipping | GiftCard) for discount in plain_discounts(voucher.discount)
    ):
        text = "must be left out: it never limits shipping or gift cards"
        raise _contradiction("stacking.max_total_percent", text)


def _plain(voucher: Voucher) -> Iterator[tuple[PlainDiscount, str]]:
    """Every discount that it can turn out to be, with its path."""
    discount = voucher.discount
    if isinstance(discount, Tiered):
        for index, tier in enumerate(discount.tiers):
            yield tier.discount, f"discount.tiers[{index}].discount"
    elif isinstance(discount, Conditional):
        for index, case in enumerate(discount.cases):
            yield case.discount, f"discount.cases[{index}].discount"
        if discount.otherwise is not None:
            yield discount.otherwise, "discount.otherwise"
    else:
        yield discount, "discount"


def _check_hours(voucher: Voucher) -> None:
    if voucher.hours is None or voucher.valid_from is None or voucher.valid_until is None:
        return
    hours, start = OpeningHours(voucher.hours), epoch_second(voucher.valid_from)
    if hours.is_open(start):
        return
    opens = hours.next_opening(start)
    if opens is None or opens[0] > voucher.valid_until:
        raise _contradiction("hours", "must have a window that opens between valid_from and valid_until")


# Items.


def _own_items(discount: PlainDiscount) -> Iterator[tuple[Items, str]]:
    """The selectors of one discount, with their paths in it."""
    if isinstance(discount, Bogo):
        for name, side in (("buy", discount.buy), ("get", discount.get)):
            if side.items is not None:
                yield side.items, f"{name}.items"
    elif isinstance(discount, Percentage | Fixed | FixedPrice | BundlePrice) and discount.items is not None:
        yield discount.items, "items"


def _selectors(voucher: Voucher) -> Iterator[tuple[Items, str]]:
    if isinstance(voucher.discount, Tiered) and voucher.discount.items is not None:
        yield voucher.discount.items, "discount.items"
    for discount, path in _plain(voucher):
        for items, inner in _own_items(discount):
            yield items, f"{path}.{inner}"
    for node, path in _leaves(voucher):
        if node.items is not UNSET:
            yield node.items, f"{path}.items"


def _leaves(voucher: Voucher) -> Iterator[tuple[Condition, str]]:
    conditions = [] if voucher.when is None else [(voucher.when, "when")]
    if isinstance(voucher.discount, Conditional):
        conditions += [
            (case.when, f"discount.cases[{index}].when") for index, case in enumerate(voucher.discount.cases)
        ]
    for condition, path in conditions:
        for node, where, _ in condition_nodes(condition, path):
            if node.field is not UNSET:
                yield node, where


def _check_currencies(leaf: Condition, path: str) -> None:
    if leaf.field != "order.currency" or leaf.op not in ("eq", "ne", "in", "not_in"):
        return
    for value in leaf.value if isinstance(leaf.value, list) else [leaf.value]:
        if value not in CURRENCY_EXPONENTS:
            text = "must be active currencies of ISO 4217, three capital letters each"
            raise _contradiction(f"{path}.value", text, shown(value))


def _check_items(items: Items, path: str) -> None:
    for name, kind in (("product_ids", "product"), ("category_ids", "category")):
        included, excluded = getattr(items, name), getattr(items, f"exclude_{name}")
        both = frozenset(included).intersection(excluded)
        if both:
            index = next(index for index, one in enumerate(excluded) if one in both)
            where = f"{path}.exclude_{name}[{index}]"
            raise _contradiction(where, f"must not be a {kind} of {name} too: leave it out of one of them")


class _Lists:
    """The lists of a selector, to be looked up."""

    def __init__(self, items: Items) -> None:
        self.products, self.categories = frozenset(items.product_ids), frozenset(items.category_ids)
        self.no_products, self.no_categories = (
            frozenset(items.exclude_product_ids),
            frozenset(items.exclude_category_ids),
        )
        self.by_id = bool(self.products or self.categories) and not items.attributes

    def only_products(self, beside: _Lists) -> bool:
        """Whether a line that matches both can match this one by its product alone."""
        return self.by_id and self.categories <= (self.no_categories | beside.no_categories)

    def never_with(self, other: _Lists) -> bool:
        """Whether no line can match both selectors, as far as their lists of ids show."""
        ours, theirs = self.only_products(other), other.only_products(self)
        if ours and theirs:
            return not any(
                one not in self.no_products and one not in other.no_products for one in self.products & other.products
            )
        if ours:
            return self.products <= (self.no_products | other.no_products)
        return theirs and other.products <= (self.no_products | other.no_products)


# Tiers, cases and caps.


def _known(voucher: Voucher) -> Facts:
    """What an order must be like for the voucher to apply, whatever its conditions say."""
    known = Facts()
    known.between("order.subtotal_minor", 0, ORDER_TOTAL_MAX)
    if voucher.currency is not None:
        known.only("order.currency", {("text", voucher.currency)})
    if voucher.limits.per_customer is not None:
        known.there("customer.id", True)
    return known


def _check_tiers(tiered: Tiered, whole: Facts) -> None:
    by_amount, outer = tiered.basis == "amount", None if tiered.items is None else _Lists(tiered.items)
    units = whole.most.get("order.quantity")
    most = whole.most.get("order.subtotal_minor") if by_amount else units
    # units of price 0 are counted by a condition and not by a tier, so that only the subtotal says where it begins
    every_line = tiered.items is None or tiered.items == Items()
    least = whole.least.get("order.subtotal_minor", 0) if by_amount and every_line else 0
    for index, tier in enumerate(tiered.tiers):
        path = f"discount.tiers[{index}]"
        last = tiered.tiers[index + 1].min - 1 if index + 1 < len(tiered.tiers) else None
        if most is not None and tier.min > most:
            raise _contradiction(
                f"{path}.min", f"must be at most {most}, which is all that when lets through", tier.min
            )
        if last is not None and last < least:
            text = f"can never apply: when lets nothing below {least} through, where a later tier has begun"
            raise _contradiction(path, text)
        highest = most if last is None else last if most is None else min(last, most)
        for items, inner in _own_items(tier.discount):
            if outer is not None and outer.never_with(_Lists(items)):
                where = f"{path}.discount.{inner}"
                raise _contradiction(where, "must have something in common with discount.items, or be left out")
        if by_amount and isinstance(tier.discount, Percentage):
            _check_cap(tier.discount, highest, f"{path}.discount")
        _check_units(tier.discount, units if by_amount else highest, f"{path}.discount")


def _check_units(discount: PlainDiscount, most: int | None, path: str) -> None:
    """`most` is the highest number of units that the discount can meet."""
    if most is None:
        return
    if isinstance(discount, BundlePrice) and discount.quantity > most:
        raise _contradiction(f"{path}.quantity", f"must be at most {most}, all that it can meet", discount.quantity)
    if isinstance(discount, Bogo) and discount.buy.quantity + discount.get.quantity > most:
        text = f"must buy and get at most {most} units together, all that it can meet"
        raise _contradiction(path, text, discount.buy.quantity + discount.get.quantity)


def _check_cap(discount: Percentage, most: int | None, path: str) -> None:
    """`most` is the highest amount of goods that the discount can meet."""
    if discount.cap_minor is None or most is None:
        return
    highest = percent_of(most, discount.percent.ten_thousandths)
    if discount.cap_minor > highest:
        rate = percent_text(discount.percent.ten_thousandths)
        text = f"must be at most {highest}, or be left out: {rate} of the {most} that it can meet is no more"
        raise _contradiction(f"{path}.cap_minor", text, discount.cap_minor)


def _check_bounds(discount: PlainDiscount, known: Facts, path: str) -> None:
    _check_units(discount, known.most.get("order.quantity"), path)
    if isinstance(discount, Percentage):
        _check_cap(discount, known.most.get("order.subtotal_minor"), path)


def _check_cases(conditional: Conditional, whole: Facts, alone: bool) -> None:
    small = len(encode(conditional)) <= COMPARED_BYTES_MAX
    for index, case in enumerate(conditional.cases):
        path = f"discount.cases[{index}]"
        both = facts(case.when, whole)
        if not both.possible:
            beside = "" if alone else " beside the voucher's own when"
            raise _contradiction(f"{path}.when", f"can never hold{beside}: change it, or leave the case out")
        itself = facts(case.when, Facts())
        for earlier, other in enumerate(conditional.cases[:index] if small else ()):
            if not possible(other.when, False, itself):
                text = f"must not hold only where that of cases[{earlier}], which goes first, holds too"
                raise _contradiction(f"{path}.when", f"{text}: put the narrower case before the wider one")
        rest = len(conditional.cases) > index + 1 or conditional.otherwise is not None
        if rest and not possible(case.when, False):
            raise _contradiction(
                f"{path}.when", "always holds: nothing after it can apply, so put it last as otherwise"
            )
        _check_bounds(case.discount, both, f"{path}.discount")
