"""Voids and partial returns asked for again under an id of the caller's own: one id, one effect."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from uuid import uuid4

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tallystick_client import CallerError, InvalidInput, Returned, StorageError, Till
from tallystick_client.forgetting import forget
from tallystick_client.reports import VoidReceipt
from tallystick_shared.journal import EventType, VoidBody, read_envelope
from tests.client.conftest import ONCE, TEN, Shop, order, rows
from tests.client.fake_server import loses_the_answer

OWN = "0190b6a0-0000-7000-8000-000000000001"
OTHER = "0190b6a0-0000-7000-8000-000000000002"
TWO_LINES = [
    {"id": "1", "product_id": "tea", "quantity": 3, "unit_price_minor": 450},
    {"id": "2", "product_id": "cup", "quantity": 2, "unit_price_minor": 199},
]


@pytest.fixture
def till(shop: Shop) -> Till:
    shop.server.publish(TEN, ONCE)
    till = shop.enroll()
    shop.server.grant(shop.server.device, "ONCE", units=3)
    till.sync()
    return till


def code_of(call: Callable[[], object]) -> str:
    """Of the error it raises."""
    with pytest.raises(CallerError) as caught:
        call()
    return caught.value.code


@pytest.mark.parametrize("returned", [[], [Returned("1", 1)], [Returned("2", 1), Returned("1", 2)]])
def test_the_same_id_again_is_the_same_void(till: Till, shop: Shop, returned: list[Returned]) -> None:
    """The id is the event's; asked again, by any process, before and after a sync, nothing more is given back."""
    sold = till.redeem({**order(), "lines": TWO_LINES}, ["ONCE"]).id
    first = till.void(sold, returned=returned, id=OWN, reason="once")
    assert first.id == OWN
    assert till.void(sold, returned=returned[::-1], id=OWN, reason="another reason") == first
    till.close()
    again = shop.open()
    assert again.void(sold, returned=[Returned(one.line_id, 1) for one in returned for _ in range(one.units)],
                      id=OWN) == first  # fmt: skip
    again.sync()
    assert again.void(sold, returned=returned, id=OWN) == first
    assert again.status().head == 2
    (envelope,) = shop.server.device.envelopes(EventType.VOID)
    assert (envelope.id, envelope.ref) == (OWN, sold)


def test_an_id_used_for_another_void_is_refused(till: Till) -> None:
    """Other units, another line, more or less of the redemption, or another redemption; nothing is written."""
    sale = {**order(), "lines": TWO_LINES}
    sold, other = till.redeem(sale, ["ONCE"]).id, till.redeem({**sale, "id": "order-2"}, ["ONCE"]).id
    part = [Returned("1", 1)]
    till.void(sold, returned=part, id=OWN)
    for name, returned in (
        (sold, [Returned("1", 2)]), (sold, [Returned("2", 1)]), (sold, [*part, Returned("2", 1)]), (sold, []),
        (other, part), (other, []), (OTHER, part),
    ):  # fmt: skip
        assert code_of(partial(till.void, name, returned=returned, id=OWN)) == "IDENTIFIER_REUSED"
    till.void(other, id=OTHER)
    assert code_of(lambda: till.void(other, returned=part, id=OTHER)) == "IDENTIFIER_REUSED"
    assert till.status().head == 4


def test_the_id_of_a_redemption_is_no_voids_and_the_reverse(till: Till) -> None:
    """Redeemed here or online, voided or not: one id names one thing for ever."""
    sold, online = till.redeem(order(), ["TEN"]), till.redeem_online(order(2), ["TEN"])
    for used in (sold.id, online.id):
        for name in (sold.id, online.id):
            assert code_of(partial(till.void, name, returned=[Returned("1", 1)], id=used)) == "IDENTIFIER_REUSED"
            assert code_of(partial(till.void, name, id=used)) == "IDENTIFIER_REUSED"
    till.void(sold.id, returned=[Returned("1", 1)], id=OWN)
    till.void(sold.id, id=OTHER)
    for used in (OWN, OTHER):
        assert code_of(partial(till.redeem, order(3), ["TEN"], id=used)) == "IDENTIFIER_REUSED"
        assert code_of(partial(till.redeem_online, order(3), ["TEN"], id=used)) == "IDENTIFIER_REUSED"
    assert till.status().head == 3


def test_a_whole_void_is_told_again_by_its_id_alone(till: Till) -> None:
    """Without the id, or with another one, it was voided before; so it stays for returns after it."""
    sold = till.redeem(order(), ["ONCE"]).id
    part = till.void(sold, returned=[Returned("1", 1)], id=OTHER)
    whole = till.void(sold, id=OWN)
    assert till.void(sold, id=OWN) == whole
    assert till.void(sold, returned=[Returned("1", 1)], id=OTHER) == part
    new = "0190b6a0-0000-7000-8000-000000000003"
    for again in (None, new):
        assert code_of(partial(till.void, sold, id=again)) == "ALREADY_VOIDED"
        assert code_of(partial(till.void, sold, returned=[Returned("1", 1)], id=again)) == "ALREADY_VOIDED"
    with pytest.raises(InvalidInput) as caught:
        till.void(sold, id="void-1")
    assert caught.value.path == "id"


def test_without_an_id_two_returns_are_two(till: Till) -> None:
    """As two redemptions without an id are: each is an event, each pays."""
    sold = till.redeem(order(), ["ONCE"]).id
    ids = {till.void(sold, returned=[Returned("1", 1)]).id for _ in range(2)}
    assert (len(ids), till.status().head) == (2, 3)


def test_a_return_whose_answer_was_lost_is_given_back_once(till: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be on the disk although the till said `UNCERTAIN`: the id tells, and whether it is or not it pays once."""
    sold = till.redeem(order(), ["ONCE"]).id
    journal = till._keeper.journal
    commit = journal._commit

    def kept(event_id: str) -> None:
        commit(event_id)
        raise StorageError("the disk failed", code="UNCERTAIN")

    def not_kept(event_id: str) -> None:
        raise StorageError("the disk failed", code="UNCERTAIN")

    for number, fails in enumerate((kept, not_kept)):
        own = (OWN, OTHER)[number]
        monkeypatch.setattr(journal, "_commit", fails)
        assert code_of(partial(till.void, sold, returned=[Returned("1", 1)], id=own)) == "UNCERTAIN"
        monkeypatch.undo()
        assert till.void(sold, returned=[Returned("1", 1)], id=own).refund_minor == 350
        assert till.status().head == number + 2


def test_an_attempt_that_was_voided_with_an_id_is_told_again(till: Till, shop: Shop) -> None:
    """Though the attempt is closed by it, and though nothing was paid."""
    shop.server.publish({**TEN, "code": "ONLINE", "offline": {"policy": "online_only"}})
    till.sync()
    shop.server.script = [loses_the_answer]
    lost = till.redeem_online(order(), ["ONLINE"])
    first = till.void(lost.id, id=OWN)
    assert (first.refund_minor, first.currency) == (0, "EUR")
    assert till.void(lost.id, id=OWN) == first
    assert till.status().head == 1


def test_a_void_of_what_was_forgotten_is_not_made_again(till: Till) -> None:
    """What is left of it does not tell what it gave back; a void that waits still tells how much."""
    sold, kept = till.redeem(order(), ["TEN"]).id, till.redeem(order(2), ["TEN"]).id
    till.void(sold, returned=[Returned("1", 1)], id=OWN)
    till.sync()
    till.void(kept, returned=[Returned("1", 1)], id=OTHER)
    forget(till._keeper.journal, "anna")
    for name, own, said in ((sold, OWN, "was erased"), (kept, OTHER, "gave back 405 minor units")):
        with pytest.raises(CallerError, match=said) as caught:
            till.void(name, returned=[Returned("1", 1)], id=own)
        assert caught.value.code == "ERASED"
    assert till.status().head == 4


def test_an_id_of_which_only_returns_are_left_is_not_sold_anew(till: Till, shop: Shop) -> None:
    """Returns outlive their purged redemption, and would be taken for those of a smaller sale."""
    shop.server.durable = True
    till.redeem(order(), ["TEN"], id=OWN)
    till.void(OWN, returned=[Returned("1", 3)])
    till.sync()
    shop.clock.run(days=91)
    till.sync()
    assert till._keeper.journal.state().base_seq == 2
    for sell in (till.redeem, till.redeem_online):
        assert code_of(partial(sell, order(2, quantity=1), ["TEN"], id=OWN)) == "IDENTIFIER_REUSED"


def test_a_purged_void_is_not_made_again(till: Till, shop: Shop) -> None:
    """Purged with its redemption: a whole void is known by its id for good, a return by what it was of no more."""
    shop.server.durable = True
    sold, parted = till.redeem(order(), ["TEN"]).id, till.redeem(order(2), ["TEN"]).id
    till.void(sold, id=OWN)
    till.void(parted, returned=[Returned("1", 1)], id=OTHER)
    till.sync()
    shop.clock.run(days=91)
    till.sync()
    assert rows(shop, "SELECT id FROM events WHERE type IN ('redeem', 'void')") == []
    head = till.status().head
    assert code_of(lambda: till.void(sold, id=OWN)) == "ALREADY_VOIDED"
    assert code_of(lambda: till.void(parted, returned=[Returned("1", 1)], id=OTHER)) == "UNKNOWN_REDEMPTION"
    new = till.redeem(order(3), ["TEN"]).id
    assert code_of(lambda: till.void(new, id=OWN)) == "IDENTIFIER_REUSED"
    for used in (sold, parted):
        assert code_of(partial(till.void, new, id=used)) == "IDENTIFIER_REUSED"
    assert code_of(lambda: till.redeem(order(4), ["TEN"], id=OWN)) == "IDENTIFIER_REUSED"
    assert till.status().head == head + 1


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    planned=st.lists(st.lists(st.tuples(st.sampled_from("12"), st.integers(1, 3)), max_size=2), min_size=1, max_size=5),
    asked=st.lists(st.integers(0, 5), max_size=14),
)
def test_calls_with_ids_have_the_effect_of_their_distinct_ids(
    till: Till, shop: Shop, planned: list[list[tuple[str, int]]], asked: list[int]
) -> None:
    """However often each is repeated, in any order, with syncs in between: as if each had been asked for once."""
    sale = {**order(), "lines": TWO_LINES, "shipping_minor": 333}
    ids = [str(uuid4()) for _ in planned]
    sold, twin = till.redeem(sale, ["TEN"]).id, till.redeem(sale, ["TEN"]).id
    before = till.status().head
    given: dict[int, VoidReceipt | str] = {}
    for number in asked:
        if number >= len(planned):
            till.sync()
            continue
        said = told(till, sold, planned[number], ids[number])
        if isinstance(given.get(number), VoidReceipt):
            assert said == given[number]
        else:
            assert number not in given or isinstance(said, str), "what was refused once is refused for good"
            given.setdefault(number, said)
    receipts = [one for one in given.values() if isinstance(one, VoidReceipt)]
    assert till.status().head == before + len(receipts)
    for number, said in given.items():
        alone = told(till, twin, planned[number], None)
        if isinstance(alone, VoidReceipt):
            alone = msgspec.structs.replace(alone, id=ids[number])
        assert said == alone
    till.sync()
    bodies = [one.body for one in shop.server.device.events[before:] if read_envelope(one.envelope).ref == sold]
    assert [msgspec.json.decode(one, type=VoidBody).refund_minor for one in bodies] == [
        one.refund_minor for one in receipts
    ]


def told(till: Till, name: str, returned: list[tuple[str, int]], own: str | None) -> VoidReceipt | str:
    """The receipt, or the code of the error."""
    try:
        return till.void(name, returned=[Returned(*one) for one in returned], id=own)
    except CallerError as error:
        return error.code
