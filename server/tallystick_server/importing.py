"""Importing a file of vouchers: all of its lines or none, and every bad one named."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

from tallystick_server.database import Database, Transaction
from tallystick_server.hiding import must_be_strong
from tallystick_server.settings import Settings
from tallystick_server.vouchers import exists_already, must_be_scopes, publish, taken
from tallystick_shared.codes import fold
from tallystick_shared.door import shown
from tallystick_shared.errors import CallerError, InvalidInput
from tallystick_shared.model import Voucher, parse_voucher

_TAKEN: Final = "this is the code of a voucher already"
"""Without the code: what is to be hidden has no place on a screen or in a log, its line is enough to find it."""
LINE_BYTES_MAX = 4 * 1024 * 1024
SHOWN_ERRORS_MAX = 20


class BadFile(CallerError):
    """A file of which nothing was imported; `lines` are `FILE:LINE: path: sentence`, the first of `count`."""

    default_code = "BAD_FILE"

    def __init__(self, path: Path, lines: list[str], count: int) -> None:
        super().__init__(f"{path}: nothing was imported, {count} of its lines cannot be")
        self.lines, self.count = lines, count


async def import_into(
    database: Database,
    settings: Settings,
    path: Path,
    *,
    scope: str,
    hidden: bool = False,
    now: datetime,
    on_line: Callable[[int], None] | None = None,
) -> int:
    """Publish every line of an NDJSON file (gzip or not) or none; how many. `on_line` hears how far reading is.

    `hidden`: the codes travel as their digests, and must be strong enough for that (`hiding`). Raises `BadFile`,
    `CallerError` (`NO_FILE`, `NOT_FOUND` for the scope).
    """
    lines: dict[str, int] = {}
    found: list[Voucher] = []
    errors: list[tuple[int, InvalidInput]] = []
    for number, raw in read_lines(path):
        try:
            voucher = _read(raw, settings, hidden)
            folded = fold(voucher.code)
            if hidden:
                must_be_strong(voucher.code)
            if folded in lines:
                named = "this" if hidden else shown(voucher.code)
                raise InvalidInput("code", f"{named} is the code of line {lines[folded]} already")
            lines[folded] = number
            found.append(voucher)
        except InvalidInput as error:
            errors.append((number, error))
        if on_line is not None:
            on_line(number)

    if not found and errors and errors[0][1].expected.endswith("it ends too early"):
        text = "must hold each voucher whole on one line of its own (NDJSON), nothing was imported"
        raise CallerError(f"{path} {text}", code="BAD_FILE")
    if not found and not errors:
        raise CallerError(f"{path} holds no vouchers, nothing was imported", code="BAD_FILE")
    codes = {fold(voucher.code): voucher.code for voucher in found}

    async def store(transaction: Transaction) -> None:
        await must_be_scopes(transaction, [scope])
        there = [
            (lines[folded], InvalidInput("code", _TAKEN) if hidden else exists_already(codes[folded]))
            for folded in await taken(transaction, list(lines))
        ]
        if bad := sorted([*errors, *there], key=lambda one: one[0]):
            told = [f"{path}:{number}: {error}" for number, error in bad[:SHOWN_ERRORS_MAX]]
            raise BadFile(path, told, len(bad))
        await publish(transaction, found, [scope], hidden=hidden, now=now)

    await database.write(store)
    return len(found)


def _read(raw: bytes, settings: Settings, hidden: bool) -> Voucher:
    """Raises `InvalidInput`; of a code that is to be hidden it shows nothing."""
    try:
        return parse_voucher(raw, default_currency=settings.default_currency)
    except InvalidInput as error:
        if hidden and error.path == "code":
            raise InvalidInput("code", error.expected, code=error.code) from None
        raise


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of every line that is not blank. Raises `CallerError` (`NO_FILE`)."""
    try:
        with path.open("rb") as plain:
            zipped = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            stream = gzip.GzipFile(fileobj=plain) if zipped else plain
            number = 0
            while line := stream.readline(LINE_BYTES_MAX + 1):
                number += 1
                if len(line) > LINE_BYTES_MAX:
                    raise CallerError(f"{path}:{number}: a line has at most {LINE_BYTES_MAX} bytes", code="NO_FILE")
                if line.strip():
                    yield number, line
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or "it is damaged"
        raise CallerError(f"{path} cannot be read: {why}", code="NO_FILE") from error
