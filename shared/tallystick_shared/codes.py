"""Codes as people type them, and the one form in which they are compared.

Source: engine.md, "Codes": compared after trimming Unicode white space, NFC and full case folding, by code point.
The spelling first given, trimmed, is what is stored and reported.
"""

from __future__ import annotations

import unicodedata
from typing import Final

from .errors import InvalidInput
from .unicode14 import is_assigned

CODE_CHARACTERS_MAX: Final = 128
HIDDEN_PREFIX: Final = "sha256:"
"""What a code that travels as its digest begins with, and no other."""

# The White_Space property itself, not str.isspace: that also takes U+001C..U+001F, and grew and shrank with
# Python's Unicode database. The property has not changed since Unicode 6.3.
_WHITE_SPACE: Final = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)


def trimmed(code: str) -> str:
    """The code without Unicode white space at its ends: the spelling that is stored and reported.

    Raises `InvalidInput` (empty path, for the caller to prefix) where the code is empty, longer than 128 characters,
    or holds a lone surrogate or a code point that Unicode 14 does not assign.
    """
    if not isinstance(code, str):  # from a caller without types
        raise InvalidInput("", "must be a code, as text", type(code).__name__)
    text = code.strip(_WHITE_SPACE)
    if not text:
        raise InvalidInput("", "must be a code of 1 to 128 characters", "empty")
    if len(text) > CODE_CHARACTERS_MAX:
        raise InvalidInput("", "must be a code of 1 to 128 characters", f"one of {len(text)} characters")
    if "\0" in text:
        raise InvalidInput("", "must hold only characters that can be stored", "U+0000")
    if not text.isascii():
        for character in text:
            if "\ud800" <= character <= "\udfff" or not is_assigned(character):
                point = f"U+{ord(character):04X}"
                raise InvalidInput("", "must hold only characters that Unicode 14 assigns", point)
    return text


def fold(code: str) -> str:
    """The form in which codes are compared and ordered; folding twice changes nothing. Raises as `trimmed` does.

    NFC once more after the case folding: folding can leave a sequence that NFC would compose (long s with a dot
    below), and two canonically equal codes must never be two vouchers. Folding and NFC of assigned characters are
    frozen by Unicode's stability policies, so every Python gives the same answer.
    """
    text = trimmed(code)
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
