"""The search for the combination of vouchers that saves the customer most.

Source: engine.md, "Two more calls". A combination is a set of which `evaluate` refuses none; it saves goods and
shipping. Of two that save as much the one with fewer vouchers is better, then the one whose sorted folded codes come
first. Gift cards take no part: they are payments, and change nothing that others take.

Vouchers apply in the order of their turns, and none changes what those before it took. So the sets are built by turn,
each on top of the one without its last voucher, and a voucher that is refused ends every set that begins that way.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from .steps import BY_RANK, BY_TURN, Candidate, Run, Turn, conflict, sets_without_conflict, settle, take_turn

SETS_MAX: Final = 4096
"""Sets of stackable ones up to which every set is looked at: those of any 12 candidates, and of more in groups."""
GROWN_MAX: Final = 100
"""Past that, the candidates that a set is grown from: those that take the most alone."""

_Key: TypeAlias = tuple[int, int, list[str]]
"""What is saved (negative), how many vouchers, their codes: the smallest is the best."""
_Found: TypeAlias = tuple[_Key, list[Candidate]]

_NOTHING: Final[_Found] = ((0, 0, []), [])


def search(run: Run, candidates: list[Candidate]) -> tuple[list[Candidate], bool]:
    """The best combination, in the order of application, and whether every one was looked at."""
    candidates = sorted(candidates, key=BY_TURN)
    if sets_without_conflict(candidates) <= SETS_MAX:
        return _explored(run, candidates, [], 0, _NOTHING)[1], True
    return _grown(run, candidates)[1], False


def _explored(run: Run, candidates: list[Candidate], chosen: list[Candidate], saved: int, best: _Found) -> _Found:
    """The best of `best` and of every set that begins with the chosen ones, which the order stands after."""
    for index, candidate in enumerate(candidates):
        if any(conflict(candidate, other) for other in chosen):
            continue
        turn = take_turn(run, candidate, not chosen)
        if not isinstance(turn, Turn):
            continue
        before = run.standing.copy()
        settle(run, candidate.part, turn)
        longer, more = [*chosen, candidate], saved + turn.amount
        best = min(best, (_key(more, longer), longer), key=_by_key)
        best = _explored(run, candidates[index + 1 :], longer, more, best)
        run.standing = before
    return best


def _by_key(found: _Found) -> _Key:
    return found[0]


def _key(saved: int, chosen: list[Candidate]) -> _Key:
    return -saved, len(chosen), sorted(candidate.compiled.folded for candidate in chosen)


def _grown(run: Run, candidates: list[Candidate]) -> _Found:
    """From nothing, and from what `evaluate` keeps of all, by the voucher that saves most, while one saves more."""
    singles = [_tried(run, [candidate]) for candidate in candidates]
    by_amount = sorted(candidates, key=lambda candidate: (-candidate.alone, candidate.compiled.folded))
    few = [candidate for candidate in by_amount if not candidate.compiled.exclusive][:GROWN_MAX]
    found = [min(singles, key=_by_key)]
    for start in ([], _kept(run, candidates)):
        best = _tried(run, start)
        while True:
            free = [one for one in few if not any(one is other or conflict(one, other) for other in best[1])]
            longer = min([_tried(run, [*best[1], one]) for one in free], key=_by_key, default=_NOTHING)
            if longer[0][0] >= best[0][0]:
                break
            best = longer
        found.append(best)
    return min(found, key=_by_key)


def _kept(run: Run, candidates: list[Candidate]) -> list[Candidate]:
    """Those that apply when all are given at once: by rank without conflict, then without the refused."""
    kept: list[Candidate] = []
    for candidate in sorted(candidates, key=BY_RANK):
        if not any(conflict(candidate, other) for other in kept):
            kept.append(candidate)
    return _applied(run, kept)[1]


def _tried(run: Run, chosen: list[Candidate]) -> _Found:
    """The set with what it saves; where one of it is refused it is no combination, and worth nothing."""
    saved, applied = _applied(run, chosen)
    return (_key(saved, applied), applied) if len(applied) == len(chosen) else _NOTHING


def _applied(run: Run, chosen: list[Candidate]) -> tuple[int, list[Candidate]]:
    before, saved = run.standing.copy(), 0
    applied: list[Candidate] = []
    for candidate in sorted(chosen, key=BY_TURN):
        turn = take_turn(run, candidate, not applied)
        if isinstance(turn, Turn):
            settle(run, candidate.part, turn)
            saved += turn.amount
            applied.append(candidate)
    run.standing = before
    return saved, applied
