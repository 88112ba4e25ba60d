"""python -m tests.shared.prove --count 1000000 --seed 1: engine against oracle, on as many cases as you like.

Progress goes to stderr, one table to stdout. Exit 1 where they differ, with the seeds and the first document, shrunk.
The outcome for a seed is the same whatever the number of workers.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from tests.shared import cases, oracle
from tests.shared.comparing import REAL, Engine, difference, fails
from tests.shared.oracle_rules import Doc, trimmed
from tests.shared.shrinking import shrunk

BLOCK = 500  # cases a worker takes at a time
SHOWN = 5  # differences of a block that are kept, and of all that are printed
TYPES = ["percentage", "fixed", "fixed_price", "bundle_price", "bogo", "tiered", "conditional", "shipping", "gift_card"]
REASONS = ["UNKNOWN_CODE", "INACTIVE", "NOT_YET_VALID", "EXPIRED", "OUTSIDE_HOURS", "CURRENCY_MISMATCH"]
REASONS += ["LIMIT_REACHED", "CUSTOMER_LIMIT_REACHED", "NEEDS_CONNECTION", "NO_ALLOWANCE", "CONDITION_NOT_MET"]
REASONS += ["NO_MATCHING_ITEM", "BELOW_FIRST_TIER", "NOTHING_TO_DISCOUNT", "BUDGET_EXHAUSTED", "STACKING_CONFLICT"]


@dataclass
class Tally:
    """What was compared, by name, and the seeds where it differed."""

    counts: Counter[str] = field(default_factory=Counter)
    differences: list[tuple[int, str]] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.counts += other.counts
        self.differences = (self.differences + other.differences)[:SHOWN]


def case_seed(seed: int, number: int) -> int:
    return seed * 10**9 + number


def compared(seeds: Iterable[int], *, every: int, using: Engine = REAL) -> Tally:
    """Each seed's case by `evaluate` and returns; those whose number is a multiple of `every` by the others too."""
    tally = Tally()
    counts = tally.counts
    for seed in seeds:
        case = cases.case(seed)
        choosing = seed % every == 0
        meant: Doc = {}
        try:
            meant = oracle.evaluate(case.document)
            found = difference(case.document, case.request, using=using, meant=meant, choosing=choosing)
        except Exception as error:  # noqa: BLE001 a crash of either is a difference too
            found = f"{type(error).__name__}: {error}"
        counts.update({"cases": 1, "vouchers": case.kept, "dropped at the door": case.dropped, "chosen": choosing})
        if found:
            counts["differences"] += 1
            tally.differences = [*tally.differences, (seed, found)][:SHOWN]
        else:
            count(counts, case.document, meant)
    return tally


def count(counts: Counter[str], document: Doc, result: Doc) -> None:
    kinds = {trimmed(voucher["code"]): voucher["discount"]["type"] for voucher in document["vouchers"]}
    counts.update(kinds[applied["code"]] for applied in result["applied"])
    counts.update(refused["reason"] for refused in result["refused"])
    counts["returns"] += sum(line["discount_minor"] > 0 for line in result["lines"])
    counts["several applied"] += len(result["applied"]) > 1


def _block(work: tuple[int, int, int, int]) -> Tally:
    seed, first, last, every = work
    return compared((case_seed(seed, number) for number in range(first, last)), every=every)


def proved(count: int, seed: int, workers: int, every: int) -> Tally:
    starts = range(0, count, BLOCK)
    work = [(seed, first, min(first + BLOCK, count), every) for first in starts]
    began = said = time.perf_counter()
    whole = Tally()
    with ProcessPoolExecutor(workers) as pool:
        for tally in pool.map(_block, work):
            whole.add(tally)
            now = time.perf_counter()
            if now - said > 10:
                done, said = whole.counts["cases"], now
                rest = (now - began) / done * (count - done)
                sys.stderr.write(f"{done:,} of {count:,} cases, {whole.counts['differences']} differences, ")
                sys.stderr.write(f"{rest:,.0f} s to go\n")
    return whole


def table(tally: Tally, every: int, seconds: float) -> str:
    counts = tally.counts

    def some(names: list[str]) -> str:
        return ", ".join(f"{name} {counts[name]:,}" for name in names)

    rows = [
        ("cases", f"{counts['cases']:,}, of which with several vouchers applied {counts['several applied']:,}"),
        ("vouchers", f"{counts['vouchers']:,}, and {counts['dropped at the door']:,} that the door refused"),
        ("applied", f"{sum(counts[name] for name in TYPES):,}: {some(TYPES)}"),
        ("refused", f"{sum(counts[name] for name in REASONS):,}: {some(REASONS)}"),
        ("best, qualify", f"{counts['chosen']:,} cases, every {every}th"),
        ("returns", f"{counts['returns']:,} lines, each in parts"),
        ("differences", f"{counts['differences']:,}"),
        ("seconds", f"{seconds:,.0f}"),
    ]
    return "".join(f"{name:<14}{text}\n" for name, text in rows)


def reported(tally: Tally, using: Engine = REAL) -> str:
    """The seeds that differ, and the first one's document shrunk to what still differs, ready to become a vector."""
    lines = [f"seed {seed}: {found}\n" for seed, found in tally.differences]
    document = cases.case(tally.differences[0][0]).document
    smallest = shrunk(document, lambda smaller: fails(smaller, using)) if fails(document, using) else document
    return "".join([*lines, json.dumps(smallest, ensure_ascii=False), "\n"])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.shared.prove", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="cases")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--every", type=int, default=20, help="best and qualify are compared on every such case")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    tally = proved(options.count, options.seed, options.workers, options.every)
    sys.stdout.write(table(tally, options.every, time.perf_counter() - began))
    if not tally.differences:
        return 0
    sys.stdout.write(reported(tally))
    return 1


if __name__ == "__main__":
    sys.exit(main())
