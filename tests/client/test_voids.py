"""Voids and partial returns: the frozen shares, once, to the cent."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tallystick_client import CallerError, InvalidInput, Returned, Till
from tallystick_shared.engine import Reason
from tallystick_shared.journal import EventType, VoidBody, read_envelope
from tests.client.conftest import ONCE, TEN, Shop, order
from tests.client.fake_server import loses_the_answer

EACH = {**TEN, "code": "EACH", "limits": {"per_customer": 1}}


@pytest.fixture
def till(shop: Shop) -> Till:
    shop.server.publish(TEN, ONCE, EACH)
    till = shop.enroll()
    shop.server.grant(shop.server.device, "ONCE", units=3)
    till.sync()
    return till


def test_a_void_gives_everything_back(till: Till, shop: Shop) -> None:
    """What was paid, the unit, and the whole amount; the event names what it voids."""
    receipt = till.redeem({**order(), "shipping_minor": 500}, ["ONCE"])
    void = till.void(receipt.id, reason="changed her mind")
    assert (void.refund_minor, void.currency) == (1350 + 500 - 300, "EUR")
    till.sync()
    (envelope,) = shop.server.device.envelopes(EventType.VOID)
    assert (envelope.ref, envelope.id) == (receipt.id, void.id)
    (use,) = envelope.uses
    assert (use.units, use.minor, use.lease) == (1, 300, None)
    body = msgspec.json.decode(shop.server.device.events[-1].body, type=VoidBody)
    assert (body.reason, body.refund_minor, body.returned) == ("changed her mind", 1550, [])


def test_a_redemption_is_voided_once(till: Till) -> None:
    """The second void is refused in words, and so is a return after it."""
    receipt = till.redeem(order(), ["ONCE"])
    till.void(receipt.id)
    for returned in ([], [Returned("1", 1)]):
        with pytest.raises(CallerError) as caught:
            till.void(receipt.id, returned=returned)
        assert caught.value.code == "ALREADY_VOIDED"
    assert till.status().head == 2


def test_what_this_till_did_not_redeem_it_does_not_void(till: Till) -> None:
    """An unknown redemption, a void, and what is no id at all."""
    with pytest.raises(CallerError, match="only the till that redeemed it") as caught:
        till.void("0190b6a0-0000-7000-8000-000000000001")
    assert caught.value.code == "UNKNOWN_REDEMPTION"
    void = till.void(till.redeem(order(), ["TEN"]).id)
    with pytest.raises(CallerError):
        till.void(void.id)
    with pytest.raises(InvalidInput):
        till.void("order-1")


@pytest.mark.parametrize(
    ("returned", "path"),
    [
        ([Returned("9", 1)], "returned[0].line_id"),
        ([Returned("1", 4)], "returned[0].units"),
        ([Returned("1", 0)], "returned[0].units"),
        ([Returned("1", 2), Returned("1", 2)], "returned[1].units"),
    ],
)
def test_no_more_comes_back_than_was_sold(till: Till, returned: list[Returned], path: str) -> None:
    """The sentence names the field, and nothing is written."""
    receipt = till.redeem(order(), ["ONCE"])
    with pytest.raises(InvalidInput) as caught:
        till.void(receipt.id, returned=returned)
    assert caught.value.path == path
    assert till.status().head == 1


def test_units_that_came_back_do_not_come_back_again(till: Till) -> None:
    """Of three units two came back: one is left."""
    receipt = till.redeem(order(), ["ONCE"])
    till.void(receipt.id, returned=[Returned("1", 2)])
    with pytest.raises(InvalidInput, match="must be 1 to 1"):
        till.void(receipt.id, returned=[Returned("1", 2)])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    quantity=st.integers(1, 7),
    price=st.integers(1, 1000),
    parts=st.lists(st.integers(1, 4), max_size=4),
    wholly=st.booleans(),
)
def test_returns_one_by_one_pay_exactly_what_was_paid(
    till: Till, shop: Shop, quantity: int, price: int, parts: list[int], wholly: bool
) -> None:
    """However units come back, with a void at the end or without: what was paid, and all of the voucher's amount."""
    receipt = till.redeem(order(quantity=quantity, price=price), ["TEN"])
    if not receipt.redeemed:
        return
    before = till.status().head
    left, refund = quantity, 0
    for units in [*parts, *([] if wholly else [quantity])]:
        units = min(units, left)
        if units:
            refund += till.void(receipt.id, returned=[Returned("1", units)]).refund_minor
            left -= units
    if wholly:
        refund += till.void(receipt.id).refund_minor
    assert refund == receipt.result.total_minor
    till.sync()
    voids = [one for one in shop.server.device.envelopes(EventType.VOID) if one.seq > before]
    assert sum(use.minor for one in voids for use in one.uses) == receipt.result.discount_minor
    assert sum(use.units for one in voids for use in one.uses) == wholly


def test_a_voided_customer_may_again(till: Till) -> None:
    """A void gives the customer's use back; a partial return does not."""
    receipt = till.redeem(order(), ["EACH"])
    till.void(receipt.id, returned=[Returned("1", 1)])
    assert till.redeem(order(2), ["EACH"]).result.refused[0].reason is Reason.CUSTOMER_LIMIT_REACHED
    till.void(receipt.id)
    assert till.redeem(order(3), ["EACH"]).redeemed


def test_a_void_gives_nothing_back_to_the_lease(till: Till) -> None:
    """Use of a lease never goes down: the unit goes back to the server."""
    for number in range(3):
        till.void(till.redeem(order(number), ["ONCE"]).id)
    assert till.redeem(order(4), ["ONCE"]).result.refused[0].reason is Reason.NO_ALLOWANCE


GIFT = {"code": "GIFT", "discount": {"type": "gift_card", "balance_minor": 1500}}
GIFT_TOO = {"code": "GIFT2", "discount": {"type": "gift_card", "balance_minor": 400}}
FREE_SHIPPING = {"code": "SHIP", "discount": {"type": "shipping"}, "stacking": {"mode": "stackable"}}


def given_back(shop: Shop, before: int) -> tuple[list[int], dict[str, int], int]:
    """Of the voids after `before`: each one's cash, the minor units by voucher, and the units."""
    cash, minors, units = [], dict[str, int](), 0
    for one in shop.server.device.events[before:]:
        envelope = read_envelope(one.envelope)
        if envelope.type is EventType.VOID:
            cash.append(msgspec.json.decode(one.body, type=VoidBody).refund_minor)
            for use in envelope.uses:
                minors[use.voucher_id] = minors.get(use.voucher_id, 0) + use.minor
                units += use.units
    return cash, minors, units


def test_what_a_gift_card_paid_goes_back_to_it(till: Till, shop: Shop) -> None:
    """Cash never exceeds what was paid in cash: the rest of a return is the card's, and the void gives what remains."""
    shop.server.publish(GIFT)
    till.sync()
    sale = {**order(quantity=2, price=1000), "shipping_minor": 300}
    receipt = till.redeem_online(sale, ["GIFT"])
    assert receipt.result.total_minor == 800
    voids = [till.void(receipt.id, returned=[Returned("1", 1)]) for _ in range(2)] + [till.void(receipt.id)]
    assert [one.refund_minor for one in voids] == [800, 0, 0]
    till.sync()
    uses = [(use.units, use.minor) for one in shop.server.device.envelopes(EventType.VOID) for use in one.uses]
    assert uses == [(0, 200), (0, 1000), (1, 300)]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    quantity=st.integers(1, 5),
    price=st.integers(1, 900),
    shipping=st.integers(0, 500),
    parts=st.lists(st.integers(1, 3), max_size=4),
    codes=st.sets(st.sampled_from(["GIFT", "GIFT2", "ONCE", "SHIP"]), min_size=1),
)
def test_returns_and_a_void_give_back_exactly_what_was_paid(
    till: Till, shop: Shop, quantity: int, price: int, shipping: int, parts: list[int], codes: set[str]
) -> None:
    """At no point more cash than was paid in cash, nor more to a card than it paid; all of it once, with the void."""
    if "GIFT2" not in {one.code for one in shop.server.vouchers.values()}:
        shop.server.publish(GIFT, GIFT_TOO, FREE_SHIPPING)
    till.sync()
    before, left = till.status().head, quantity
    receipt = till.redeem_online({**order(quantity=quantity, price=price), "shipping_minor": shipping}, sorted(codes))
    if not receipt.redeemed:
        return
    result = receipt.result
    for units in parts:
        if left:
            till.void(receipt.id, returned=[Returned("1", min(units, left))])
            left = max(0, left - units)
    till.void(receipt.id)
    till.sync()
    cash, minors, units = given_back(shop, before)
    assert min(cash) >= 0
    assert sum(cash) == result.total_minor
    assert minors == {shop.server.voucher_id(one.code): one.discount_minor for one in result.applied}
    assert units == len(result.applied)


def test_returning_every_unit_without_a_gift_card_pays_the_goods_whole(till: Till) -> None:
    """One by one all that the goods cost; shipping comes back with the void."""
    receipt = till.redeem({**order(), "shipping_minor": 500}, ["ONCE"])
    goods = [till.void(receipt.id, returned=[Returned("1", 1)]).refund_minor for _ in range(3)]
    assert goods == [350, 350, 350]
    assert till.void(receipt.id).refund_minor == 500


def test_a_partial_return_always_names_its_vouchers(till: Till, shop: Shop) -> None:
    """Also where they get nothing back: without any use it would void all that the server has."""
    shop.server.publish(GIFT)
    till.sync()
    receipt = till.redeem_online(order(quantity=3, price=1000), ["GIFT"])
    assert till.void(receipt.id, returned=[Returned("1", 1)]).refund_minor == 1000
    till.sync()
    (envelope,) = shop.server.device.envelopes(EventType.VOID)
    assert [(use.voucher_id, use.units, use.minor) for use in envelope.uses] == [(shop.server.voucher_id("GIFT"), 0, 0)]


def test_a_reason_that_is_no_text_is_made_readable(till: Till, shop: Shop) -> None:
    """Bytes of another encoding on the command line stop no void."""
    till.void(till.redeem(order(), ["ONCE"]).id, reason="caf\udce9")
    till.sync()
    assert msgspec.json.decode(shop.server.device.events[-1].body, type=VoidBody).reason == "caf?"


def test_an_attempt_whose_answer_was_lost_is_voided_as_a_whole(till: Till, shop: Shop) -> None:
    """The event names it and no use: the server voids what it has. Nothing is paid, and it is not taken up again."""
    shop.server.publish({**TEN, "code": "ONLINE", "offline": {"policy": "online_only"}})
    till.sync()
    shop.server.script = [loses_the_answer]
    lost = till.redeem_online(order(), ["ONLINE"])
    with pytest.raises(CallerError) as caught:
        till.void(lost.id, returned=[Returned("1", 1)])
    assert caught.value.code == "UNKNOWN_REDEMPTION"
    assert till.void(lost.id).refund_minor == 0
    with pytest.raises(CallerError) as caught:
        till.void(lost.id)
    assert caught.value.code == "ALREADY_VOIDED"
    assert till.redeem_online(order(), ["ONLINE"]).id != lost.id
    till.sync()
    (envelope,) = shop.server.device.envelopes(EventType.VOID)
    assert (envelope.ref, envelope.uses) == (lost.id, [])
