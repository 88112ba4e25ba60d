"""What a till says of a sale that it will not make: whole sentences, with the codes that programs read."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tallystick_client import Returned, Till
from tallystick_client.errors import TallystickError
from tallystick_client.exporting import export
from tallystick_shared.bundle import Caps
from tallystick_shared.wire import DeviceState
from tests.client.conftest import TEN, Shop, order, sell

ID = "0190b6a0-0000-7000-8000-000000000001"
A_UUID = "must be a UUID in lower case, as in 01920000-0000-7000-8000-000000000000"


@pytest.fixture
def till(shop: Shop) -> Till:
    shop.server.publish(TEN)
    return shop.enroll()


def said(call: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(TallystickError) as caught:
        call()
    return caught.value.code, str(caught.value)


def test_a_till_that_may_not_redeem_says_what_to_do(shop: Shop, till: Till) -> None:
    """Suspended, offline for too long, too much that waits, retired: each by its own sentence."""
    sale = (order(9), ["TEN"])
    shop.server.device.state = DeviceState.SUSPENDED
    till.sync()
    assert said(lambda: till.redeem(*sale)) == (
        "SUSPENDED",
        "this till is suspended at the server and may not redeem: call the operator",
    )
    shop.server.device.state = DeviceState.ACTIVE
    till.sync()
    since = till.status().at
    shop.clock.run(days=3)
    assert till.redeem(order(1), ["TEN"]).redeemed, "the last second is good"
    shop.clock.run(seconds=1)
    assert said(lambda: till.redeem(*sale)) == (
        "TOO_LONG_OFFLINE",
        f"this till has been offline since {since:%Y-%m-%d %H:%M} UTC, too long to redeem: sync it first",
    )
    export(till._keeper, shop.work / "journal.tally", final=True)
    assert said(lambda: till.redeem(*sale)) == (
        "RETIRED",
        "this till was retired when its journal was exported with --final, and redeems no more: "
        "enrol another directory",
    )


@pytest.mark.parametrize(
    ("caps", "sentence"),
    [
        (Caps(redemptions=2), "2 redemptions wait to be sent, no more than 2 may: sync this till first"),
        (
            Caps(amount_minor=270),
            "the discounts that wait to be sent have reached the most this till may give offline: sync it first",
        ),
    ],
)
def test_what_may_wait_is_counted_to_the_last(shop: Shop, caps: Caps, sentence: str) -> None:
    """The second redemption of two is taken, the third is refused in words."""
    shop.server.caps = caps
    shop.server.publish(TEN)
    till = shop.enroll()
    sell(till, 2)
    assert said(lambda: till.redeem(order(3), ["TEN"])) == ("QUEUE_FULL", sentence)


def test_a_till_without_vouchers_says_so(shop: Shop) -> None:
    """It was enrolled and never synced."""
    till = shop.enroll(sync=False)
    assert said(lambda: till.redeem(order(), ["TEN"])) == (
        "NO_BUNDLE",
        "this till has no vouchers yet: sync it first",
    )


def test_a_bad_argument_is_named_with_what_it_should_be(till: Till) -> None:
    """Codes, ids, and what came back."""
    sold = till.redeem(order(), ["TEN"]).id

    def back(line_id: str, units: int) -> Callable[[], object]:
        return lambda: till.void(sold, returned=[Returned(line_id, units)])

    calls: dict[str, Callable[[], object]] = {
        "codes: must be a list of text": lambda: till.redeem(order(), "TEN"),
        "codes: must be at most 32, not 33": lambda: till.redeem(order(), ["A"] * 33),
        f"id: {A_UUID}": lambda: till.redeem(order(), ["TEN"], id=ID.upper()),
        f"redemption_id: {A_UUID}": lambda: till.void("order-1"),
        "returned[0].line_id: must be a line of the redemption, not '9'": back("9", 1),
        "returned[0].units: must be 1 to 3, what is left of line 1, not 4": back("1", 4),
        "returned[0].units: must be a whole number from 1, not 0": back("1", 0),
    }
    for sentence, call in calls.items():
        assert said(call) == ("INVALID_FIELD", sentence)
    long = "9" * 300
    assert said(back(long, 1))[1].endswith(f"must be a line of the redemption, not {repr(long)[:80]}")
    assert till.redeem(order(2), ["A"] * 32).result.refused


def test_a_voucher_for_a_newer_till_is_refused_with_what_to_do(shop: Shop) -> None:
    """The cashier reads that the till is too old, not that the code is unknown; another code is unknown still."""
    shop.server.publish(TEN, raw={"NEWER": b'{"code":"NEWER","from_the_future":1}'})
    result = shop.enroll().preview(order(), ["NEWER", "NONE"])
    newer, none = result.refused
    assert newer.detail == {
        "code": "NEEDS_UPDATE",
        "message": "this voucher needs a newer version of Tallystick on this till",
    }
    assert none.detail.get("code") is None
