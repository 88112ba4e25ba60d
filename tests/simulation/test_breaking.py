"""The table of invariants names lines and tests that there are."""

from __future__ import annotations

import re

import pytest

from tests.simulation.breaking import BREAKS, ROOT, Break


@pytest.mark.parametrize("one", BREAKS, ids=lambda one: f"{one.invariant}-{one.file}-{BREAKS.index(one)}")
def test_each_line_is_there_once_and_its_test_exists(one: Break) -> None:
    """So that `make prove-invariants` takes away what it says, and runs what it says."""
    assert (ROOT / one.file).read_text().count(one.line) == 1
    file, _, name = one.test.partition("::")
    assert re.search(rf"^def {name or 'test_'}", (ROOT / file).read_text(), re.M)


def test_every_invariant_is_in_the_table() -> None:
    """I1 to I8."""
    assert {one.invariant for one in BREAKS} == {f"I{number}" for number in range(1, 9)}
