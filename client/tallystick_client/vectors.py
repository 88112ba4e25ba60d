"""`tallystick vectors`: whether an implementation in another language gives the answers of the published vectors.

The command under test is started once, gets one input a line and owes one answer a line. It is fed and read at the
same time, so that neither side waits on a full pipe for the other.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import IO, Annotated, Any, Final, Literal

import msgspec
import typer

from tallystick_client.errors import CallerError, InvalidInput
from tallystick_client.evaluating import write
from tallystick_shared.errors import one_line

DIFFERENT: Final = 1
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
_TEXTS: Final = frozenset({"why", "detail", "error"})
"""Keys whose values are for people, and may differ from one implementation to the next."""
_SHOWN_MAX: Final = 300
_SAID_BYTES_MAX: Final = 4096
_ABSENT: Final = "nothing"

app = typer.Typer(
    help="Check an implementation in any language against published vectors.",
    rich_markup_mode=None,
)


class Vector(msgspec.Struct, frozen=True):
    """`input` and `output` as they stand in the file, so that every number reaches the command as it was written."""

    id: str
    shows: str
    input: msgspec.Raw
    output: msgspec.Raw
    source: str | None = None


class VectorFile(msgspec.Struct, frozen=True):
    call: str
    vectors: list[Vector]


class Difference(msgspec.Struct, frozen=True, omit_defaults=True):
    """The first one: where, as a JSON path, and the two values as JSON; `error` where nothing could be compared."""

    path: str = "$"
    expected: str | None = None
    actual: str | None = None
    error: str | None = None


@app.callback()
def main() -> None:
    pass


@app.command("engine")
def engine_command(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND", help="What to check, with its arguments.")],
    source: Annotated[Path, typer.Option("--from", metavar="DIR", help="The vectors: a folder of JSON, or one file.")],
    call: Annotated[
        Literal["evaluate", "best", "qualify"], typer.Option(help="Of which call the vectors are used.")
    ] = "evaluate",
    texts: Annotated[bool, typer.Option("--texts", help="Answers must be equal byte for byte, texts too.")] = False,
    only: Annotated[list[str] | None, typer.Option(metavar="ID", help="Use this one; may be repeated.")] = None,
    timeout: Annotated[float, typer.Option(min=0.01, metavar="SECONDS", help="How long one answer may take.")] = 30,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one line of JSON a vector.")] = False,
) -> int:
    """Give the inputs of the engine's vectors to COMMAND, one line of JSON each, and compare its answers.

    \b
      tallystick vectors engine --from tests/vectors/engine -- tallystick evaluate -
      tallystick vectors engine --from DIR --call best -- my-engine --best

    Answers are compared as JSON values: 1 is neither 1.0 nor true. The texts for people (why, detail, error) are left
    out without --texts. Exit codes: 0 all agree, 1 differences, 2 nothing was compared.
    """
    chosen = read_vectors(source, call, only or [])
    with Subject(command, [on_one_line(vector.input) for vector in chosen]) as subject:
        agree, missing = 0, 0
        for vector in chosen:
            answer = subject.answer(vector.id, timeout)
            missing += answer is None
            if answer is None and not as_json:
                continue
            found = Difference(error=subject.complaint) if answer is None else compare(vector, answer, texts)
            agree += found is None
            _show(vector, found, as_json)
        subject.finish(timeout)
    return _conclude(len(chosen), agree, missing, subject.complaint, as_json)


def _show(vector: Vector, found: Difference | None, as_json: bool) -> None:
    if as_json:
        told = {} if found is None else msgspec.to_builtins(found)
        write(msgspec.json.encode({"id": vector.id, "agrees": found is None} | told))
    elif found is not None:
        _say(f"{vector.id}: {vector.shows}{f' ({vector.source})' if vector.source else ''}")
        if found.error is not None:
            _say(f"  {found.error}")
        else:
            _say(f"  at       {found.path}")
            _say(f"  expected {_shortened(found.expected or _ABSENT)}")
            _say(f"  actual   {_shortened(found.actual or _ABSENT)}")


def _conclude(count: int, agree: int, missing: int, complaint: str | None, as_json: bool) -> int:
    if complaint is not None and not (as_json and missing):
        if as_json:
            write(msgspec.json.encode({"error": complaint}))
        else:
            _say(complaint)
    if not as_json:
        unanswered = f", {missing} without an answer" if missing else ""
        _say(f"{count} vector{'' if count == 1 else 's'}: {agree} agree, {count - agree - missing} differ{unanswered}")
    return 0 if agree == count and complaint is None else DIFFERENT


def _say(line: str) -> None:
    write(one_line(line).encode())


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}... ({len(text)} characters)"


# ---- vectors ------------------------------------------------------------------------------------------------------


def read_vectors(source: Path, call: str, only: list[str]) -> list[Vector]:
    """The vectors of a call, files by name; `only` those, if any. Raises `CallerError` where there are none."""
    if not source.exists():
        raise CallerError(f"{source} is neither a folder nor a file", code="NO_DIRECTORY")
    chosen: dict[str, Vector] = {}
    for path in sorted(source.glob("*.json")) if source.is_dir() else [source]:
        for vector in _read_file(path, call):
            if vector.id in chosen:
                raise InvalidInput(f"{path.name}: id", "must not be given twice among the vectors", vector.id[:80])
            chosen[vector.id] = vector
    missing = [id_ for id_ in only if id_ not in chosen]
    if missing or not chosen:
        which = f"{call} called {missing[0]}" if missing else call
        raise CallerError(f"{source} has no vectors of {which}", code="NO_VECTORS")
    return [vector for id_, vector in chosen.items() if not only or id_ in only]


def _read_file(path: Path, call: str) -> list[Vector]:
    try:
        file = msgspec.json.decode(path.read_bytes(), type=VectorFile)
    except OSError as error:
        raise CallerError(f"{path} cannot be read: {error.strerror}", code="NO_FILE") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(str(path), f"must hold vectors as JSON: {error}") from None
    return file.vectors if file.call == call else []


def on_one_line(raw: msgspec.Raw) -> bytes:
    """JSON without line ends: they stand between its values only, never in a text."""
    return bytes(raw).replace(b"\r", b" ").replace(b"\n", b" ")


# ---- comparing ----------------------------------------------------------------------------------------------------

_JSON: Final = msgspec.json.Decoder(float_hook=Decimal)
_COMPACT: Final = msgspec.json.Encoder(decimal_format="number")


def compare(vector: Vector, answer: bytes, texts: bool) -> Difference | None:
    """The first difference between a vector's output and an answer; `texts` compares every byte."""
    expected = _JSON.decode(vector.output)
    try:
        actual = _JSON.decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ArithmeticError):
        return Difference(error=f"the answer is no JSON: {_shortened(answer.decode(errors='backslashreplace'))}")
    if isinstance(actual, dict) and "error" in actual and "error" not in expected:
        return Difference(error=f"it answered with an error: {_shortened(_json(actual))}")
    found = first_difference(expected, actual, "$", frozenset() if texts else _TEXTS)
    if found is None and texts and _COMPACT.encode(expected) != answer:
        told, seen = _around(_COMPACT.encode(expected), answer)
        return Difference("$ (the values are equal, the bytes are not)", told, seen)
    return found


def first_difference(expected: Any, actual: Any, path: str, ignored: frozenset[str]) -> Difference | None:
    """As JSON values, each of its own type: 1 is neither 1.0 nor true. Keys come in any order."""
    if type(expected) is not type(actual):
        return Difference(path, _json(expected), _json(actual))
    if isinstance(expected, dict):
        for key in dict.fromkeys([*expected, *actual]):
            if key in ignored:
                continue
            where = f"{path}.{key}" if key.isidentifier() else f"{path}[{_json(key)}]"
            if key not in expected or key not in actual:
                one, other = (_json(side[key]) if key in side else None for side in (expected, actual))
                return Difference(where, one, other)
            if found := first_difference(expected[key], actual[key], where, ignored):
                return found
        return None
    if isinstance(expected, list):
        for index, (one, other) in enumerate(zip(expected, actual, strict=False)):
            if found := first_difference(one, other, f"{path}[{index}]", ignored):
                return found
        index = min(len(expected), len(actual))
        if len(expected) == len(actual):
            return None
        one, other = (_json(side[index]) if index < len(side) else None for side in (expected, actual))
        return Difference(f"{path}[{index}]", one, other)
    return None if expected == actual else Difference(path, _json(expected), _json(actual))


def _json(value: Any) -> str:
    return _COMPACT.encode(value).decode()


def _around(expected: bytes, actual: bytes) -> tuple[str, str]:
    """The two from a little before their first different byte."""
    pairs = enumerate(zip(expected, actual, strict=False))
    start = max(0, next((at for at, (one, other) in pairs if one != other), min(len(expected), len(actual))) - 20)
    told, seen = (text[start : start + 80].decode(errors="backslashreplace") for text in (expected, actual))
    return told, seen


# ---- the command under test ---------------------------------------------------------------------------------------


class Subject:
    """The command under test while it runs. `complaint`: one sentence on why it gives no more answers, or gave more."""

    def __init__(self, command: list[str], inputs: list[bytes]) -> None:
        pipe = subprocess.PIPE
        try:
            # a session of its own: what it started in turn ends with it
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise CallerError(f"{command[0]} cannot be started: {why}", code="NO_COMMAND") from error
        self.complaint: str | None = None
        self._asked = len(inputs)
        self._answered = 0
        self._said = b""
        self._lines: queue.Queue[bytes | None] = queue.Queue(maxsize=64)
        self._gone = threading.Event()
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        feeding = threading.Thread(target=_feed, args=(process.stdin, inputs), daemon=True)
        reading = threading.Thread(target=self._read, args=(process.stdout,), daemon=True)
        self._listening = threading.Thread(target=self._listen, args=(process.stderr,), daemon=True)
        self._threads = (feeding, reading, self._listening)
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Subject:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends what still runs."""
        self._gone.set()
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self._process.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join(timeout=5)
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def answer(self, about: str, timeout: float) -> bytes | None:
        """The next line that is not blank; None, with a `complaint`, where none comes any more."""
        if self.complaint is not None:
            return None
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            self.complaint = f"the command gave no answer to {about} within {timeout:g} seconds"
            return None
        if line is None:
            self.complaint = f"{self._ending(timeout)}; {about} was next"
        elif len(line) > ANSWER_BYTES_MAX:
            self.complaint = f"the command's answer to {about} has more than {ANSWER_BYTES_MAX} bytes"
        else:
            self._answered += 1
            return line
        return None

    def finish(self, timeout: float) -> None:
        """After the last answer: nothing more may come, and the command has to end."""
        if self.complaint is not None:
            return
        try:
            if self._lines.get(timeout=timeout) is not None:
                self.complaint = f"the command printed more lines than the {self._asked} it was asked for"
                return
            self._process.wait(timeout=timeout)
        except (queue.Empty, subprocess.TimeoutExpired):
            self.complaint = f"the command did not end within {timeout:g} seconds of the end of its input"

    def _ending(self, timeout: float) -> str:
        try:
            code = self._process.wait(timeout=timeout)
        except subprocess.TimeoutExpired:
            return f"the command closed its output after {self._answered} of {self._asked} answers"
        self._listening.join(timeout=5)
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        said = self._said.decode(errors="backslashreplace").strip().splitlines()
        last = f'; it said last: "{_shortened(said[-1].strip())}"' if said else ""
        return f"the command {how} after {self._answered} of {self._asked} answers{last}"

    def _read(self, stream: IO[bytes]) -> None:
        for line in _lines(stream):
            if not self._put(line):
                return
        self._put(None)

    def _put(self, line: bytes | None) -> bool:
        while not self._gone.is_set():
            try:
                self._lines.put(line, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def _listen(self, stream: IO[bytes]) -> None:
        """Keeps the end of what it says on standard error."""
        while chunk := stream.read1(65536):  # type: ignore[attr-defined] # a buffered reader, whatever IO says
            self._said = (self._said + chunk)[-_SAID_BYTES_MAX:]


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    while line := stream.readline(ANSWER_BYTES_MAX + 1):
        stripped = line.strip()
        if stripped:
            yield line if len(line) > ANSWER_BYTES_MAX else stripped


def _feed(stream: IO[bytes], inputs: list[bytes]) -> None:
    # it may end, or read no more: what it answered until then says the rest
    with suppress(BrokenPipeError), stream:
        for line in inputs:
            stream.write(line + b"\n")
