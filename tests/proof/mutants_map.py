"""Which tests run which lines of the functions that are mutated, in `mutants_map.json`.

`python -m tests.proof.mutants_map [FILE OR FOLDER...]` runs each test of these files alone, traced, and puts what it
reached in the place of what was known of them; without arguments, of all. A quarter of an hour for all of them.

The lines are counted from the beginning of their function, and hold as long as the function is the same to the letter;
of one that has changed all tests are taken that reached any of its lines, and of a new one all of its file.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from tests.proof.mutants_making import GROUPS, ROOT, Mutant, extents, original
from tests.proof.mutants_server import Question, Server
from tests.proof.runner import folder

PATH = Path(__file__).with_name("mutants_map.json")
WHERE = ("tests/shared", "tests/client", "tests/server", "tests/vectors", "tests/contract")
LEFT_OUT = ("test_house", "test_docs", "test_readme", "test_archive", "test_everywhere")
"""They look at files and start processes, and reach nothing of what is mutated."""
SECONDS_MAX = 4.0
"""Of a core, traced."""
OF_A_LINE = 300
"""Tests that are kept of each line: half of them by rank, half because they reach much in little time."""


HOME = {
    "schema": "journal", "exchange": "answers leases sync", "journal_file": "export journal_import",
    "posting": "settling returns", "reading": "settling sync", "settling": "settling returns",
    "ledger": "settling redemptions",
    "placing": "forks sync", "demand": "allotting", "limits": "revise", "granting": "leases trust",
    "signing": "trust protocol_vectors", "bundle": "trust deltas", "blobs": "blobs deltas",
    "steps": "engine combinations", "compiled": "engine conditions", "units": "discounts details",
    "basket": "discounts combinations", "feasible": "contradictions", "values": "conditions",
}  # fmt: skip
"""By the name of a module, parts of the names of the files with its own tests, where they do not have its name."""


class Timed(msgspec.Struct, frozen=True, array_like=True):
    """`seconds` of a core; `reach`: lines of all that is mutated."""

    name: str
    seconds: float
    reach: int


class Reached(msgspec.Struct, frozen=True, array_like=True):
    """Of one function: a digest of its source, and by line, from 0, the number of a set of tests."""

    digest: str
    sets: dict[int, int]


class Map(msgspec.Struct):
    """`sets`: of numbers of `tests`. `functions`: by the path of their file and their name."""

    tests: list[Timed] = []
    sets: list[list[int]] = []
    functions: dict[str, dict[str, Reached]] = {}

    def of(self, reached: Reached, lines: Iterable[int]) -> set[int]:
        numbers = {reached.sets[line] for line in lines if line in reached.sets}
        return {test for number in numbers for test in self.sets[number]}


class Trace(NamedTuple):
    """Of one test: `lines` by path."""

    test: Timed
    lines: dict[str, list[int]]


@functools.cache
def digest(path: str, function: str) -> str:
    return hashlib.sha256(original(path, function).encode()).hexdigest()[:12]


@functools.cache
def known() -> Map:
    return msgspec.json.decode(PATH.read_bytes(), type=Map)


def reaching(mutant: Mutant, whole: Map) -> list[Timed]:
    """The tests that may kill it, in the order in which they should be tried."""
    functions = whole.functions.get(mutant.path, {})
    reached = functions.get(mutant.function)
    if reached is None:
        found = {test for other in functions.values() for test in whole.of(other, other.sets)}
    elif reached.digest != digest(mutant.path, mutant.function):
        found = whole.of(reached, reached.sets)
    else:
        first, _ = extents(mutant.path)[mutant.function]
        found = whole.of(reached, (line - first for line in mutant.lines))
    return sorted((whole.tests[number] for number in found), key=lambda test: _rank(mutant.path, test))


def _rank(path: str, test: Timed) -> tuple[bool, float, str]:
    """A module's own tests first, as they look most closely; among equals the one that is quick and looks at little."""
    stem = Path(path).stem
    file = test.name.partition("::")[0]
    return not any(part in file for part in HOME.get(stem, stem).split()), test.reach * test.seconds, test.name


def traced(server: Server, file: str) -> list[Trace]:
    """Every test of the file, alone and traced; without those that are slow or reach nothing, and, which is told, those
    that do not pass so."""
    found = []
    for name in server.tests:
        if not name.startswith(f"{file}::"):
            continue
        with folder() as work:
            answer = server.ask(Question([name], [3 * SECONDS_MAX], str(work)))
        if answer.how != "passed":
            print(f"{name} is left out: {answer.how} {answer.by}".rstrip(), flush=True)
        elif answer.seconds <= SECONDS_MAX and answer.lines:
            reach = sum(map(len, answer.lines.values()))
            found.append(Trace(Timed(name, round(answer.seconds, 2), reach), answer.lines))
    return found


def merged(old: Map, traces: Sequence[Trace], dropped: Sequence[str]) -> Map:
    """`old` without the tests of the files or folders `dropped`, and with `traces`."""
    tests = {test.name: test for test in old.tests if not test.name.startswith(tuple(dropped))}
    tests |= {trace.test.name: trace.test for trace in traces}
    at: dict[tuple[str, str, int], set[str]] = {}
    for path, functions in old.functions.items():
        for function, reached in functions.items():
            if function not in extents(path):
                continue
            if digest(path, function) == reached.digest:
                for line, number in reached.sets.items():
                    at[path, function, line] = {old.tests[test].name for test in old.sets[number]} & tests.keys()
            else:  # which of its lines they reach now is not known
                first, last = extents(path)[function]
                for line in range(last - first + 1):
                    at[path, function, line] = {
                        old.tests[test].name for test in old.of(reached, reached.sets)
                    } & tests.keys()
    for trace in traces:
        for path, lines in trace.lines.items():
            numbers = set(lines)
            for function, (first, last) in extents(path).items():
                for line in numbers.intersection(range(first, last + 1)):
                    at.setdefault((path, function, line - first), set()).add(trace.test.name)
    return _packed(tests, at)


def _packed(tests: dict[str, Timed], at: dict[tuple[str, str, int], set[str]]) -> Map:
    best = functools.cache(lambda path, names: _best(path, [tests[name] for name in names]))
    kept: dict[tuple[str, str, int], list[str]] = {place: best(place[0], frozenset(at[place])) for place in at}
    used = sorted({name for names in kept.values() for name in names})
    numbers = {name: number for number, name in enumerate(used)}
    sets: dict[tuple[int, ...], int] = {}
    functions: dict[str, dict[str, Reached]] = {}
    for (path, function, line), names in sorted(kept.items()):
        key = tuple(sorted(numbers[name] for name in names))
        of_file = functions.setdefault(path, {})
        reached = of_file.setdefault(function, Reached(digest(path, function), {}))
        reached.sets[line] = sets.setdefault(key, len(sets))
    return Map([tests[name] for name in used], [list(key) for key in sets], functions)


def _best(path: str, tests: list[Timed]) -> list[str]:
    by_rank = sorted(tests, key=lambda test: _rank(path, test))[: OF_A_LINE // 2]
    quick = sorted(tests, key=lambda test: (test.seconds / test.reach, test.name))[: OF_A_LINE // 2]
    return sorted({test.name for test in (*by_rank, *quick)})


def main(where: Sequence[str]) -> int:
    """The map is written after each file, so that nothing is lost of a run that is cut short."""
    files = [
        str(path.relative_to(ROOT))
        for one in where or WHERE
        for path in (sorted((ROOT / one).rglob("test_*.py")) if (ROOT / one).is_dir() else [ROOT / one])
        if path.stem not in LEFT_OUT
    ]
    whole = known() if PATH.exists() else Map()
    paths = [path for group in GROUPS.values() for path in group]
    for path in paths:
        extents(path)  # read now: the files may change while this runs
    server = Server(files, traced=paths)
    for file in files:
        traces = traced(server, file)
        whole = merged(whole, traces, [f"{file}::"])
        PATH.write_bytes(msgspec.json.encode(whole))
        print(f"{file}: {len(traces)} tests; {len(whole.tests)} are known, {len(whole.sets)} sets of them", flush=True)
    server.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
