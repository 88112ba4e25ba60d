"""Hidden codes: those strong enough travel as their digest, so that a stolen till is no list of live codes.

The published revision holds the digest, salted for the one scope that the voucher is in; the code itself stands in
`vouchers` alone.
"""

from __future__ import annotations

from math import log2
from typing import Final

import msgspec

from tallystick_shared.bundle import hidden_code
from tallystick_shared.codes import fold
from tallystick_shared.errors import InvalidInput
from tallystick_shared.model import Voucher

BITS_MIN: Final = 80
_FEW: Final = 5
"""So many different characters are an alphabet of their own: twenty times the same letter is no secret."""


def code_bits(folded: str) -> int:
    """How hard a random code of this look is to guess, in bits, estimated low.

    Its length times the bits of the smallest usual alphabet that holds its characters: digits, hexadecimal, letters, or
    letters and digits. Separators, and letters that are not ASCII, count nothing.
    """
    characters = [one for one in folded if one.isascii() and one.isalnum()]
    different = set(characters)
    if len(different) <= _FEW:
        size = max(len(different), 1)
    elif different <= set("0123456789"):
        size = 10
    elif different <= set("0123456789abcdef"):
        size = 16
    else:
        size = 36 if any(one.isdigit() for one in different) else 26
    return int(len(characters) * log2(size))


def must_be_strong(code: str) -> None:
    """Raises `InvalidInput` (`WEAK_CODE`): from its digest a weaker code could be guessed, so hiding it is no use."""
    if (bits := code_bits(fold(code))) < BITS_MIN:
        wanted = f"must be random and of {BITS_MIN} bits or more to be hidden, as 18 letters and digits are"
        # the code itself is not shown: what is to be hidden has no place in a log
        raise InvalidInput("code", wanted, f"one of about {bits} bits", code="WEAK_CODE")


def hide(voucher: Voucher, salt: str) -> Voucher:
    """The voucher as it is published, its digest in place of its code."""
    return with_code(voucher, hidden_code(salt, fold(voucher.code)))


def with_code(voucher: Voucher, code: str) -> Voucher:
    """A published voucher with its code in clear, as `vouchers` has it; or the other way round."""
    return msgspec.structs.replace(voucher, code=code)
