"""What the engine answers: applied, refused and why. `engine` is the place to import these from.

Source: engine.md, "Result". Expected refusals are values; the order of `Reason` is the order of the checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, Final, TypeAlias

import msgspec
from msgspec import Meta

from .door import encode


class Reason(StrEnum):
    """Why a code is refused; of several reasons the first in this list is given.

    `transient` ones may go away for the same order and voucher by waiting, connecting or asking the operator to resume;
    the others are final: the order, the voucher or the combination has to change.
    """

    UNKNOWN_CODE = "UNKNOWN_CODE"
    INACTIVE = "INACTIVE"
    NOT_YET_VALID = "NOT_YET_VALID"
    EXPIRED = "EXPIRED"
    OUTSIDE_HOURS = "OUTSIDE_HOURS"
    CURRENCY_MISMATCH = "CURRENCY_MISMATCH"
    LIMIT_REACHED = "LIMIT_REACHED"
    CUSTOMER_LIMIT_REACHED = "CUSTOMER_LIMIT_REACHED"
    NEEDS_CONNECTION = "NEEDS_CONNECTION"
    NO_ALLOWANCE = "NO_ALLOWANCE"
    CONDITION_NOT_MET = "CONDITION_NOT_MET"
    NO_MATCHING_ITEM = "NO_MATCHING_ITEM"
    BELOW_FIRST_TIER = "BELOW_FIRST_TIER"
    NOTHING_TO_DISCOUNT = "NOTHING_TO_DISCOUNT"
    BUDGET_EXHAUSTED = "BUDGET_EXHAUSTED"
    STACKING_CONFLICT = "STACKING_CONFLICT"

    @property
    def transient(self) -> bool:
        return self in _TRANSIENT

    @property
    def final(self) -> bool:
        return self not in _TRANSIENT


_TRANSIENT: Final = frozenset(
    {
        Reason.INACTIVE,
        Reason.NOT_YET_VALID,
        Reason.OUTSIDE_HOURS,
        Reason.NEEDS_CONNECTION,
        Reason.NO_ALLOWANCE,
    }
)

Refusal: TypeAlias = tuple[Reason, dict[str, Any]]


class Allowance(msgspec.Struct, frozen=True):
    """What a device may still give away of one voucher without asking: None is unlimited.

    `needs_connection` refuses it offline altogether. Source: protocol.md, sections 2 and 5.
    """

    units: Annotated[int, Meta(ge=0)] | None = None
    minor: Annotated[int, Meta(ge=0)] | None = None
    needs_connection: bool = False


# gc=False: a result holds no cycles, and tracking its many small parts would cost more than making them


class ResultLine(msgspec.Struct, frozen=True, gc=False):
    """What one line of the order is lowered by, in minor units."""

    id: str
    discount_minor: int


class Applied(msgspec.Struct, frozen=True, gc=False):
    """One voucher's part, above 0. `lines` has its shares above 0; none for shipping and gift cards."""

    code: str
    discount_minor: int
    lines: tuple[ResultLine, ...]
    why: str


class Refused(msgspec.Struct, frozen=True, gc=False):
    """A code that is not applied, why, and what would have made it work."""

    code: str
    reason: Reason
    detail: dict[str, Any]


class Result(msgspec.Struct, frozen=True):
    """Minor units throughout; `discount_minor` is goods only.

    total = subtotal - discount + shipping - shipping discount - paid by gift card. `lines` follows the order's lines,
    `applied` the order of application, `refused` the folded codes.
    """

    currency: str
    subtotal_minor: int
    discount_minor: int
    shipping_minor: int
    shipping_discount_minor: int
    paid_by_gift_card_minor: int
    total_minor: int
    lines: tuple[ResultLine, ...]
    applied: tuple[Applied, ...]
    refused: tuple[Refused, ...]


DETAILS_BYTES_MAX: Final = 8 * 1024


def brief(result: Result) -> Result:
    """The result as a journal keeps it: what codes that were not applied would have needed must not cost a sale.

    Details of more than 8 KiB of JSON together are kept by their messages, and if these are too long not at all.
    """
    if len(encode(result.refused)) <= DETAILS_BYTES_MAX:
        return result
    refused = [Refused(one.code, one.reason, {"message": one.detail.get("message", "")}) for one in result.refused]
    if len(encode(refused)) > DETAILS_BYTES_MAX:
        refused = [Refused(one.code, one.reason, {}) for one in result.refused]
    return msgspec.structs.replace(result, refused=tuple(refused))


class Best(msgspec.Struct, frozen=True):
    """The combination that saves the customer most: goods plus shipping, in minor units.

    `codes` are the chosen vouchers and the gift cards that pay with them, in the order of application; `result` is what
    `evaluate` says of exactly these, and refuses none. `exact`: every combination was looked at; otherwise they were
    too many, and it is the best that was found step by step.
    """

    codes: tuple[str, ...]
    saved_minor: int
    exact: bool
    result: Result


class Qualified(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One voucher alone on the order: what it takes, in minor units, or why it does not apply and what would help."""

    code: str
    discount_minor: int | None = None
    reason: Reason | None = None
    detail: dict[str, Any] | None = None


class _QualifiedDocument(msgspec.Struct, frozen=True):
    vouchers: tuple[Qualified, ...]


def result_json(result: Result) -> bytes:
    """Keys in the order of engine.md, UTF-8, no spaces. Equal inputs give equal bytes on any machine."""
    return encode(result)


def best_json(best: Best) -> bytes:
    """As `result_json`: codes, saved_minor, exact, result."""
    return encode(best)


def qualified_json(qualified: Sequence[Qualified]) -> bytes:
    """As `result_json`: an object with the list `vouchers`."""
    return encode(_QualifiedDocument(tuple(qualified)))
