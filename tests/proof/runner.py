"""Runs the cases of a row on all cores, for as long as a sitting may take, and goes on from there the next time."""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import msgspec

from tests.proof.rows import ROWS, Row
from tests.proof.tally import Tally

ROOT = Path(__file__).resolve().parents[2]
PROGRESS = ROOT / ".prove"
PRODUCT = ("shared", "client", "server")
RECORDED = ("tests/proof/results.json", "docs/explanation/proof.md")


class Progress(msgspec.Struct):
    """What is done of one row, with one seed, for one state of the code."""

    done: list[int] = []
    seconds: float = 0.0
    tally: Tally = msgspec.field(default_factory=Tally)


def code(row: Row) -> str:
    """What a result depends on: the product, and the row's own files. The first 12 digits of a SHA-256."""
    own = [path for path in (ROOT / "tests" / "proof").iterdir() if path.name.startswith(row.harness)]
    files = [path for part in (*PRODUCT, *row.tests) for path in (ROOT / part).rglob("*.py")]
    whole = hashlib.sha256()
    for path in sorted([*own, *files]):
        whole.update(f"{path.relative_to(ROOT)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()[:12]


def commit() -> str:
    """Short, with a `+` where more than the results is not committed; empty outside of a checkout."""
    name = _git("rev-parse", "--short=10", "HEAD")
    changed = _git("status", "--porcelain", "--", ".", *(f":!{path}" for path in RECORDED))
    return f"{name}+" if name and changed else name


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()


@contextmanager
def folder() -> Iterator[Path]:
    """An empty folder, in memory where there is such: what a process leaves unsynced is the business of `power`."""
    base = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=base if base.is_dir() else None, prefix="tallystick-proof-") as work:
        yield Path(work)


def one_case(name: str, seed: int, case: int) -> Tally:
    """An error that escapes is a failure of the case, not the end of the run."""
    with folder() as work:
        try:
            tally = ROWS[name].load().prove(seed, case, work)
        except Exception as error:  # noqa: BLE001 - whatever it is, its case and seed are what counts
            tally = Tally()
            tally.fail(case, f"{type(error).__name__}: {error}")
    tally.cases = 1
    return tally


def short(name: str, *, seed: int = 1, units: int | None = None) -> Tally:
    """The version for every push, in this process."""
    row, whole = ROWS[name], Tally()
    wanted = row.short if units is None else units
    for case in itertools.count():
        one = one_case(name, seed, case)
        whole.add(one)
        if whole.units >= wanted or not one.units or whole.failures:
            return whole
    raise AssertionError


def controls(name: str, *, seed: int = 1) -> dict[str, Tally]:
    """Each on a product that is broken on purpose: none of them may hold."""
    found = {}
    for control, broken in ROWS[name].load().CONTROLS.items():
        with folder() as work:
            found[control] = broken(seed, work)
    return found


def sitting(
    row: Row,
    *,
    seed: int,
    units: int,
    minutes: float,
    workers: int,
    fresh: bool,
    say: Callable[[Progress], None],
    do: Callable[[str, int, int], Tally] = one_case,
) -> Progress:
    """Goes on until `units` are done, `minutes` are over or something does not hold. Raises nothing of the cases."""
    path = PROGRESS / f"{row.name}-{seed}-{code(row)}.json"
    if fresh:
        path.unlink(missing_ok=True)
    progress = msgspec.json.decode(path.read_bytes(), type=Progress) if path.exists() else Progress()
    earlier_s, began = progress.seconds, time.monotonic()
    done, more = set(progress.done), True
    cases = (case for case in itertools.count() if case not in done)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        running: dict[Future[Tally], int] = {}
        said = began
        while True:
            in_time = time.monotonic() - began < minutes * 60
            wanted = more and in_time and progress.tally.units < units and not progress.tally.failures
            while wanted and len(running) < workers + 1:
                case = next(cases)
                running[pool.submit(do, row.name, seed, case)] = case
            if not running:
                return progress
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                more &= future.result().units > 0
                progress.done.append(running.pop(future))
                progress.tally.add(future.result())
            progress.seconds = earlier_s + time.monotonic() - began
            if time.monotonic() - said > 10 or not running:
                said = time.monotonic()
                keep(path, progress)
                say(progress)


def keep(path: Path, progress: Progress) -> None:
    path.parent.mkdir(exist_ok=True)
    making = path.with_suffix(".new")
    making.write_bytes(msgspec.json.encode(progress))
    shutil.move(making, path)
