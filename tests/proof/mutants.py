"""Mutants of engine, trust, journal and ledger: mutmut changes one function in one place, and a test has to notice.

A case is one mutant, in an order shuffled by the seed; there are no more cases than mutants. Only the tests that reach
what is changed are run, in a child of a process that has collected all of them (`mutants_server`), until one fails.
Whoever survives is no failure: it is written to `.prove/mutants-survivors/`, with the tests that did not mind.
"""

from __future__ import annotations

import atexit
import multiprocessing
from collections.abc import Callable
from functools import cache
from pathlib import Path

from tests.proof.mutants_making import GROUPS, Mutant, make, module_of, shuffled
from tests.proof.mutants_map import Timed, known, reaching
from tests.proof.mutants_server import Answer, Change, Question, Server
from tests.proof.runner import PROGRESS
from tests.proof.tally import Tally

SURVIVORS = PROGRESS / "mutants-survivors"
KILLED_MIN = 0.9
TRIED_MIN = 30
"""Of fewer, the share of the killed says nothing."""
TESTS_MAX, SECONDS_MAX = 300, 20.0
"""For one mutant; the seconds of a core as they were when each was traced alone, some five times what they take
together. A mutant that only the next test would kill counts as one that survived."""
DEAD = ("killed", "timed out")


def prove(seed: int, case: int, work: Path) -> Tally:
    keys, tally = shuffled(seed), Tally()
    if case >= len(keys):
        return tally
    mutant = make(keys[case])
    tests = chosen(mutant, _server())
    how, answer = tried(mutant, tests, work, _server())
    tally.units = 1
    tally.see(f"{mutant.group} {how}")
    told = _told(mutant, how, answer, tests)
    if multiprocessing.parent_process() is None:  # a case that someone asked for
        print(told)
    path = SURVIVORS / f"{mutant.name}.txt"
    if how in DEAD:
        path.unlink(missing_ok=True)
    else:
        SURVIVORS.mkdir(parents=True, exist_ok=True)
        path.write_text(told)
    return tally


@cache
def _server() -> Server:
    files = sorted({test.name.partition("::")[0] for test in known().tests})
    server = Server(files)
    atexit.register(server.close)
    return server


def chosen(mutant: Mutant, server: Server) -> list[Timed]:
    """What may be run against it, of what is still there."""
    tests: list[Timed] = []
    seconds = 0.0
    for test in reaching(mutant, known()):
        seconds += test.seconds
        if tests and (seconds > SECONDS_MAX or len(tests) == TESTS_MAX):
            break
        if test.name in server.tests:
            tests.append(test)
    return tests


def tried(
    mutant: Mutant, tests: list[Timed], work: Path, server: Server, *, changed: bool = True
) -> tuple[str, Answer]:
    """`killed`, `timed out`, `survived` or `not covered`."""
    if not tests:
        return "not covered", Answer("passed")
    change = Change(module_of(mutant.path), mutant.function, mutant.source) if changed else None
    limits_s = [3 + 10 * test.seconds for test in tests]
    answer = server.ask(Question([test.name for test in tests], limits_s, str(work), change))
    if answer.how in ("error", "unknown"):
        raise RuntimeError(f"{mutant.name} was not tried: {answer.how} {answer.by}")
    return {"passed": "survived", "timed out": "timed out"}.get(answer.how, "killed"), answer


def _told(mutant: Mutant, how: str, answer: Answer, tests: list[Timed]) -> str:
    first, last = min(mutant.lines), max(mutant.lines)
    lines = [f"{mutant.group}: {mutant.name}, {mutant.path}:{first}-{last}: {how}, {answer.how} {answer.by}".rstrip()]
    lines += [mutant.diff(), f"{len(tests)} tests were there for it:", *(f"  {test.name}" for test in tests)]
    return "\n".join(lines) + "\n"


def lacks(tally: Tally) -> list[str]:
    sentences = []
    for group in GROUPS:
        by_how = {kind: count for kind, count in tally.seen.items() if kind.startswith(f"{group} ")}
        tries, dead = sum(by_how.values()), sum(by_how.get(f"{group} {how}", 0) for how in DEAD)
        if not tries:
            sentences.append(f"no mutant of the {group} was tried")
        elif tries >= TRIED_MIN and dead < KILLED_MIN * tries:
            sentences.append(f"of {tries} mutants of the {group} only {dead} were killed ({dead / tries:.0%})")
    return sentences


def _of_twenty(tests_of: Callable[[Mutant], list[Timed]], *, changed: bool) -> Callable[[int, Path], Tally]:
    """The first twenty mutants of the seed, and a sentence where fewer of them are killed than the row demands."""

    def control(seed: int, work: Path) -> Tally:
        tally, dead = Tally(), 0
        for case, key in enumerate(shuffled(seed)[:20]):
            mutant, inner = make(key), work / str(case)
            inner.mkdir()
            how, _ = tried(mutant, tests_of(mutant)[:3], inner, _server(), changed=changed)
            dead += how in DEAD
            tally.units += 1
        if dead < KILLED_MIN * tally.units:
            tally.fail(0, f"{dead} of {tally.units} killed")
        return tally

    return control


def _elsewhere(mutant: Mutant) -> list[Timed]:
    """The quickest tests of all that do not come to what is changed."""
    there = set(reaching(mutant, known()))
    mine = [test for test in known().tests if test not in there and test.name in _server().tests]
    return sorted(mine, key=lambda test: (test.seconds, test.name))


CONTROLS = {
    "tests that never come to the change": _of_twenty(_elsewhere, changed=True),
    "mutants that are not put in place": _of_twenty(lambda mutant: chosen(mutant, _server()), changed=False),
}
