"""What a redemption takes, to the last unit: leases, soft allowances, customers, and the floor of its bundle."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tallystick_client import StorageError, Till, exchange
from tallystick_client.bundle import Entry
from tallystick_client.journal import Writing
from tallystick_client.terminal import _use_allowance as use_allowance
from tallystick_client.terminal import count_customer, find_entries
from tallystick_shared.engine import Reason
from tallystick_shared.journal import read_envelope
from tallystick_shared.model import parse_order
from tests.client.conftest import ONCE, TEN, Shop, order, rows
from tests.client.test_terminal_words import said

SOFT: dict[str, Any] = {
    "code": "SOFT",
    "discount": {"type": "fixed", "amount_minor": 100},
    "limits": {"total": 100},
    "offline": {"policy": "soft", "max_units": 3, "max_minor": 200},
}
EACH = {**TEN, "code": "EACH", "limits": {"per_customer": 1}, "valid_until": "2026-11-24T09:00:00Z"}
NEWER = b'{"code":"NEWER","from_the_future":1}'


@pytest.fixture
def till(shop: Shop) -> Till:
    shop.server.publish(TEN, ONCE, SOFT, EACH)
    return shop.enroll()


def entry(till: Till, writing: Writing, code: str) -> Entry:
    (found,) = find_entries(till._keeper.terminal.demand_bundle(writing), [code]).values()
    return found


# ---- the bundle it rests on


def test_a_redemption_keeps_the_floor_that_a_power_cut_left_out(
    till: Till, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache has the new bundle and the journal does not say so yet: the first sale from it writes both."""
    shop.server.publish({**TEN, "discount": {"type": "percentage", "percent": 20}})

    def power_cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(exchange, "keep_floor", power_cut)
        with pytest.raises(KeyboardInterrupt):
            till.sync()
    till.close()
    floor = "SELECT bundle_version, (SELECT version FROM floors) FROM state"
    assert rows(shop, floor) == [(1, 1)]
    till = shop.open()
    assert till.redeem(order(), ["TEN"]).result.discount_minor == 270
    assert rows(shop, floor) == [(2, 2)]
    ((raw,),) = rows(shop, "SELECT envelope FROM events")
    assert read_envelope(raw).bundle_version == 2


def test_a_redemption_is_no_news_of_the_bundle(till: Till, shop: Shop) -> None:
    """Or every process of the till would read it again after each sale."""
    before = rows(shop, "SELECT bundle_serial FROM state")
    till.redeem(order(), ["TEN"])
    assert rows(shop, "SELECT bundle_serial FROM state") == before


def test_a_till_without_vouchers_knows_the_time(shop: Shop) -> None:
    """Also one whose clock went on while it was off: it can be asked how it is, and synced."""
    till = shop.enroll(sync=False)
    shop.clock.turn(hours=23)
    assert till.status().at == shop.clock.now()
    shop.server.publish(TEN)
    till.sync()
    till.close()
    shop.clock.reboot(days=3)  # as long as a till may be offline in all
    assert shop.open().redeem(order(), ["TEN"]).at == shop.clock.now()


def test_a_hidden_code_is_applied_as_it_was_typed_first(shop: Shop) -> None:
    """Typed twice in two spellings it is one voucher, under the first of them."""
    shop.server.publish({**TEN, "code": "LONG-HIDDEN-CODE"}, hidden=True)
    result = shop.enroll().preview(order(), [" Long-hidden-Code ", "long-hidden-code"])
    assert [one.code for one in result.applied] == ["Long-hidden-Code"]


def test_a_voucher_for_a_newer_till_does_not_hide_the_others(till: Till, shop: Shop) -> None:
    """Beside it the good one is applied, an unknown code is just unknown, and only the one without a lease wanted."""
    shop.server.publish(raw={"NEWER": NEWER})
    till.sync()
    result = till.preview(order(), ["NEWER", "TEN", "NONE"])
    assert [one.code for one in result.applied] == ["TEN"]
    assert [(one.reason, one.detail.get("code")) for one in result.refused] == [
        (Reason.UNKNOWN_CODE, "NEEDS_UPDATE"),
        (Reason.UNKNOWN_CODE, None),
    ]
    till.redeem(order(), ["NEWER", "NONE", "ONCE"])
    assert rows(shop, "SELECT * FROM wants") == [(shop.server.voucher_id("ONCE"), 1)]


# ---- leases and soft allowances


@pytest.mark.parametrize(
    ("minor", "after_s", "taken"),
    [(600, 0, True), (601, 0, False), (0, 86_399, True), (0, 86_400, False)],
)
def test_no_lease_gives_more_than_it_has(till: Till, shop: Shop, minor: int, after_s: int, taken: bool) -> None:
    """Whatever the engine said: the last minor unit and the last second are good, and nothing beyond is written."""
    lease = shop.server.grant(shop.server.device, "ONCE", units=1, minor=600, days=1)
    till.sync()
    at = shop.clock.now() + timedelta(seconds=after_s)
    no = "the lease does not cover what the engine gave: nothing was redeemed"
    used = "SELECT used_units, used_minor FROM leases"
    with till._keeper.journal.write() as writing:
        once = entry(till, writing, "ONCE")
        if taken:
            assert use_allowance(writing, once, minor, at) == lease.id
            assert writing.run(used).fetchall() == [(1, minor)]
        with pytest.raises(StorageError, match=no):
            use_allowance(writing, once, minor, at)
        assert said(lambda: use_allowance(writing, once, minor, at)) == ("CONSTRAINT", no)
    assert rows(shop, used) == [(int(taken), minor * taken)]


def test_a_lease_without_a_limit_of_a_kind_has_none(till: Till, shop: Shop) -> None:
    """Null units: only the amount counts, and the reverse."""
    shop.server.grant(shop.server.device, "ONCE", units=None, minor=700)
    till.sync()
    assert [till.redeem(order(number), ["ONCE"]).redeemed for number in range(3)] == [True, True, False]
    assert rows(shop, "SELECT units, used_units, minor, used_minor FROM leases") == [(None, 2, 700, 600)]


def test_a_soft_allowance_is_used_to_the_last_and_lowered_in_peace(till: Till, shop: Shop) -> None:
    """The last minor unit is given; a bundle that allows less than was used ends it, one that allows more goes on."""

    def given(**changed: int) -> list[bool]:
        shop.server.publish({**SOFT, "offline": {**SOFT["offline"], **changed}})
        till.sync()
        return [till.redeem(order(), ["SOFT"]).redeemed for _ in range(2)]

    assert given() == [True, True]
    assert rows(shop, "SELECT units, minor FROM voucher_uses") == [(2, 200)]
    assert given(max_minor=100) == [False, False]
    assert given(max_minor=1_000) == [True, False]
    assert given(max_minor=1_000, max_units=1) == [False, False]
    assert given(max_minor=1_000, max_units=9) == [True, True]
    assert rows(shop, "SELECT units, minor FROM voucher_uses") == [(5, 500)]


# ---- customers


def test_what_a_customer_used_is_never_below_nothing(till: Till, shop: Shop) -> None:
    """A void of what was not counted here gives nobody a use more than the voucher has."""
    sale = parse_order(order())
    counted = []
    for units in (-1, -1, 1, 1, -1):
        with till._keeper.journal.write() as writing:
            count_customer(writing, entry(till, writing, "EACH"), sale, units)
        counted.append(rows(shop, "SELECT units FROM customer_uses")[0][0])
    assert counted == [0, 0, 1, 2, 1]
    assert till.redeem(order(), ["EACH"]).result.refused[0].reason is Reason.CUSTOMER_LIMIT_REACHED


def test_only_what_is_limited_by_customer_is_counted(till: Till, shop: Shop) -> None:
    """Nothing is kept of a customer where no voucher asks for it, nor of an order without one."""
    till.redeem(order(), ["TEN"])
    till.redeem(order(customer=None), ["TEN"])
    assert rows(shop, "SELECT * FROM customer_uses") == []
    till.redeem(order(), ["EACH"])
    ((voucher, units, ends_at),) = rows(shop, "SELECT voucher_id, units, ends_at FROM customer_uses")
    assert (voucher, units, ends_at) == (shop.server.voucher_id("EACH"), 1, "2026-11-24T09:00:00+00:00")


def test_what_a_customer_used_goes_with_the_end_of_the_voucher(till: Till, shop: Shop) -> None:
    """Not in its last second, and of no other voucher; one that ends later now, or never, stays known."""
    shop.server.publish({**EACH, "code": "LATER"}, {**EACH, "code": "NEVER"})
    till.sync()
    for code in ("EACH", "LATER", "NEVER"):
        till.redeem(order(), [code])
    never = {name: value for name, value in EACH.items() if name != "valid_until"}
    later = {**EACH, "code": "LATER", "valid_until": "2026-12-24T10:00:00+01:00"}
    shop.server.publish(later, {**never, "code": "NEVER"})
    till.sync()
    shop.clock.run(days=1)
    till.sync()
    known = "SELECT voucher_id, ends_at FROM customer_uses"
    assert len(rows(shop, known)) == 3
    shop.clock.run(seconds=1)
    till.sync()
    ids = {code: shop.server.voucher_id(code) for code in ("LATER", "NEVER")}
    assert dict(rows(shop, known)) == {ids["LATER"]: "2026-12-24T09:00:00+00:00", ids["NEVER"]: None}
    for code in ("LATER", "NEVER"):
        assert not till.redeem(order(), [code]).redeemed
