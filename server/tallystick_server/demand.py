"""Where a voucher is likely to be asked for next: what leases are allocated by. Pure.

A score counts what a device sold or had to refuse lately: of the voucher itself, of its campaign, of anything. The
closer the evidence, the heavier it weighs, because customers of one store tend to hold vouchers of the same campaign.
The scores of a campaign are made once and shared by all its vouchers, so that a sync looks at each voucher, not at
each voucher for each device.

All else is of one scope. With devices of other scopes only what was sold of the voucher itself is compared: so much of
each other both sides know, and decide alike.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Final

_ANYTHING: Final = 1
_SAME_CAMPAIGN: Final = 16
_SAME_VOUCHER: Final = 16
_MUCH_LIKELIER: Final = 2
_SATURATED: Final = 500
"""Units from which more of them say ever less: one device cannot claim everything for ever."""


@dataclass(frozen=True)
class Rivals:
    """Those that a voucher could go to next, without some. `total`: their scores together."""

    total: int
    _counted: tuple[Sequence[int], ...]
    _not_counted: Sequence[int] = ()

    def much_likelier(self, mine: int) -> int:
        """How many are so much likelier sellers that a unit waits for them."""
        bound = _MUCH_LIKELIER * mine
        return sum(_above(bound, scores) for scores in self._counted) - _above(bound, self._not_counted)


@dataclass(frozen=True)
class _Campaign:
    """Scores of the rivals without what they sold of one voucher; `ordered` are the values alone, rising."""

    scores: dict[str, int]
    ordered: list[int]
    total: int


class Demand:
    """Units by device, counted three ways. `live`: the devices of this scope that sync; `full`: those of them that have
    no room for one more lease, and are nobody's rivals. `rows`: (device id, voucher id, campaign id, units) of this
    scope. `outside`: (voucher id, units, devices that sold or refused so many of it lately) of other scopes, of rivals
    alone: live, not full, without a lease of it."""

    def __init__(
        self,
        live: Collection[str],
        rows: Iterable[tuple[str, str, str, int]],
        full: Collection[str] = (),
        outside: Iterable[tuple[str, int, int]] = (),
    ) -> None:
        self._anything: Counter[str] = Counter()
        self._campaign: Counter[tuple[str, str]] = Counter()
        self._voucher: dict[str, dict[str, int]] = defaultdict(dict)
        for device_id, voucher_id, campaign_id, units in rows:
            self._anything[device_id] += units
            self._voucher[voucher_id][device_id] = _weight(units)
            if campaign_id:
                self._campaign[device_id, campaign_id] += units
        self._outside: dict[str, list[int]] = defaultdict(list)
        for voucher_id, units, count in outside:
            self._outside[voucher_id] += [score_alone(units)] * count
        self._rivals = frozenset(live).difference(full)
        self._campaigns: dict[str, _Campaign] = {}

    def score(self, device_id: str, voucher_id: str, campaign_id: str) -> int:
        """1 or more, so that a new device has a share too."""
        return self._base(device_id, campaign_id) + _SAME_VOUCHER * self._sold(voucher_id).get(device_id, 0)

    def score_alone(self, device_id: str, voucher_id: str) -> int:
        """By this voucher alone, as it is compared with other scopes: 1 of who neither sold nor refused it lately."""
        return 1 + _SAME_VOUCHER * self._sold(voucher_id).get(device_id, 0)

    def rivals(self, voucher_id: str, campaign_id: str, without: Collection[str]) -> Rivals:
        """All of this scope but those in `without`. A question about them costs no walk through all."""
        campaign = self._of(campaign_id)
        sellers = {device: units for device, units in self._sold(voucher_id).items() if device in campaign.scores}
        # the campaign's list knows neither who is left out nor what was sold of this voucher
        others = [device for device in {*without, *sellers} if device in campaign.scores]
        wrong = sorted(campaign.scores[device] for device in others)
        right = sorted(campaign.scores[one] + _SAME_VOUCHER * sellers[one] for one in sellers if one not in without)
        return Rivals(campaign.total - sum(wrong) + sum(right), (campaign.ordered, right), wrong)

    def sellers(self, voucher_id: str, without: Collection[str]) -> Rivals:
        """Those of all scopes that sold or refused this voucher lately, but those in `without`: by it alone."""
        here = (self.score_alone(one, voucher_id) for one in self._wanting(voucher_id, without))
        scores = sorted([*here, *self._outside.get(voucher_id, ())])
        return Rivals(sum(scores), (scores,))

    def wanted_outside(self, voucher_id: str) -> bool:
        return voucher_id in self._outside

    def wanting(self, voucher_id: str, without: Collection[str]) -> int:
        """How many rivals, of all scopes, but those in `without`, sold or refused this voucher lately."""
        return len(self._wanting(voucher_id, without)) + len(self._outside.get(voucher_id, ()))

    def _wanting(self, voucher_id: str, without: Collection[str]) -> list[str]:
        return [one for one in self._sold(voucher_id) if one in self._rivals and one not in without]

    def _sold(self, voucher_id: str) -> Mapping[str, int]:
        return self._voucher.get(voucher_id, {})

    def _base(self, device_id: str, campaign_id: str) -> int:
        same = _weight(self._campaign[device_id, campaign_id]) if campaign_id else 0
        return 1 + _ANYTHING * _weight(self._anything[device_id]) + _SAME_CAMPAIGN * same

    def _of(self, campaign_id: str) -> _Campaign:
        if campaign_id not in self._campaigns:
            scores = {device: self._base(device, campaign_id) for device in self._rivals}
            self._campaigns[campaign_id] = _Campaign(scores, sorted(scores.values()), sum(scores.values()))
        return self._campaigns[campaign_id]


def _above(bound: int, ordered: Sequence[int]) -> int:
    return len(ordered) - bisect_right(ordered, bound)


def score_alone(units: int) -> int:
    """Of a device that sold so many of a voucher, by this voucher alone."""
    return 1 + _SAME_VOUCHER * _weight(units)


def _weight(units: int) -> int:
    return units if units <= _SATURATED else _SATURATED + isqrt(units - _SATURATED)
