"""The steps by which vouchers apply to one order, numbered as in engine.md, "Applying several vouchers".

`engine` calls them in order; `combinations` tries them on many sets of vouchers. Expected refusals are values.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from operator import attrgetter, sub
from typing import Any, Final

from .basket import WHOLE, Basket, Standing
from .compiled import CompiledVoucher
from .details import Detail, sentence, short, to_change, without
from .discounts import Lane, Part, Take, percent_text
from .money import format_minor
from .results import Allowance, Applied, Reason, Refusal, Refused, Result, ResultLine
from .terms import Order, Usage
from .validity import DAYS

_SHIPPING: Final = int(Lane.SHIPPING)  # compared for each voucher of each order: no look-up in the enumeration
_GIFT_CARD: Final = int(Lane.GIFT_CARD)
_NO_USAGE: Final = Usage()
CODES_MAX: Final = 20
"""How many codes a detail names at most."""


class Candidate:
    """A voucher that would apply alone, and what it would take."""

    __slots__ = ("alone", "compiled", "part", "prefix", "rank", "selection", "take", "turn")

    def __init__(
        self, compiled: CompiledVoucher, part: Part, prefix: str, selection: Any, take: Take, alone: int
    ) -> None:
        self.compiled = compiled
        self.part = part
        self.prefix = prefix
        self.selection = selection
        self.take = take
        self.alone = alone
        self.rank = (-compiled.priority, -alone, compiled.folded)
        self.turn = (part.lane, -compiled.priority, compiled.folded)

    @property
    def is_gift_card(self) -> bool:
        return self.part.lane == _GIFT_CARD


BY_RANK: Final = attrgetter("rank")
BY_TURN: Final = attrgetter("turn")


class Run:
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

    def refuse(self, compiled: CompiledVoucher, reason: Reason, detail: Detail) -> None:
        self.refused.append((compiled.folded, Refused(compiled.voucher.code, reason, detail)))


# Step 1: each code on its own.


def check_alone(run: Run, compiled: CompiledVoucher) -> Candidate | Refusal:
    """As if the voucher stood alone on the order."""
    refusal = _refused_by_time(run, compiled)
    if refusal is None and (compiled.limited or run.allowance is not None):
        refusal = _refused_by_use(run, compiled)
    if refusal is not None:
        return refusal
    basket = run.basket
    if compiled.when is not None and not compiled.when.holds(basket, basket.subtotal):
        return Reason.CONDITION_NOT_MET, to_change(compiled.when.needs(basket, basket.subtotal))
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
        return Reason.NO_MATCHING_ITEM, part.missing(basket)
    take = part.take(basket, run.standing, selection)
    if take is None:
        return Reason.NOTHING_TO_DISCOUNT, part.too_little(basket, selection)
    alone = _within_cap(run, take.amount, part, compiled.cap)
    if not alone:
        return Reason.NOTHING_TO_DISCOUNT, _too_little_for_cap(basket, compiled.cap)
    refusal = _refused_by_amount(run, compiled, alone)
    return refusal or Candidate(compiled, part, prefix, selection, take, alone)


def _refused_by_time(run: Run, compiled: CompiledVoucher) -> Refusal | None:
    voucher, second = compiled.voucher, run.second
    if not compiled.active:
        message = "ask the shop: it is paused and can be made active again"
        return Reason.INACTIVE, {"expected": "active", "actual": voucher.status, "message": message}
    if compiled.from_second is not None and second < compiled.from_second:
        message = f"come back from {_clock(voucher.valid_from)}"
        return Reason.NOT_YET_VALID, {"valid_from": voucher.valid_from, "message": message}
    if compiled.until_second is not None and second > compiled.until_second:
        message = f"use another code: it was valid until {_clock(voucher.valid_until)}"
        return Reason.EXPIRED, {"valid_until": voucher.valid_until, "message": message}
    if compiled.hours is not None and not compiled.hours.is_open(second):
        return Reason.OUTSIDE_HOURS, _until_it_opens(compiled, second)
    expected, actual = compiled.currency, run.basket.order.currency
    if expected is not None and expected != actual:
        message = f"pay in {expected}"
        return Reason.CURRENCY_MISMATCH, {
            "field": "currency",
            "expected": expected,
            "actual": actual,
            "message": message,
        }
    return None


def _clock(moment: datetime | None) -> str:
    """As it was written: the wall clock and the offset of the voucher."""
    return "" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S} {moment.isoformat()[19:]}"


def _until_it_opens(compiled: CompiledVoucher, second: int) -> Detail:
    voucher = compiled.voucher
    assert compiled.hours is not None
    windows = short(voucher.hours)
    found = compiled.hours.next_opening(second)
    if found is None or (voucher.valid_until is not None and found[0] > voucher.valid_until):
        return {"hours": windows, "message": "use another code: it is not open again before it expires"}
    opens_at, zone_name = found
    # not %a, which speaks the language of the host process
    message = f"come back on {DAYS[opens_at.weekday()]} {opens_at:%Y-%m-%d at %H:%M} ({zone_name})"
    return {"hours": windows, "opens_at": opens_at, "message": message}


def _refused_by_use(run: Run, compiled: CompiledVoucher) -> Refusal | None:
    """Limits, then what a device may do without a connection."""
    if compiled.limited:
        limits = compiled.voucher.limits
        used = None if run.usage is None else run.usage.get(compiled.folded, _NO_USAGE)
        if used is not None and limits.total is not None and used.total >= limits.total:
            message = "use another code: all its uses have been made"
            return Reason.LIMIT_REACHED, {"limit": limits.total, "used": used.total, "message": message}
        if limits.per_customer is not None:
            customer = run.basket.order.customer
            if customer is None or customer.id is None:
                message = "name the customer: it is counted for each"
                return Reason.CUSTOMER_LIMIT_REACHED, {
                    "field": "customer.id",
                    "expected": "a customer",
                    "actual": None,
                    "message": message,
                }
            if used is not None and used.customer >= limits.per_customer:
                message = "use another code: this customer has used it as often as one customer may"
                return Reason.CUSTOMER_LIMIT_REACHED, {
                    "limit": limits.per_customer,
                    "used": used.customer,
                    "message": message,
                }
    allowed = None if run.allowance is None else run.allowance.get(compiled.folded)
    if allowed is not None:
        if allowed.needs_connection:
            return Reason.NEEDS_CONNECTION, {"message": "connect to the server"}
        if (allowed.units is not None and allowed.units <= 0) or (allowed.minor is not None and allowed.minor <= 0):
            return Reason.NO_ALLOWANCE, {"message": "connect to the server for another allowance"}
    return None


def _refused_by_amount(run: Run, compiled: CompiledVoucher, amount: int) -> Refusal | None:
    """Allowance and budget refuse a discount above what is left of them; they never cut it."""
    allowed = None if run.allowance is None else run.allowance.get(compiled.folded)
    if allowed is not None and allowed.minor is not None and amount > allowed.minor:
        message = "connect to the server for another allowance"
        return Reason.NO_ALLOWANCE, {"discount_minor": amount, "left_minor": allowed.minor, "message": message}
    budget = compiled.budget
    if budget is not None and run.usage is not None:
        left = max(0, budget - run.usage.get(compiled.folded, _NO_USAGE).budget_minor)
        if amount > left:
            currency = run.basket.order.currency
            message = "use another code: its budget is used up"
            if left:
                message = f"have a smaller order: {format_minor(left, currency)} of its budget is left"
                message += f", and this order takes {format_minor(amount, currency)}"
            return Reason.BUDGET_EXHAUSTED, {"discount_minor": amount, "left_minor": left, "message": message}
    return None


def _too_little_for_cap(basket: Basket, cap: int) -> Detail:
    """Alone, nothing is within `max_total_percent` only where the subtotal is tiny."""
    least, currency = -(-WHOLE // cap), basket.order.currency
    text = f"spend {format_minor(least - basket.subtotal, currency)} more: it may take {percent_text(cap)} at most"
    return {"field": "subtotal_minor", "expected": least, "actual": basket.subtotal, "message": sentence(text)}


def _within_cap(run: Run, amount: int, part: Part, cap: int) -> int:
    """Step 4: at most what the strictest `max_total_percent` leaves of the subtotal, rounded down."""
    if cap == WHOLE or part.lane >= _SHIPPING:
        return amount
    subtotal = run.basket.subtotal
    taken = subtotal - run.standing.goods
    return min(amount, max(0, subtotal * cap // WHOLE - taken))


# Step 2: stacking.


def stack(run: Run, candidates: list[Candidate]) -> list[Candidate]:
    """From the best down, what conflicts with nothing kept before; the rest is refused."""
    kept: list[Candidate] = []
    best: Candidate | None = None  # the best kept that is not a payment
    groups: dict[str, Candidate] = {}
    for candidate in sorted(candidates, key=BY_RANK):
        if candidate.part.lane == _GIFT_CARD:
            kept.append(candidate)
            continue
        group = candidate.compiled.group
        in_the_way = groups.get(group) if group is not None else None
        if best is not None and (best.compiled.exclusive or candidate.compiled.exclusive):
            in_the_way = best
        if in_the_way is not None:
            code = in_the_way.compiled.voucher.code
            detail = {"conflicts_with": code, "message": sentence(f"use it without {code}, which goes before it")}
            run.refuse(candidate.compiled, Reason.STACKING_CONFLICT, detail)
            continue
        kept.append(candidate)
        best = best or candidate
        if group is not None:
            groups[group] = candidate
    return kept


# Steps 3 to 5: lanes, caps, and a second check at its turn.


class Turn:
    """What a voucher takes at its turn, with the shares of `take.lines`; `cap` is the strictest one then."""

    __slots__ = ("amount", "cap", "shares", "take")

    def __init__(self, amount: int, cap: int, take: Take, shares: list[int]) -> None:
        self.amount = amount
        self.cap = cap
        self.take = take
        self.shares = shares


def take_turn(run: Run, candidate: Candidate, first: bool) -> Turn | Refusal:
    """What a voucher takes of the order as it stands, and changes nothing yet; `first`: none was applied before it."""
    compiled, part, basket, standing = candidate.compiled, candidate.part, run.basket, run.standing
    take: Take | None = candidate.take
    if not first:  # otherwise the order stands as it stood when the voucher was checked alone
        if compiled.can_change and compiled.when is not None and not compiled.when.holds(basket, standing.goods):
            return Reason.CONDITION_NOT_MET, to_change(compiled.when.needs(basket, standing.goods))
        take = part.take(basket, standing, candidate.selection)
    if take is None:
        return Reason.NOTHING_TO_DISCOUNT, {"message": "nothing is left to take off"}
    cap = min(compiled.cap, standing.cap)
    amount = _within_cap(run, take.amount, part, cap)
    if not amount:
        text = f"no more than {percent_text(cap)} may be taken off together"
        return Reason.NOTHING_TO_DISCOUNT, {"max_total_percent": percent_text(cap)[:-2], "message": text}
    refusal = _refused_by_amount(run, compiled, amount)
    return refusal or Turn(amount, cap, take, take.shares(amount) if part.lane < _SHIPPING else [])


def settle(run: Run, part: Part, turn: Turn) -> None:
    """Take it off what is left of the order."""
    standing, take = run.standing, turn.take
    standing.cap = turn.cap
    if part.lane == _SHIPPING:
        standing.shipping -= turn.amount
        return
    if part.lane == _GIFT_CARD:
        standing.paid += turn.amount
        return
    left = standing.left
    standing.goods -= turn.amount
    if take.units is not None:
        for index, count in take.units.items():
            standing.free[index] -= count
    if len(take.lines) == len(left):  # every line, in order
        standing.left = list(map(sub, left, turn.shares))
    else:
        for index, taken in zip(take.lines, turn.shares, strict=True):
            left[index] -= taken


def apply(run: Run, candidate: Candidate) -> None:
    """The voucher's turn: what it takes is taken and written down, or it is refused."""
    turn = take_turn(run, candidate, not run.applied)
    compiled, part, currency = candidate.compiled, candidate.part, run.basket.order.currency
    if not isinstance(turn, Turn):
        run.refuse(compiled, turn[0], _after_others(run, *turn))
        return
    settle(run, part, turn)
    why = candidate.prefix + part.why(turn.take, currency)
    if turn.amount != turn.take.amount:
        why += f", cut to {format_minor(turn.amount, currency)} by max_total_percent"
    run.applied.append(Applied(compiled.voucher.code, turn.amount, _shares(run, turn), why))


def _after_others(run: Run, reason: Reason, detail: Detail) -> Detail:
    """It would apply alone, so that others came before it: what helps is to leave these out."""
    codes = [applied.code for applied in run.applied]
    # those that one of them beat would come in its place
    codes += [beaten.code for _, beaten in run.refused if beaten.detail.get("conflicts_with") in codes]
    text, codes = without(codes), codes[:CODES_MAX]
    if reason is Reason.CONDITION_NOT_MET:
        # not how much more to spend: what the others take grows with the order
        goods = format_minor(run.standing.goods, run.basket.order.currency)
        text += f": with {'it' if len(codes) == 1 else 'them'} the goods come to {goods}"
    elif reason is Reason.NOTHING_TO_DISCOUNT:
        text += f": {detail['message']}"
    else:
        text += f", or {detail['message']}"
    return {**detail, "after": codes, "message": sentence(text)}


def _shares(run: Run, turn: Turn) -> tuple[ResultLine, ...]:
    """The shares above 0."""
    shares, ids = turn.shares, run.basket.ids
    if len(shares) != len(ids):
        ids = [ids[index] for index in turn.take.lines]
    if 0 in shares:
        return tuple([ResultLine(id_, taken) for id_, taken in zip(ids, shares, strict=True) if taken])
    return tuple(map(ResultLine, ids, shares))


def result(run: Run) -> Result:
    """What was applied and refused, and what is left to pay."""
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
