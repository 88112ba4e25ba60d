"""What part of a limit a device is granted, and whose lease is asked back for it. Pure: `leases` reads and writes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from tallystick_server.demand import Demand

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
        holding = {row.device_id for row in self._holders.get(one.voucher_id, ())}
        return self._part(one, self._device_id, holding | {self._device_id})

    def _part(self, one: Candidate, device_id: str, without: Collection[str]) -> tuple[int | None, int | None] | None:
        """`without`: this device and those that hold a lease of it."""
        slots, mine = one.slots, self._scores.score(device_id, one.voucher_id, one.campaign_id)
        if slots <= 0:
            return None
        ahead = self._scores.much_likelier(mine, one.voucher_id, one.campaign_id, without)
        among_the_first = ahead < slots
        if one.policy == EXCLUSIVE:
            return (one.units_free, one.minor_free) if among_the_first else None
        everybody = mine + self._others(one, without)
        if not among_the_first and slots * mine < everybody:
            return None  # whichever measure is the scarcer: the last use of a budget is waited for too
        units = minor = None
        if one.units_free is not None:
            units = one.units_free * mine // everybody or int(among_the_first)
            units = min(units, self._units_max, slots if one.largest_minor else one.units_free)
            if units <= 0:
                return None
        if one.minor_free is not None:
            minor = self._minor(one, one.minor_free, one.minor_free * mine // everybody, units, among_the_first)
            if minor <= 0:
                return None
        return units, minor

    def _minor(self, one: Candidate, free: int, share: int, units: int | None, among_the_first: bool) -> int:
        """Never less than the largest discount, nor more than the units can use; 0 where that cannot be."""
        if not one.largest_minor:
            return share
        if share < one.largest_minor and (among_the_first or units):
            share = one.largest_minor
        share = min(share, free, (units or self._units_max) * one.largest_minor)
        return share if share >= one.largest_minor else 0

    def _others(self, one: Candidate, without: Collection[str]) -> int:
        """Scores of the other devices that could ask for this voucher: live, and without an open lease of it."""
        left_out = sum(
            self._scores.score(device, one.voucher_id, one.campaign_id)
            for device in without
            if device in self._scores.live
        )
        return self._scores.total(one.voucher_id, one.campaign_id) - left_out

    def recallable(self, one: Candidate) -> str | None:
        """The lease to ask back for this device, where it is clearly the likelier seller; nothing goes to and fro."""
        holders = self._holders.get(one.voucher_id, ())
        holding = {row.device_id for row in holders}
        pending = sum(1 for row in holders if row.recalled_at is not None)
        if not holders or pending >= max(self._scores.wanting(one.voucher_id, holding), 1):
            return None
        mine, asked = self.mine(one), one.voucher_id in self._wants
        everybody = self._scores.total(one.voucher_id, one.campaign_id)
        idle = sum(_unused(row) for row in holders)
        found: list[tuple[int, int, str]] = []
        for row in holders:
            theirs, unused = self._scores.score(row.device_id, one.voucher_id, one.campaign_id), _unused(row)
            # in another scope nobody waits but devices of that scope: it would be given the very same again, for ever
            if row.recalled_at is not None or not unused or row.elsewhere:
                continue
            # twice as likely is what a free unit waits for too: what comes back is not given to its holder again
            likelier = mine > 2 * theirs if not asked else mine > theirs
            # it holds twice its share, and this device would have a share of its own
            hoarded = idle * mine >= everybody and unused * everybody >= 2 * idle * theirs and unused > 1
            if (likelier or hoarded) and self._is_worth_it(one, row, holding):
                found.append((int(row.device_id not in self._scores.live), theirs, row.id))
        return min(found)[2] if found else None

    def _is_worth_it(self, one: Candidate, lease: Any, holding: Collection[str]) -> bool:
        """Whether something is left for this device when that lease is back and its holder got its part of it anew: it
        asks first. Otherwise it would be asked back again, for ever."""
        back = replace(
            one,
            units_free=_with(one.units_free, lease.units, lease.known_units),
            minor_free=_with(one.minor_free, lease.minor, lease.known_minor),
            held=False,
        )
        again = self._part(back, lease.device_id, holding)
        if again is not None:
            units, minor = again
            back = replace(
                back,
                units_free=_with(back.units_free, 0, units or 0),
                minor_free=_with(back.minor_free, 0, minor or 0),
                held=True,
            )
        return back.slots > 0


def _with(free: int | None, granted: int | None, used: int) -> int | None:
    return None if free is None else free + (0 if granted is None else granted - used)


def _unused(lease: Any) -> int:
    """Uses that are left of a lease: its units, or, where it has only minor, whether there is any."""
    if lease.minor is not None and lease.known_minor >= lease.minor:
        return 0
    return 1 if lease.units is None else int(lease.units - lease.known_units)
