"""The trees drawn at the top of the two `errors` modules are the classes."""

from __future__ import annotations

import inspect
import re
import sqlite3
from pathlib import Path
from types import ModuleType

import pytest

import tallystick_client.errors
import tallystick_shared.errors
from tallystick_client.entry import exit_code
from tallystick_client.errors import TallystickError
from tallystick_client.schema import explained


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


@pytest.mark.parametrize(
    ("of_sqlite", "code", "sentence"),
    [
        (sqlite3.SQLITE_FULL, "DISK_FULL", "the disk is full, nothing was written: free some space and try again"),
        (sqlite3.SQLITE_BUSY, "BUSY", "another process of this till is writing: try again"),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, "BUSY", "another process of this till is writing: try again"),
        (sqlite3.SQLITE_LOCKED, "BUSY", "another process of this till is writing: try again"),
        (sqlite3.SQLITE_CORRUPT, "JOURNAL_DAMAGED", "the journal /j is damaged or cannot be read: why"),
        (sqlite3.SQLITE_NOTADB, "JOURNAL_DAMAGED", "the journal /j is damaged or cannot be read: why"),
        (sqlite3.SQLITE_CONSTRAINT_UNIQUE, "CONSTRAINT", "the journal refuses it, nothing was written: why"),
        (sqlite3.SQLITE_IOERR_WRITE, "DISK", "the disk would not take it, nothing was written: why"),
        (None, "DISK", "the disk would not take it, nothing was written: why"),
    ],
)
def test_what_sqlite_says_has_a_code_and_a_sentence(of_sqlite: int | None, code: str, sentence: str) -> None:
    """By the primary code of its error, whatever the extended one; an error without one is of the disk."""
    error = sqlite3.OperationalError("why")
    if of_sqlite is not None:
        error.sqlite_errorcode = of_sqlite
    told = explained(error, Path("/j"))
    assert (told.code, str(told)) == (code, sentence)


def test_a_till_that_was_closed_says_so() -> None:
    """SQLite calls it a mistake of the program."""
    told = explained(sqlite3.ProgrammingError("Cannot operate on a closed database."), Path("/j"))
    assert (told.code, str(told)) == ("CLOSED", "this till was closed: open it again")
