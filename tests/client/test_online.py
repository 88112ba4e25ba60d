"""Redeeming online: the server's word where there is a line, the till's own where there is none, counted once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tallystick_client import CallerError, InvalidInput, NotNow, RemoteError, Till, Untrusted
from tallystick_client.actions import Answer, Done, Persist, Send, Woken
from tallystick_shared.engine import Reason, Refused, Result, result_json
from tallystick_shared.journal import encode
from tallystick_shared.signing import SigningKey, Typ
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
    signed = shop.server.receipt_key.sign(Typ.REDEEMED, encode(other))
    empty = encode(msgspec.structs.replace(other, result=msgspec.Raw(b"{}")))
    for body in (b"<html>", encode(other), signed, shop.server.receipt_key.sign(Typ.REDEEMED, empty)):
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
    cut_off(till, shop, "TEN")
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


def portal(status: int, kind: str = "text/html", body: bytes = b"<html>") -> Callable[..., Reply]:
    return lambda *_: (status, {"content-type": kind, "location": "http://portal/"}, body)


@pytest.mark.parametrize(
    "fault",
    [
        portal(302),
        portal(404),
        portal(407),
        portal(204, body=b""),
        portal(403, "application/json", b'{"code": "FORBIDDEN"}'),
        portal(400, "application/problem+json", b'{"title": "no code"}'),
    ],
)
def test_what_is_not_the_servers_word_is_no_answer(till: Till, shop: Shop, fault: Callable[..., Reply]) -> None:
    """A captive portal or a proxy refuses nothing: the till redeems by itself, or keeps the attempt open."""
    shop.server.script = [fault, loses_the_answer, fault]
    assert not till.redeem_online(order(1), ["TEN"]).online
    lost = till.redeem_online(order(2), ["ONLINE"])
    assert not till.redeem_online(order(2), ["ONLINE"]).redeemed
    again = till.redeem_online(order(2), ["ONLINE"])
    assert (again.id, again.redeemed, len(shop.server.redemptions)) == (lost.id, True, 1)


@pytest.mark.parametrize(
    ("fault", "stays"),
    [
        (says(401, "UNKNOWN_KEY"), True),
        (says(403, "FORBIDDEN"), True),
        (says(404, "NOT_FOUND"), True),
        (says(409, "IDENTIFIER_REUSED"), False),
        (says(422, "INVALID_FIELD"), False),
        (says(400, "MALFORMED"), False),
    ],
)
def test_a_refusal_closes_an_attempt_only_where_nothing_can_have_been_counted(
    till: Till, shop: Shop, fault: Callable[..., Reply], stays: bool
) -> None:
    """Asking again is the same attempt unless the code proves that the server has nothing under its id."""
    shop.server.script = [loses_the_answer, fault]
    lost = till.redeem_online(order(), ["ONLINE"])
    with pytest.raises((CallerError, RemoteError)):
        till.redeem_online(order(), ["ONLINE"])
    assert (till.redeem_online(order(), ["ONLINE"]).id == lost.id) == stays


def changed(**fields: object) -> Callable[[Any], Any]:
    """The server's answer with other fields in the result; `first` ones in what was applied first."""

    def forged(said: Any) -> Any:
        first = fields.get("first", {})
        assert isinstance(first, dict)
        said["result"] |= {name: value for name, value in fields.items() if name != "first"}
        said["result"]["applied"][0] |= first
        return said

    return forged


@pytest.mark.parametrize(
    "forged",
    [
        changed(currency="USD"),
        changed(lines=[{"id": "9", "discount_minor": 135}]),
        changed(lines=[]),
        changed(discount_minor=2000),
        changed(total_minor=0),
        changed(total_minor=-1),
        changed(first={"discount_minor": 99999}),
        changed(first={"lines": [{"id": "9", "discount_minor": 135}]}),
        changed(first={"lines": [{"id": "1", "discount_minor": 1351}]}),
    ],
)
def test_an_answer_that_is_no_result_of_the_order_is_not_believed(
    till: Till, shop: Shop, forged: Callable[[Any], Any]
) -> None:
    """Another currency, other lines, sums that are none: an error, and the attempt stays open."""
    shop.server.script = [lambda _path, answer: shop.server.says_instead(answer(), forged)]
    with pytest.raises(Untrusted) as caught:
        till.redeem_online(order(), ["ONLINE"])
    assert caught.value.code == "NOT_THIS_ORDER"
    assert till.redeem_online(order(), ["ONLINE"]).id in shop.server.redemptions
    assert len(shop.server.redemptions) == 1


@pytest.mark.parametrize("name", ["device", "request_sha256", "id"])
def test_an_answer_to_something_else_is_no_answer(till: Till, shop: Shop, name: str) -> None:
    """Signed, but for another till, another request or another redemption: redeemed here, and counted once."""
    other = "01920000-0000-7000-8000-000000000000" if name != "request_sha256" else "0" * 64
    shop.server.script = [lambda _path, answer: shop.server.says_instead(answer(), lambda said: {**said, name: other})]
    receipt = till.redeem_online(order(), ["TEN"])
    assert (receipt.redeemed, receipt.online) == (True, False)
    assert list(shop.server.redemptions) == [receipt.id]


def test_an_answer_that_nobody_signed_is_no_answer(till: Till, shop: Shop) -> None:
    """Plain JSON, or a signature of a stranger, is not the server's word."""
    stranger = SigningKey.generate()
    for forged in (b"{}", stranger.sign(Typ.REDEEMED, b"{}"), shop.server.receipt_key.sign(Typ.ANSWER, b"{}")):
        shop.server.script = [reply(forged)]
        assert not till.redeem_online(order(), ["TEN"]).online


def test_an_answer_by_a_key_that_is_new_says_what_to_do(till: Till, shop: Shop) -> None:
    """What only the server can redeem is not refused: sync, and ask again. What the till can redeem, it redeems."""
    shop.server.receipt_key = SigningKey.generate()
    shop.server.roots.append(shop.server.make_root(2))
    with pytest.raises(RemoteError, match="sync this till first") as caught:
        till.redeem_online(order(), ["ONLINE"])
    assert caught.value.code == "UNKNOWN_KEY"
    assert till.redeem_online(order(2), ["TEN"]).redeemed
    till.sync()
    receipt = till.redeem_online(order(), ["ONLINE"])
    assert (receipt.redeemed, receipt.online) == (True, True)
    assert next(iter(shop.server.redemptions)) == receipt.id
    assert len(shop.server.redemptions) == 2


def cut_off(till: Till, shop: Shop, code: str, number: int = 1) -> str:
    """The power goes after the server did its work and before its answer came: the id."""
    machine = till._keeper.online_machine(order(number), [code])
    tick = till._keeper.tick()
    begin = machine.step(Woken(), tick)
    assert isinstance(begin, Persist)
    send = machine.step(till._keeper.perform(begin.change), tick)
    assert isinstance(send, Send)
    shop.server.answer(send.method, send.path, send.headers, send.body)
    return list(shop.server.redemptions)[-1]


def test_a_sale_cut_off_online_is_redeemed_here_under_its_id(till: Till, shop: Shop) -> None:
    """What the server may have counted is not counted again under another id; the next sale is another one."""
    name = cut_off(till, shop, "TEN")
    receipt = till.redeem(order(), ["TEN"])
    assert (receipt.id, receipt.redeemed) == (name, True)
    assert till.redeem(order(), ["TEN"]).id != name
    assert rows(shop, "SELECT state FROM attempts") == [("offline",)]


def test_an_id_redeemed_online_gives_its_receipt(till: Till) -> None:
    """The same id with the same sale has no second effect; with another sale, or voided, it is refused."""
    receipt = till.redeem_online(order(), ["TEN"])
    assert till.redeem(order(), ["TEN"], id=receipt.id) == receipt
    assert till.status().head == 0
    with pytest.raises(CallerError) as caught:
        till.redeem(order(2), ["TEN"], id=receipt.id)
    assert caught.value.code == "IDENTIFIER_REUSED"
    till.void(receipt.id)
    with pytest.raises(CallerError) as caught:
        till.redeem(order(), ["TEN"], id=receipt.id)
    assert caught.value.code == "IDENTIFIER_REUSED"


def test_a_customer_is_counted_once_for_one_id(till: Till, shop: Shop) -> None:
    """Two processes of one till that ask for the same sale are one use: after its void the customer may again."""
    shop.server.publish({**EACH, "limits": {"per_customer": 2}})
    till.sync()
    machine = till._keeper.online_machine(order(), ["EACH"])
    tick = till._keeper.tick()
    begin = machine.step(Woken(), tick)
    assert isinstance(begin, Persist)
    kept = till._keeper.perform(begin.change)
    other = till.redeem_online(order(), ["EACH"])
    send = machine.step(kept, tick)
    assert isinstance(send, Send)
    finish = machine.step(Answer(*shop.server.answer(send.method, send.path, send.headers, send.body)), tick)
    assert isinstance(finish, Persist)
    done = machine.step(till._keeper.perform(finish.change), tick)
    assert isinstance(done, Done)
    assert done.report == other
    assert till.redeem(order(2), ["EACH"]).redeemed


def test_what_the_server_leased_to_this_till_is_redeemed_from_the_lease(till: Till, shop: Shop) -> None:
    """A limit reached online, for a voucher this till holds a lease of: redeemed here, under the same id."""

    def used_up(_path: str, answer: Callable[[], Reply]) -> Reply:
        reply = answer()
        said = shop.server.redemptions.popitem()[1]
        result = msgspec.json.decode(said.result, type=Result)
        none = msgspec.structs.replace(
            result,
            discount_minor=0,
            total_minor=result.subtotal_minor,
            lines=tuple(msgspec.structs.replace(line, discount_minor=0) for line in result.lines),
            applied=(),
            refused=(Refused("ONCE", Reason.LIMIT_REACHED, {}),),
        )
        refused = {"redeemed": False, "result": msgspec.Raw(result_json(none))}
        return shop.server.says_instead(reply, lambda document: document | refused)

    shop.server.script = [used_up]
    assert not till.redeem_online(order(), ["ONCE"]).redeemed
    shop.server.grant(shop.server.device, "ONCE", units=1)
    till.sync()
    shop.server.script = [used_up, used_up]
    receipt = till.redeem_online(order(2), ["ONCE"])
    assert (receipt.redeemed, receipt.online) == (True, False)
    assert rows(shop, f"SELECT state FROM attempts WHERE id = '{receipt.id}'") == [("offline",)]
    refused = till.redeem_online(order(3), ["ONCE"])
    assert (refused.redeemed, refused.result.refused[0].reason) == (False, Reason.LIMIT_REACHED)
    till.sync()
    assert arrived(shop) == [receipt.id]


def test_a_sale_voided_while_the_server_answers_is_not_given(till: Till, shop: Shop) -> None:
    """The void gives the unit back, so the answer that comes after it must not hand out goods for it (found by the
    search of the lease protocol)."""

    def voids_meanwhile(_path: str, answer: Callable[[], Reply]) -> Reply:
        reply = answer()
        ((name,),) = rows(shop, "SELECT id FROM attempts")
        shop.open().void(name)
        return reply

    shop.server.script = [voids_meanwhile]
    with pytest.raises(CallerError) as caught:
        till.redeem_online(order(), ["ONLINE"])
    assert caught.value.code == "VOIDED"
    assert till.redeem_online(order(), ["ONLINE"]).redeemed
    assert len(shop.server.redemptions) == 2


def test_a_server_that_forgot_the_till_stops_no_sale(till: Till, shop: Shop) -> None:
    """Restored from a backup older than the enrolment: redeemed here, and sent once the till is known again."""
    shop.server.script = [says(401, "UNKNOWN_DEVICE")]
    receipt = till.redeem_online(order(), ["TEN"])
    assert (receipt.redeemed, receipt.online) == (True, False)
    till.sync()
    assert arrived(shop) == [receipt.id]


def test_a_program_that_died_before_its_receipt_asks_again(till: Till, shop: Shop) -> None:
    """With an id of its own, as offline: the same receipt, one redemption; another sale under it is refused."""
    name = "01920000-0000-7000-8000-000000000001"
    receipt = till.redeem_online(order(), ["TEN"], id=name)
    assert (receipt.id, receipt.online) == (name, True)
    shop.server.requests.clear()
    assert till.redeem_online(order(), ["TEN"], id=name) == receipt
    assert shop.server.requests == []
    assert list(shop.server.redemptions) == [name]
    with pytest.raises(CallerError) as caught:
        till.redeem_online(order(2), ["TEN"], id=name)
    assert caught.value.code == "IDENTIFIER_REUSED"
    with pytest.raises(InvalidInput):
        till.redeem_online(order(), ["TEN"], id="mine")


def test_an_id_that_was_refused_may_be_asked_again(till: Till, shop: Shop) -> None:
    """Nothing applied the first time; what applies the second time can be voided like any other."""
    name = "01920000-0000-7000-8000-000000000002"
    assert not till.redeem_online(order(), ["NEW"], id=name).redeemed
    shop.server.redemptions.clear()
    shop.server.publish({**TEN, "code": "NEW"})
    till.sync()
    assert till.redeem_online(order(), ["NEW"], id=name).redeemed
    till.void(name)
