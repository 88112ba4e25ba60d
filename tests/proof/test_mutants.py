"""The mutants: a sample of them is killed, and nothing is killed where nobody looks."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.proof import mutants
from tests.proof.mutants_making import GROUPS, REACHED, ROOT, extents, keys, make, module_of, original, telling
from tests.proof.mutants_map import Map, Reached, Timed, Trace, digest, known, merged, reaching
from tests.proof.mutants_server import Change, Question, Server
from tests.proof.runner import controls, short

MONEY = "shared/tallystick_shared/money.py"
FORMATS = "tests/shared/test_money.py::test_money_is_shown_with_its_decimals[5-EUR-0.05]"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server(["tests/shared/test_money.py"], traced=[MONEY])
    yield server
    server.close()


def test_a_sample_is_killed() -> None:
    """Of sixty mutants, as many are killed as the row demands, in each group of which there are enough."""
    tally = short("mutants")
    assert tally.holds, tally.failures
    assert tally.units == 60
    assert mutants.lacks(tally) == []


def test_nothing_is_killed_where_nobody_looks() -> None:
    """By tests that come elsewhere, or where the product is not changed, too little is killed for the row to hold."""
    for name, tally in controls("mutants").items():
        assert not tally.holds, name


def test_every_file_has_mutants_and_each_is_another_function() -> None:
    """No file of a group is without mutants but those without functions, and a mutant is not its original."""
    found = keys()
    paths = {path for group in GROUPS.values() for path in group}
    assert paths - {key.path for key in found} <= {"server/tallystick_server/facts.py"}
    for key in found[::97]:
        mutant = make(key)
        assert ast.dump(ast.parse(mutant.source)) != ast.dump(ast.parse(original(key.path, key.function)))
        first, last = extents(key.path)[key.function]
        assert mutant.lines
        assert mutant.lines <= set(range(first, last + 1))


def test_every_function_with_mutants_can_tell_what_was_reached() -> None:
    """The functions that are traced are the functions that are mutated, and what they call is no name of theirs: a
    local `reached` once made each test fail that came to it, and so left it out of the map."""
    for paths in GROUPS.values():
        for path in paths:
            assert telling(path).keys() == extents(path).keys()
            assert REACHED not in (ROOT / path).read_text()


def asked(server: Server, work: Path, body: str = "", function: str = "format_minor") -> tuple[str, str, set[int]]:
    """How it went with this body of the function, or as it is; which test noticed; and what was reached of it."""
    work.mkdir()
    change = Change(module_of(MONEY), function, f"def {function}(*_, **__):\n    {body}\n") if body else None
    answer = server.ask(Question([FORMATS], [2.0], str(work), change))
    first, last = extents(MONEY)[function]
    return answer.how, answer.by, set(answer.lines.get(MONEY, [])) & set(range(first, last + 1))


def test_a_change_is_put_in_the_place_of_its_original(server: Server, tmp_path: Path) -> None:
    """A test that passes fails with the change and is told, an endless loop ends, and the next is tried as if alone."""
    how, by, lines = asked(server, tmp_path / "1")
    assert (how, by) == ("passed", "")
    assert lines
    assert asked(server, tmp_path / "2", "raise ValueError")[:2] == ("failed", FORMATS)
    assert asked(server, tmp_path / "3", "while True: pass")[:2] == ("timed out", FORMATS)
    assert asked(server, tmp_path / "4", "import os; os._exit(0)")[:2] == ("broken", FORMATS)
    assert asked(server, tmp_path / "5") == ("passed", "", lines)
    unknown = server.ask(Question(["tests/shared/test_money.py::test_gone"], [2.0], str(tmp_path)))
    assert unknown.how == "unknown"


def test_the_tests_of_a_line_are_found_and_those_of_a_function_that_changed() -> None:
    """A line gives its own tests; a function that is not the same any more, all; a new one, the file's."""
    first, last = extents(MONEY)["format_minor"]
    one, two = (Trace(Timed(f"t{n}", 0.1, 5), {MONEY: [first + n]}) for n in (1, 2))
    whole = merged(Map(), [one, two], [])
    reached = whole.functions[MONEY]["format_minor"]
    assert reached.digest == digest(MONEY, "format_minor")
    assert [whole.tests[test].name for test in whole.of(reached, [1])] == ["t1"]
    mutant = next(make(key) for key in keys() if (key.path, key.function) == (MONEY, "format_minor"))
    mutant = mutant._replace(lines=frozenset({first + 2}))
    assert [test.name for test in reaching(mutant, whole)] == ["t2"]
    whole.functions[MONEY]["format_minor"] = Reached("another", reached.sets)
    assert [test.name for test in reaching(mutant, whole)] == ["t1", "t2"]
    three = Trace(Timed("t3", 0.1, 5), {MONEY: [first + 2]})
    assert [test.name for test in reaching(mutant, merged(whole, [three], []))] == ["t1", "t2", "t3"]
    whole.functions[MONEY]["older"] = whole.functions[MONEY].pop("format_minor")
    assert [test.name for test in reaching(mutant, whole)] == ["t1", "t2"]
    assert merged(whole, [], ["t"]).tests == []
    assert last > first


def test_the_map_is_not_stale() -> None:
    """Nine of ten functions are as they were when the map was made: python -m tests.proof.mutants_map renews it."""
    functions = [(path, name) for paths in GROUPS.values() for path in paths for name in extents(path)]
    same = [
        (path, name)
        for path, name in functions
        if (reached := known().functions.get(path, {}).get(name)) and reached.digest == digest(path, name)
    ]
    assert len(same) >= 0.9 * len(functions)
