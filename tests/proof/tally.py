"""What a run of a proof found: counts that mean the same in every row, and failures that can be repeated."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

COUNTS = ("acknowledged", "lost", "doubled", "mismatched", "over_limit", "tills", "converged")


class Failure(msgspec.Struct, frozen=True):
    """One thing that must hold and did not. `case` repeats it; `what` is a sentence."""

    case: int
    what: str


class Tally(msgspec.Struct):
    """`units` in the unit of its row (kills, images, device-days, ...), of `cases` cases.

    acknowledged: redemptions of which a cashier was told that they are recorded; lost: of those, the ones that are
    nowhere any more; doubled: effects beyond the first of one redemption; mismatched: previewed, recorded and settled
    amounts that are not all the same; over_limit: units and minor units beyond a limit; tills and converged: how many
    there were, and how many ended with all they had acknowledged by the server. `faults`: injected, by kind. `seen`:
    what else was met, so that a run which tried nothing shows it.
    """

    units: int = 0
    cases: int = 0
    acknowledged: int = 0
    lost: int = 0
    doubled: int = 0
    mismatched: int = 0
    over_limit: int = 0
    tills: int = 0
    converged: int = 0
    faults: dict[str, int] = {}
    seen: dict[str, int] = {}
    failures: list[Failure] = []

    @property
    def holds(self) -> bool:
        zeros = self.lost or self.doubled or self.mismatched or self.over_limit
        return not zeros and not self.failures and self.tills == self.converged

    def add(self, other: Tally) -> None:
        for name in ("units", "cases", *COUNTS):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for mine, theirs in ((self.faults, other.faults), (self.seen, other.seen)):
            for kind, count in theirs.items():
                mine[kind] = mine.get(kind, 0) + count
        self.failures.extend(other.failures)

    def fault(self, kind: str, count: int = 1) -> None:
        self.faults[kind] = self.faults.get(kind, 0) + count

    def see(self, kind: str, count: int = 1) -> None:
        self.seen[kind] = self.seen.get(kind, 0) + count

    def fail(self, case: int, what: str) -> None:
        self.failures.append(Failure(case, what))


def told(counts: Mapping[str, int], most: int | None = None) -> str:
    """`a 3, b 1`, the most frequent first; `most`: of so many kinds."""
    ordered = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    shown = [f"{kind} {count:,}" for kind, count in ordered[:most]]
    return ", ".join(shown if len(shown) == len(ordered) else [*shown, f"and {len(ordered) - len(shown)} kinds more"])
