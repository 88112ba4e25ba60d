"""The search for the combination of vouchers that saves the customer most.

Source: engine.md, "Two more calls". A combination is a set of which `evaluate` refuses none; it saves goods and
shipping. Of two that save as much the one with fewer vouchers is better, then the one whose sorted folded codes come
first. Gift cards take no part: they are payments, and change nothing that others take.

Vouchers apply in the order of their turns, and none changes what those before it took. So the sets are built by turn,
each on top of the one without its last voucher, and a voucher that is refused ends every set that begins that way. An
exclusive voucher is a set by itself; what conflicts among the others are those of one group.
"""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import Final, TypeAlias

from .basket import Standing
from .steps import BY_RANK, BY_TURN, Candidate, Run, Turn, settle, take_turn

SETS_MAX: Final = 4096
"""Sets of stackable ones up to which every set is looked at: those of any 12 candidates, and of more in groups."""
CANDIDATES_MAX: Final = 100
"""Past that, of how many stackable candidates sets are built: those that take the most alone."""
SETS_KEPT: Final = 16
"""And of how many sets, at each turn, longer ones are built: those that save the most so far."""

_Key: TypeAlias = tuple[int, int, list[str]]
"""What is saved (negative), how many vouchers, their codes: the smallest is the best."""


class _Set:
    """Vouchers in the order of their turns, and how the order stands after them."""

    __slots__ = ("chosen", "groups", "key", "standing")

    def __init__(self, chosen: list[Candidate], saved: int, standing: Standing) -> None:
        self.chosen = chosen
        self.groups = {one.compiled.group for one in chosen} - {None}
        self.key: _Key = (-saved, len(chosen), sorted(one.compiled.folded for one in chosen))
        self.standing = standing

    def joined(self, run: Run, candidate: Candidate) -> _Set | None:
        """With one more voucher, whose turn is after theirs; None where it does not go with them."""
        if candidate.compiled.group in self.groups:
            return None
        run.standing = self.standing
        turn = take_turn(run, candidate, not self.chosen)
        if not isinstance(turn, Turn):
            return None
        run.standing = self.standing.copy()
        settle(run, candidate.part, turn)
        return _Set([*self.chosen, candidate], turn.amount - self.key[0], run.standing)


def search(run: Run, candidates: list[Candidate]) -> tuple[list[Candidate], bool]:
    """The best combination, in the order of application, and whether every one was looked at."""
    nothing = _Set([], 0, run.standing)
    candidates = sorted(candidates, key=BY_TURN)
    singles = [nothing.joined(run, candidate) for candidate in candidates]
    found = [nothing, *(single for single in singles if single is not None)]
    stackable = [candidate for candidate in candidates if not candidate.compiled.exclusive]
    sizes = Counter(candidate.compiled.group for candidate in stackable)
    exact = prod(size + 1 for group, size in sizes.items() if group is not None) << sizes[None] <= SETS_MAX
    if exact:
        found.append(_explored(run, stackable, nothing))
    else:
        found += [_kept(run, stackable, nothing), _built(run, stackable, nothing)]
    return min(found, key=_by_key).chosen, exact


def _by_key(found: _Set) -> _Key:
    return found.key


def _explored(run: Run, stackable: list[Candidate], begun: _Set) -> _Set:
    """The best of a set and of all that begin with it."""
    best = begun
    for index, candidate in enumerate(stackable):
        longer = begun.joined(run, candidate)
        if longer is not None:
            best = min(best, _explored(run, stackable[index + 1 :], longer), key=_by_key)
    return best


def _built(run: Run, stackable: list[Candidate], nothing: _Set) -> _Set:
    """Turn by turn, each of the few best sets so far without the next voucher and with it."""
    by_amount = sorted(stackable, key=lambda candidate: (-candidate.alone, candidate.compiled.folded))
    sets = [nothing]
    for candidate in sorted(by_amount[:CANDIDATES_MAX], key=BY_TURN):
        longer = [one.joined(run, candidate) for one in sets]
        sets = sorted([*sets, *(one for one in longer if one is not None)], key=_by_key)[:SETS_KEPT]
    return sets[0]


def _kept(run: Run, stackable: list[Candidate], nothing: _Set) -> _Set:
    """What applies of the stackable ones when all are given at once: of each group the first by rank."""
    winners: dict[str | None, Candidate] = {}
    for candidate in sorted(stackable, key=BY_RANK):
        winners.setdefault(candidate.compiled.group, candidate)
    found = nothing
    for candidate in stackable:
        if candidate.compiled.group is None or winners[candidate.compiled.group] is candidate:
            found = found.joined(run, candidate) or found
    return found
