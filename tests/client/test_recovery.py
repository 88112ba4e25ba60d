"""A server restored from a backup, as a till sees it: nothing that it forgot is lost, and nothing is given twice."""

from __future__ import annotations

from typing import Any

import pytest

from tallystick_client import NotNow, RemoteError, Till, Untrusted
from tallystick_shared.journal import EventType
from tallystick_shared.wire import DeviceState, EventOutcome, SyncAnswer
from tests.client.conftest import ONCE, TEN, Shop, arrived, order, replaced, rows, sell
from tests.client.fake_server import Device, problem, says


@pytest.fixture
def till(shop: Shop) -> Till:
    shop.server.publish(TEN, ONCE)
    return shop.enroll()


def forget(device: Device, events: int) -> None:
    """The server as it was when it had so many events of the till, and no lease at all."""
    del device.events[events:], device.hashes[events + 1 :]
    device.leases.clear()


def restored(shop: Shop, events: int) -> None:
    """Declared: a new epoch, in which it recovers."""
    forget(shop.server.device, events)
    shop.server.epoch, shop.server.mark, shop.server.recovering = 2, 1, True


def test_what_the_server_forgot_is_sent_again(till: Till, shop: Shop) -> None:
    """From where it knows the journal; no event is lost, none comes twice, and the leases are told."""
    shop.server.grant(shop.server.device, "ONCE", units=3)
    till.sync()
    ids = [*sell(till, 2), till.redeem(order(9), ["ONCE"]).id]
    till.sync()
    ids += sell(till, 1)
    restored(shop, 1)
    till.sync()
    assert arrived(shop) == ids
    assert till.status().waiting == 0
    held = shop.server.heads[-1].held
    assert held is not None
    assert [(lease.id, lease.units) for lease in held] == [(one.id, one.units) for one in till.status().leases]
    assert till.redeem(order(10), ["ONCE"]).redeemed


def test_leases_stay_while_the_server_recovers(till: Till, shop: Shop) -> None:
    """That the server does not list a lease means nothing before it was told of it; afterwards it does."""
    shop.server.grant(shop.server.device, "ONCE", units=3)
    till.sync()
    restored(shop, 0)
    till.sync()
    assert till.status().leases[0].state == "active"
    shop.server.device.leases.clear()
    till.sync()
    assert till.status().leases[0].state == "active"
    assert shop.server.heads[-1].held
    shop.server.recovering = False
    till.sync()
    assert till.status().leases[0].state == "active"
    shop.server.device.leases.clear()
    till.sync()
    *_, last = shop.server.heads
    assert last.held is None
    assert rows(shop, "SELECT state, reason FROM leases") == [("closed", "not known to the server")]


def test_a_lease_that_was_closed_since_the_backup_is_told_with_its_close(till: Till, shop: Shop) -> None:
    """The server hears of it as it was before the events that follow, so that its close finds it."""
    shop.server.grant(shop.server.device, "ONCE", units=1)
    till.sync()
    till.redeem(order(), ["ONCE"])
    till.sync()
    till.sync()
    assert shop.server.device.leases == {}
    restored(shop, 0)
    till.sync()
    first = next(head for head in shop.server.heads if head.held is not None)
    assert first.after.seq == 0
    assert [lease.units for lease in first.held or ()] == [1]
    assert shop.server.device.leases == {}
    assert len(shop.server.device.envelopes(EventType.LEASE_CLOSE)) == 1


def test_without_a_new_epoch_nothing_is_believed(till: Till, shop: Shop) -> None:
    """A server that forgot and does not say so: refused, in words; the till goes on selling, and keeps everything."""
    sell(till, 3)
    till.sync()
    forget(shop.server.device, 1)
    with pytest.raises(Untrusted) as caught:
        till.sync()
    assert caught.value.code == "NOT_OUR_JOURNAL"
    sell(till, 1)
    assert till.status().acknowledged == 3
    shop.server.epoch, shop.server.recovering = 2, True
    till.sync()
    assert (till.status().waiting, len(arrived(shop))) == (0, 4)


def test_answers_of_the_epoch_before_are_refused_from_then_on(till: Till, shop: Shop) -> None:
    """The old server still runs somewhere: what it signs counts no more."""
    restored(shop, 0)
    till.sync()
    shop.server.epoch, shop.server.mark = 1, 99
    with pytest.raises(Untrusted) as caught:
        till.sync()
    assert caught.value.code == "OLD_EPOCH"


def test_a_server_that_forgot_the_till_takes_it_in_again(till: Till, shop: Shop) -> None:
    """The backup is older than the enrolment: the till proves it with the two messages that it kept."""
    ids = sell(till, 2)
    till.sync()
    name = shop.server.device.id
    shop.server.devices.clear()
    shop.server.epoch, shop.server.recovering = 2, True
    till.sync()
    assert (shop.server.device.id, arrived(shop)) == (name, ids)
    assert "POST /v1/devices/again" in shop.server.requests
    shop.server.requests.clear()
    till.sync()
    assert "POST /v1/devices/again" not in shop.server.requests


def test_a_restored_server_is_told_everything_in_one_sync(till: Till, shop: Shop) -> None:
    """Whether it forgot something or not, whether something waits or not: the second request tells of all leases."""
    shop.server.grant(shop.server.device, "ONCE", units=3)
    till.sync()
    for events in (0, 1):
        if events:
            sell(till, events)
        shop.server.epoch += 1
        shop.server.heads.clear()
        till.sync()
        assert [len(head.held or ()) for head in shop.server.heads] == [0, 1]
        assert till.status().waiting == 0


def test_a_till_enrolled_since_the_backup_sends_what_waits_in_one_sync(till: Till, shop: Shop) -> None:
    """It was never acknowledged anything: what it sold arrives all the same, at once."""
    ids = sell(till, 2)
    shop.server.devices.clear()
    shop.server.epoch, shop.server.recovering = 2, True
    assert till.sync().acknowledged == 2
    assert arrived(shop) == ids


def test_a_till_that_is_refused_again_says_so_once(till: Till, shop: Shop) -> None:
    """One attempt a sync; what the server says is passed on, and the till goes on selling."""
    shop.server.script = [says(401, "UNKNOWN_DEVICE"), says(409, "RECOVERING")]
    with pytest.raises(RemoteError) as caught:
        till.sync()
    assert caught.value.code == "RECOVERING"
    assert sell(till, 1)
    shop.server.script = [says(401, "UNKNOWN_DEVICE"), lambda _path, _answer: (200, {}, b"{}")]
    with pytest.raises(Untrusted):
        till.sync()


def test_a_till_of_an_older_version_has_no_proof(till: Till, shop: Shop) -> None:
    """Then it is unknown, in words; nothing is lost."""
    with till._keeper.journal.write() as writing:
        writing.execute("DELETE FROM enrolment")
    sell(till, 1)
    shop.server.script = [says(401, "UNKNOWN_DEVICE")] * 2
    with pytest.raises(RemoteError) as caught:
        till.sync()
    assert caught.value.code == "UNKNOWN_DEVICE"
    assert till.status().waiting == 1


def test_a_challenge_is_answered_once(till: Till, shop: Shop) -> None:
    """With it as the nonce of the same request; what comes then is the answer, whatever it is."""

    def stale(challenge: str) -> Any:
        def reply(_path: str, _answer: object) -> Any:
            status, headers, body = problem(409, "STALE_REQUEST", "older than what is known")
            return status, headers, body[:-1] + b',"challenge":"' + challenge.encode() + b'"}'

        return reply

    shop.server.script = [stale("c" * 32)]
    till.sync()
    assert shop.server.heads[-1].nonce == "c" * 32
    shop.server.script = [stale("d" * 32), stale("e" * 32)]
    with pytest.raises(RemoteError) as caught:
        till.sync()
    assert caught.value.code == "STALE_REQUEST"
    shop.server.script = [says(409, "STALE_REQUEST")]
    with pytest.raises(RemoteError):
        till.sync()


def test_a_till_that_was_copied_stops_in_words(till: Till, shop: Shop) -> None:
    """The server suspends it: no redemption any more, voids and syncs go on."""
    receipt = till.redeem(order(), ["TEN"])
    shop.server.device.state = DeviceState.SUSPENDED
    till.sync()
    with pytest.raises(Exception, match="suspended at the server"):
        till.redeem(order(2), ["TEN"])
    till.void(receipt.id)
    assert till.sync().acknowledged == 1


def test_what_a_newer_server_calls_an_event_waits_for_a_person(till: Till, shop: Shop) -> None:
    """An outcome that this release does not know is kept as flagged, with its reasons."""
    (name,) = sell(till, 1)

    def weighed(answer: SyncAnswer) -> SyncAnswer:
        answer.exceptions.append(EventOutcome(1, name, "weighed", ["TOO_HEAVY"]))
        return answer

    shop.server.tamper = weighed
    assert till.sync().acknowledged == 1
    assert rows(shop, "SELECT outcome, reasons FROM events WHERE seq = 1") == [("flagged", "TOO_HEAVY")]


def test_a_state_that_is_not_known_is_not_active(till: Till, shop: Shop) -> None:
    """A newer server may have more of them; the till syncs on, and does not redeem."""
    shop.server.tamper = replaced(state="quarantined")
    till.sync()
    with pytest.raises(NotNow, match="suspended"):
        till.redeem(order(), ["TEN"])
    shop.server.tamper = lambda answer: answer
    till.sync()
    assert till.redeem(order(), ["TEN"]).redeemed
