"""What `tallystick evaluate` reads and answers: one document, or NDJSON answered line by line. No till is needed."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Literal, TypeAlias

import msgspec
from rich.console import Console

from tallystick_client import screen
from tallystick_client.entry import MISUSE
from tallystick_client.errors import CallerError, InvalidInput, TallystickError
from tallystick_shared.engine import (
    best,
    best_json,
    compile_voucher,
    evaluate,
    qualified_json,
    qualify,
    result_json,
)
from tallystick_shared.model import parse_request

INPUT_BYTES_MAX: Final = 64 * 1024 * 1024
"""Of a document, and of one line of NDJSON."""
Call: TypeAlias = Literal["evaluate", "best", "qualify"]
_CHUNK_BYTES: Final = 64 * 1024
_PATIENCE_S: Final = 0.25
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"

HELP: Final = """What vouchers do to an order, both given in FILE; no till is needed.

FILE is one JSON document:

\b
  {"order": {"id": "1", "currency": "EUR", "lines": [
     {"id": "1", "product_id": "kettle", "quantity": 1,
      "unit_price_minor": 3900}]},
   "vouchers": [{"code": "TEN",
     "discount": {"type": "percentage", "percent": 10}}],
   "at": "2026-06-01T12:00:00Z"}

"codes": ["TEN"] says which codes were entered; without it all of them.
"usage": {"TEN": {"total": 3, "customer": 0, "budget_minor": 900}} says what
was used before; without it limits are not checked. Amounts are in minor units
(cents). How vouchers are written: docs/how-to/write-vouchers.md.

NDJSON, one such document a line, gives one answer a line, each before the
next line is read. A bad line has its {"error", "code", "path"} in its place.

\b
  tallystick evaluate order.json
  tallystick evaluate --explain order.json
  tallystick evaluate --best --explain order.json
  tallystick evaluate - < orders.ndjson
"""


class LineReader:
    """The lines of a file descriptor that are not blank, none of them read before it is asked for."""

    def __init__(self, descriptor: int, bytes_max: int = INPUT_BYTES_MAX) -> None:
        self.bytes_max = bytes_max
        self._descriptor = descriptor
        self._buffer = bytearray()
        self._started = False

    def read(self) -> bytes | None:
        """The next line without its end, None after the last. Of a line too long the first `bytes_max` + 1 bytes."""
        while (line := self._line()) is not None:
            if not self._started:
                self._started = True
                line = line.removeprefix(_BYTE_ORDER_MARK)  # as text editors on Windows write it
            if line.strip() or len(line) > self.bytes_max:
                return line
        return None

    def check(self, line: bytes) -> None:
        """Raises where `read` had to cut the line."""
        if len(line) > self.bytes_max:
            raise _too_large("the line", self.bytes_max)

    def read_all(self) -> bytes:
        """Everything, as one document."""
        while chunk := os.read(self._descriptor, _CHUNK_BYTES):
            self._buffer += chunk
            if len(self._buffer) > self.bytes_max:
                raise _too_large("the document", self.bytes_max)
        return bytes(self._buffer.removeprefix(_BYTE_ORDER_MARK))

    def more(self) -> bool:
        """Whether another line follows; also true of a writer who sends nothing for a moment and may be waiting."""
        while not self._buffer.strip():
            ready, _, _ = select.select([self._descriptor], [], [], _PATIENCE_S)
            if not ready:
                return True
            chunk = os.read(self._descriptor, _CHUNK_BYTES)
            if not chunk:
                return False
            self._buffer[:] = chunk  # what it held was blank
        return True

    def waits(self) -> bool:
        """Whether the writer has said nothing more for a moment and has not ended."""
        if self._buffer.strip():
            return False
        ready, _, _ = select.select([self._descriptor], [], [], _PATIENCE_S)
        return not ready

    def _line(self) -> bytes | None:
        buffer, searched = self._buffer, 0
        while (end := buffer.find(b"\n", searched)) < 0:
            searched = len(buffer)
            if searched > self.bytes_max:
                line = bytes(buffer[: self.bytes_max + 1])
                self._skip_line()
                return line
            chunk = os.read(self._descriptor, _CHUNK_BYTES)
            if not chunk:
                line = bytes(buffer)
                buffer.clear()
                return line or None
            buffer += chunk
        line = bytes(buffer[: min(end, self.bytes_max + 1)])
        del buffer[: end + 1]
        return line

    def _skip_line(self) -> None:
        self._buffer.clear()
        while chunk := os.read(self._descriptor, _CHUNK_BYTES):
            _, newline, rest = chunk.partition(b"\n")
            if newline:
                self._buffer += rest
                return


@contextmanager
def opened(file: str) -> Iterator[LineReader]:
    """The lines of FILE, or of standard input where it is `-`."""
    try:
        descriptor = os.dup(0) if file == "-" else os.open(file, os.O_RDONLY)
    except OSError as error:
        raise CallerError(f"{file} cannot be read: {error.strerror}", code="NO_FILE") from error
    try:
        yield LineReader(descriptor)
    except IsADirectoryError as error:
        raise CallerError(f"{file} cannot be read: {error.strerror}", code="NO_FILE") from error
    finally:
        os.close(descriptor)


def _too_large(what: str, bytes_max: int) -> CallerError:
    return CallerError(f"{what} has more than {bytes_max} bytes", code="TOO_LARGE")


def answer_all(
    reader: LineReader,
    work: Callable[[bytes], None],
    fail: Callable[[TallystickError], None],
    between: Callable[[], None] = lambda: None,
) -> int:
    """Gives `work` one document, or the lines of NDJSON one by one, and `fail` what is wrong with one of those lines.

    The first line decides: NDJSON starts with a whole object, a document of several lines does not. A bad document,
    also one of a single line, raises; a bad line has its error in its place. Only for a bad first line is the next one
    looked for before the error is given, and not for long: its writer may be waiting for the answer. The exit code.
    """
    waiting = _opening(reader)
    if isinstance(waiting, bytes):
        work(waiting)
        return 0
    code, first, alone = 0, True, len(waiting) == 1
    while (line := waiting.pop(0) if waiting else reader.read()) is not None:
        if not first:
            between()
        try:
            reader.check(line)
            work(line)
        except CallerError as error:
            if first and alone and not reader.more():
                raise
            fail(error)
            code = MISUSE
        first = False
    return code


def _opening(reader: LineReader) -> bytes | list[bytes]:
    """The whole of a document, or the first lines of NDJSON."""
    lines: list[bytes] = []
    size = 0
    while (line := reader.read()) is not None:
        lines.append(line)
        size += len(line) + 1
        if len(lines) == 1 and (_looks_whole(line) or len(line) > reader.bytes_max):
            return lines
        if len(lines) == 1 and not _can_begin(line) and reader.waits():
            return lines  # no document begins like this, and whoever wrote it waits for the answer
        if len(lines) > 1 and _is_request(line):
            if _looks_whole(b"\n".join(lines[:-1])):
                raise InvalidInput("", "must be one document, or NDJSON with each document on a line of its own")
            return lines  # what stood before it was no document, but bad lines
        if size > reader.bytes_max:
            raise _too_large("the document", reader.bytes_max)
    return b"\n".join(lines)


def _looks_whole(line: bytes) -> bool:
    """Whether a line is one object by itself, or meant to be one: it ends where it should and is not merely cut off."""
    if not _in_braces(line):
        return False
    try:
        msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return "truncated" not in str(error)
    return True


def _can_begin(line: bytes) -> bool:
    """Whether a line can be the first of a document: the beginning of an object, cut off."""
    try:
        msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return line.strip().startswith(b"{") and "truncated" in str(error)
    return False


def _is_request(line: bytes) -> bool:
    """Whether a line is a whole request: no part of a document that spreads over several lines looks like one."""
    if not _in_braces(line):
        return False
    try:
        found: dict[str, msgspec.Raw] = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return "order" in found and "vouchers" in found


def _in_braces(line: bytes) -> bool:
    stripped = line.strip()
    return stripped.startswith(b"{") and stripped.endswith(b"}")


# ---- answers ------------------------------------------------------------------------------------------------------


def answered(raw: bytes, call: Call) -> bytes:
    """The answer as JSON. Raises `InvalidInput`."""
    asked = parse_request(raw)
    vouchers = [compile_voucher(voucher) for voucher in asked.vouchers]
    if call == "evaluate":
        return result_json(evaluate(asked.order, vouchers, asked.codes, at=asked.at, usage=asked.usage))
    if call == "best":
        return best_json(best(asked.order, vouchers, asked.codes, at=asked.at, usage=asked.usage))
    return qualified_json(qualify(asked.order, vouchers, asked.codes, at=asked.at, usage=asked.usage))


def explained(console: Console, raw: bytes, call: Call) -> None:
    """The same for a person."""
    asked = parse_request(raw)
    vouchers = [compile_voucher(voucher) for voucher in asked.vouchers]
    if call == "evaluate":
        result = evaluate(asked.order, vouchers, asked.codes, at=asked.at, usage=asked.usage)
        screen.show_explanation(console, asked.order, result)
    elif call == "best":
        found = best(asked.order, vouchers, asked.codes, at=asked.at, usage=asked.usage)
        screen.show_best(console, asked.order, found)
    else:
        each = qualify(asked.order, vouchers, asked.codes, at=asked.at, usage=asked.usage)
        screen.show_qualified(console, asked.order, each)


def explain_all(console: Console, reader: LineReader, call: Call) -> int:
    """As `answer_all`, with a line between the answers. The exit code."""
    return answer_all(
        reader,
        lambda raw: explained(console, raw, call),
        lambda error: screen.show_error(console, error),
        between=lambda: console.rule(style="dim"),
    )


def error_json(error: TallystickError) -> bytes:
    """What stands in the place of an answer: the sentence, the stable code, and the field where there is one."""
    said = {"error": str(error), "code": error.code}
    if isinstance(error, InvalidInput) and error.path:
        said["path"] = error.path
    return msgspec.json.encode(said)


def write(line: bytes) -> None:
    """One line on standard output, out of our hands when this returns."""
    try:
        sys.stdout.buffer.write(line + b"\n")
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 # or the interpreter complains on its way out
        raise CallerError(f"standard output cannot be written: {error.strerror}", code="NO_OUTPUT") from error
