"""A voucher made ready once per revision: sets for products, epoch seconds for bounds, functions for conditions.

Source: engine.md, "Voucher" and "Discounts".
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import TypeAlias

from . import codes
from .basket import WHOLE, Basket
from .conditions import Rule, reads_remaining
from .details import Detail, more, sentence, to_add, to_change, units
from .discounts import (
    FixedOffEach,
    FixedOffOrder,
    FixedPriceEach,
    GiftCardPays,
    Lane,
    Part,
    PercentageOff,
    Scope,
    ShippingOff,
)
from .money import format_minor
from .results import Reason, Refusal
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
    Tiered,
    Voucher,
)
from .units import BundleFor, BuyAndGet
from .validity import OpeningHours, epoch_second

Resolved: TypeAlias = tuple[Part, str]
"""The discount that applies, and what `why` begins with."""
Resolve: TypeAlias = Callable[[Basket], Resolved | Refusal]


class CompiledVoucher:
    """What `compile_voucher` makes: immutable by convention, shareable between threads, good for any order."""

    __slots__ = (
        "active",
        "budget",
        "can_change",
        "cap",
        "currency",
        "exclusive",
        "folded",
        "from_second",
        "group",
        "hours",
        "limited",
        "part",
        "priority",
        "resolve",
        "until_second",
        "voucher",
        "when",
    )

    def __init__(self, voucher: Voucher) -> None:
        self.voucher = voucher
        self.folded = codes.fold(voucher.code)
        self.active = voucher.status == "active"
        self.from_second = None if voucher.valid_from is None else epoch_second(voucher.valid_from)
        self.until_second = None if voucher.valid_until is None else epoch_second(voucher.valid_until)
        self.hours = None if voucher.hours is None else OpeningHours(voucher.hours)
        self.limited = voucher.limits.total is not None or voucher.limits.per_customer is not None
        self.budget = voucher.limits.budget_minor
        self.currency = voucher.currency
        self.group = voucher.stacking.group
        self.when: Rule | None = None if voucher.when is None else Rule(voucher.when)
        self.can_change = reads_remaining(voucher.when)
        stacking = voucher.stacking
        self.exclusive = stacking.mode == "exclusive"
        self.priority = stacking.priority
        self.cap = WHOLE if stacking.max_total_percent is None else stacking.max_total_percent.ten_thousandths
        self.part: Part | None = None
        self.resolve: Resolve | None = None
        discount = voucher.discount
        if isinstance(discount, Tiered):
            self.resolve = _compile_tiered(discount, voucher.currency)
        elif isinstance(discount, Conditional):
            self.resolve = _compile_conditional(discount, voucher.when)
        else:
            self.part = compile_part(discount, None)

    def __repr__(self) -> str:
        return f"CompiledVoucher({self.voucher.code!r})"


def compile_voucher(voucher: Voucher) -> CompiledVoucher:
    """Make a voucher that came through the door ready for `evaluate`: once per revision, not once per order."""
    return CompiledVoucher(voucher)


def compile_part(discount: PlainDiscount, within: Items | None) -> Part:
    """`within` are the `items` of the `tiered` around it, which every unit must match too."""
    if isinstance(discount, Bogo):
        buy, get = (Scope(side.items, within) for side in (discount.buy, discount.get))
        return BuyAndGet(discount, buy, get)
    if isinstance(discount, GiftCard):
        return GiftCardPays(discount)
    if not isinstance(discount, Percentage | Fixed | FixedPrice | BundlePrice):
        return ShippingOff(discount)
    scope = Scope(discount.items, within)
    if isinstance(discount, Percentage):
        return PercentageOff(discount, scope)
    if isinstance(discount, FixedPrice):
        return FixedPriceEach(discount, scope)
    if isinstance(discount, BundlePrice):
        return BundleFor(discount, scope)
    return FixedOffOrder(discount, scope) if discount.per == "order" else FixedOffEach(discount, scope)


def _compile_tiered(tiered: Tiered, currency: str | None) -> Resolve:
    """The tier with the highest `min` that the matching lines reach, before any discount."""
    scope = Scope(tiered.items, None)
    by_amount = tiered.basis == "amount"
    minimums = [tier.min for tier in tiered.tiers]
    resolved: list[Resolved] = []
    for tier in tiered.tiers:
        start = format_minor(tier.min, currency or "") if by_amount else units(tier.min)
        resolved.append((compile_part(tier.discount, tiered.items), f"from {start}: "))
    first = resolved[0][0]

    def to_begin(basket: Basket) -> Detail:
        """What the first tier needs, where it is over lines at all."""
        return first.missing(basket) if first.lane < Lane.SHIPPING else to_add((1, scope.wanted))

    def resolve(basket: Basket) -> Resolved | Refusal:
        lines = scope.lines(basket)
        if not lines:
            return Reason.NO_MATCHING_ITEM, to_begin(basket)
        column = basket.totals if by_amount else basket.quantities
        basis = sum([column[index] for index in lines])
        reached = bisect_right(minimums, basis)
        if reached:
            return resolved[reached - 1]
        missing = minimums[0] - basis
        text = more(missing, by_amount, scope.wanted.text(), basket.order.currency)
        detail = {"basis": tiered.basis, "expected": minimums[0], "actual": basis, **scope.wanted.fields()}
        return Reason.BELOW_FIRST_TIER, {**detail, "message": sentence(text)}

    return resolve


def _compile_conditional(conditional: Conditional, beside: Condition | None) -> Resolve:
    """The first case that holds, else `otherwise`."""
    cases = [(Rule(case.when, beside), (compile_part(case.discount, None), "")) for case in conditional.cases]
    otherwise = None if conditional.otherwise is None else (compile_part(conditional.otherwise, None), "")

    def resolve(basket: Basket) -> Resolved | Refusal:
        for rule, resolved in cases:
            if rule.holds(basket, basket.subtotal):
                return resolved
        if otherwise is not None:
            return otherwise
        needs = [rule.needs(basket, basket.subtotal) for rule, _ in cases]
        return Reason.CONDITION_NOT_MET, to_change(min(needs, key=len))

    return resolve
