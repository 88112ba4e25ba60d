"""Discounts over units: `bogo` and `bundle_price`.

Source: engine.md, "Units". A line of 30,000 units is one entry of (line, count), never 30,000 entries: the work grows
with the lines and not with the units.
"""

from __future__ import annotations

from typing import TypeAlias

from .basket import WHOLE, Basket, Standing
from .details import Detail, sentence, to_add
from .discounts import IN_PROPORTION, Lane, Lines, Scope, Take, least_for_one, percent_text, rate_of
from .door import encode
from .money import format_minor, round_half_away
from .terms import Bogo, BundlePrice

_Sides: TypeAlias = tuple[list[int], list[int], frozenset[int]]
"""Lines to buy from, dearest first; lines to give from, cheapest first; all that are to buy from."""


def _dearest_first(lines: Lines, prices: list[int]) -> list[int]:
    return sorted(lines, key=prices.__getitem__, reverse=True)  # stable: of equal prices the earlier line first


class BundleFor:
    __slots__ = ("most", "price", "quantity", "scope")
    lane = Lane.ITEMS

    def __init__(self, discount: BundlePrice, scope: Scope) -> None:
        self.scope = scope
        self.quantity = discount.quantity
        self.price = discount.price_minor
        self.most = discount.max_applications

    def select(self, basket: Basket) -> Lines | None:
        lines = self.scope.lines(basket)
        if sum(basket.quantities[index] for index in lines) < self.quantity:
            return None
        return _dearest_first(lines, basket.prices)

    def take(self, basket: Basket, standing: Standing, selection: Lines) -> Take | None:
        units, bundles = self._bundled(basket, standing, selection)
        if not bundles:
            return None
        lines = sorted(units)
        list_prices = [basket.prices[index] * units[index] for index in lines]
        weights = [min(price, standing.left[index]) for index, price in zip(lines, list_prices, strict=True)]
        amount = min(sum(list_prices) - bundles * self.price, sum(weights))
        return Take(amount, lines, weights, IN_PROPORTION, base=bundles, units=units) if amount else None

    def _bundled(self, basket: Basket, standing: Standing, selection: Lines) -> tuple[dict[int, int], int]:
        """Units by line in the bundles that are made, and how many bundles. Each next one is worth less, or as much."""
        units: dict[int, int] = {}
        bundles, most = 0, self.most
        waiting = [(index, standing.free[index]) for index in selection if standing.free[index]]
        waiting.reverse()
        while waiting and (most is None or bundles < most):
            index, count = waiting[-1]
            alike = count // self.quantity
            if alike:  # whole bundles out of this one line, all of one price
                if basket.prices[index] * self.quantity <= self.price:
                    break
                made = alike if most is None else min(alike, most - bundles)
                bundles += made
                units[index] = units.get(index, 0) + made * self.quantity
                waiting[-1] = (index, count - made * self.quantity)
                if not waiting[-1][1]:
                    waiting.pop()
                continue
            bundle = self._next_bundle(waiting)
            if sum(basket.prices[line] * taken for line, taken in bundle) <= self.price or not bundle:
                break
            bundles += 1
            for line, taken in bundle:
                units[line] = units.get(line, 0) + taken
        return units, bundles

    def _next_bundle(self, waiting: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """The next whole bundle over several lines, taken off `waiting`; empty where too few units are left."""
        bundle: list[tuple[int, int]] = []
        lacking = self.quantity
        while waiting and lacking:
            index, count = waiting.pop()
            taken = min(count, lacking)
            bundle.append((index, taken))
            lacking -= taken
            if taken < count:
                waiting.append((index, count - taken))
        return [] if lacking else bundle

    def why(self, take: Take, currency: str) -> str:
        times = "" if take.base == 1 else f", {take.base} times"
        return f"{self.quantity} for {format_minor(self.price, currency)}{times}"

    def missing(self, basket: Basket) -> Detail:
        lacking = self.quantity - sum(basket.quantities[index] for index in self.scope.lines(basket))
        return to_add((lacking, self.scope.wanted))

    def too_little(self, basket: Basket, selection: Lines) -> Detail:
        price = self.price // self.quantity + 1  # a whole bundle of these is the dearest, and saves
        return to_add((self.quantity, self.scope.wanted), unit_price_minor=price, currency=basket.order.currency)


class BuyAndGet:
    __slots__ = ("alike", "amount", "buy", "buy_quantity", "get", "get_quantity", "most", "rate")
    lane = Lane.ITEMS

    def __init__(self, discount: Bogo, buy: Scope, get: Scope) -> None:
        self.buy, self.get = buy, get
        # nearly always, and then the lines are looked up once; as JSON, because Python takes true for 1
        self.alike = encode(discount.buy.items) == encode(discount.get.items)
        self.buy_quantity = discount.buy.quantity
        self.get_quantity = discount.get.quantity
        self.amount = discount.get.amount_minor
        self.rate = rate_of(discount.get.percent)
        self.most = discount.max_applications

    def select(self, basket: Basket) -> _Sides | None:
        buy, prices = self.buy.lines(basket), basket.prices
        get = buy if self.alike else self.get.lines(basket)
        buyable = frozenset(buy)
        if not self._applications(basket.quantities, buy, get, buyable):
            return None
        dearest_first = _dearest_first(buy, prices)
        # reversed: of equal prices the later line gives first
        cheapest_first = (dearest_first if self.alike else _dearest_first(get, prices))[::-1]
        return dearest_first, cheapest_first, buyable

    def _applications(self, free: list[int], buy: Lines, get: Lines, buyable: frozenset[int]) -> int:
        """The most whole applications for which the bought and the given units can be different ones."""
        to_buy = in_all = to_give = sum([free[index] for index in buy])
        if not self.alike:
            to_give = sum([free[index] for index in get])
            in_all += sum([free[index] for index in get if index not in buyable])
        fit = min(
            to_buy // self.buy_quantity,
            to_give // self.get_quantity,
            in_all // (self.buy_quantity + self.get_quantity),
        )
        return fit if self.most is None else min(fit, self.most)

    def take(self, basket: Basket, standing: Standing, selection: _Sides) -> Take | None:
        buy, get, buyable = selection
        free = standing.free
        applications = self._applications(free, buy, get, buyable)
        if not applications:
            return None
        given = self._given(free, selection, applications)
        units = self._with_bought(free, buy, given, applications)
        lines = sorted(given)
        denominator, weights = self._exact_shares(basket, standing, lines, given)
        amount = round_half_away(sum(weights), denominator)
        return Take(amount, lines, weights, denominator, base=applications, units=units) if amount else None

    def _given(self, free: list[int], selection: _Sides, applications: int) -> dict[int, int]:
        """The cheapest, passing over a unit only where `buy` would otherwise lack units."""
        buy, get, buyable = selection
        lacking = applications * self.get_quantity
        to_spare = sum([free[index] for index in buy]) - applications * self.buy_quantity
        given: dict[int, int] = {}
        for index in get:
            count = min(free[index], lacking)
            if index in buyable:
                count = min(count, to_spare)
                to_spare -= count
            if count:
                given[index] = count
                lacking -= count
                if not lacking:
                    break
        return given

    def _with_bought(self, free: list[int], buy: list[int], given: dict[int, int], applications: int) -> dict[int, int]:
        """The units used up, by line: the given ones, and the dearest others to buy."""
        units = given.copy()
        lacking = applications * self.buy_quantity
        for index in buy:
            count = min(free[index] - given.get(index, 0), lacking)
            if count:
                units[index] = units.get(index, 0) + count
                lacking -= count
                if not lacking:
                    break
        return units

    def _exact_shares(
        self, basket: Basket, standing: Standing, lines: list[int], given: dict[int, int]
    ) -> tuple[int, list[int]]:
        """The denominator and the numerators of what each line gives, which is never more than it still costs."""
        prices, left = basket.prices, standing.left
        if self.amount is not None:
            amount = self.amount
            return 1, [min(given[index] * min(amount, prices[index]), left[index]) for index in lines]
        if self.rate == WHOLE:
            return 1, [min(given[index] * prices[index], left[index]) for index in lines]
        rate = self.rate
        return WHOLE, [min(given[index] * prices[index] * rate, left[index] * WHOLE) for index in lines]

    def why(self, take: Take, currency: str) -> str:
        off = " free" if self.rate == WHOLE else f" at {percent_text(self.rate)} off"
        if self.amount is not None:
            off = f" at {format_minor(self.amount, currency)} off each"
        times = "" if take.base == 1 else f", {take.base} times"
        return f"buy {self.buy_quantity}, get {self.get_quantity}{off}{times}"

    def missing(self, basket: Basket) -> Detail:
        buy, get, count = self.buy.lines(basket), self.get.lines(basket), basket.quantities
        to_buy, to_give = (sum([count[index] for index in lines]) for lines in (buy, get))
        in_all = sum([count[index] for index in {*buy, *get}])
        more_to_buy = max(0, self.buy_quantity - to_buy)
        more_to_give = max(0, self.get_quantity - to_give)
        # no unit is both bought and given: what there is may be enough for either, and not for both
        more_to_give += max(0, self.buy_quantity + self.get_quantity - in_all - more_to_buy - more_to_give)
        if self.alike:
            return to_add((more_to_buy + more_to_give, self.buy.wanted))
        sides = ((more_to_buy, self.buy.wanted), (more_to_give, self.get.wanted))
        return to_add(*[side for side in sides if side[0]])

    def too_little(self, basket: Basket, selection: _Sides) -> Detail:
        buy, get, buyable = selection
        given = self._given(basket.quantities, selection, self._applications(basket.quantities, buy, get, buyable))
        price, least = sum(basket.prices[index] * count for index, count in given.items()), least_for_one(self.rate)
        currency = basket.order.currency
        text = f"use it on dearer units: those it gives cost {format_minor(price, currency)}"
        text += f", and of less than {format_minor(least, currency)} it gives nothing"
        return {"given_minor": price, "expected_minor": least, "message": sentence(text)}
