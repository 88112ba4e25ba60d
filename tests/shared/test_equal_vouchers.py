"""Vouchers of one code given twice: the mistake is named where it is."""

from __future__ import annotations

import pytest

from tallystick_shared.errors import InvalidInput
from tests.shared.build import fixed, order, run, voucher


def test_of_equal_vouchers_both_places_are_named() -> None:
    """Not the first two there are, but the two that are equal, however their codes are written."""
    with pytest.raises(InvalidInput) as caught:
        run(order(1), voucher(fixed(1), "a"), voucher(fixed(1), "b"), voucher(fixed(1), "c"), voucher(fixed(1), " B"))
    assert caught.value.path == "vouchers[3].code"
    assert caught.value.expected == "must not be equal to vouchers[1].code"
