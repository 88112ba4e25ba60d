"""Where a voucher is likely to be asked for next: what leases are allocated by. Pure.

A score counts what a device sold or had to refuse lately: of the voucher itself, of its campaign, of anything. The
closer the evidence, the heavier it weighs, because customers of one store tend to hold vouchers of the same campaign.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

_ANYTHING: Final = 1
_SAME_CAMPAIGN: Final = 4
_SAME_VOUCHER: Final = 16


class Demand:
    """Units by device, counted three ways. `rows` are (device id, voucher id, campaign id, units)."""

    def __init__(self, rows: Iterable[tuple[str, str, str, int]]) -> None:
        self._anything: Counter[str] = Counter()
        self._campaign: Counter[tuple[str, str]] = Counter()
        self._voucher: Counter[tuple[str, str]] = Counter()
        for device_id, voucher_id, campaign_id, units in rows:
            self._anything[device_id] += units
            self._voucher[device_id, voucher_id] += units
            if campaign_id:
                self._campaign[device_id, campaign_id] += units

    def of_voucher(self, device_id: str, voucher_id: str) -> int:
        return self._voucher[device_id, voucher_id]

    def score(self, device_id: str, voucher_id: str, campaign_id: str) -> int:
        """1 or more, so that a new device has a share too."""
        return (
            1
            + _ANYTHING * self._anything[device_id]
            + _SAME_CAMPAIGN * self._campaign[device_id, campaign_id]
            + _SAME_VOUCHER * self._voucher[device_id, voucher_id]
        )


def share(free: int, mine: int, others: Iterable[int]) -> int:
    """This device's part of what is free, in proportion to the scores of all that could ask for it."""
    return free * mine // (mine + sum(others))


def rank(mine: int, others: Iterable[int]) -> int:
    """1 for the likeliest seller; of equal ones, whoever asks goes first."""
    return 1 + sum(1 for other in others if other > mine)
