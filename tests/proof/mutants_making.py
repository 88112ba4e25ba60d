"""The mutants that mutmut makes of the product, each as the source of one changed function.

mutmut's own runner wants one package at the root of the tree and one process for each mutant. Here only its operators
are used: a changed function is put in the place of its original in a process that has imported everything already.
"""

from __future__ import annotations

import ast
import difflib
import random
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import libcst as cst
import mutmut.configuration
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.file_mutation import Mutation, create_mutations, deep_replace

ROOT = Path(__file__).resolve().parents[2]


def _files(package: str, names: str) -> tuple[str, ...]:
    return tuple(f"{package}/tallystick_{package}/{name}.py" for name in names.split())


GROUPS = {
    "engine": _files(
        "shared",
        "engine steps discounts conditions combinations feasible basket money units validity compiled details values",
    ),
    "trust": (*_files("client", "trust blobs bundle granting"), *_files("shared", "signing bundle")),
    "journal": (
        *_files("shared", "journal journal_file"),
        *_files("client", "journal chain schema terminal voids exchange"),
    ),
    "ledger": _files(
        "server", "reading settling posting leases allotting demand limits redemptions placing adopting ledger facts"
    ),
}


def module_of(path: str) -> str:
    return ".".join(Path(path).with_suffix("").parts[1:])


SQL = re.compile(r"\b(SELECT|INSERT|UPDATE|DELETE|FROM|WHERE|VALUES|SET|AND|ORDER BY|BEGIN|COMMIT|PRAGMA)\b")
QUOTED = re.compile(r"'[^']*'")
STRICT = re.compile(r", (strict=(True|False|None))?(?=\))")


class Mutant(NamedTuple):
    """`function`: `name` or `Class.name`; `number`: of the mutants of that function, from 1. `lines`: of the statements
    that are changed, in the file. `source`: a module of its own with the changed function, in its class if it has one.
    """

    group: str
    path: str
    function: str
    number: int
    lines: frozenset[int]
    source: str

    @property
    def name(self) -> str:
        return f"{Path(self.path).stem}.{self.function}#{self.number}"

    def diff(self) -> str:
        before = original(self.path, self.function).splitlines()
        return "\n".join(difflib.unified_diff(before, self.source.splitlines(), self.path, self.name, n=2, lineterm=""))


class _File(NamedTuple):
    """`functions`: (class or empty, function) by its node; `mutations`: of each function."""

    spans: list[tuple[int, int]]
    module: cst.Module
    positions: Any
    functions: dict[str, tuple[cst.ClassDef | None, cst.FunctionDef]]
    mutations: dict[str, list[Mutation]]


def _code(node: cst.CSTNode) -> str:
    return cst.Module([]).code_for_node(node)


def changes_nothing(before: str, after: str) -> bool:
    """Whether a mutant is equivalent by its looks: SQL in another case (but for what it quotes), or a `zip` that is no
    longer told to be strict, of what is equally long."""
    if SQL.search(before) and before != after:
        return before.lower() == after.lower() and QUOTED.findall(before) == QUOTED.findall(after)
    return STRICT.sub("", before) == STRICT.sub("", after) and ", strict=" in before


@cache
def _file(path: str) -> _File:
    # mutmut guesses where the code lies when it is asked for its settings; of these the operators need one only
    settings = SimpleNamespace(do_not_mutate_patterns=[r"\bLOG\.\w+\("])  # what a log says is nobody's promise
    mutmut.configuration._config = settings  # type: ignore[assignment]
    text = (ROOT / path).read_text()
    module, mutations, _, _ = create_mutations(path, text)
    functions: dict[str, tuple[cst.ClassDef | None, cst.FunctionDef]] = {}
    for statement in module.body:
        if isinstance(statement, cst.FunctionDef):
            functions[statement.name.value] = (None, statement)
        elif isinstance(statement, cst.ClassDef):
            for inner in statement.body.body:
                if isinstance(inner, cst.FunctionDef):
                    functions[f"{statement.name.value}.{inner.name.value}"] = (statement, inner)
    by_function: dict[str, list[Mutation]] = {name: [] for name in functions}
    names = {id(function): name for name, (_, function) in functions.items()}
    for mutation in mutations:
        name = names.get(id(mutation.contained_by_top_level_function))
        if name is not None and not changes_nothing(*map(_code, (mutation.original_node, mutation.mutated_node))):
            by_function[name].append(mutation)
    positions = MetadataWrapper(module, unsafe_skip_copy=True).resolve(PositionProvider)
    return _File(list(_spans(ast.parse(text))), module, positions, functions, by_function)


def _spans(tree: ast.Module) -> Iterator[tuple[int, int]]:
    """First and last line of every statement; of one with a body, of what stands before its body."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Match):
            yield from ((node.lineno, case.body[0].lineno - 1) for case in node.cases)
        elif isinstance(node, ast.stmt | ast.ExceptHandler):
            body = getattr(node, "body", None)
            yield node.lineno, max(node.lineno, body[0].lineno - 1) if body else node.end_lineno or node.lineno


def _source(file: _File, name: str, function: cst.FunctionDef) -> str:
    """A module with this function only, in a class of the same name where it belongs to one."""
    owner, _ = file.functions[name]
    body: cst.BaseCompoundStatement = function.with_changes(leading_lines=[])
    if owner is not None:
        body = cst.ClassDef(name=owner.name, body=cst.IndentedBlock([body]))
    return cst.Module([cst.parse_statement("from __future__ import annotations\n"), body]).code


def original(path: str, function: str) -> str:
    file = _file(path)
    return _source(file, function, file.functions[function][1])


def _lines(file: _File, node: cst.CSTNode, function: cst.FunctionDef) -> frozenset[int]:
    """Of all statements that the node touches; of the whole function where the place is not known."""
    where = file.positions.get(node) or file.positions[function]
    first, last = where.start.line, where.end.line
    within = set(range(first, last + 1))
    for begin, end in file.spans:
        if begin <= last and first <= end:
            within.update(range(begin, end + 1))
    return frozenset(within)


@cache
def extents(path: str) -> dict[str, tuple[int, int]]:
    """First and last line of each function that has mutants."""
    file = _file(path)
    found = {}
    for name, mutations in file.mutations.items():
        where = file.positions[file.functions[name][1]]
        if mutations:
            found[name] = (where.start.line, where.end.line)
    return found


class Key(NamedTuple):
    """Which mutant; to be made by `make`."""

    group: str
    path: str
    function: str
    number: int


def keys() -> list[Key]:
    """All there are, in the order of the files."""
    return [
        Key(group, path, function, number)
        for group, paths in GROUPS.items()
        for path in paths
        for function, mutations in _file(path).mutations.items()
        for number in range(1, len(mutations) + 1)
    ]


REACHED = "reached_by_a_test_"
"""What a traced function calls; no name of the product, or it would be taken for a local one."""


class _Telling(ast.NodeTransformer):
    """Puts `REACHED(path, line)` before each statement."""

    def __init__(self, path: str) -> None:
        self.path = path

    def _tell(self, line: int) -> ast.stmt:
        place = [ast.Constant(self.path), ast.Constant(line)]
        return ast.Expr(ast.Call(ast.Name(REACHED, ast.Load()), list[ast.expr](place), []))

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list) and not isinstance(node, ast.Module | ast.ClassDef):
                setattr(node, name, [part for one in block for part in (self._tell(one.lineno), one)])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ExceptHandler):
            node.body.insert(0, self._tell(node.lineno))
        return node


def telling(path: str) -> dict[str, str]:
    """Each function that has mutants, as the source of `Mutant` is, calling `REACHED` with each line it comes to."""
    tree = ast.parse((ROOT / path).read_text())
    found = {}
    for node in tree.body:
        for inner in node.body if isinstance(node, ast.ClassDef) else [node]:
            name = node.name if isinstance(node, ast.ClassDef) else ""
            owner = f"{name}." if name else ""
            if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef) and owner + inner.name in extents(path):
                whole = ast.ClassDef(name, [], [], [inner], []) if name else inner
                told = ast.fix_missing_locations(_Telling(path).visit(ast.Module([whole], [])))
                found[owner + inner.name] = f"from __future__ import annotations\n{ast.unparse(told)}\n"
    return found


@cache
def shuffled(seed: int) -> list[Key]:
    found = keys()
    random.Random(seed).shuffle(found)
    return found


def make(key: Key) -> Mutant:
    file = _file(key.path)
    mutation = file.mutations[key.function][key.number - 1]
    _, function = file.functions[key.function]
    changed = deep_replace(function, mutation.original_node, mutation.mutated_node)
    assert isinstance(changed, cst.FunctionDef)
    lines = _lines(file, mutation.original_node, function)
    return Mutant(*key, lines, _source(file, key.function, changed))
