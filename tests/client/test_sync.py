"""Sync over real HTTP on loopback: what waits arrives once, whatever the line and the server do."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tallystick_client import LineError, RemoteError, Till, TryLater, Untrusted
from tallystick_client.pausing import SPREAD_S
from tests.client.conftest import ONCE, TEN, Shop, arrived, order, sell
from tests.client.fake_clock import FakeClock
from tests.client.fake_server import Reply, loses_the_answer, loses_the_request, passes, problem, says


@pytest.fixture
def till(shop: Shop) -> Till:
    shop.server.publish(TEN, ONCE)
    return shop.enroll()


def test_what_waits_arrives_in_order_once(till: Till, shop: Shop) -> None:
    """Every redemption, in the order of the journal; a second sync sends none of them again."""
    ids = sell(till, 7)
    report = till.sync()
    assert (report.sent, report.acknowledged, report.outcomes) == (7, 7, {"applied": 7})
    assert arrived(shop) == ids
    assert till.sync().sent == 0
    assert till.status().waiting == 0


def test_a_long_queue_goes_in_several_rounds(till: Till, shop: Shop) -> None:
    """At most 500 events a batch, until nothing is left."""
    ids = sell(till, 620)
    report = till.sync()
    assert (report.rounds, report.acknowledged) == (2, 620)
    assert [head.events.count for head in shop.server.heads[-2:]] == [500, 120]
    assert arrived(shop) == ids


def test_a_batch_stays_within_its_bytes(till: Till, shop: Shop) -> None:
    """At most 1 MiB uncompressed, however few events that is."""
    for number in range(60):
        large = order(number)
        large["attributes"] = {f"note{index}": "x" * 250 for index in range(90)}
        till.redeem(large, ["TEN"])
    assert till.sync().acknowledged == 60
    assert max(head.events.count for head in shop.server.heads) < 50


@pytest.mark.parametrize("where", range(3))
@pytest.mark.parametrize("fault", [loses_the_request, loses_the_answer, says(503), says(429)])
def test_whatever_is_lost_on_the_way_nothing_is_lost(till: Till, shop: Shop, fault: Any, where: int) -> None:
    """A line that breaks at any request of a sync: the next one brings everything, once."""
    shop.server.publish({**TEN, "code": "NEW"})
    ids = sell(till, 3)
    shop.server.script = [*[passes] * where, fault]
    with pytest.raises(TryLater):
        till.sync()
    till.sync()
    assert arrived(shop) == ids
    assert till.status().waiting == 0
    assert till.status().bundle_version == 2


def test_413_halves_the_batch(till: Till, shop: Shop) -> None:
    """Until it fits; later batches grow again."""
    ids = sell(till, 8)
    shop.server.script = [says(413), says(413)]
    report = till.sync()
    assert [head.events.count for head in shop.server.heads[-4:]] == [2, 2, 2, 2]
    assert (report.acknowledged, arrived(shop)) == (8, ids)
    sell(till, 5)
    till.sync()
    assert shop.server.heads[-2].events.count == 4


def test_a_single_event_that_is_too_large_is_said(till: Till, shop: Shop) -> None:
    """What cannot be halved is reported as the server's refusal, not tried for ever."""
    sell(till, 1)
    shop.server.script = [says(413, "TOO_LARGE")]
    with pytest.raises(RemoteError) as caught:
        till.sync()
    assert caught.value.code == "TOO_LARGE"
    assert till.sync().acknowledged == 1


def test_a_batch_that_fails_again_and_again_is_halved(till: Till, shop: Shop) -> None:
    """In case it is the batch: after three failures in a row it has half its events."""
    sell(till, 8)
    shop.server.script = [says(500)] * 3
    for _ in range(3):
        with pytest.raises(TryLater):
            till.sync()
    till.sync()
    assert shop.server.heads[-2].events.count == 4
    assert till.status().waiting == 0


def test_a_day_without_a_line_halves_nothing(till: Till, shop: Shop) -> None:
    """Where nothing was ever sent it was not the batch."""
    sell(till, 8)
    address, till._line._url = till._line._url, "http://127.0.0.1:9"
    for _ in range(9):
        with pytest.raises(TryLater):
            till.sync()
    till._line._url = address
    assert till.sync().rounds == 1


def test_small_batches_grow_within_the_sync_that_gets_through(till: Till, shop: Shop) -> None:
    """Twofold a round, so that a queue behind a bad line is not sent one by one."""
    sell(till, 16)
    shop.server.script = [says(500)] * 12
    for _ in range(12):
        with pytest.raises(TryLater):
            till.sync()
    count = len(shop.server.heads)
    till.sync()
    assert [head.events.count for head in shop.server.heads[count:]] == [1, 2, 4, 8, 1]


def test_a_lease_too_small_for_what_was_wanted_is_closed_only_at_a_server_that_answers(till: Till, shop: Shop) -> None:
    """Without a line a smaller order can still use what is left of it."""
    shop.server.publish({**TEN, "code": "BUDGET", "limits": {"budget_minor": 10_000}})
    shop.server.grant(shop.server.device, "BUDGET", units=None, minor=200)
    till.sync()
    assert not till.redeem(order(1, quantity=30), ["BUDGET"]).redeemed
    shop.server.script = [loses_the_request] * 4
    for _ in range(4):
        with pytest.raises(TryLater):
            till.sync()
    assert till.redeem(order(2), ["BUDGET"]).redeemed
    report = till.sync()
    assert (report.leases_closed, report.rounds) == (1, 2)
    assert [len(head.wants) for head in shop.server.heads[-2:]] == [1, 1]
    assert till.sync().rounds == 1


def test_what_is_wanted_and_granted_at_once_closes_nothing(till: Till, shop: Shop) -> None:
    """The lease that came for it is not the one that was too small."""
    assert not till.redeem(order(), ["ONCE"]).redeemed
    shop.server.grant(shop.server.device, "ONCE", units=3)
    report = till.sync()
    assert (report.leases_granted, report.leases_closed, report.rounds) == (1, 0, 1)


def test_401_is_tried_once_more_with_a_new_signature(till: Till, shop: Shop) -> None:
    """And then it is the server's refusal."""
    shop.server.script = [says(401, "NOT_AUTHENTICATED")]
    assert till.sync().state == "active"
    shop.server.script = [says(401, "NOT_AUTHENTICATED")] * 2
    with pytest.raises(RemoteError) as caught:
        till.sync()
    assert caught.value.code == "NOT_AUTHENTICATED"
    assert till.status().next_sync_at is not None, "or a loop over it would not pause"


def test_when_to_come_again_survives_a_restart(till: Till, shop: Shop) -> None:
    """The next attempt is kept; `Retry-After` binds every sync, the till's own back-off only a patient one."""
    shop.server.script = [loses_the_request]
    with pytest.raises(TryLater) as caught:
        till.sync()
    kept = shop.open().status().next_sync_at
    assert kept == caught.value.next_attempt_at
    assert shop.clock.now() <= kept <= shop.clock.now() + timedelta(seconds=300)
    shop.server.script = [says(429, "SLOW", **{"retry-after": "120"})]
    with pytest.raises(TryLater):
        till.sync()
    before = len(shop.server.requests)
    with pytest.raises(TryLater, match="asked not to be called before 09:02:00"):
        shop.open().sync()
    assert len(shop.server.requests) == before
    shop.clock.run(seconds=121)
    assert till.sync().state == "active"
    assert till.status().next_sync_at is None


def test_an_appointment_comes_though_a_new_boots_clock_is_not_believed(till: Till, shop: Shop) -> None:
    """Off for longer than unsigned time may gain, and nothing sold since: time goes on from the first look on all the
    same. It stood still, and neither a person nor the background ever synced again (fleet, seed 1, case 2)."""
    shop.server.script = [says(429, "SLOW", **{"retry-after": "120"})]
    with pytest.raises(TryLater):
        till.sync()
    till.close()
    shop.clock.reboot(days=40)
    till = shop.open()
    with pytest.raises(TryLater) as caught:
        till.sync()
    assert caught.value.code == "ASKED_TO_WAIT"
    shop.clock.run(seconds=121)
    assert till.sync().state == "active"


@pytest.mark.parametrize("status", [302, 404, 503, 511])
def test_only_the_server_says_when_to_come_again(till: Till, shop: Shop, status: int) -> None:
    """A portal's `Retry-After` counts for nothing; the server's own binds a person for an hour at most."""
    headers = {"content-type": "text/html", "retry-after": "86400"}
    shop.server.script = [lambda *_: (status, headers, b"<html>"), says(503, **{"retry-after": "86400"})]
    for longest_s in (SPREAD_S, 86_400 + SPREAD_S):
        with pytest.raises(TryLater) as caught:
            till.sync()
        assert (caught.value.next_attempt_at - shop.clock.now()).total_seconds() <= longest_s
    with pytest.raises(TryLater) as caught:
        till.sync()
    assert caught.value.code == "ASKED_TO_WAIT"
    shop.clock.run(hours=1)
    assert till.sync().state == "active"


def test_no_server_is_no_line(shop: Shop, till: Till) -> None:
    """A refused connection is the line's fault, and says so."""
    shop.server.publish()
    till._line._url = "http://127.0.0.1:9"
    with pytest.raises(LineError, match="no line to the server"):
        till.sync()


@pytest.mark.parametrize("where", range(3))
@pytest.mark.parametrize("status", [302, 403, 404, 407])
def test_what_a_captive_portal_answers_is_no_answer(till: Till, shop: Shop, status: int, where: int) -> None:
    """Only a problem document is the server's refusal; anything else is the line's fault, and its wait is kept."""
    shop.server.publish({**TEN, "code": "NEW"})
    ids = sell(till, 3)
    shop.server.script = [*[passes] * where, lambda *_: (status, {"content-type": "text/html"}, b"<html>")]
    with pytest.raises(TryLater) as caught:
        till.sync()
    assert caught.value.code == f"HTTP_{status}"
    assert till._keeper.journal.state().next_attempt_at == caught.value.next_attempt_at
    till.sync()
    assert arrived(shop) == ids


ODD = "\x1b[2J\nTraceback"


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (says(500, ODD), "HTTP_500"),
        (says(403, "a" * 100_000), "HTTP_403"),
        (says(503, **{"retry-after": "Wed, 21 Oct 2015 07:28:00 +99999999999999999"}), "BUSY"),
        (lambda *_: (302, {"location": "http://xn--a../"}, b""), "NO_CONNECTION"),
        (lambda *_: (307, {"location": "https://[::1"}, b""), "HTTP_307"),
    ],
)
def test_whatever_is_answered_is_a_sentence_with_a_code(till: Till, shop: Shop, fault: Any, code: str) -> None:
    """A till stumbles over no header and quotes no code that is none. (The wire, seed 1, cases 0 to 12.)"""
    shop.server.script = [fault]
    with pytest.raises(TryLater) as caught:
        till.sync()
    assert caught.value.code == code
    assert str(caught.value).isprintable()
    till.sync()


def test_what_a_portal_sets_is_not_sent_to_the_server(till: Till, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cookies, which would fill the head of every request until the server refuses it, and no ETag that is none."""
    heads: list[dict[str, str]] = []

    def noting(method: str, path: str, headers: dict[str, str], body: bytes) -> Reply:
        heads.append(headers)
        return real(method, path, headers, body)

    def manifest(path: str, answer: Any) -> Reply:
        status, headers, body = answer()
        return status, {**headers, "etag": '"\xff"'}, body

    real = shop.server.answer
    monkeypatch.setattr(shop.server, "answer", noting)
    shop.server.script = [lambda *_: (200, {"set-cookie": "a=b; path=/"}, b"<html>")]
    with pytest.raises(Untrusted):
        till.sync()
    for number in range(2):
        shop.server.publish({**TEN, "code": f"NEW{number}"})
        shop.server.script = [passes, manifest]
        assert till.sync().bundle_version == shop.server.version
    assert [head for head in heads if "cookie" in head or "\xff" in head.get("if-none-match", "")] == []


def test_status_says_that_syncs_failed(till: Till, shop: Shop) -> None:
    """Who looks at the till sees it without looking into a log; once one gets through it is gone."""
    for times in ("the last attempt to sync failed", "the last 2 attempts to sync failed"):
        shop.server.script = [loses_the_request]
        with pytest.raises(TryLater):
            till.sync()
        assert any(note.startswith(times) for note in till.status().notes)
    till.sync()
    assert not any("failed" in note for note in till.status().notes)


def test_a_clock_that_is_days_ahead_shuts_no_bundle_out(till: Till, shop: Shop) -> None:
    """The time that the server signed a moment ago says whether its manifest is good (states, seed 1, case 0)."""
    shop.server.clock = FakeClock(shop.clock.now())
    shop.clock.turn(seconds=shop.server.ttl.total_seconds() + 3_600)
    shop.server.publish(TEN, ONCE, {"code": "NEW", "discount": {"type": "percentage", "percent": 10}})
    till.sync()
    assert till.preview(order(), ["NEW"]).applied


def test_a_refusal_longer_than_the_blob_is_read_whole(till: Till, shop: Shop) -> None:
    """A small blob does not cut off the server's words, nor its `Retry-After` (states, seed 1, case 13)."""
    shop.server.publish(TEN)
    long = "SLOW" + "X" * 60
    shop.server.script = [passes, passes, lambda *_: problem(429, long, "too many " * 100, **{"retry-after": "120"})]
    with pytest.raises(TryLater) as caught:
        till.sync()
    assert caught.value.code == long
    with pytest.raises(TryLater, match="asked not to be called"):
        till.sync()
