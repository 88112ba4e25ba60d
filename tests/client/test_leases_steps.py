"""What a till takes of an answer, to the last one: leases, closes, counts, wants, and what is purged."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import msgspec
import pytest

from tallystick_client import LineError, Till, exchange
from tallystick_client.granting import KnownLease, sort_out
from tallystick_shared.journal import EventType, PlainBody, Position, VoidBody, read_envelope
from tallystick_shared.wire import EventOutcome, Lease, Outcome, SyncAnswer
from tests.client.conftest import ONCE, TEN, Shop, order, replaced, rows, sell
from tests.client.fake_clock import START
from tests.client.fake_server import Reply, passes, says
from tests.client.test_terminal_words import said

TWICE = {**ONCE, "code": "TWICE"}


@pytest.fixture
def till(shop: Shop) -> Till:
    shop.server.publish(TEN, ONCE, TWICE)
    return shop.enroll()


# ---- which leases are taken


def lease(number: int, name: str, voucher: str) -> Lease:
    return Lease(name, number, voucher, 1, None, START)


KNOWN = [KnownLease("open", 3, "busy", False), KnownLease("over", 4, "free", True)]


@pytest.mark.parametrize(
    ("leases", "taken", "late"),
    [
        ([lease(9, "open", "other"), lease(8, "over", "free")], [], []),
        ([lease(3, "a", "other"), lease(4, "b", "other")], [], []),
        ([lease(5, "a", "other"), lease(2, "b", "busy"), lease(1, "c", "free")], [], ["c", "b", "a"]),
        ([lease(6, "a", "busy"), lease(7, "b", "free")], ["b"], []),
        ([lease(8, "b", "new"), lease(7, "a", "new"), lease(6, "c", "newer")], ["c", "a"], []),
        ([lease(6, "a", "new"), lease(7, "a", "newer")], ["a"], []),
        ([lease(6, "a", "new"), lease(6, "b", "newer")], ["a"], []),
        ([lease(2, "a", "new"), lease(2, "b", "newer"), lease(5, "a", "new"), lease(6, "c", "new")], ["c"], ["a"]),
    ],
    ids=["known", "number known", "late", "busy waits", "first of a voucher", "id twice", "number twice", "late twice"],
)
def test_which_leases_are_taken_and_which_given_back(leases: list[Lease], taken: list[str], late: list[str]) -> None:
    """By the five rules, with 5 the highest number ever taken: each id and each number counts once."""
    found = sort_out(leases, KNOWN, 5)
    assert [[one.id for one in ones] for ones in found] == [taken, late]


def test_a_server_that_repeats_itself_stops_no_sync(till: Till, shop: Shop) -> None:
    """The same lease twice in an answer, under one number or two, and one number again later: it is taken once."""
    once = shop.server.grant(shop.server.device, "ONCE", units=2)
    again = msgspec.structs.replace(once, number=once.number + 1, voucher_id=shop.server.voucher_id("TWICE"))
    shop.server.tamper = replaced(leases=[once, once, again])
    assert till.sync().leases_granted == 1
    another = msgspec.structs.replace(again, id=till._keeper.journal.state().server_id, number=once.number)
    shop.server.tamper = replaced(leases=[another])
    assert till.sync().leases_granted == 0
    assert rows(shop, "SELECT id, number FROM leases") == [(once.id, once.number)]


# ---- how leases end


def closes(shop: Shop) -> list[tuple[str, int, int]]:
    """Of each close that the server has: why, and the units and minor units that were used."""
    found = []
    for one in shop.server.device.events:
        envelope = read_envelope(one.envelope)
        if envelope.type is EventType.LEASE_CLOSE:
            (use,) = envelope.uses
            assert (use.revision_sha256, len(use.lease or "")) == (None, 36)
            found.append((msgspec.json.decode(one.body, type=PlainBody).note, use.units, use.minor))
    return found


def test_each_close_says_why_and_what_was_used(till: Till, shop: Shop) -> None:
    """The same in the journal and in the list of leases."""
    server, device = shop.server, shop.server.device
    server.grant(device, "ONCE", units=1, days=1)
    server.grant(device, "TWICE", units=5, days=1)
    till.sync()
    sell(till, 1, "ONCE")
    sell(till, 2, "TWICE")
    till.sync()
    shop.clock.run(days=1)
    till.sync()
    server.grant(device, "ONCE", units=5)
    recalled = server.grant(device, "TWICE", units=5)
    till.sync()
    sell(till, 1, "TWICE")
    device.recall = [recalled.id, recalled.id]
    till.sync()
    server.scope = "outlet"
    till.sync()
    wanted = [("used up", 1, 300), ("expired", 2, 600), ("recalled", 1, 300), ("another scope", 0, 0)]
    assert closes(shop) == wanted
    found = "SELECT reason, used_units, used_minor FROM leases WHERE state = 'closed' ORDER BY close_seq"
    assert rows(shop, found) == wanted
    assert device.leases == {}


def test_a_lease_that_came_too_late_is_closed_with_no_use(till: Till, shop: Shop) -> None:
    """It is kept as closed, with its close, so that it is given back once only."""
    server, device = shop.server, shop.server.device
    late = server.grant(device, "TWICE", units=2)
    device.fresh.clear()
    server.grant(device, "ONCE", units=2)
    server.tamper = lambda answer: msgspec.structs.replace(
        answer, leases=[one for one in answer.leases if one.id != late.id]
    )
    till.sync()
    server.tamper = lambda answer: answer
    report = till.sync()
    assert report.leases_granted == 0
    for _ in range(2):
        till.sync()
        assert closes(shop) == [("came too late", 0, 0)]
    columns = "number, units, minor, used_units, used_minor, state, reason, close_seq"
    assert rows(shop, f"SELECT {columns} FROM leases WHERE id = '{late.id}'") == [
        (late.number, 0, 0, 0, 0, "closed", "came too late", 1)
    ]


def test_every_body_has_its_own_salt_of_16_bytes(till: Till, shop: Shop) -> None:
    """Or whoever has the envelopes could guess the bodies that were erased."""
    shop.server.grant(shop.server.device, "ONCE", units=1)
    till.sync()
    till.void(sell(till, 1, "ONCE")[0])
    shop.clock.turn(days=-7)
    sell(till, 1)
    till.sync()
    salts = [msgspec.json.decode(one.body)["salt"] for one in shop.server.device.events]
    assert {one.type for one in map(read_envelope, (one.envelope for one in shop.server.device.events))} == {*EventType}
    assert [len(bytes.fromhex(salt)) for salt in salts] == [16] * len(salts)
    assert len(set(salts)) == len(salts)


def test_a_void_without_a_reason_has_none(till: Till, shop: Shop) -> None:
    """Nothing stands in its place; a long one is cut at 500 characters."""
    first, second = sell(till, 2)
    till.void(first)
    till.void(second, reason="x" * 501)
    till.sync()
    bodies = [msgspec.json.decode(one.body, type=VoidBody) for one in shop.server.device.events[2:]]
    assert [one.reason for one in bodies] == ["", "x" * 500]


# ---- what is acknowledged


def test_what_waits_is_counted_from_what_was_acknowledged(till: Till, shop: Shop) -> None:
    """A server that took two of four events: two redemptions wait, with their discounts, and go with the next sync."""
    sell(till, 3)
    till.redeem(order(9, quantity=1), ["TEN"])

    def two(answer: SyncAnswer) -> SyncAnswer:
        return msgspec.structs.replace(answer, acknowledged=Position(2, shop.server.device.hashes[2]))

    shop.server.tamper = two
    shop.server.script = [passes, says(503)]
    with pytest.raises(LineError):
        till.sync()
    status = till.status()
    assert (status.acknowledged, status.waiting, status.waiting_minor) == (2, 2, 135 + 45)
    assert rows(shop, "SELECT outcome FROM events ORDER BY seq") == [("applied",), ("applied",), (None,), (None,)]
    shop.server.tamper = lambda answer: answer
    shop.clock.run(hours=1)
    till.sync()
    status = till.status()
    assert (status.acknowledged, status.waiting, status.waiting_minor) == (4, 0, 0)


def test_an_outcome_is_of_the_event_with_its_number_and_its_id(till: Till, shop: Shop) -> None:
    """One that names another event is of none."""
    ids = sell(till, 3)
    shop.server.exceptions = [
        EventOutcome(1, ids[0], Outcome.QUARANTINED, ["A", "B"]),
        EventOutcome(2, ids[2], Outcome.FLAGGED, ["C"]),
    ]
    till.sync()
    assert rows(shop, "SELECT outcome, reasons FROM events ORDER BY seq") == [
        ("quarantined", "A B"),
        ("applied", ""),
        ("applied", ""),
    ]


def test_what_was_wanted_meanwhile_is_told_the_next_time(till: Till, shop: Shop) -> None:
    """A till wants more while the server answers: only what it was told is done with."""
    for code, times in (("ONCE", 1), ("TWICE", 2)):
        for number in range(times):
            till.redeem(order(number), [code])
    other = shop.open()

    def meanwhile(_path: str, answer: Callable[[], Reply]) -> Reply:
        other.redeem(order(8), ["TWICE"])
        return answer()

    shop.server.script = [passes, meanwhile]  # a till that wants something asks twice
    till.sync()
    ids = [shop.server.voucher_id(code) for code in ("TWICE", "ONCE")]
    assert [(one.voucher_id, one.units) for one in shop.server.heads[-1].wants] == [(ids[0], 2), (ids[1], 1)]
    assert rows(shop, "SELECT * FROM wants") == [(ids[0], 1)]
    till.sync()
    assert [(one.voucher_id, one.units) for one in shop.server.heads[-1].wants] == [(ids[0], 1)]
    assert rows(shop, "SELECT * FROM wants") == []


def test_a_sync_that_got_through_ends_what_failed_before(till: Till, shop: Shop) -> None:
    """No failure is counted any more, no appointment is left but the server's own, and the time is written down."""
    for _ in range(3):
        shop.server.script = [says(503)]
        with pytest.raises(LineError):
            till.sync()
        shop.clock.run(hours=2)
    assert till._keeper.journal.state().failures == 3
    shop.server.tamper = replaced(retry_after_s=90)
    till.sync()
    state = till._keeper.journal.state()
    assert (state.failures, state.not_before_at, state.last_sync_at) == (0, None, shop.clock.now())
    assert state.next_attempt_at == shop.clock.now() + timedelta(seconds=90)
    assert state.mark_signed_at == state.mark_at == shop.clock.now()


def test_a_server_that_differs_is_told_by_how(till: Till, shop: Shop) -> None:
    """Another hash, events that it forgot, and events that it called durable and forgot."""
    sell(till, 3)
    till.sync()
    hashes = shop.server.device.hashes

    def answers(seq: int, digest: str) -> tuple[str, str]:
        place = Position(seq, digest)
        shop.server.tamper = replaced(acknowledged=place, durable=place)
        return said(till.sync)

    assert answers(3, "0" * 64) == ("NOT_OUR_JOURNAL", "the server's journal of this till differs at event 3")
    assert answers(2, hashes[2]) == ("NOT_OUR_JOURNAL", "the server has forgotten events that it acknowledged")
    shop.server.tamper = lambda answer: answer
    shop.server.durable = True
    till.sync()
    shop.clock.run(days=91)
    till.sync()
    assert rows(shop, "SELECT base_seq FROM state") == [(3,)]
    assert answers(2, hashes[2]) == (
        "NOT_OUR_JOURNAL",
        "the server has forgotten events that it called durable: its operator has to restore a later backup",
    )


# ---- scopes and restores


def test_every_process_follows_into_another_scope(till: Till, shop: Shop) -> None:
    """Though the bundle of the new scope comes only with a later sync; until then there is none."""
    asked, unasked = shop.open(), shop.open()
    for one in (asked, unasked):
        assert one.preview(order(), ["TEN"]).discount_minor == 135
    shop.server.scope = "outlet"
    shop.server.publish({**TEN, "discount": {"type": "percentage", "percent": 20}})
    shop.server.script = [passes, says(503)]
    with pytest.raises(LineError):
        till.sync()
    for one in (till, asked):
        assert said(lambda one=one: one.preview(order(), ["TEN"]))[0] == "NO_BUNDLE"  # type: ignore[misc]
    shop.clock.run(hours=1)
    till.sync()
    assert shop.server.heads[-1].manifest_version == 0
    for one in (asked, unasked, till):
        assert one.preview(order(), ["TEN"]).discount_minor == 270


def test_a_restored_server_that_knows_a_copys_events_gets_ours(till: Till, shop: Shop) -> None:
    """In a new epoch another hash is no lie: nothing of ours counts as acknowledged, and all of it is sent again."""
    ids = sell(till, 3)
    till.sync()
    shop.server.epoch, shop.server.mark = 2, 1
    theirs = Position(2, "ab" * 32)

    def once(answer: SyncAnswer) -> SyncAnswer:
        shop.server.tamper = lambda answer: answer
        said = [EventOutcome(1, ids[0], Outcome.FLAGGED, ["FORKED"])]
        return msgspec.structs.replace(answer, acknowledged=theirs, durable=theirs, exceptions=said)

    shop.server.tamper = once
    till.sync()
    told = shop.server.heads[-1]
    assert (told.after.seq, told.events.count, told.held) == (0, 3, [])
    assert till._keeper.journal.state().acknowledged == Position(3, shop.server.device.hashes[3])
    assert rows(shop, "SELECT outcome FROM events") == [("applied",)] * 3
    assert till.status().waiting == 0


def test_signed_time_goes_back_only_with_a_new_epoch(till: Till, shop: Shop) -> None:
    """A server whose clock was set back revives no voucher; one that was restored may say what time it is."""
    before = START - timedelta(days=1)
    shop.server.tamper = replaced(server_time=before)
    till.sync()
    assert till._keeper.journal.state().mark_signed_at == START
    shop.server.epoch = 2
    till.sync()
    assert till._keeper.journal.state().mark_signed_at == before


def test_a_lease_that_is_closing_is_told_to_a_restored_server(till: Till, shop: Shop) -> None:
    """Its close has not been acknowledged, so to the server it is open still."""
    lease = shop.server.grant(shop.server.device, "ONCE", units=1)
    till.sync()
    shop.server.epoch, shop.server.mark, shop.server.recovering = 2, 1, True
    till.sync()
    sell(till, 1, "ONCE")
    till.sync()
    told = shop.server.heads[-1]
    assert (told.events.count, [one.id for one in told.held or ()]) == (2, [lease.id])
    till.sync()
    assert shop.server.heads[-1].held == []


# ---- what is purged


def test_what_is_durable_goes_after_90_days_to_the_second(till: Till, shop: Shop) -> None:
    """The oldest first; what is a second younger stays, and is voided still."""
    shop.server.durable = True
    shop.server.ttl = timedelta(days=400)
    shop.server.publish()
    till.sync()
    sell(till, 2)
    shop.clock.run(seconds=1)
    (young,) = sell(till, 1)
    shop.clock.run(days=90, seconds=-2)
    till.sync()
    assert rows(shop, "SELECT count(*) FROM events") == [(3,)]
    shop.clock.run(seconds=1)
    till.sync()
    assert rows(shop, "SELECT seq, id FROM events") == [(3, young)]
    assert rows(shop, "SELECT base_seq, durable_seq FROM state") == [(2, 3)]
    assert till.void(young).refund_minor == 1215
    assert till._keeper.journal.verify() == 2


def test_no_sync_purges_more_than_its_share(till: Till, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest goes with the next ones."""
    monkeypatch.setattr(exchange, "PURGE_EVENTS_MAX", 2)
    shop.server.durable = True
    sell(till, 3)
    till.sync()
    shop.clock.run(days=91)
    left = []
    for _ in range(3):
        till.sync()
        left.append(rows(shop, "SELECT count(*) FROM events")[0][0])
    assert left == [1, 0, 0]


def test_attempts_go_after_90_days_but_not_while_they_wait(till: Till, shop: Shop) -> None:
    """One without an answer may be on the server: it is kept until that is known."""
    answered = till.redeem_online(order(1), ["TEN"]).id
    shop.clock.run(seconds=1)
    voided = till.redeem_online(order(2), ["TEN"]).id
    till.sync()
    shop.clock.run(days=90, seconds=-1)
    till.sync()
    assert rows(shop, "SELECT id FROM attempts ORDER BY at") == [(answered,), (voided,)]
    shop.clock.run(seconds=1)
    till.sync()
    assert rows(shop, "SELECT id FROM attempts ORDER BY at") == [(voided,)]
