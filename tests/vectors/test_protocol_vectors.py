"""The protocol's vectors: what stands in them is what this client says, each refusal by the one rule it names."""

from __future__ import annotations

import ast
import json
import re
import sys
import types
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from tallystick_client import actions, blobs, fetching, judging, judging_inputs, trust
from tallystick_client.judging import CHECKS, judge
from tests.vectors import fill_protocol
from tests.vectors.fill import compact
from tests.vectors.protocol_parts import Doc

FILES = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(fill_protocol.PROTOCOL.glob("*.json"))}
VECTORS = [pytest.param(vector, id=vector["id"]) for file in FILES.values() for vector in file["vectors"]]
CASES = {case.id: case for make in fill_protocol.MAKERS.values() for case in make()}
CODES_OF_SIGNATURES = {
    "J1": {"TOO_LARGE"}, "J2": {"MALFORMED"}, "J3": {"MALFORMED", "WRONG_TYPE"}, "J4": {"WRONG_TYPE"},
    "J5": {"UNKNOWN_KEY"}, "J6": {"BAD_SIGNATURE"},
}  # fmt: skip
CODES_OF_SENDING = {
    "S1": {"MALFORMED"}, "S2": {"INVALID_FIELD"}, "S3": {"WRONG_DIGEST", "TOO_LARGE"}, "S4": {"MALFORMED", "TOO_LARGE"},
    "S5": {"MALFORMED"}, "S6": {"BROKEN_CHAIN"}, "E1": {"UNREADABLE"}, "T1": {"INVALID_FIELD"},
    "L1": set(), "C1": set(),
}  # fmt: skip


def codes_by_rule() -> dict[str, set[str]]:
    """The codes that each numbered rule of `trust` has in brackets."""
    found: dict[str, set[str]] = defaultdict(set)
    number = ""
    for row in str(trust.__doc__).splitlines():
        if start := re.match(r" ?(\d+)\. ", row):
            number = start[1]
        elif not row.startswith("    "):
            number = ""
        if number:
            found[number].update(re.findall(r"\[([A-Z_]+)\]", row))
    found["6"] |= {"BAD_KEY", "MALFORMED"}  # a key that cannot be read at all
    return found


RULES = codes_by_rule() | CODES_OF_SIGNATURES | CODES_OF_SENDING


@pytest.mark.parametrize("vector", VECTORS)
def test_the_output_is_what_this_client_says(vector: Doc) -> None:
    """Byte for byte, and a refusal has a code of the rule that the vector names."""
    assert judge(compact(vector["input"])) == compact(vector["output"])
    assert vector["rule"] in RULES
    refusal = vector["output"].get("refuse") or vector["output"]["accept"].get("fell_back")
    assert refusal is None or refusal in RULES[vector["rule"]]


def test_there_are_enough() -> None:
    """At least 300 vectors; each rule of `trust` but those without a code on both sides, and a signature's six."""
    sides: dict[str, Counter[str]] = defaultdict(Counter)
    for file in FILES.values():
        for vector in file["vectors"]:
            refused = "refuse" in vector["output"] or vector["output"]["accept"].get("fell_back")
            sides[vector["rule"]]["refused" if refused else "accepted"] += 1
    assert sum(counter.total() for counter in sides.values()) >= 300
    assert [rule for rule, codes in RULES.items() if codes and not sides[rule]["refused"]] == []
    assert [rule for rule, codes in RULES.items() if codes and sides[rule].total() < 2] == []
    assert set(FILES) == set(CHECKS)


def test_every_vector_says_what_it_shows() -> None:
    """Ids are unique and kebab-case, each vector has one sentence, and no input comes twice."""
    vectors = [vector for file in FILES.values() for vector in file["vectors"]]
    ids = Counter(vector["id"] for vector in vectors)
    assert [one for one, count in ids.items() if count > 1 or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", one)] == []
    for vector in vectors:
        assert list(vector) == ["id", "shows", "rule", "input", "output"]
        assert re.fullmatch(r"\S.{9,198}\.", vector["shows"]), vector["id"]
    inputs = Counter(compact(vector["input"]) for vector in vectors)
    twice = [vector["id"] for vector in vectors if inputs[compact(vector["input"])] > 1]
    assert twice == ["answer-good", "answer-equal-mark"]


def test_each_refused_case_differs_from_one_that_is_accepted() -> None:
    """Of the same check, accepted, and not the same input."""
    for case in CASES.values():
        if case.base:
            base = CASES[case.base]
            assert base.input["check"] == case.input["check"]
            assert "accept" in json.loads(judge(compact(base.input))), case.id
            assert base.input != case.input


class _Without(ast.NodeTransformer):
    """Takes out every `raise Untrusted(.., code=CODE)`: the rule is asked, and nothing follows from it."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.count = 0

    def visit_Raise(self, node: ast.Raise) -> ast.stmt:
        if isinstance(node.exc, ast.Call) and any(
            word.arg == "code" and isinstance(word.value, ast.Constant) and word.value.value == self.code
            for word in node.exc.keywords
        ):
            self.count += 1
            return ast.copy_location(ast.Pass(), node)
        return node


OF_ONE_RULE = {
    "ROOT_PIN", "ROOT_VERSION", "ROOT_SERVER", "ROOT_KEYS", "ROOT_THRESHOLD", "ROOT_EXPIRED", "WRONG_SCOPE", "ROLLBACK",
    "SAME_VERSION_DIFFERS", "EXPIRED", "NOT_OUR_REQUEST", "OLD_EPOCH", "OLD_LEDGER_MARK", "NOT_OUR_JOURNAL",
    "WRONG_DIGEST", "STATE_DIGEST", "BROKEN_CHAIN",
}  # fmt: skip
"""Codes whose rules can be taken out of the code, and the rest still runs."""
STILL_REFUSED = {
    "first-root-role-without-key",  # there is no such key to look for
    "answer-above-the-head",  # there is no hash to compare
    "answer-below-the-base",
    "first-root-threshold-above-keys",  # nobody can meet it
    "sync-flipped-bit",  # the frame does not unpack
    "sync-one-byte-more",
    "bundle-flipped-bit",
}


def judge_without(code: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], bytes]:
    """The judge, made anew from its sources and those of the rules, without the rules of one code."""
    taken_out = 0
    made = types.ModuleType("")
    for old in (trust, blobs, actions, fetching, judging_inputs, judging):
        without = _Without(code)
        tree = ast.fix_missing_locations(without.visit(ast.parse(Path(str(old.__file__)).read_text("utf-8"))))
        taken_out += without.count
        made = types.ModuleType(old.__name__)
        monkeypatch.setitem(sys.modules, old.__name__, made)  # where the next one imports it from
        exec(compile(tree, str(old.__file__), "exec"), made.__dict__)  # noqa: S102 # our own sources, a rule short
    assert taken_out > 0
    found: Callable[[bytes], bytes] = made.judge
    return found


@pytest.mark.parametrize("code", sorted(OF_ONE_RULE))
def test_without_its_rule_a_refused_case_is_accepted(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So nothing else refuses it: one rule alone does."""
    outputs = {vector["id"]: vector["output"] for file in FILES.values() for vector in file["vectors"]}
    ids = [one for one, output in outputs.items() if output.get("refuse") == code and one not in STILL_REFUSED]
    assert ids
    lenient = judge_without(code, monkeypatch)
    assert [one for one in ids if "refuse" in json.loads(lenient(compact(CASES[one].input)))] == []


def test_the_files_are_as_fill_writes_them(capsys: pytest.CaptureFixture[str]) -> None:
    """`fill_protocol --check` finds nothing to change."""
    assert fill_protocol.main(["--check"]) == 0
    assert capsys.readouterr().out == f"{len(FILES)} files, changed: none\n"


def test_a_case_that_is_not_judged_as_it_says_is_not_written() -> None:
    """An accepted one that is refused, a refused one that is accepted, or refused by another rule's code."""
    good, bad = CASES["manifest-good"], CASES["manifest-expired"]
    assert fill_protocol.vector(good)["output"]["accept"]["version"] == 7
    for wrong in (good._replace(base="manifest-newer"), bad._replace(base="")):
        with pytest.raises(fill_protocol.Disagreement, match=wrong.id):
            fill_protocol.vector(wrong)
