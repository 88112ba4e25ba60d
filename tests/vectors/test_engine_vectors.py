"""The engine's vectors: what stands in them is what the engine says, what the oracle says, and enough to rely on."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, get_args

import pytest

from tallystick_shared.engine import Reason
from tallystick_shared.terms import Op
from tests.vectors import fill

Doc = dict[str, Any]

FILES = {path.stem: json.loads(path.read_text("utf-8")) for path in fill.files()}
VECTORS = [
    pytest.param(name, file["call"], vector, id=vector["id"])
    for name, file in FILES.items()
    for vector in file["vectors"]
]
TYPES = {
    "percentage", "fixed", "fixed_price", "bundle_price", "bogo", "tiered", "conditional", "shipping", "gift_card",
}  # fmt: skip
OF_A_DEVICE = {Reason.NEEDS_CONNECTION, Reason.NO_ALLOWANCE}
"""What only a device's own allowance can refuse: no document of `tallystick evaluate` holds one."""


def every() -> list[Doc]:
    return [vector for file in FILES.values() for vector in file["vectors"]]


def objects(value: Any) -> Iterator[Doc]:
    """Every object in a document, the outer ones first."""
    if isinstance(value, dict):
        yield value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for one in inner:
        yield from objects(one)


@pytest.mark.parametrize(("name", "call", "vector"), VECTORS)
def test_the_output_is_the_engines(name: str, call: str, vector: Doc) -> None:
    """The engine gives the vector's output byte for byte, and only the file of errors has bad inputs."""
    assert fill.answer(call, vector["input"]) == fill.compact(vector["output"])
    assert ("error" in vector["output"]) == (name == fill.ERRORS)


@pytest.mark.parametrize(("name", "call", "vector"), [one for one in VECTORS if one.values[0] != fill.ERRORS])
def test_the_output_is_the_oracles(name: str, call: str, vector: Doc) -> None:
    """The oracle, written from engine.md by someone else, says the same but for the texts."""
    told = fill.oracle_answer(call, vector["input"])
    output = fill.bare(vector["output"])
    if call == "best" and not output["exact"]:
        told["exact"] = False  # it always tries every set
    assert told == output, name


def test_every_vector_says_what_it_shows() -> None:
    """Ids are unique over all files and kebab-case, and each vector has one sentence of at most 200 characters."""
    vectors = every()
    ids = Counter(vector["id"] for vector in vectors)
    assert [id_ for id_, count in ids.items() if count > 1 or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", id_)] == []
    for vector in vectors:
        assert list(vector) in (["id", "shows", "input", "output"], ["id", "shows", "source", "input", "output"])
        assert re.fullmatch(r"\S.{9,198}\.", vector["shows"]), vector["id"]


def test_no_case_stands_there_twice() -> None:
    """No two vectors of a call have the same input."""
    for call in fill.CALLS:
        inputs = [
            fill.compact(vector["input"])
            for file in FILES.values()
            if file["call"] == call
            for vector in file["vectors"]
        ]
        assert len(set(inputs)) == len(inputs)


def test_there_are_enough() -> None:
    """At least 150 vectors in all, some of each call, and at least 25 with the address of what they come from."""
    assert len(every()) >= 150
    assert {file["call"] for file in FILES.values()} == set(fill.CALLS)
    sources = [vector["source"] for vector in every() if "source" in vector]
    assert [source for source in sources if not re.fullmatch(r"https://[a-z0-9.]+/[!-~]+", source)] == []
    assert len(set(sources)) >= 25


def test_every_reason_occurs() -> None:
    """Each reason for a refusal occurs, but those that only a device's own allowance gives."""
    reasons = {inner["reason"] for vector in every() for inner in objects(vector["output"]) if "reason" in inner}
    assert reasons == {reason.value for reason in Reason if reason not in OF_A_DEVICE}


def test_every_discount_applies_somewhere() -> None:
    """Each type of discount is in a voucher that is applied."""
    applied = set()
    for vector in every():
        codes = {one["code"] for one in objects(vector["output"]) if "why" in one}
        applied |= {
            inner["type"]
            for voucher in vector["input"]["vouchers"]
            if voucher["code"] in codes
            for inner in objects(voucher["discount"])
            if "type" in inner
        }
    assert applied == TYPES


def test_every_operator_holds_and_fails() -> None:
    """Each operator decides alone on some voucher that is applied, and on some that is refused for it."""
    seen: dict[bool, set[str]] = {True: set(), False: set()}
    for vector in every():
        applied = {one["code"] for one in objects(vector["output"]) if "why" in one}
        refused = {one["code"] for one in objects(vector["output"]) if one.get("reason") == Reason.CONDITION_NOT_MET}
        for voucher in vector["input"]["vouchers"]:
            when = voucher.get("when") or {}
            if "op" in when and voucher["code"] in applied | refused:
                seen[voucher["code"] in applied].add(when["op"])
    assert seen[True] == seen[False] == set(get_args(Op))


def test_what_a_result_owes() -> None:
    """In every result shares add up to the discount, entries to the lines, and the totals to the total."""
    results = [inner for vector in every() for inner in objects(vector["output"]) if "total_minor" in inner]
    assert len(results) > 100
    for result in results:
        by_line: Counter[str] = Counter()
        for entry in result["applied"]:
            assert entry["discount_minor"] > 0
            assert (
                not entry["lines"] or sum(line["discount_minor"] for line in entry["lines"]) == entry["discount_minor"]
            )
            for line in entry["lines"]:
                by_line[line["id"]] += line["discount_minor"]
        assert {line["id"]: line["discount_minor"] for line in result["lines"] if line["discount_minor"]} == by_line
        assert by_line.total() == result["discount_minor"]
        left = result["subtotal_minor"] - result["discount_minor"]
        shipping = result["shipping_minor"] - result["shipping_discount_minor"]
        assert result["total_minor"] == left + shipping - result["paid_by_gift_card_minor"] >= 0


def test_no_line_goes_below_zero() -> None:
    """In every result no line gives more than it costs, and lines of price 0 give nothing."""
    for vector in every():
        prices = {one["id"]: one["quantity"] * one["unit_price_minor"] for one in vector["input"]["order"]["lines"]}
        for result in objects(vector["output"]):
            if "total_minor" in result:
                assert [line["id"] for line in result["lines"]] == list(prices), vector["id"]
                assert all(0 <= line["discount_minor"] <= prices[line["id"]] for line in result["lines"]), vector["id"]


def test_the_files_are_as_fill_writes_them(capsys: pytest.CaptureFixture[str]) -> None:
    """`fill --check` finds nothing to change."""
    assert fill.main(["--check"]) == 0
    assert capsys.readouterr().out == f"{len(FILES)} files, changed: none\n"


def test_nothing_is_written_where_the_oracle_disagrees(monkeypatch: pytest.MonkeyPatch) -> None:
    """An output that the oracle does not confirm is refused, and so is a bad input outside the file of errors."""
    vector = FILES["percentage"]["vectors"][0]
    assert fill.output_of("percentage", "evaluate", vector) == vector["output"]
    with pytest.raises(fill.Disagreement, match="a good input"):
        fill.output_of(fill.ERRORS, "evaluate", vector)
    with pytest.raises(fill.Disagreement, match="at: is required"):
        fill.output_of(
            "percentage", "evaluate", {"id": "x", "input": {"order": vector["input"]["order"], "vouchers": []}}
        )
    monkeypatch.setattr("tests.shared.oracle.evaluate", lambda document: {"total_minor": 1})
    with pytest.raises(fill.Disagreement, match="the oracle"):
        fill.output_of("percentage", "evaluate", vector)
