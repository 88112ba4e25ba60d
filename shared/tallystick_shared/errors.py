"""The errors of all three packages, by whose fault they are. Expected refusals are values, not errors.

TallystickError
├── CallerError            the caller's fault: mend the input or the call, a repeat will not help
│   └── InvalidInput         one field of the input is wrong; names it
├── RemoteError            the other side's fault: what it sent is not believed, nothing was changed
│   └── Untrusted            a signature, digest, version, expiry or size is not as it must be
└── LineError              the line's fault: try again later
"""

from __future__ import annotations

from typing import ClassVar, Final

from .unicode14 import is_assigned


def _spelled(point: int) -> str:
    return f"\\x{point:02x}" if point < 0x100 else f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"


# Control characters, line and paragraph separators, what changes the direction of writing, what has no width but joins
# nothing, halves of a pair, private use: by number, so that every Python agrees.
_UNSEEN: Final = {
    point: _spelled(point)
    for first, last in (
        (0x00, 0x1F),
        (0x7F, 0x9F),
        (0xAD, 0xAD),
        (0x061C, 0x061C),
        (0x180E, 0x180E),
        (0x200B, 0x200B),
        (0x200E, 0x200F),
        (0x2028, 0x202E),
        (0x2060, 0x2069),
        (0xD800, 0xDFFF),
        (0xE000, 0xF8FF),
        (0xFEFF, 0xFEFF),
        (0xFFF9, 0xFFFB),
        (0xE0000, 0xE007F),
    )
    for point in range(first, last + 1)
}


_PRIVATE: Final = "\U000f0000"
"""From here on nothing has a meaning that everybody shares."""


def one_line(text: str) -> str:
    """The text with what a terminal would act on, or nobody would see, spelled out, as in \\x1b.

    And what Unicode 14 does not assign: nobody agrees how wide that is.
    """
    text = text.translate(_UNSEEN)
    if text.isascii():
        return text
    return "".join([one if is_assigned(one) and one < _PRIVATE else _spelled(ord(one)) for one in text])


class TallystickError(Exception):
    """Base of all; `code` is stable and made for programs, `str(error)` is one sentence for people.

    Whatever is quoted in it, a terminal finds nothing in it to act on.
    """

    default_code: ClassVar[str] = "ERROR"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        self.message = one_line(message)
        super().__init__(self.message)
        self.code = code or self.default_code


class CallerError(TallystickError):
    default_code = "MISUSE"


class InvalidInput(CallerError):
    """One field is wrong.

    `path` names it as a user would write it (`vouchers[0].discount.percent`, empty for the whole),
    `expected` says what it should have been, `was` shows what it was (shortened, never a secret).
    """

    default_code = "INVALID_FIELD"

    def __init__(self, path: str, expected: str, was: str | None = None, *, code: str | None = None) -> None:
        self.path, self.expected, self.was = path, expected, was
        where = f"{path}: " if path else ""
        tail = "" if was is None else f", not {was}"
        super().__init__(f"{where}{expected}{tail}", code=code)

    def under(self, prefix: str) -> InvalidInput:
        """The same error one level further out: `discount.percent` under `vouchers[0]`."""
        joined = prefix if not self.path else f"{prefix}.{self.path}" if self.path[0] != "[" else prefix + self.path
        return InvalidInput(joined, self.expected, self.was, code=self.code)


class RemoteError(TallystickError):
    default_code = "REMOTE"


class Untrusted(RemoteError):
    """What arrived is not believed. `code` names the one rule that refused it, see `tallystick_client.trust`."""

    default_code = "UNTRUSTED"


class LineError(TallystickError):
    default_code = "NO_CONNECTION"
