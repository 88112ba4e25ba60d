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
from pathlib import Path
from typing import IO, Annotated, Final, Literal

import msgspec
import typer

from tallystick_client import judging
from tallystick_client.comparing import Difference, Vector, compare, on_one_line, read_vectors, shortened
from tallystick_client.errors import CallerError, InvalidInput
from tallystick_client.evaluating import answer_all, error_json, opened, write
from tallystick_shared.errors import one_line

DIFFERENT: Final = 1
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
_SAID_BYTES_MAX: Final = 4096
_ABSENT: Final = "nothing"

app = typer.Typer(
    help="Check an implementation in any language against published vectors.",
    rich_markup_mode=None,
)


@app.callback()
def main() -> None:
    pass


Command = Annotated[list[str], typer.Argument(metavar="-- COMMAND", help="What to check, with its arguments.")]
Source = Annotated[Path, typer.Option("--from", metavar="DIR", help="The vectors: a folder of JSON, or one file.")]
Only = Annotated[list[str] | None, typer.Option(metavar="ID", help="Use this one; may be repeated.")]
Timeout = Annotated[float, typer.Option(min=0.01, metavar="SECONDS", help="How long one answer may take.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs: one line of JSON a vector.")]


@app.command("engine")
def engine_command(
    command: Command,
    source: Source,
    call: Annotated[
        Literal["evaluate", "best", "qualify"], typer.Option(help="Of which call the vectors are used.")
    ] = "evaluate",
    texts: Annotated[bool, typer.Option("--texts", help="Answers must be equal byte for byte, texts too.")] = False,
    only: Only = None,
    timeout: Timeout = 30,
    as_json: AsJson = False,
) -> int:
    """Give the inputs of the engine's vectors to COMMAND, one line of JSON each, and compare its answers.

    \b
      tallystick vectors engine --from tests/vectors/engine -- tallystick evaluate -
      tallystick vectors engine --from DIR --call best -- my-engine --best

    Answers are compared as JSON values: 1 is neither 1.0 nor true. The texts for people (why, detail, error) are left
    out without --texts. Exit codes: 0 all agree, 1 differences, 2 nothing was compared.
    """
    return _check(read_vectors(source, {call}, only or []), command, texts, timeout, as_json)


@app.command("protocol")
def protocol_command(
    command: Command,
    source: Source,
    checks: Annotated[
        list[str] | None, typer.Option("--check", metavar="NAME", help="Only this check; may be repeated.")
    ] = None,
    only: Only = None,
    timeout: Timeout = 30,
    as_json: AsJson = False,
) -> int:
    """Give the inputs of the protocol's vectors to COMMAND, one line of JSON each, and compare its answers.

    \b
      tallystick vectors protocol --from tests/vectors/protocol -- tallystick vectors judge -
      tallystick vectors protocol --from DIR --check manifest --check answer -- my-client

    An input says what a client holds and what came; the answer is {"accept": {..}}, with what the client reads in it,
    or {"refuse": "CODE"}. Exit codes: 0 all agree, 1 differences, 2 nothing was compared.
    """
    unknown = [check for check in checks or () if check not in judging.CHECKS]
    if unknown:
        raise InvalidInput("--check", f"must be one of {', '.join(judging.CHECKS)}", unknown[0][:80])
    return _check(read_vectors(source, checks or judging.CHECKS, only or []), command, False, timeout, as_json)


@app.command("judge")
def judge_command(
    file: Annotated[str, typer.Argument(metavar="FILE", help="An input, or NDJSON; - is standard input.")],
) -> int:
    """Answer inputs of the protocol's vectors as this client would: what it accepts, and why it refuses.

    What `vectors protocol` is checked with itself, and a second opinion for whoever writes a client elsewhere. The
    inputs are described in docs/reference/protocol.md.
    """
    with opened(file) as reader:
        return answer_all(reader, lambda raw: write(judging.judge(raw)), lambda error: write(error_json(error)))


def _check(chosen: list[Vector], command: list[str], texts: bool, timeout: float, as_json: bool) -> int:
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
            _say(f"  expected {shortened(found.expected or _ABSENT)}")
            _say(f"  actual   {shortened(found.actual or _ABSENT)}")


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
        last = f'; it said last: "{shortened(said[-1].strip())}"' if said else ""
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
