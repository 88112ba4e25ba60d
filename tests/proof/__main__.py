"""One row of the proof, or all that are missing for this state of the code. `make prove-NAME` calls this."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from tests.proof.rows import ROWS, Row
from tests.proof.runner import Progress, controls, one_case, sitting
from tests.proof.table import is_current, record
from tests.proof.tally import Tally, told


def report(row: Row, tally: Tally, *, seed: int) -> str:
    """What a run prints: the same lines for every row."""
    lines = [
        f"{row.title}: {tally.units:,} {row.unit} in {tally.cases:,} cases, seed {seed}",
        f"  redemptions acknowledged {tally.acknowledged:,}, lost {tally.lost}, doubled {tally.doubled}",
        f"  previewed against settled: {tally.mismatched} differ; beyond a limit {tally.over_limit}",
        f"  tills converged: {tally.converged:,} of {tally.tills:,}",
        f"  faults injected ({sum(tally.faults.values()):,}): {told(tally.faults) or 'none'}",
        f"  met: {told(tally.seen) or 'nothing else'}",
    ]
    for failure in tally.failures[:10]:
        lines += [f"  FAILED, case {failure.case}: {failure.what}", f"    again: {repeat(row, seed, failure.case)}"]
    if len(tally.failures) > 10:
        lines.append(f"  and {len(tally.failures) - 10} more")
    return "\n".join(lines)


def repeat(row: Row, seed: int, case: int) -> str:
    """The one command that does a case again."""
    return f'make prove-{row.name} ARGS="--seed {seed} --case {case}"'


def run_controls(row: Row, seed: int) -> dict[str, str]:
    """What each found, by name. Exits where one found nothing: then the row proves nothing."""
    found = {}
    for name, tally in controls(row.name, seed=seed).items():
        if tally.holds:
            raise SystemExit(f"  the negative control '{name}' of {row.name} found nothing: this row proves nothing")
        found[name] = _summary(tally)
        print(f"  broken on purpose, {name}: {found[name]}", flush=True)
    return found


def _summary(tally: Tally) -> str:
    counts = {name: getattr(tally, name) for name in ("lost", "doubled", "mismatched", "over_limit")}
    said = [f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items() if count]
    if tally.converged < tally.tills:
        said.append(f"{tally.tills - tally.converged} of {tally.tills} tills not converged")
    if tally.failures:
        said.append(tally.failures[0].what.splitlines()[0])  # the steps to it are for who repeats it
    return "; ".join(said)


def run(row: Row, given: argparse.Namespace) -> bool:
    """One sitting, or one case. Whether all held."""
    if row.missing:
        print(row.missing)
        return False
    if given.case is not None:
        tally = one_case(row.name, given.seed, given.case)
        print(report(row, tally, seed=given.seed))
        return tally.holds
    found = run_controls(row, given.seed)
    if given.control:
        return True
    units = given.count or row.full

    def say(progress: Progress) -> None:
        print(f"  {progress.tally.units:,} of {units:,} {row.unit} after {progress.seconds:,.0f} s", flush=True)

    progress = sitting(
        row, seed=given.seed, units=units, minutes=given.minutes, workers=given.workers, fresh=given.fresh, say=say
    )
    print(report(row, progress.tally, seed=given.seed))
    lacks = row.load().lacks(progress.tally)
    for lack in lacks:
        print(f"  LACKS: {lack}")
    if lacks or not progress.tally.holds:
        return False
    if given.count is None:
        record(row, given.seed, progress, found)
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.proof", description=__doc__)
    parser.add_argument("row", choices=[*ROWS, "missing"])
    parser.add_argument("--count", type=int, help="so much of it, which is not recorded; all by default")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--case", type=int, help="this case only, of this seed")
    parser.add_argument("--minutes", type=float, default=40, help="the sitting ends then; the next goes on from there")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="as many as there are cores")
    parser.add_argument("--fresh", action="store_true", help="forget what earlier sittings did")
    parser.add_argument("--control", action="store_true", help="the negative controls only")
    given = parser.parse_args(arguments)
    if given.row != "missing":
        return 0 if run(ROWS[given.row], given) else 1
    held = True
    for row in ROWS.values():
        if is_current(row):
            print(f"{row.title}: done for this state of the code")
        else:
            held &= run(row, given)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
