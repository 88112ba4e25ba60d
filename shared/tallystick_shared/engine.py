"""The engine: which of the vouchers apply to an order, what each takes, and why the others do not.

A pure function: the caller passes the time and what has been used so far; equal inputs give equal bytes. The numbered
steps are those of engine.md, "Applying several vouchers".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from operator import attrgetter, sub
from typing import Any, Final, TypeAlias

from . import codes as _codes
from .basket import WHOLE, Basket, Standing
from .checks import plain_discounts
from .compiled import CompiledVoucher, compile_voucher
from .conditions import explain
from .discounts import Lane, Part, Take
from .errors import InvalidInput
from .money import format_minor, refund_minor
from .results import Allowance, Applied, Reason, Refusal, Refused, Result, ResultLine, result_json
from .terms import Bogo, Fixed, GiftCard, Order, Percentage, PlainDiscount, Shipping, Usage, Voucher
from .validity import TZDATA_VERSION, epoch_second

__all__ = [
    "ENGINE_VERSION", "Allowance", "Applied", "CompiledVoucher", "Reason", "Refused", "Result", "ResultLine", "Usage",
    "compile_voucher", "evaluate", "max_discount_minor", "refund_minor", "result_json",
]  # fmt: skip

RULES_VERSION: Final = "1"
"""Rises whenever some input gives other bytes than before, be it only in `why` or `detail`."""
ENGINE_VERSION: Final[str] = f"{RULES_VERSION}+tzdata{TZDATA_VERSION}"
"""What a redemption names, so that it can be settled by the same rules, time zones included."""


class _Candidate:
    """A voucher that would apply alone, and what it would take."""

    __slots__ = ("compiled", "part", "prefix", "rank", "selection", "take", "turn")

    def __init__(
        self, compiled: CompiledVoucher, part: Part, prefix: str, selection: Any, take: Take, alone: int
    ) -> None:
        self.compiled = compiled
        self.part = part
        self.prefix = prefix
        self.selection = selection
        self.take = take
        self.rank = (-compiled.priority, -alone, compiled.folded)
        self.turn = (part.lane, -compiled.priority, compiled.folded)


_BY_RANK: Final = attrgetter("rank")
_BY_TURN: Final = attrgetter("turn")
_SHIPPING: Final = int(Lane.SHIPPING)  # compared for each voucher of each order: no look-up in the enumeration
_GIFT_CARD: Final = int(Lane.GIFT_CARD)


class _Run:
    """One evaluation: the order, how it stands, and what was said about each code so far."""

    __slots__ = ("allowance", "applied", "basket", "refused", "second", "standing", "usage")

    def __init__(
        self,
        order: Order,
        second: int,
        usage: Mapping[str, Usage] | None,
        allowance: Mapping[str, Allowance] | None,
    ) -> None:
        self.basket = Basket(order)
        self.standing = Standing(self.basket)
        self.second = second
        self.usage = usage
        self.allowance = allowance
        self.applied: list[Applied] = []
        self.refused: list[tuple[str, Refused]] = []

    def refuse(self, compiled: CompiledVoucher, reason: Reason, detail: dict[str, Any]) -> None:
        self.refused.append((compiled.folded, Refused(compiled.voucher.code, reason, detail)))


_Detail: TypeAlias = dict[str, Any]
_NO_USAGE: Final = Usage()
_NO_CUSTOMER: Final = {"field": "customer.id", "expected": "a customer", "actual": None}


def evaluate(
    order: Order,
    vouchers: Sequence[CompiledVoucher],
    codes: Sequence[str] | None = None,
    *,
    at: datetime,
    usage: Mapping[str, Usage] | None = None,
    allowance: Mapping[str, Allowance] | None = None,
) -> Result:
    """Apply the vouchers whose `codes` were given (None: all of them) to an order at the time `at`.

    `usage` and `allowance` are by folded code. Without `usage` limits are not checked; a code missing in it has used
    nothing. Without `allowance` the caller is connected, and a code missing in it is free to use. Amounts are in minor
    units of the order's currency. Raises `InvalidInput` where `at` has no offset, a code cannot be one, or two vouchers
    have equal codes. Refusals are in the result. Source: engine.md.
    """
    run = _Run(order, epoch_second(at), usage, allowance)
    candidates = []
    for compiled in _wanted(run, vouchers, codes):
        found = _check_alone(run, compiled)
        if isinstance(found, _Candidate):
            candidates.append(found)
        else:
            run.refuse(compiled, *found)
    kept = _stacked(run, candidates) if len(candidates) > 1 else candidates
    kept.sort(key=_BY_TURN)
    for candidate in kept:
        refusal = _apply(run, candidate)
        if refusal is not None:
            run.refuse(candidate.compiled, *refusal)
    return _result(run)


def _wanted(run: _Run, vouchers: Sequence[CompiledVoucher], given: Sequence[str] | None) -> Sequence[CompiledVoucher]:
    """The vouchers to check, each once; unknown codes are refused as first typed, trimmed."""
    by_code = {compiled.folded: compiled for compiled in vouchers}
    if len(by_code) != len(vouchers):
        _refuse_equal(vouchers)
    if given is None:
        return vouchers
    wanted: dict[str, CompiledVoucher] = {}
    unknown: set[str] = set()
    for index, code in enumerate(given):
        try:
            folded = _codes.fold(code)
        except InvalidInput as error:
            raise error.under(f"codes[{index}]") from None
        if folded in by_code:
            wanted[folded] = by_code[folded]
        elif folded not in unknown:
            unknown.add(folded)
            detail = {"message": "enter a code that exists"}
            run.refused.append((folded, Refused(_codes.trimmed(code), Reason.UNKNOWN_CODE, detail)))
    return list(wanted.values())


def _refuse_equal(vouchers: Sequence[CompiledVoucher]) -> None:
    first: dict[str, int] = {}
    for index, compiled in enumerate(vouchers):
        earlier = first.setdefault(compiled.folded, index)
        if earlier != index:
            raise InvalidInput(f"vouchers[{index}].code", f"must not be equal to vouchers[{earlier}].code")


# Step 1: each code on its own.


def _check_alone(run: _Run, compiled: CompiledVoucher) -> _Candidate | Refusal:
    refusal = _refused_by_time(run, compiled)
    if refusal is None and (compiled.limited or run.allowance is not None):
        refusal = _refused_by_use(run, compiled)
    if refusal is not None:
        return refusal
    basket = run.basket
    if compiled.when is not None and not compiled.when(basket, basket.subtotal):
        assert compiled.voucher.when is not None
        return Reason.CONDITION_NOT_MET, explain(compiled.voucher.when, basket, basket.subtotal)
    part, prefix = compiled.part, ""
    if compiled.resolve is not None:
        found, text = compiled.resolve(basket)
        if isinstance(found, Reason):
            assert isinstance(text, dict)
            return found, text
        assert isinstance(text, str)
        part, prefix = found, text
    assert part is not None
    selection = part.select(basket)
    if selection is None:
        return Reason.NO_MATCHING_ITEM, {"message": part.wanted()}
    take = part.take(basket, run.standing, selection)
    if take is None:
        return _nothing(part)
    alone = _within_cap(run, take.amount, part, compiled.cap)
    if not alone:
        return _nothing_within_cap(compiled.cap)
    refusal = _refused_by_amount(run, compiled, alone)
    return refusal or _Candidate(compiled, part, prefix, selection, take, alone)


def _refused_by_time(run: _Run, compiled: CompiledVoucher) -> Refusal | None:
    voucher, second = compiled.voucher, run.second
    if not compiled.active:
        return Reason.INACTIVE, {"expected": "active", "actual": voucher.status}
    if compiled.from_second is not None and second < compiled.from_second:
        return Reason.NOT_YET_VALID, {"valid_from": voucher.valid_from}
    if compiled.until_second is not None and second > compiled.until_second:
        return Reason.EXPIRED, {"valid_until": voucher.valid_until}
    if compiled.is_open is not None and not compiled.is_open(second):
        return Reason.OUTSIDE_HOURS, {"hours": voucher.hours}
    if compiled.currency is not None and compiled.currency != run.basket.order.currency:
        return Reason.CURRENCY_MISMATCH, {"expected": compiled.currency, "actual": run.basket.order.currency}
    return None


def _refused_by_use(run: _Run, compiled: CompiledVoucher) -> Refusal | None:
    """Limits, then what a device may do without a connection."""
    if compiled.limited:
        limits = compiled.voucher.limits
        used = None if run.usage is None else run.usage.get(compiled.folded, _NO_USAGE)
        if used is not None and limits.total is not None and used.total >= limits.total:
            return Reason.LIMIT_REACHED, {"limit": limits.total, "used": used.total}
        if limits.per_customer is not None:
            customer = run.basket.order.customer
            if customer is None or customer.id is None:
                return Reason.CUSTOMER_LIMIT_REACHED, _NO_CUSTOMER
            if used is not None and used.customer >= limits.per_customer:
                return Reason.CUSTOMER_LIMIT_REACHED, {"limit": limits.per_customer, "used": used.customer}
    allowed = None if run.allowance is None else run.allowance.get(compiled.folded)
    if allowed is not None:
        if allowed.needs_connection:
            return Reason.NEEDS_CONNECTION, {"message": "connect to the server"}
        if (allowed.units is not None and allowed.units <= 0) or (allowed.minor is not None and allowed.minor <= 0):
            return Reason.NO_ALLOWANCE, {"message": "connect to the server for another allowance"}
    return None


def _refused_by_amount(run: _Run, compiled: CompiledVoucher, amount: int) -> Refusal | None:
    """Allowance and budget refuse a discount above what is left of them; they never cut it."""
    allowed = None if run.allowance is None else run.allowance.get(compiled.folded)
    if allowed is not None and allowed.minor is not None and amount > allowed.minor:
        return Reason.NO_ALLOWANCE, {"discount_minor": amount, "left_minor": allowed.minor}
    budget = compiled.budget
    if budget is not None and run.usage is not None:
        left = max(0, budget - run.usage.get(compiled.folded, _NO_USAGE).budget_minor)
        if amount > left:
            return Reason.BUDGET_EXHAUSTED, {"discount_minor": amount, "left_minor": left}
    return None


def _nothing(part: Part) -> Refusal:
    message = part.wanted() if part.lane >= _SHIPPING else "nothing is left to take off the items it is for"
    return Reason.NOTHING_TO_DISCOUNT, {"message": message}


def _nothing_within_cap(cap: int) -> Refusal:
    message = "the highest discount that may be taken together is reached"
    return Reason.NOTHING_TO_DISCOUNT, {"max_total_percent": f"{cap // 10_000}.{cap % 10_000:04d}", "message": message}


def _within_cap(run: _Run, amount: int, part: Part, cap: int) -> int:
    """Step 4: at most what the strictest `max_total_percent` leaves of the subtotal, rounded down."""
    if cap == WHOLE or part.lane >= _SHIPPING:
        return amount
    subtotal = run.basket.subtotal
    taken = subtotal - run.standing.goods
    return min(amount, max(0, subtotal * cap // WHOLE - taken))


# Step 2: stacking.


def _stacked(run: _Run, candidates: list[_Candidate]) -> list[_Candidate]:
    """From the best down, what conflicts with nothing kept before; the rest is refused."""
    kept: list[_Candidate] = []
    best: _Candidate | None = None  # the best kept that is not a payment
    groups: dict[str, _Candidate] = {}
    for candidate in sorted(candidates, key=_BY_RANK):
        if candidate.part.lane == _GIFT_CARD:
            kept.append(candidate)
            continue
        group = candidate.compiled.group
        in_the_way = groups.get(group) if group is not None else None
        if best is not None and (best.compiled.exclusive or candidate.compiled.exclusive):
            in_the_way = best
        if in_the_way is not None:
            code = in_the_way.compiled.voucher.code
            run.refuse(
                candidate.compiled,
                Reason.STACKING_CONFLICT,
                {"conflicts_with": code, "message": f"leave out {code}"},
            )
            continue
        kept.append(candidate)
        best = best or candidate
        if group is not None:
            groups[group] = candidate
    return kept


# Steps 3 to 5: lanes, caps, and a second check at its turn.


def _apply(run: _Run, candidate: _Candidate) -> Refusal | None:
    compiled, part, basket, standing = candidate.compiled, candidate.part, run.basket, run.standing
    take: Take | None = candidate.take
    if run.applied:  # otherwise the order stands as it stood when the voucher was checked alone
        if compiled.can_change and compiled.when is not None and not compiled.when(basket, standing.goods):
            assert compiled.voucher.when is not None
            return Reason.CONDITION_NOT_MET, explain(compiled.voucher.when, basket, standing.goods)
        take = part.take(basket, standing, candidate.selection)
    if take is None:
        return _nothing(part)
    cap = min(compiled.cap, standing.cap)
    amount = _within_cap(run, take.amount, part, cap)
    if not amount:
        return _nothing_within_cap(cap)
    refusal = _refused_by_amount(run, compiled, amount)
    if refusal is not None:
        return refusal
    why = candidate.prefix + part.why(take, basket.order.currency)
    if amount != take.amount:
        why += f", cut to {format_minor(amount, basket.order.currency)} by max_total_percent"
    lines = _taken(run, part.lane, take, amount)
    standing.cap = cap
    run.applied.append(Applied(compiled.voucher.code, amount, lines, why))
    return None


def _taken(run: _Run, lane: Lane, take: Take, amount: int) -> tuple[ResultLine, ...]:
    """Write down what was taken, and give its shares above 0."""
    standing = run.standing
    if lane == _SHIPPING:
        standing.shipping -= amount
        return ()
    if lane == _GIFT_CARD:
        standing.paid += amount
        return ()
    indexes, shares, left, ids = take.lines, take.shares(amount), standing.left, run.basket.ids
    standing.goods -= amount
    if take.units is not None:
        for index, count in take.units.items():
            standing.free[index] -= count
    if len(indexes) == len(left):  # every line, in order
        standing.left = list(map(sub, left, shares))
    else:
        for index, taken in zip(indexes, shares, strict=True):
            left[index] -= taken
        ids = [ids[index] for index in indexes]
    if 0 in shares:
        return tuple([ResultLine(id_, taken) for id_, taken in zip(ids, shares, strict=True) if taken])
    return tuple(map(ResultLine, ids, shares))


def _result(run: _Run) -> Result:
    basket, standing, order = run.basket, run.standing, run.basket.order
    run.refused.sort(key=lambda entry: entry[0])
    return Result(
        order.currency,
        basket.subtotal,
        basket.subtotal - standing.goods,
        order.shipping_minor,
        order.shipping_minor - standing.shipping,
        standing.paid,
        standing.goods + standing.shipping - standing.paid,
        tuple(map(ResultLine, basket.ids, map(sub, basket.totals, standing.left))),
        tuple(run.applied),
        tuple([refused for _, refused in run.refused]),
    )


def max_discount_minor(voucher: Voucher) -> int | None:
    """The largest discount the voucher can give on any one order, in minor units, or None where nothing bounds it.

    From the discount alone: its amount, cap or balance. What is left of a budget bounds it too, but changes.
    """
    bounds = [_largest(discount) for discount in plain_discounts(voucher.discount)]
    known = [bound for bound in bounds if bound is not None]
    return max(known) if len(known) == len(bounds) else None


def _largest(discount: PlainDiscount) -> int | None:
    if isinstance(discount, Percentage | Shipping):
        return discount.cap_minor
    if isinstance(discount, Fixed):
        return discount.amount_minor if discount.per == "order" else None
    if isinstance(discount, GiftCard):
        return discount.balance_minor
    if isinstance(discount, Bogo) and discount.get.amount_minor is not None and discount.max_applications is not None:
        return discount.get.amount_minor * discount.get.quantity * discount.max_applications
    return None
