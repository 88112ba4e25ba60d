"""The framework of the proof: a run that proves nothing must not look like one that does."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.proof import __main__ as command
from tests.proof import runner, table
from tests.proof.rows import ROWS, Row
from tests.proof.tally import Tally

ROW = Row("sample", "sample", "numbers", "numbers", 40, 4, ("sample",))


def number(_: str, seed: int, case: int) -> Tally:
    """A case that notes its own number; the tenth fails where the seed is 13."""
    tally = Tally(units=2, cases=1, acknowledged=1, seen={str(case): 1})
    if seed == 13 and case == 10:
        tally.fail(case, "ten is a failure")
    return tally


def until_five(_: str, seed: int, case: int) -> Tally:
    return Tally(units=int(case < 5), cases=1)


def sit(tmp_path: Path, patch: pytest.MonkeyPatch, **given: Any) -> runner.Progress:
    patch.setattr(runner, "PROGRESS", tmp_path / "progress")
    usual: dict[str, Any] = {"seed": 1, "units": 40, "minutes": 1, "workers": 2, "fresh": False, "do": number}
    return runner.sitting(ROW, say=lambda _: None, **usual | given)


def test_a_sitting_goes_on_where_the_last_one_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every case is done once, over any number of sittings."""
    first = sit(tmp_path, monkeypatch, units=10)
    assert 10 <= first.tally.units < 20
    second = sit(tmp_path, monkeypatch)
    assert second.tally.units >= 40
    assert set(second.tally.seen.values()) == {1}
    assert sorted(second.done) == list(range(len(second.done))) == sorted(map(int, second.tally.seen))
    assert sit(tmp_path, monkeypatch, units=4, fresh=True).tally.units < 12


def test_a_sitting_ends_in_time_with_what_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No time at all does nothing, and loses nothing."""
    before = sit(tmp_path, monkeypatch, units=4)
    assert sit(tmp_path, monkeypatch, minutes=0).tally == before.tally


def test_a_failure_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after it was started again: a failure does not go away by itself."""
    for _ in range(2):
        progress = sit(tmp_path, monkeypatch, seed=13, units=1000)
        assert [failure.case for failure in progress.tally.failures] == [10]
        assert not progress.tally.holds
        assert progress.tally.units < 40


def test_a_row_without_a_number_ends_with_its_last_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A case without units says that there are no more."""
    assert sit(tmp_path, monkeypatch, units=1000, do=until_five).tally.units == 5


def test_what_escapes_a_case_is_its_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error is never a case that held."""

    def prove(seed: int, case: int, work: Path) -> Tally:
        raise ValueError("broken")

    _module(monkeypatch, prove=prove)
    tally = runner.one_case("sample", 1, 7)
    assert [(one.case, one.what) for one in tally.failures] == [(7, "ValueError: broken")]


@pytest.mark.parametrize("count", ["lost", "doubled", "mismatched", "over_limit", "tills"])
def test_each_count_alone_is_enough_not_to_hold(count: str) -> None:
    """One lost, doubled, mismatched, beyond a limit, or one till that did not converge."""
    assert Tally().holds
    tally = Tally()
    setattr(tally, count, 1)
    assert not tally.holds


def _module(patch: pytest.MonkeyPatch, **parts: Any) -> None:
    fine: dict[str, Any] = {
        "prove": lambda seed, case, work: Tally(units=2, acknowledged=1),
        "lacks": lambda tally: [],
        "CONTROLS": {"all is lost": lambda seed, work: Tally(lost=1)},
    }
    patch.setattr(Row, "load", lambda _: SimpleNamespace(**fine | parts))
    patch.setitem(ROWS, "sample", ROW)
    patch.setattr(command, "sitting", lambda row, **given: runner.Progress(tally=runner.short("sample")))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    monkeypatch.setattr(command, "record", lambda row, *_: names.append(row.name))
    return names


def test_a_run_that_holds_is_recorded(
    recorded: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints the same lines for every row, and what the negative controls found."""
    _module(monkeypatch)
    assert command.main(["sample"]) == 0
    assert recorded == ["sample"]
    said = capsys.readouterr().out
    assert "broken on purpose, all is lost: 1 lost" in said
    assert "redemptions acknowledged 2, lost 0, doubled 0" in said


def test_a_run_that_fails_prints_the_seed_and_the_command_that_repeats_it(
    recorded: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line to paste; and nothing is recorded."""

    def prove(seed: int, case: int, work: Path) -> Tally:
        tally = Tally(units=1)
        tally.fail(case, "a receipt is gone")
        return tally

    _module(monkeypatch, prove=prove)
    assert command.main(["sample", "--seed", "1"]) == 1
    said = capsys.readouterr().out
    assert "FAILED, case 0: a receipt is gone" in said
    assert 'make prove-sample ARGS="--seed 1 --case 0"' in said
    assert recorded == []


def test_a_run_that_lacks_something_is_not_a_success(recorded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What was never tried was not proved."""
    _module(monkeypatch, lacks=lambda tally: ["no till was ever killed"])
    assert command.main(["sample"]) == 1
    assert recorded == []


def test_less_than_a_whole_run_is_not_recorded(recorded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`--count` is for looking; the table is of runs that went on to the end of their sitting."""
    _module(monkeypatch)
    assert command.main(["sample", "--count", "2"]) == 0
    assert recorded == []


def test_a_control_that_finds_nothing_ends_the_run(recorded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A harness that does not notice a broken product proves nothing."""
    _module(monkeypatch, CONTROLS={"nothing is broken": lambda seed, work: Tally(units=1)})
    with pytest.raises(SystemExit, match="'nothing is broken' of sample found nothing"):
        command.main(["sample"])
    assert recorded == []


def test_a_result_is_of_one_state_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change in the product or in the row itself makes its result one of another state; any other change does not."""
    for name in ("shared/a.py", "client/b.py", "server/c.py", "tests/proof/sample.py", "tests/proof/other.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    known = {runner.code(ROW)}
    (tmp_path / "tests/proof/other.py").write_text("2")
    assert runner.code(ROW) in known
    for name in ("shared/a.py", "client/b.py", "server/c.py", "tests/proof/sample.py"):
        (tmp_path / name).write_text("2")
        assert runner.code(ROW) not in known
        known.add(runner.code(ROW))


def test_the_page_shows_the_results_as_they_are_kept() -> None:
    """The table in the documentation is made from results.json, and every row has its line and its make target."""
    page = table.PAGE.read_text()
    assert page == table.with_table(page), "python -m tests.proof.table --write"
    makefile = (runner.ROOT / "Makefile").read_text()
    shown = re.search(r"^PROOF := (.*)$", makefile, re.MULTILINE)
    assert shown is not None
    assert shown[1].split() == list(ROWS)
    for row in ROWS.values():
        assert f"[{row.title}](#" in page
        assert f"\n### {row.title}\n" in page
