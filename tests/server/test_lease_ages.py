"""When a lease grows old: what lasts no longer anyway is left alone."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from tests.server.conftest import voucher

if TYPE_CHECKING:
    from tests.server.conftest import Shop


def test_a_lease_that_lasts_as_long_as_its_voucher_is_not_asked_back_for_its_age(shop: Shop) -> None:
    """A new one would end at the same moment, and be asked back at once, at each sync."""
    end = shop.clock() + timedelta(days=3)
    shop.publish(voucher("tea", total=4, valid_until=end.isoformat()), voucher("jam", total=4))
    device = shop.device()
    tea, jam = sorted(device.active(), key=lambda lease: lease.expires_at)
    assert tea.expires_at == end
    assert jam.expires_at == shop.clock() + timedelta(days=14)
    shop.clock.advance(days=2)
    assert device.sync().recall == []
    shop.clock.advance(days=5)
    assert device.sync().recall == [jam.id]
