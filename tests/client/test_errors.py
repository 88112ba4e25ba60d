"""The trees drawn at the top of the two `errors` modules are the classes."""

from __future__ import annotations

import inspect
import re
from types import ModuleType

import pytest

import tallystick_client.errors
import tallystick_shared.errors
from tallystick_client.entry import exit_code
from tallystick_client.errors import TallystickError


def drawn(module: ModuleType) -> list[tuple[int, str]]:
    """Depth and name of each class in the drawing."""
    found = []
    for line in (module.__doc__ or "").splitlines():
        match = re.match(r"([│ ├└─]*)([A-Z]\w+Error|[A-Z]\w+)(?:  |$)", line)
        if match and (match[1] or match[2] == "TallystickError"):
            found.append((len(match[1]) // 4, match[2]))
    return found


def classes(module: ModuleType) -> set[type[TallystickError]]:
    return {one for _, one in inspect.getmembers(module, inspect.isclass) if issubclass(one, TallystickError)}


@pytest.mark.parametrize("module", [tallystick_shared.errors, tallystick_client.errors])
def test_the_drawing_is_the_tree(module: ModuleType) -> None:
    """Every class is drawn once, under its base."""
    path: list[str] = []
    parents = {}
    for depth, name in drawn(module):
        path[depth:] = [name]
        parents[name] = path[depth - 1] if depth else "Exception"
    upper = classes(tallystick_shared.errors) if module is tallystick_client.errors else set()
    named = {one.__name__: one.__bases__[0].__name__ for one in classes(module)}
    assert {name: base for name, base in named.items() if name in parents} == parents
    assert set(named) - set(parents) <= {one.__name__ for one in upper}


def test_every_error_has_a_code_and_an_exit_code() -> None:
    """No error reaches a user without a stable code, and each family has one exit code."""
    for one in classes(tallystick_client.errors):
        assert re.fullmatch("[A-Z_]+", one.default_code)
    errors = tallystick_client.errors
    assert exit_code(errors.CallerError("x")) == 2
    assert exit_code(errors.NotNow("x")) == 1
    assert exit_code(errors.StorageError("x", code="UNCERTAIN")) == 2
    assert exit_code(errors.LineError("x")) == 3
    assert exit_code(errors.Untrusted("x")) == 4
