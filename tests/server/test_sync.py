"""Sync: what is accepted, what is refused, what is told again, and what is a fork (protocol.md, section 7)."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import zstandard

from tallystick_server import settling, sync
from tallystick_server.settling import Settled
from tallystick_shared.journal import Position, StoredEvent, join_events
from tallystick_shared.signing import SigningKey, sha256_hex
from tallystick_shared.wire import DeviceState, EventsRef, Outcome, Want
from tests.server.conftest import ORDER, voucher
from tests.server.tiny_device import NONE, Refused, TinyDevice, digest

if TYPE_CHECKING:
    from tests.server.conftest import Shop


def clone(device: TinyDevice) -> TinyDevice:
    """Another device with the same key and journal, as a copied disk makes one."""
    other = TinyDevice(device.url, device.clock)
    other.__dict__.update({name: copy.copy(value) for name, value in device.__dict__.items()})
    other.boot_id = "boot-of-the-clone"
    return other


def test_an_offline_redemption_is_settled_once(either_shop: Shop) -> None:
    """Redeemed from a lease and synced: applied, counted against the lease, and nothing is flagged."""
    either_shop.publish(voucher("tea", total=3))
    device = either_shop.device()
    device.redeem(ORDER, "tea")
    answer = device.sync()
    assert answer.exceptions == []
    assert answer.acknowledged == device.position(1)
    (use,) = either_shop.rows("SELECT units, minor, settled_minor, cover FROM redemption_uses")
    assert use == {"units": 1, "minor": 100, "settled_minor": 100, "cover": "lease"}
    (lease,) = either_shop.rows("SELECT known_units, known_minor, units FROM leases")
    assert lease == {"known_units": 1, "known_minor": 100, "units": 3}


def test_the_same_request_gets_the_same_answer(either_shop: Shop) -> None:
    """A repeat of a request is answered byte for byte as before and has no second effect."""
    either_shop.publish(voucher("tea", total=3))
    device = either_shop.device()
    device.redeem(ORDER, "tea")
    body = device.request()
    first, repeat = device.post(body), device.post(body)
    assert repeat.content == first.content
    assert len(either_shop.rows("SELECT 1 FROM redemptions")) == 1


def test_a_lost_answer_is_made_good(shop: Shop) -> None:
    """Events sent again after a lost answer are passed over, outcomes are told again, and leases are told in full."""
    shop.publish(voucher("tea", total=3), voucher("jam"))
    device = shop.device()
    device.redeem(ORDER, "jam", minor=99)
    assert device.post(device.request()).status_code == 200  # the answer is lost
    shop.publish(voucher("coffee", total=5))
    device.post(device.request())  # so is this one, with a new lease in it
    device.redeem(ORDER, "jam")
    answer = device.sync()
    assert answer.acknowledged.seq == 2
    assert [one.outcome for one in answer.exceptions] == [Outcome.FLAGGED]
    assert answer.leases_full
    assert len(device.active()) == 2
    assert len(shop.rows("SELECT 1 FROM redemptions")) == 2


def test_the_ledger_mark_rises_with_every_answer(shop: Shop) -> None:
    """Each answer has a higher ledger mark than the one before."""
    device = shop.device()
    marks = [device.sync().ledger_mark for _ in range(3)]
    assert marks == sorted(set(marks))


def test_nothing_is_durable_without_a_backup(shop: Shop) -> None:
    """With no backup configured the durable position stays at the journal's start, and status says so."""
    shop.publish(voucher("jam"))
    device = shop.device()
    device.redeem(ORDER, "jam")
    assert device.sync().durable == device.position(0)
    assert any("backup" in note for note in shop.get("/v1/status")["notes"])


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"device": NONE}, 401, "UNKNOWN_DEVICE"),
        ({"events": EventsRef(1, 5, digest("x")), "packed": b"other"}, 422, "WRONG_DIGEST"),
        ({"events": EventsRef(1, 3, sha256_hex(b"xyz")), "packed": b"xyz"}, 422, "MALFORMED"),
        ({"through": Position(1, digest("x"))}, 422, "BROKEN_CHAIN"),
        ({"head": Position(0, digest("x"))}, 422, "MALFORMED"),
    ],
    ids=["unknown device", "digest", "no frame", "chain", "head below through"],
)
def test_a_request_that_does_not_hold_together_stores_nothing(
    shop: Shop, change: dict[str, Any], status: int, code: str
) -> None:
    """Each rule before settling refuses with its own code, as problem details, and nothing is stored."""
    shop.publish(voucher("jam"))
    device = shop.device()
    device.redeem(ORDER, "jam")
    body = _request(device, change)
    response = device.post(body)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert shop.rows("SELECT 1 FROM events") == []


def _request(device: TinyDevice, change: dict[str, Any]) -> bytes:
    fields = dict(change)
    if isinstance(through := fields.pop("through", None), Position):
        broken = clone(device)
        broken.hashes[0] = through.hash
        broken.events = device.events
        return broken.request(**fields)
    return device.request(**fields)


def test_a_signature_of_another_key_is_refused(shop: Shop) -> None:
    """Line 1 must be signed by the device it names."""
    device = shop.device()
    device.key = SigningKey.generate()
    response = device.post(device.request())
    assert (response.status_code, response.json()["code"]) == (401, "UNKNOWN_KEY")


def test_a_frame_that_unpacks_to_too_much_is_refused(shop: Shop) -> None:
    """A small frame that unpacks to 200 MB is refused before it is unpacked whole."""
    device = shop.device()
    bomb = zstandard.compress(b"x" * 200_000_000)
    device.append_raw(b"x")
    response = device.post(device.request(packed=bomb, events=EventsRef(1, len(bomb), sha256_hex(bomb))))
    assert (response.status_code, response.json()["code"]) == (413, "TOO_LARGE")


@pytest.mark.parametrize("case", ["two", "skip before", "skip behind", "tail", "no sum"])
def test_events_are_one_whole_frame(shop: Shop, case: str) -> None:
    """Readers of zstd differ in what they make of anything else (prove-bundles, seed 1, case 0: most were taken)."""
    device = shop.device()
    device.append_raw(b"x")
    lines, skipped = join_events(device.events), b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip"
    good = zstandard.compress(lines)
    packed = {
        "two": good + zstandard.compress(b""), "skip before": skipped + good, "skip behind": good + skipped,
        "tail": good + b"\x28", "no sum": zstandard.ZstdCompressor(write_checksum=True).compress(lines)[:-4],
    }[case]  # fmt: skip
    response = device.post(device.request(packed=packed, events=EventsRef(1, len(packed), sha256_hex(packed))))
    assert (response.status_code, response.json()["code"]) == (422, "MALFORMED")
    assert device.sync().acknowledged.seq == 1


def test_an_unreadable_event_is_quarantined_alone(either_shop: Shop) -> None:
    """An envelope that cannot be read is kept as it came, and the events around it are settled."""
    either_shop.publish(voucher("jam"))
    device = either_shop.device()
    device.redeem(ORDER, "jam")
    device.append_raw(b'{"v":99}')
    device.append_raw(b"\xff\x00 not json")
    device.redeem(ORDER, "jam")
    answer = device.sync()
    assert [(one.seq, one.outcome) for one in answer.exceptions] == [
        (2, Outcome.QUARANTINED),
        (3, Outcome.QUARANTINED),
    ]
    assert answer.acknowledged.seq == 4
    kept = either_shop.rows("SELECT envelope FROM events WHERE outcome = 'quarantined' ORDER BY seq")
    assert bytes(kept[1]["envelope"]) == b"\xff\x00 not json"
    assert len(either_shop.rows("SELECT 1 FROM redemptions")) == 2


def test_an_event_that_cannot_be_settled_is_quarantined_alone(
    either_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where settling one event fails in a way nobody thought of, the others of its batch are settled all the same."""
    either_shop.publish(voucher("jam"))
    device = either_shop.device()
    for _ in range(3):
        device.redeem(ORDER, "jam")

    def fails_on_the_second(stored: StoredEvent, seq: int, *rest: Any) -> Settled:
        if seq == 2:
            raise RuntimeError("a way nobody thought of")
        return settling.settle(stored, seq, *rest)

    monkeypatch.setattr(sync, "settle", fails_on_the_second)
    answer = device.sync()
    assert answer.acknowledged.seq == 3
    assert len(either_shop.rows("SELECT 1 FROM events")) == 3
    assert [(one.seq, one.outcome) for one in answer.exceptions] == [(2, Outcome.QUARANTINED)]


def test_a_restored_server_stops_granting_and_goes_on_storing(shop: Shop) -> None:
    """A device that has seen a later ledger mark than the server's own stops all grants; its events are stored."""
    shop.publish(voucher("jam"), voucher("tea", total=2))
    device = shop.device(synced=False)
    device.fetch()
    device.ledger_mark = 1_000
    device.redeem(ORDER, "jam")
    answer = device.sync()
    assert answer.leases == []
    assert answer.acknowledged.seq == 1
    assert shop.get("/v1/status")["state"] == "restore_suspected"
    assert shop.device("store-2").active() == []


def test_a_gap_after_a_restore_is_no_fork(shop: Shop) -> None:
    """Events the restored server has forgotten are asked for again: the device is told where the server stands."""
    shop.publish(voucher("jam"))
    device = shop.device()
    for _ in range(3):
        device.redeem(ORDER, "jam")
    device.acknowledged, device.ledger_mark = 2, 1_000
    answer = device.sync()
    assert (answer.acknowledged, answer.state) == (device.position(0), DeviceState.ACTIVE)
    assert device.sync().acknowledged.seq == 3


# forks (I5)


def test_one_number_with_two_hashes_is_a_fork(either_shop: Shop) -> None:
    """Both branches are kept and settled, the device is suspended and its leases are burned."""
    either_shop.publish(voucher("tea", total=2), voucher("jam"))
    device = either_shop.device()
    copied = clone(device)
    device.redeem(ORDER, "jam")
    device.sync()
    copied.redeem(ORDER, "tea")
    answer = copied.sync()
    assert answer.state == DeviceState.SUSPENDED
    assert answer.acknowledged == copied.position(1)
    assert [row["branch"] for row in either_shop.rows("SELECT branch FROM events ORDER BY branch")] == [0, 1]
    assert [row["state"] for row in either_shop.rows("SELECT state FROM leases")] == ["burned"]
    assert either_shop.pool("tea")["held"] == 2
    copied.redeem(ORDER, "jam")
    assert copied.sync().acknowledged == copied.position(2), "a suspended device still uploads its journal"
    assert [row["branch"] for row in either_shop.rows("SELECT branch FROM events ORDER BY branch")] == [0, 1, 1]


def test_an_old_image_of_a_till_is_refused_and_a_fork_with_its_first_event(shop: Shop) -> None:
    """A till that came back from an old image gets no answer; the first event of its own suspends it."""
    shop.publish(voucher("jam"))
    device = shop.device()
    old = clone(device)
    device.redeem(ORDER, "jam")
    device.sync()
    old.boot_id = "after-the-restore"
    response = old.post(old.request())
    assert (response.status_code, response.json()["code"]) == (409, "STALE_REQUEST")
    old.redeem(ORDER, "jam")
    assert old.sync().state == DeviceState.SUSPENDED


def test_a_u_below_k_is_a_fork(shop: Shop) -> None:
    """A device that reports fewer uses of a lease than the server knows of has forgotten some."""
    shop.publish(voucher("tea", total=5))
    device = shop.device()
    device.redeem(ORDER, "tea")
    device.sync()
    device.used.clear()
    device.boot_id = "boot-2"
    assert device.sync().state == DeviceState.SUSPENDED


def test_a_start_off_the_stored_chain_is_a_fork(shop: Shop) -> None:
    """Events after a place that is not in the stored chain are kept on a branch of their own."""
    shop.publish(voucher("jam"))
    device = shop.device()
    other = clone(device)
    for one in (device, other):
        for _ in range(3):
            one.redeem(ORDER, "jam")
    device.sync(through=2)
    answer = other.sync(after=1)
    assert answer.state == DeviceState.SUSPENDED
    assert answer.acknowledged == other.position(3)
    stored = shop.rows("SELECT branch, seq FROM events ORDER BY branch, seq")
    assert [(row["branch"], row["seq"]) for row in stored] == [(0, 1), (0, 2), (1, 2), (1, 3)]


@pytest.mark.parametrize("boot_id", ["boot-1", "boot-2"])
def test_an_old_request_that_arrives_late_is_no_fork(shop: Shop, boot_id: str) -> None:
    """A request overtaken by a newer one, in the same second or before a reboot, is refused and changes nothing."""
    shop.publish(voucher("jam"))
    device = shop.device()
    device.redeem(ORDER, "jam")
    late = device.request()
    device.redeem(ORDER, "jam")
    device.boot_id = boot_id
    device.sync()
    response = device.post(late)
    assert (response.status_code, response.json()["code"]) == (409, "STALE_REQUEST")
    assert device.sync().state == DeviceState.ACTIVE


@pytest.mark.parametrize("verb", ["suspend", "revoke", "lost"])
def test_a_device_that_is_not_active_uploads_and_gets_nothing(shop: Shop, verb: str) -> None:
    """Its events are stored and settled; it gets no new lease, no manifest and no online redemption."""
    shop.publish(voucher("tea", total=4))
    device = shop.device()
    device.redeem(ORDER, "tea")
    assert shop.post(f"/v1/devices/{device.id}/{verb}").status_code == 200
    shop.publish(voucher("coffee", total=4))
    body = device.request()
    response = device.post(body)
    assert response.status_code == 200
    assert len(shop.rows("SELECT 1 FROM redemptions")) == 1
    assert len(shop.rows("SELECT 1 FROM leases")) == 1
    assert device.get_manifest().status_code == 403
    assert device.redeem_online(ORDER, ["tea"], NONE).status_code == 403


def test_wants_of_vouchers_that_are_none_are_passed_over(shop: Shop) -> None:
    """Demand for a voucher that was never published breaks nothing."""
    device = shop.device()
    device.wants = [Want(NONE, 3)]
    assert device.sync().state == DeviceState.ACTIVE


def test_asking_for_a_device_again_raises(shop: Shop) -> None:
    """The tiny device itself tells a refusal apart from an answer."""
    device = shop.device()
    device.id = NONE
    with pytest.raises(Refused):
        device.sync()
