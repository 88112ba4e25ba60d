"""The proof itself: it notices engines that are wrong, shrinks what they fail on, and says the same for a seed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tallystick_shared import engine
from tallystick_shared.engine import Reason, Result
from tests.shared import comparing, prove
from tests.shared.comparing import Engine, differs, fails
from tests.shared.oracle_rules import Doc
from tests.shared.shrinking import shrunk

Change = Callable[[Result], Result]


def changed(change: Change) -> Engine:
    """An engine whose every result is changed before it is given back."""

    def evaluate(*args: Any, **named: Any) -> Result:
        return change(engine.evaluate(*args, **named))

    return Engine(evaluate=evaluate)


def moved_share(result: Result) -> Result:
    """One minor unit of the first discount that touches two lines moves from one to the other."""
    for index, applied in enumerate(result.applied):
        if len(applied.lines) > 1 and applied.lines[0].discount_minor > 1:
            first, second, *rest = applied.lines
            lines = (
                msgspec.structs.replace(first, discount_minor=first.discount_minor - 1),
                msgspec.structs.replace(second, discount_minor=second.discount_minor + 1),
                *rest,
            )
            entries = list(result.applied)
            entries[index] = msgspec.structs.replace(applied, lines=lines)
            return msgspec.structs.replace(result, applied=tuple(entries))
    return result


def wrong_reason(result: Result) -> Result:
    """No voucher is ever below its first tier."""
    refused = [
        msgspec.structs.replace(one, reason=Reason.NO_MATCHING_ITEM) if one.reason is Reason.BELOW_FIRST_TIER else one
        for one in result.refused
    ]
    return msgspec.structs.replace(result, refused=tuple(refused))


def swapped_order(result: Result) -> Result:
    return msgspec.structs.replace(result, applied=result.applied[::-1])


def crashing(result: Result) -> Result:
    if result.paid_by_gift_card_minor:
        raise ZeroDivisionError
    return result


def greedy_best(*args: Any, **named: Any) -> Any:
    """What `evaluate` of all gives, as if it were the best."""
    order, compiled, codes = args
    result = engine.evaluate(order, compiled, codes, **named)
    return engine.best(order, compiled, [one.code for one in result.applied], **named)


def poor_qualify(*args: Any, **named: Any) -> Any:
    return tuple(
        msgspec.structs.replace(one, discount_minor=one.discount_minor and one.discount_minor + 1)
        for one in engine.qualify(*args, **named)
    )


def poor_refund(unit_price: int, quantity: int, share: int, returned: int, units: int) -> int:
    """The odd minor units lie on the last units in place of the first."""
    return engine.refund_minor(unit_price, quantity, share, quantity - returned - units, units)


@pytest.mark.parametrize(
    "broken",
    [
        changed(moved_share),
        changed(wrong_reason),
        changed(swapped_order),
        changed(crashing),
        Engine(best=greedy_best),
        Engine(qualify=poor_qualify),
        Engine(refund=poor_refund),
    ],
    ids=["share", "reason", "order", "crash", "best", "qualify", "refund"],
)
def test_a_wrong_engine_is_noticed(broken: Engine) -> None:
    """Each of these errors shows within 300 cases, and its document is shrunk to a few hundred characters."""
    tally = prove.compared(range(10_000, 10_300), every=2, using=broken)
    assert tally.counts["differences"] > 0
    text = prove.reported(tally, broken)
    assert text.startswith(f"seed {tally.differences[0][0]}: ")
    smallest = json.loads(text.splitlines()[-1])
    assert fails(smallest, broken)
    assert not fails(smallest)
    assert len(json.dumps(smallest)) < 700


def test_a_seed_says_the_same_whatever_the_workers() -> None:
    """One worker and two give equal counts, which depend on the seed."""
    one, two, other = (prove.proved(600, seed, workers, 50) for seed, workers in ((3, 1), (3, 2), (4, 1)))
    assert one == two
    assert one.counts["cases"] == 600
    assert one.counts != other.counts


def test_the_program_says_what_it_did(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 0 and a table where all agree; exit 1, the seed and a document where one does not."""
    assert prove.main(["--count", "40", "--seed", "5"]) == 0
    assert "differences   0\n" in capsys.readouterr().out
    tally = prove.compared(range(10_000, 10_300), every=1000, using=changed(moved_share))
    monkeypatch.setattr(prove, "proved", lambda *_: tally)
    monkeypatch.setattr(prove, "reported", lambda tally: prove.table(tally, 20, 0))
    assert prove.main([]) == 1
    assert "cases         300" in capsys.readouterr().out


def test_a_failure_is_shrunk() -> None:
    """Two artificial failures come down to what they need, and the document given is left as it was."""
    document: Doc = {
        "lines": [{"id": f"l{number}", "price": number * 37, "tags": ["a", "b"]} for number in range(9)],
        "rest": {"deep": {"not": {"not": {"leaf": "yes"}}}},
    }
    before = json.dumps(document)
    dear = shrunk(document, lambda some: any(line.get("price", 0) >= 100 for line in some.get("lines", [])))
    assert dear == {"lines": [{"price": 100}]}
    assert shrunk(document, lambda some: "yes" in json.dumps(some)) == {"rest": {"leaf": "yes"}}
    assert json.dumps(document) == before


def test_what_does_not_fail_is_not_shrunk() -> None:
    """Shrinking needs a failure to begin with, and stops after the tries it was given."""
    with pytest.raises(ValueError, match="does not fail"):
        shrunk({"a": 1}, lambda _: False)
    assert shrunk([1, 2, 3], lambda some: 3 in some, tries=0) == [1, 2, 3]


def test_a_difference_names_its_place() -> None:
    """The first place that differs is named, types and order of keys count, equal documents differ in none."""
    assert differs("x", {"a": [1, {"b": 2}]}, {"a": [1, {"b": 2}]}) is None
    assert differs("x", {"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}) == "x.a[1].b: engine 2, oracle 3"
    assert differs("x", [1], [1, 2]) == "x: engine [1], oracle [1, 2]"
    assert differs("x", {"a": 1}, {"a": True}) == "x.a: engine 1, oracle true"


def test_a_document_that_the_door_refuses_fails_nothing() -> None:
    """Shrinking never leaves the documents that the engine reads."""
    assert comparing.fails({"order": {}}) is False
    assert comparing.fails({}) is False
