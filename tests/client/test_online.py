"""Redeeming online: the server's word where there is a line, the till's own where there is none, counted once."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from tallystick_client import CallerError, InvalidInput, NotNow, RemoteError, Till
from tallystick_client.actions import Persist, Send, Woken
from tallystick_shared.engine import Reason
from tallystick_shared.journal import encode
from tallystick_shared.wire import DeviceState
from tests.client.conftest import ONCE, TEN, Shop, arrived, order, rows
from tests.client.fake_server import Reply, loses_the_answer, loses_the_request, says

ONLINE = {**TEN, "code": "ONLINE", "offline": {"policy": "online_only"}}
EACH = {**TEN, "code": "EACH", "limits": {"per_customer": 1}}


def reply(body: bytes) -> Callable[[str, Callable[[], Reply]], Reply]:
    return lambda _path, _answer: (200, {}, body)


@pytest.fixture
def till(shop: Shop) -> Till:
    shop.server.publish(TEN, ONCE, ONLINE, EACH)
    return shop.enroll()


def test_the_server_redeems_what_it_can(till: Till, shop: Shop) -> None:
    """Its receipt, under the till's own id; nothing is in the journal, and nothing is sent again."""
    receipt = till.redeem_online(order(), ["ONLINE"])
    assert (receipt.redeemed, receipt.online) == (True, True)
    assert receipt.result.discount_minor == 135
    assert list(shop.server.redemptions) == [receipt.id]
    assert till.status().head == 0
    assert till.sync().sent == 0


def test_the_id_is_on_the_disk_before_anything_is_sent(till: Till, shop: Shop) -> None:
    """When the server hears of a redemption, the till has already written it down."""
    seen = []

    def look(_path: str, answer: object) -> Reply:
        seen.extend(rows(shop, "SELECT id, state FROM attempts"))
        assert callable(answer)
        reply: Reply = answer()
        return reply

    shop.server.script = [look]
    receipt = till.redeem_online(order(), ["TEN"])
    assert seen == [(receipt.id, "pending")]


@pytest.mark.parametrize("fault", [loses_the_request, loses_the_answer, says(503), says(429)])
def test_without_an_answer_the_same_id_is_redeemed_here(till: Till, shop: Shop, fault: object) -> None:
    """Whether the server had it or not, both sides know it by one id."""
    shop.server.script = [fault]  # type: ignore[list-item] # one of the faults above
    receipt = till.redeem_online(order(), ["TEN"])
    assert (receipt.redeemed, receipt.online) == (True, False)
    till.sync()
    assert arrived(shop) == [receipt.id]
    assert set(shop.server.redemptions) <= {receipt.id}


def test_an_answer_that_cannot_be_read_is_none(till: Till, shop: Shop) -> None:
    """A login page, or another redemption's answer, does not stand in for the server's word."""
    till.redeem_online(order(2), ["TEN"])
    (other,) = shop.server.redemptions.values()
    for body in (b"<html>", encode(other), encode(msgspec.structs.replace(other, result=msgspec.Raw(b"{}")))):
        shop.server.script = [reply(body)]
        assert not till.redeem_online(order(), ["TEN"]).online


def test_what_the_server_refuses_is_refused(till: Till, shop: Shop) -> None:
    """A refusal is a receipt that says why; misuse and distrust are errors of their own families."""
    receipt = till.redeem_online(order(), ["NOPE"])
    assert (receipt.redeemed, receipt.result.refused[0].reason) == (False, Reason.UNKNOWN_CODE)
    shop.server.script = [says(409, "IDENTIFIER_REUSED")]
    with pytest.raises(CallerError) as caught:
        till.redeem_online(order(), ["TEN"])
    assert caught.value.code == "IDENTIFIER_REUSED"
    assert till.redeem_online(order(), ["TEN"]).redeemed, "asking again is another attempt, under another id"
    assert till.status().notes == []
    shop.server.script = [says(403, "FORBIDDEN")]
    with pytest.raises(RemoteError):
        till.redeem_online(order(2), ["TEN"])
    with pytest.raises(InvalidInput):
        till.redeem_online(order(), [])


def test_what_needs_a_connection_is_refused_without_one(till: Till, shop: Shop) -> None:
    """And the attempt stays open: the server may have it, so asking again takes it up under the same id."""
    shop.server.script = [loses_the_answer]
    receipt = till.redeem_online(order(), ["ONLINE"])
    assert receipt.result.refused[0].reason is Reason.NEEDS_CONNECTION
    assert any("cut off before an answer" in note for note in till.status().notes)
    again = till.redeem_online(order(), ["ONLINE"])
    assert (again.id, again.redeemed) == (receipt.id, True)
    assert len(shop.server.redemptions) == 1
    assert till.redeem_online(order(), ["ONLINE"]).id != receipt.id, "a third sale is another one"


def test_a_crash_before_the_answer_is_taken_up_again(till: Till, shop: Shop) -> None:
    """A till that died while it asked asks again under the same id."""
    machine = till._keeper.online_machine(order(), ["TEN"])
    tick = till._keeper.tick()
    begin = machine.step(Woken(), tick)
    assert isinstance(begin, Persist)
    send = machine.step(till._keeper.perform(begin.change), tick)
    assert isinstance(send, Send)
    shop.server.answer(send.method, send.path, send.headers, send.body)
    till.close()
    receipt = shop.open().redeem_online(order(), ["TEN"])
    assert list(shop.server.redemptions) == [receipt.id]


def test_a_customer_who_had_it_online_had_it(till: Till) -> None:
    """What the server redeemed through this till counts for `per_customer` here."""
    assert till.redeem_online(order(), ["EACH"]).redeemed
    receipt = till.redeem(order(2), ["EACH"])
    assert receipt.result.refused[0].reason is Reason.CUSTOMER_LIMIT_REACHED


def test_what_was_redeemed_online_is_voided_here(till: Till, shop: Shop) -> None:
    """By its id, through the journal, once."""
    receipt = till.redeem_online(order(), ["TEN"])
    assert till.void(receipt.id).refund_minor == 1350 - 135
    with pytest.raises(CallerError):
        till.void(receipt.id)
    assert till.sync().acknowledged == 1


def test_a_suspended_till_falls_back_to_nothing(till: Till, shop: Shop) -> None:
    """Without a line a till that may not redeem says so."""
    shop.server.device.state = DeviceState.SUSPENDED
    till.sync()
    shop.server.script = [loses_the_request]
    with pytest.raises(NotNow):
        till.redeem_online(order(), ["TEN"])
