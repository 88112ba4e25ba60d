"""The discounts: what each takes from an order as it stands, and how its exact shares lie on the lines.

Source: engine.md, "Discounts" and "Rounding and shares". Every kind answers five calls and changes nothing: `select`
says which lines it means (None: no matching line, or too few units for one application), `take` what it takes as things
stand (None: nothing), `why` one short sentence; `missing` and `too_little` say what an order would need where `select`
or `take` found nothing. Discounts over units are in `units`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Final, Protocol, TypeAlias

from .basket import WHOLE, Basket, Standing, compile_items
from .details import Detail, Wanted, sentence, to_add
from .money import apportion, format_minor, round_half_away, share
from .terms import Fixed, FixedPrice, GiftCard, Items, Percent, Percentage, Shipping

Lines: TypeAlias = Sequence[int]

IN_PROPORTION: Final = 0
"""As the denominator of a `Take`: its lines share in proportion to the weights, whatever these add up to."""


class Lane(IntEnum):
    """Vouchers apply lane by lane."""

    ITEMS = 0
    ORDER = 1
    SHIPPING = 2
    GIFT_CARD = 3


class Take:
    """What a discount takes at one moment: `amount` in minor units, above 0, and the exact shares of `lines`.

    The exact share of lines[i] is weights[i] / denominator, or in proportion to the weights where that is
    IN_PROPORTION. `units` are the units by line that are bought, given or bundled by it. `base` is for `why`.
    """

    __slots__ = ("amount", "base", "denominator", "lines", "units", "weights")

    def __init__(
        self,
        amount: int,
        lines: Lines,
        weights: list[int],
        denominator: int,
        base: int = 0,
        units: dict[int, int] | None = None,
    ) -> None:
        self.amount = amount
        self.lines = lines
        self.weights = weights
        self.denominator = denominator
        self.base = base
        self.units = units

    def shares(self, amount: int) -> list[int]:
        """Whole minor units for each of `lines`, adding up to `amount`, which a cap may have cut."""
        if amount != self.amount or self.denominator == IN_PROPORTION:
            return share(amount, self.weights)
        if self.denominator == 1:
            return self.weights
        return apportion(amount, self.weights, self.denominator)


class Part(Protocol):
    """One compiled discount that is neither tiered nor conditional."""

    lane: Lane

    def select(self, basket: Basket) -> Any: ...

    def take(self, basket: Basket, standing: Standing, selection: Any) -> Take | None: ...

    def why(self, take: Take, currency: str) -> str: ...

    def missing(self, basket: Basket) -> Detail:
        """Where `select` found nothing: what to add to the order."""
        ...

    def too_little(self, basket: Basket, selection: Any) -> Detail:
        """Where `take` found nothing in the order as it came: what to change in it."""
        ...


class Scope:
    """The lines of a discount's own `items`, within those of the `tiered` around it."""

    __slots__ = ("_inner", "_outer", "wanted")

    def __init__(self, items: Items | None, within: Items | None) -> None:
        self._inner = compile_items(items)
        self._outer = compile_items(within)
        self.wanted = Wanted(items, within)

    def lines(self, basket: Basket) -> Lines:
        lines = basket.live
        if self._outer is not None:
            lines = self._outer(basket, lines)
        return lines if self._inner is None else self._inner(basket, lines)


class _OverLines:
    """What the discounts over whole lines have in common."""

    __slots__ = ("scope",)

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    def select(self, basket: Basket) -> Lines | None:
        return self.scope.lines(basket) or None

    def missing(self, basket: Basket) -> Detail:
        return to_add((1, self.scope.wanted))

    def too_little(self, basket: Basket, selection: Any) -> Detail:
        return self.missing(basket)


class _BesideLines:
    """What the discounts that touch no line have in common: they always find something to look at."""

    __slots__ = ()

    def select(self, basket: Basket) -> Lines:
        return ()

    def missing(self, basket: Basket) -> Detail:
        return self.too_little(basket, ())

    def too_little(self, basket: Basket, selection: Lines) -> Detail:
        raise NotImplementedError


def _weights(basket: Basket, standing: Standing, lines: Lines) -> list[int]:
    """What each of the lines still costs."""
    left = standing.left
    if len(lines) == len(left):  # every line, in order
        return left.copy()
    return [left[index] for index in lines]


def percent_of(amount: int, rate: int) -> int:
    """`rate` ten-thousandths of a percent of an amount, rounded once, half away from zero."""
    return round_half_away(amount * rate, WHOLE)


def percent_text(rate: int) -> str:
    whole, part = divmod(rate, 10_000)
    return f"{whole}.{part:04d}".rstrip("0") + " %" if part else f"{whole} %"


class PercentageOff(_OverLines):
    __slots__ = ("cap", "label", "rate")
    lane = Lane.ORDER

    def __init__(self, discount: Percentage, scope: Scope) -> None:
        super().__init__(scope)
        self.rate = discount.percent.ten_thousandths
        self.label = percent_text(self.rate)
        self.cap = discount.cap_minor

    def take(self, basket: Basket, standing: Standing, selection: Lines) -> Take | None:
        weights = _weights(basket, standing, selection)
        base = sum(weights)
        amount = (2 * base * self.rate + WHOLE) // (2 * WHOLE)  # percent_of, which never sees a negative here
        if self.cap is not None and amount > self.cap:
            amount = self.cap
        return Take(amount, selection, weights, IN_PROPORTION, base) if amount else None

    def why(self, take: Take, currency: str) -> str:
        text = f"{self.label} of {format_minor(take.base, currency)}"
        return text if self.cap is None else text + _capped(self.cap, currency)

    def too_little(self, basket: Basket, selection: Lines) -> Detail:
        lacking = least_for_one(self.rate) - sum([basket.totals[index] for index in selection])
        return to_add((1, self.scope.wanted), unit_price_minor=lacking, currency=basket.order.currency)


def least_for_one(rate: int) -> int:
    """The smallest amount of which the rate, rounded, is not 0."""
    return -(-WHOLE // (2 * rate))


def _capped(cap: int | None, currency: str) -> str:
    return "" if cap is None else f", at most {format_minor(cap, currency)}"


class FixedOffOrder(_OverLines):
    __slots__ = ("amount",)
    lane = Lane.ORDER

    def __init__(self, discount: Fixed, scope: Scope) -> None:
        super().__init__(scope)
        self.amount = discount.amount_minor

    def take(self, basket: Basket, standing: Standing, selection: Lines) -> Take | None:
        weights = _weights(basket, standing, selection)
        amount = min(self.amount, sum(weights))
        return Take(amount, selection, weights, IN_PROPORTION) if amount else None

    def why(self, take: Take, currency: str) -> str:
        return f"{format_minor(self.amount, currency)} off"


class FixedOffEach(_OverLines):
    """`fixed` per line or per unit: each line says itself what it gives."""

    __slots__ = ("amount", "per_unit")
    lane = Lane.ITEMS

    def __init__(self, discount: Fixed, scope: Scope) -> None:
        super().__init__(scope)
        self.amount = discount.amount_minor
        self.per_unit = discount.per == "unit"

    def take(self, basket: Basket, standing: Standing, selection: Lines) -> Take | None:
        left, amount = standing.left, self.amount
        if self.per_unit:
            quantities = basket.quantities
            shares = [min(amount * quantities[index], left[index]) for index in selection]
        else:
            shares = [min(amount, left[index]) for index in selection]
        total = sum(shares)
        return Take(total, selection, shares, 1) if total else None

    def why(self, take: Take, currency: str) -> str:
        return f"{format_minor(self.amount, currency)} off each {'unit' if self.per_unit else 'line'}"


class FixedPriceEach(_OverLines):
    __slots__ = ("price",)
    lane = Lane.ITEMS

    def __init__(self, discount: FixedPrice, scope: Scope) -> None:
        super().__init__(scope)
        self.price = discount.unit_price_minor

    def take(self, basket: Basket, standing: Standing, selection: Lines) -> Take | None:
        left, quantities, price = standing.left, basket.quantities, self.price
        shares = [max(0, left[index] - quantities[index] * price) for index in selection]
        total = sum(shares)
        return Take(total, selection, shares, 1) if total else None

    def why(self, take: Take, currency: str) -> str:
        return f"{format_minor(self.price, currency)} each"

    def too_little(self, basket: Basket, selection: Lines) -> Detail:
        return to_add((1, self.scope.wanted), unit_price_minor=self.price + 1, currency=basket.order.currency)


class ShippingOff(_BesideLines):
    __slots__ = ("cap", "rate")
    lane = Lane.SHIPPING

    def __init__(self, discount: Shipping) -> None:
        self.rate = rate_of(discount.percent)
        self.cap = discount.cap_minor

    def take(self, basket: Basket, standing: Standing, selection: Lines) -> Take | None:
        amount = percent_of(standing.shipping, self.rate)
        if self.cap is not None and amount > self.cap:
            amount = self.cap
        return Take(amount, (), [], 1, base=standing.shipping) if amount else None

    def why(self, take: Take, currency: str) -> str:
        base = format_minor(take.base, currency)
        return f"{percent_text(self.rate)} of shipping {base}{_capped(self.cap, currency)}"

    def too_little(self, basket: Basket, selection: Lines) -> Detail:
        least, order = least_for_one(self.rate), basket.order
        text = "add shipping: this order has none"
        if order.shipping_minor or least > 1:
            text = f"have shipping of at least {format_minor(least, order.currency)}"
        return {
            "field": "shipping_minor",
            "expected": least,
            "actual": order.shipping_minor,
            "message": sentence(text),
        }


class GiftCardPays(_BesideLines):
    __slots__ = ("balance",)
    lane = Lane.GIFT_CARD

    def __init__(self, discount: GiftCard) -> None:
        self.balance = discount.balance_minor

    def take(self, basket: Basket, standing: Standing, selection: Lines) -> Take | None:
        amount = min(self.balance, standing.goods + standing.shipping - standing.paid)
        return Take(amount, (), [], 1) if amount else None

    def why(self, take: Take, currency: str) -> str:
        return f"paid from a balance of {format_minor(self.balance, currency)}"

    def too_little(self, basket: Basket, selection: Lines) -> Detail:
        if not self.balance:
            return {"balance_minor": 0, "message": "use another gift card: nothing is left on this one"}
        return {"field": "total_minor", "expected": 1, "actual": 0, "message": "leave something to pay"}


def rate_of(percent: Percent | None) -> int:
    """In ten-thousandths of a percent; nothing given is 100 %."""
    return WHOLE if percent is None else percent.ten_thousandths
