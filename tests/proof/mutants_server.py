"""A process that has imported and collected all tests, and forks for each question about them.

`python -m tests.proof.mutants_server "FILE OR FOLDER ..." "TRACED FILE ..."` reads one question a line, as JSON, and
answers each with one line. Each is tried in a child of its own: its caches, clocks and threads are gone with it.
"""

from __future__ import annotations

import asyncio
import builtins
import functools
import gc
import importlib
import inspect
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FunctionType
from typing import Any, NoReturn

import hypothesis
import msgspec
import pytest

from tallystick_client import Till
from tallystick_server.operations import initialise
from tallystick_server.settings import Settings
from tests.client.fake_clock import FakeClock as TillClock
from tests.client.fake_server import FakeServer
from tests.client.tls_front import Certified
from tests.proof.mutants_making import REACHED, module_of, telling
from tests.server.conftest import ORDER, Shop, voucher
from tests.server.fake_clock import FakeClock as ServerClock

ROOT = Path(__file__).resolve().parents[2]
KILLED, BROKEN = 1, 4
HANG_S = 90.0
"""Of the clock: far more than a test needs on a machine with much else to do; it only ends what waits for ever."""
EXAMPLES_MAX = 30
SETTINGS = "_hypothesis_internal_use_settings"
"""Where hypothesis keeps what a test asked for. Without it a test only takes longer."""
MEMORY_BYTES_MAX, FILE_BYTES_MAX = 4 << 30, 256 << 20


class Change(msgspec.Struct, frozen=True):
    """`function` of `module`, as `name` or `Class.name`, becomes what it is in `source`."""

    module: str
    function: str
    source: str


class Question(msgspec.Struct, frozen=True):
    """Runs `tests` in this order until one fails; each may take so many seconds of a core, and where it only waits,
    `HANG_S` of the clock. `work`: an empty folder for whatever the tests make."""

    tests: list[str]
    limits_s: list[float]
    work: str
    change: Change | None = None


class Answer(msgspec.Struct):
    """`how`: passed, failed, timed out, broken (the process ended otherwise), unknown (no such test), error (the change
    could not be put). `by`: the test that did, or the error. `seconds`: of a core. `lines`: that were
    reached, by path, where the server is told to trace."""

    how: str
    by: str = ""
    seconds: float = 0.0
    lines: dict[str, list[int]] = {}


def put(change: Change) -> None:
    """The changed function in the place of its original, wherever that has been imported to."""
    module = importlib.import_module(change.module)
    made: dict[str, Any] = {}
    exec(compile(change.source, change.module, "exec"), vars(module), made)  # noqa: S102 - that is a mutant
    owner, _, name = change.function.rpartition(".")
    old, new = (vars(space[owner])[name] if owner else space[name] for space in (vars(module), made))
    original, changed = (inspect.unwrap(getattr(one, "__func__", one)) for one in (old, new))
    assert isinstance(original, FunctionType)
    if original.__code__.co_freevars == changed.__code__.co_freevars:
        original.__code__ = changed.__code__
        original.__defaults__, original.__kwdefaults__ = changed.__defaults__, changed.__kwdefaults__
    else:  # `super()` came or went
        setattr(vars(module)[owner], name, new)


def warm(work: Path) -> None:
    """Half of what a test costs is what its process does for the first time: open a database, serve, ask."""
    clock, settings = ServerClock(), Settings(data=work / "server", default_currency="USD")
    shop = Shop(settings, clock, asyncio.run(initialise(settings, now=clock())))
    with shop.serving():
        shop.publish(voucher("ONE", total=3), voucher("ANY"))
        device = shop.device()
        device.fetch()
        device.sync()
        shop.online("warm", "ANY", order=ORDER)
        shop.get("/v1/flagged")
    with FakeServer(TillClock()).serving() as server:
        till = Till.enroll(work / "till", server.url, server.token(), name="warm", clock=server.clock)
        till.sync()
        till.close()
    for one in gc.get_objects():  # what the product keeps may not outlive its mutants
        if isinstance(one, functools._lru_cache_wrapper) and str(one.__module__).startswith("tallystick_"):
            one.cache_clear()


class Forking:
    """The plugin: in the place of pytest's loop over all tests."""

    def __init__(self, questions: int, answers: int, traced: Sequence[str]) -> None:
        self.questions, self.answers, self.traced = questions, answers, traced
        self.work: Path | None = None
        self.lines: dict[str, set[int]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        # a test that is ended before it unmounts its disk leaves a folder that nobody can remove
        kept = [item for item in items if "small_disk" not in getattr(item, "fixturenames", ())]
        items[:] = [item for item in kept if "postgresql" not in item.nodeid]
        for function in (getattr(item, "obj", None) for item in items):
            given = getattr(function, SETTINGS, None)
            if isinstance(given, hypothesis.settings) and given.max_examples > EXAMPLES_MAX:
                setattr(function, SETTINGS, hypothesis.settings(given, max_examples=EXAMPLES_MAX))

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        with tempfile.TemporaryDirectory() as work:
            warm(Path(work))
        vars(builtins)[REACHED] = lambda path, line: self.lines.setdefault(path, set()).add(line)
        for path in self.traced:
            for function, source in telling(path).items():
                put(Change(module_of(path), function, source))
        assert threading.active_count() == 1, "only a process of one thread can be forked"
        gc.collect()
        gc.freeze()
        with os.fdopen(self.questions, "rb") as questions, os.fdopen(self.answers, "wb", buffering=0) as answers:
            answers.write(msgspec.json.encode(list(items)) + b"\n")
            for line in questions:
                answers.write(msgspec.json.encode(self._ask(items, line)) + b"\n")
        return True

    def _ask(self, items: dict[str, pytest.Item], line: bytes) -> Answer:
        question = msgspec.json.decode(line, type=Question)
        if not set(question.tests) <= items.keys():
            return Answer("unknown")
        said = Path(question.work) / "said"
        child = os.fork()
        if not child:
            self._try(question, [items[test] for test in question.tests])
        _, status, used = os.wait4(child, 0)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what a test has started and not ended
        answer = msgspec.json.decode(said.read_bytes(), type=Answer) if said.exists() else Answer("broken")
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGALRM):
            answer.how = "timed out"
        elif not os.WIFEXITED(status) or os.WEXITSTATUS(status) not in (0, KILLED):
            answer.how = "broken"
        answer.seconds = used.ru_utime + used.ru_stime
        return answer

    def _try(self, question: Question, items: Sequence[pytest.Item]) -> NoReturn:
        """In the child. The alarms are not caught by anyone: they end a loop in C as well."""
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
            resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES_MAX, FILE_BYTES_MAX))
            self.work = Path(question.work)
            os.environ["TMPDIR"] = os.environ["PYTEST_DEBUG_TEMPROOT"] = question.work
            tempfile.tempdir = None
            self._put(question.change)
            for item, limit_s, following in zip(items, question.limits_s, [*items[1:], None], strict=True):
                self._say(Answer("broken", item.nodeid))
                signal.setitimer(signal.ITIMER_PROF, limit_s)
                signal.setitimer(signal.ITIMER_REAL, HANG_S)
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._say(Answer("passed", lines={path: sorted(lines) for path, lines in self.lines.items()}))
            os._exit(0)
        except BaseException as error:  # noqa: BLE001 - nothing may run on in the child as if it were the server
            self._say(Answer("broken", repr(error)))
            os._exit(BROKEN)

    def _put(self, change: Change | None) -> None:
        try:
            if change is not None:
                put(change)
        except Exception as error:  # noqa: BLE001 - a mutant that was not there must not count as one that is dead
            self._say(Answer("error", repr(error)))
            os._exit(KILLED)

    def _say(self, answer: Answer) -> None:
        assert self.work is not None
        (self.work / "said").write_bytes(msgspec.json.encode(answer))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.work is not None:
            self._say(Answer("failed", report.nodeid))
            os._exit(KILLED)


def main(where: Sequence[str], traced: Sequence[str]) -> int:
    """Answers on what was standard output; what pytest and the tests print goes nowhere."""
    questions, answers = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]  # a failure is enough, a small one no better
    hypothesis.settings.register_profile("mutants", database=None, derandomize=True, deadline=None, phases=phases)
    options = ["-q", "--tb=no", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:randomly", "-p", "no:xdist"]
    options += ["--hypothesis-profile=mutants"]
    with tempfile.TemporaryDirectory(prefix="tallystick-mutants-") as folder:
        one = Path(folder) / "one.pem"  # to read all that a system trusts takes as long as half a test
        one.write_bytes(Certified("nobody").pem)
        os.environ["SSL_CERT_FILE"] = str(one)
        return int(pytest.main([*options, *where], plugins=[Forking(questions, answers, traced)]))


class Server:
    """The process, from outside. `tests`: the names of all it has collected, in their order. `traced`: the files of
    which its answers tell what was reached."""

    def __init__(self, where: Sequence[str], *, traced: Sequence[str] = ()) -> None:
        command = [sys.executable, "-m", "tests.proof.mutants_server", " ".join(where), " ".join(traced)]
        fixed = {"PYTHONHASHSEED": "0", "TALLYSTICK_EXAMPLES": str(EXAMPLES_MAX)}
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | fixed, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.tests = dict.fromkeys(msgspec.json.decode(self._line(), type=list[str]))

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server of the tests ended with {self.close()}")
        return line

    def ask(self, question: Question) -> Answer:
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(question) + b"\n")
        self._process.stdin.flush()
        return msgspec.json.decode(self._line(), type=Answer)

    def close(self) -> int:
        """Waits for its end; the status."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        return self._process.wait()


if __name__ == "__main__":
    sys.exit(main(*(part.split() for part in sys.argv[1:])))
