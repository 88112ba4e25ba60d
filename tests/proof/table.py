"""The committed results: `results.json`, and the table of them in docs/explanation/proof.md.

`python -m tests.proof.table --write` renews the page from the results.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from tests.proof.rows import ROWS, Row
from tests.proof.runner import ROOT, Progress, code, commit
from tests.proof.tally import Tally, told

RESULTS = Path(__file__).with_name("results.json")
PAGE = ROOT / "docs" / "explanation" / "proof.md"
KINDS_MAX, FOUND_MAX = 60, 200
"""Of what the page shows of a row: kinds of faults and events, and letters of what a control found."""
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


class Result(msgspec.Struct):
    """The last run of one row. `controls`: what was found where the product was broken on purpose, by name."""

    seed: int
    commit: str
    code: str
    minutes: int
    tally: Tally
    controls: dict[str, str]


def results() -> dict[str, Result]:
    return msgspec.json.decode(RESULTS.read_bytes(), type=dict[str, Result]) if RESULTS.exists() else {}


def is_current(row: Row) -> bool:
    """Whether it was run in full, and neither the product nor the row has changed since."""
    result = results().get(row.name)
    return result is not None and result.code == code(row) and result.tally.units >= row.full


def record(row: Row, seed: int, progress: Progress, controls: dict[str, str]) -> None:
    """Into `results.json` and the page."""
    mine = Result(seed, commit(), code(row), round(progress.seconds / 60), progress.tally, controls)
    whole = {name: (results() | {row.name: mine})[name] for name in ROWS if name in {**results(), row.name: mine}}
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(whole)) + b"\n")
    PAGE.write_text(with_table(PAGE.read_text()))


def _cells(row: Row, result: Result | None) -> list[str]:
    if result is None:
        return [f"[{row.title}](#{row.title.replace(' ', '-').lower()})", "not run yet", *[""] * 8]
    tally = result.tally
    return [
        f"[{row.title}](#{row.title.replace(' ', '-').lower()})",
        f"{tally.units:,}" + (f" of {row.full:,}" if tally.units < row.full else "") + f" {row.unit}",
        f"{tally.acknowledged:,}" if tally.acknowledged else "-",
        *(
            f"{count:,}" if tally.acknowledged else "-"
            for count in (tally.lost, tally.doubled, tally.mismatched, tally.over_limit)
        ),
        f"{tally.converged:,} of {tally.tills:,}" if tally.tills else "-",
        str(len(tally.failures)),
        f"{result.seed}, `{result.commit}`, {result.minutes} min",
    ]


def table() -> str:
    """Markdown: one line a row, then what was injected and met, and what the negative controls found."""
    known = results()
    heads = ["row", "tried", "acknowledged", "lost", "doubled", "mismatched", "over limit", "tills converged",
             "failures", "seed, commit, time"]  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(_cells(row, known.get(row.name))) + " |" for row in ROWS.values()]
    for row in ROWS.values():
        result = known.get(row.name)
        if result is None:
            continue
        lines += ["", f"**{row.title}** (`make prove-{row.name}`)", ""]
        if result.tally.faults:
            lines.append(f"- injected: {told(result.tally.faults, KINDS_MAX)}")
        if result.tally.seen:
            lines.append(f"- met: {told(result.tally.seen, KINDS_MAX)}")
        lines += [f"- broken on purpose, {name}: {_brief(found)}" for name, found in result.controls.items()]
    return "\n".join(lines)


def _brief(found: str) -> str:
    return found if len(found) <= FOUND_MAX else f"{found[:FOUND_MAX].rpartition(' ')[0]} .."


def with_table(page: str) -> str:
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        raise SystemExit(__doc__)
    PAGE.write_text(with_table(PAGE.read_text()))
