"""What part of a limit a device is granted, and whose lease is asked back for it. Pure: `leases` reads and writes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from tallystick_server.demand import Demand, Rivals, score_alone

EXCLUSIVE: Final = "exclusive"
_UNBOUNDED: Final = 10**9


@dataclass
class Candidate:
    """A voucher the asking device could have a lease of. None: it has no limit of that measure."""

    voucher_id: str
    campaign_id: str
    policy: str
    valid_until: datetime | None
    largest_minor: int | None
    units_free: int | None
    minor_free: int | None
    held: bool

    @property
    def slots(self) -> int:
        """How many devices could get at least one use."""
        if self.policy == EXCLUSIVE and self.held:
            return 0
        found = _UNBOUNDED if self.units_free is None else self.units_free
        if self.minor_free is not None:
            by_minor = self.minor_free // self.largest_minor if self.largest_minor else min(self.minor_free, _UNBOUNDED)
            found = min(found, by_minor)
        return min(found, 1) if self.policy == EXCLUSIVE else found


@dataclass(frozen=True)
class _Claim:
    """A lease that this device has the better claim to, its holder's score, and who could have it instead."""

    row: Any
    theirs: int
    rivals: Rivals


class Allotting:
    """Decides for one device. `holders`: open leases of other devices, by voucher."""

    def __init__(
        self,
        device_id: str,
        wants: Collection[str],
        scores: Demand,
        holders: Mapping[str, Sequence[Any]],
        units_max: int,
    ) -> None:
        self._device_id, self._wants, self._scores = device_id, wants, scores
        self._holders, self._units_max = holders, units_max

    def mine(self, one: Candidate) -> int:
        return self._scores.score(self._device_id, one.voucher_id, one.campaign_id)

    def part(self, one: Candidate) -> tuple[int | None, int | None] | None:
        """Units and minor for this device, both or nothing."""
        if one.slots <= 0:
            return None
        without = {self._device_id, *(row.device_id for row in self._holders.get(one.voucher_id, ()))}
        part = self._part(one, self.mine(one), self._scores.rivals(one.voucher_id, one.campaign_id, without))
        if part is None or not self._scores.wanted_outside(one.voucher_id):
            return part
        other = self._part(one, self._alone(one), self._scores.sellers(one.voucher_id, without))
        return other and (_less(part[0], other[0]), _less(part[1], other[1]))

    def is_wanted(self, one: Candidate) -> bool:
        """A customer asks for it, or did lately, and a lease of it is on its way."""
        return one.voucher_id in self._wants or (self.is_coming(one) and self._alone(one) > 1)

    def is_coming(self, one: Candidate) -> bool:
        return any(row.pending for row in self._holders.get(one.voucher_id, ()))

    def _alone(self, one: Candidate) -> int:
        return self._scores.score_alone(self._device_id, one.voucher_id)

    def _part(self, one: Candidate, mine: int, rivals: Rivals) -> tuple[int | None, int | None] | None:
        """For a device of this score. `rivals`: all others that could ask, and hold no lease of it."""
        slots, everybody = one.slots, mine + rivals.total
        among_the_first = rivals.much_likelier(mine) < slots
        if one.policy == EXCLUSIVE:
            return (one.units_free, one.minor_free) if among_the_first else None
        if not among_the_first and slots * mine < everybody:
            return None  # whichever measure is the scarcer: the last use of a budget is waited for too
        units = minor = None
        if one.units_free is not None:
            units = one.units_free * mine // everybody or 1
            units = min(units, self._units_max, slots if one.largest_minor else one.units_free)
        if one.minor_free is not None:
            minor = self._minor(one, one.minor_free, one.minor_free * mine // everybody, units)
            if minor <= 0:
                return None
        return units, minor

    def _minor(self, one: Candidate, free: int, share: int, units: int | None) -> int:
        """Never less than the largest discount, nor more than the units can use."""
        if not one.largest_minor:
            return share
        return min(max(share, one.largest_minor), free, (units or self._units_max) * one.largest_minor)

    def recallable(self, one: Candidate) -> str | None:
        """The lease to ask back for this device, where it is clearly the likelier seller; nothing goes to and fro."""
        holders = self._holders.get(one.voucher_id, ())
        pending = sum(1 for row in holders if row.pending)
        if not holders or pending >= max(self._scores.wanting(one.voucher_id, {row.device_id for row in holders}), 1):
            return None
        little: list[Any] = []
        for claim in sorted(self._claims(one, holders), key=lambda each: (not each.row.live, each.theirs, each.row.id)):
            back = _back(one, [claim.row])
            if back.slots <= 0:
                little.append(claim.row)
            elif self._is_left_over(back, claim.theirs, claim.rivals):
                return str(claim.row.id)
        # no lease is enough alone, but rests of some may be together; who is gone brings nothing
        little = [row for row in little if row.live and _has_each_measure(one, row)]
        return str(little[0].id) if little and _back(one, little).slots > 0 else None

    def _claims(self, one: Candidate, holders: Sequence[Any]) -> list[_Claim]:
        """In its own scope by all that is known; in others by this voucher alone, and where it sold or refused it:
        nobody there waits for it otherwise, and the holder would be given the very same again, for ever."""
        scores, holding = self._scores, {row.device_id for row in holders}
        here = [(row, scores.score(row.device_id, one.voucher_id, one.campaign_id))
                for row in holders if not row.elsewhere]  # fmt: skip
        found = self._likelier(one, self.mine(one), here, scores.rivals(one.voucher_id, one.campaign_id, holding))
        if len(here) == len(holders) or (mine := self._alone(one)) == 1:
            return found
        everywhere = [(row, score_alone(row.sold)) for row in holders]
        others = self._likelier(one, mine, everywhere, scores.sellers(one.voucher_id, holding))
        return found + [claim for claim in others if claim.row.elsewhere]

    def _likelier(self, one: Candidate, mine: int, holders: Sequence[tuple[Any, int]], rivals: Rivals) -> list[_Claim]:
        """Leases that a device of this score has the better claim to. `holders`: each with its score."""
        asked = one.voucher_id in self._wants
        everybody = rivals.total + sum(theirs for row, theirs in holders if row.live)
        idle = sum(_unused(row) for row, _ in holders if not row.undecided)
        found: list[_Claim] = []
        for row, theirs in holders:
            unused = _unused(row)
            if row.recalled_at is not None or not unused or row.undecided:
                continue
            # twice as likely is what a free unit waits for too: what comes back is not given to its holder again
            likelier = mine > 2 * theirs if not asked else mine > theirs
            # it holds twice its share, and this device would have a share of its own
            hoarded = idle * mine >= everybody and unused * everybody >= 2 * idle * theirs and unused > 1
            if likelier or hoarded:
                found.append(_Claim(row, theirs, rivals))
        return found

    def _is_left_over(self, back: Candidate, theirs: int, rivals: Rivals) -> bool:
        """Whether something is left for this device once the holder got its part of what came back: it asks first.
        Otherwise it would be asked back again, for ever."""
        again = self._part(back, theirs, rivals)
        if again is None:
            return True
        units, minor = again
        rest = replace(
            back,
            units_free=None if back.units_free is None else back.units_free - (units or 0),
            minor_free=None if back.minor_free is None else back.minor_free - (minor or 0),
            held=True,
        )
        return rest.slots > 0


def _less(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else min(one, other)


def _back(one: Candidate, some: Sequence[Any]) -> Candidate:
    """As it would be with the unused parts of these leases. The lease of an exclusive voucher is the only one."""
    units, minor = one.units_free, one.minor_free
    for row in some:
        units = None if units is None else units + (0 if row.units is None else row.units - row.known_units)
        minor = None if minor is None else minor + (0 if row.minor is None else row.minor - row.known_minor)
    return replace(one, units_free=units, minor_free=minor, held=False)


def _has_each_measure(one: Candidate, lease: Any) -> bool:
    """A lease from before the voucher had this limit has nothing of it to give back."""
    return not (one.units_free is not None and lease.units is None) and not (
        one.minor_free is not None and lease.minor is None
    )


def _unused(lease: Any) -> int:
    """Uses that are left of a lease: its units, or, where it has only minor, whether there is any."""
    if lease.minor is not None and lease.known_minor >= lease.minor:
        return 0
    return 1 if lease.units is None else int(lease.units - lease.known_units)
