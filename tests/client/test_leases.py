"""Leases, outcomes, retention and a restored server, over real HTTP."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tallystick_client import LineError, Till, Untrusted
from tallystick_shared.journal import EventType
from tallystick_shared.wire import EventOutcome, Flag, Outcome
from tests.client.conftest import ONCE, TEN, Shop, order, replaced, rows, sell
from tests.client.fake_server import loses_the_answer


@pytest.fixture
def till(shop: Shop) -> Till:
    shop.server.publish(TEN, ONCE)
    return shop.enroll()


# ---- leases


def test_a_lease_is_granted_used_up_closed_and_granted_again(till: Till, shop: Shop) -> None:
    """The close is in the journal before it is sent, and says what was used."""
    shop.server.grant(shop.server.device, "ONCE", units=2)
    assert till.sync().leases_granted == 1
    sell(till, 2, "ONCE")
    report = till.sync()
    assert (report.leases_closed, report.acknowledged) == (1, 3)
    (close,) = shop.server.device.envelopes(EventType.LEASE_CLOSE)
    assert [(use.units, use.minor) for use in close.uses] == [(2, 600)]
    assert shop.server.device.leases == {}
    shop.server.grant(shop.server.device, "ONCE", units=1)
    till.sync()
    assert till.redeem(order(), ["ONCE"]).redeemed


def test_a_lost_grant_is_granted_once(till: Till, shop: Shop) -> None:
    """The digests differ, so the server sends all it holds open, and the till takes it."""
    shop.server.grant(shop.server.device, "ONCE", units=2)
    shop.server.script = [loses_the_answer]
    with pytest.raises(LineError):
        till.sync()
    assert till.status().leases == []
    assert till.sync().leases_granted == 1
    assert till.sync().leases_granted == 0
    assert [lease.units for lease in till.status().leases] == [2]


def test_a_recalled_lease_is_closed_at_once_and_sent_in_the_same_sync(till: Till, shop: Shop) -> None:
    """Another store needs the units: u is what was used, and the rest is free on the server."""
    lease = shop.server.grant(shop.server.device, "ONCE", units=5)
    till.sync()
    sell(till, 2, "ONCE")
    shop.server.device.recall = [lease.id]
    report = till.sync()
    assert (report.rounds, report.leases_closed) == (2, 1)
    (close,) = shop.server.device.envelopes(EventType.LEASE_CLOSE)
    assert close.uses[0].units == 2
    assert shop.server.device.leases == {}


def test_an_expired_lease_and_one_too_small_are_closed(till: Till, shop: Shop) -> None:
    """What can no longer be used goes back with the next sync."""
    shop.server.publish({**TEN, "code": "BUDGET", "limits": {"budget_minor": 10_000}})
    shop.server.grant(shop.server.device, "ONCE", units=2, days=1)
    shop.server.grant(shop.server.device, "BUDGET", units=None, minor=10)
    till.sync()
    assert not till.redeem(order(), ["BUDGET"]).redeemed
    shop.clock.run(days=1)
    till.sync()
    assert rows(shop, "SELECT reason, state FROM leases ORDER BY number") == [
        ("expired", "closed"),
        ("too small", "closed"),
    ]
    assert shop.server.heads[-1].wants[0].units == 1
    assert rows(shop, "SELECT * FROM wants") == []


def test_a_lease_unknown_to_the_server_is_closed(till: Till, shop: Shop) -> None:
    """With all leases listed, one that is missing is not used any more."""
    lease = shop.server.grant(shop.server.device, "ONCE", units=2)
    till.sync()
    del shop.server.device.leases[lease.id]
    till.sync()
    assert till.status().leases == []


def test_a_lease_number_is_never_taken_twice(till: Till, shop: Shop) -> None:
    """A lease of a number that is over is given back unused, so that nobody holds it for nothing."""
    server = shop.server
    server.publish({**ONCE, "code": "TWICE"})
    late = server.grant(server.device, "TWICE", units=2)
    server.device.fresh.clear()
    del server.device.leases[late.id]
    server.grant(server.device, "ONCE", units=2)
    till.sync()
    server.device.leases[late.id] = late
    till.sync()
    till.sync()
    assert late.id not in server.device.leases
    assert not till.redeem(order(), ["TWICE"]).redeemed
    assert till.redeem(order(), ["ONCE"]).redeemed


# ---- outcomes, retention, restores


def test_what_was_flagged_is_shown(till: Till, shop: Shop) -> None:
    """Outcome and reasons of each event that is not simply applied."""
    ids = sell(till, 3)
    shop.server.exceptions = [EventOutcome(2, ids[1], Outcome.FLAGGED, [Flag.LATE, Flag.CUSTOMER_LIMIT])]
    assert till.sync().outcomes == {"applied": 2, "flagged": 1}
    (flagged,) = till.status().flagged
    assert (flagged.seq, flagged.id, flagged.reasons) == (2, ids[1], ["LATE", "CUSTOMER_LIMIT"])


def test_nothing_is_purged_that_is_not_durable(till: Till, shop: Shop) -> None:
    """Without a backup everything stays, and the status says so; durable and old goes, and the chain goes on."""
    shop.server.ttl = timedelta(days=400)
    shop.server.publish()
    sell(till, 3)
    till.sync()
    shop.clock.run(days=100)
    sell(till, 1)
    till.sync()
    assert rows(shop, "SELECT count(*) FROM events") == [(4,)]
    assert any("nothing of this till is in a backup" in note for note in till.status().notes)
    shop.server.durable = True
    till.sync()
    assert rows(shop, "SELECT seq FROM events") == [(4,)]
    assert till._keeper.journal.verify() == 1
    sell(till, 2)
    assert till.sync().acknowledged == 2
    till.close()
    assert shop.open().status().head == 6


def test_leases_go_with_the_events_that_closed_them(till: Till, shop: Shop) -> None:
    """But for the newest of a voucher, by which a stolen bundle key cannot make it `open`."""
    shop.server.durable = True
    for number in range(3):
        shop.server.grant(shop.server.device, "ONCE", units=1)
        till.sync()
        till.redeem(order(number), ["ONCE"])
        till.sync()
        till.sync()
    assert rows(shop, "SELECT number, state FROM leases") == [(1, "closed"), (2, "closed"), (3, "closed")]
    shop.clock.run(days=91)
    till.sync()
    assert rows(shop, "SELECT number, state FROM leases") == [(3, "closed")]
    assert till._keeper.journal.verify() == 0
    shop.server.grant(shop.server.device, "ONCE", units=1)
    till.sync()
    assert till.redeem(order(9), ["ONCE"]).redeemed


def test_what_a_customer_used_survives_the_purge(till: Till, shop: Shop) -> None:
    """Until the voucher ends."""
    shop.server.ttl = timedelta(days=400)
    shop.server.durable = True
    shop.server.publish({**TEN, "code": "EACH", "limits": {"per_customer": 1}})
    till.sync()
    till.redeem(order(), ["EACH"])
    till.sync()
    shop.clock.run(days=100)
    till.sync()
    assert rows(shop, "SELECT count(*) FROM events") == [(0,)]
    assert not till.redeem(order(), ["EACH"]).redeemed


def test_a_restored_server_gets_everything_again(till: Till, shop: Shop) -> None:
    """A new epoch that has forgotten events: the till sends them from there, and refuses the old epoch from then on."""
    sell(till, 4)
    till.sync()
    device = shop.server.device
    del device.events[2:], device.hashes[3:]
    shop.server.epoch, shop.server.mark = 2, 0
    report = till.sync()
    assert report.acknowledged == 2
    assert len(device.events) == 4
    shop.server.tamper = replaced(server_epoch=1)
    with pytest.raises(Untrusted) as caught:
        till.sync()
    assert caught.value.code == "OLD_EPOCH"
