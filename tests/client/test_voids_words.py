"""Voids of several lines and cards, to the cent; and what a till says of a void that cannot be."""

from __future__ import annotations

import pytest

from tallystick_client import Returned, Till
from tallystick_client.forgetting import forget
from tallystick_shared.journal import read_envelope
from tests.client.conftest import TEN, Shop, order, rows
from tests.client.fake_server import loses_the_answer
from tests.client.test_terminal_words import ID, said

ONLINE = {**TEN, "code": "ONLINE", "offline": {"policy": "online_only"}}


@pytest.fixture
def till(shop: Shop) -> Till:
    shop.server.publish(TEN, ONLINE)
    return shop.enroll()


def test_a_void_that_cannot_be_says_why(till: Till, shop: Shop) -> None:
    """Voided before, never redeemed here, erased, without an answer, and of a voucher that is gone."""
    sold = [till.redeem(order(number), ["TEN"]).id for number in range(2)]
    till.void(sold[0])
    assert said(lambda: till.void(sold[0])) == ("ALREADY_VOIDED", f"{sold[0]} was voided before")
    assert said(lambda: till.void(ID)) == (
        "UNKNOWN_REDEMPTION",
        f"this till does not know the redemption {ID}: only the till that redeemed it can void it",
    )
    shop.server.script = [loses_the_answer]
    lost = till.redeem_online(order(7), ["ONLINE"]).id
    assert said(lambda: till.void(lost, returned=[Returned("1", 1)])) == (
        "UNKNOWN_REDEMPTION",
        f"no answer came for {lost}, so what it gave is not known here: void it as a whole",
    )
    gone = till.redeem_online(order(8), ["ONLINE"]).id
    shop.server.drop("ONLINE")
    till.sync()
    assert said(lambda: till.void(gone)) == (
        "UNKNOWN_REDEMPTION",
        "ONLINE was redeemed online and is not on this till: the operator has to void it",
    )
    forget(till._keeper.journal, "anna")
    assert said(lambda: till.void(sold[1])) == (
        "ERASED",
        f"the order of {sold[1]} was erased from this till, which cannot void it",
    )


def test_what_several_gift_cards_paid_goes_back_to_each(till: Till, shop: Shop) -> None:
    """At each return cash and cards get together what the units were worth, and no card more than it paid."""
    cards = [
        {"code": f"GIFT{number}", "discount": {"type": "gift_card", "balance_minor": balance}}
        for number, balance in enumerate((700, 500, 600))
    ]
    shop.server.publish(*cards)
    till.sync()
    receipt = till.redeem_online(order(quantity=4, price=500), [str(one["code"]) for one in cards])
    paid = [one.discount_minor for one in receipt.result.applied]
    assert (sum(paid), receipt.result.total_minor) == (1800, 200)
    got = [0] * 3
    cash = []
    for _ in range(4):
        cash.append(till.void(receipt.id, returned=[Returned("1", 1)]).refund_minor)
        ((raw,),) = rows(shop, "SELECT envelope FROM events ORDER BY seq DESC LIMIT 1")
        uses = read_envelope(raw).uses
        assert cash[-1] + sum(use.minor for use in uses) == 500
        got = [one + use.minor for one, use in zip(got, uses, strict=True)]
        assert all(0 <= one <= most for one, most in zip(got, paid, strict=True))
    assert (cash, got) == ([200, 0, 0, 0], paid)


def test_each_line_comes_back_by_itself(till: Till) -> None:
    """Units of one line, then of another, then again of the first: each time what those units cost, and no more."""
    lines = [
        {"id": name, "product_id": name, "quantity": 2, "unit_price_minor": price}
        for name, price in (("a", 1000), ("b", 300), ("c", 50))
    ]
    receipt = till.redeem({**order(), "lines": lines, "shipping_minor": 70}, ["TEN"])
    returns = (("a", 900), ("b", 270), ("a", 900), ("b", 270), ("c", 45))
    for name, refund in returns:
        assert till.void(receipt.id, returned=[Returned(name, 1)]).refund_minor == refund
    assert till.void(receipt.id).refund_minor == 45 + 70
