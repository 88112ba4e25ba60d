"""A server restored from a backup: declared and undeclared, adoption, reports, its end (protocol.md, section 7)."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from tallystick_shared.journal import StoredEvent
from tallystick_shared.wire import DeviceState, Outcome
from tests.server.conftest import ORDER, voucher
from tests.server.restoring import Backup
from tests.server.test_operations import check_refused, run
from tests.server.tiny_device import NONE, TinyDevice, digest, new_id

if TYPE_CHECKING:
    from tests.server.conftest import Shop


def begin(shop: Shop) -> dict[str, Any]:
    response = shop.post("/v1/recovery/begin")
    assert response.status_code == 200, response.text
    return dict(response.json())


def report(device: TinyDevice) -> None:
    """Hears of the new epoch and sends again what the server has forgotten."""
    heard = device.sync()
    assert (heard.leases, heard.leases_full, heard.recall, heard.exceptions) == ([], False, [], [])
    device.sync()


def state(shop: Shop) -> str:
    return str(shop.get("/v1/status")["state"])


def audited(shop: Shop, action: str) -> list[dict[str, Any]]:
    rows = shop.rows("SELECT who, object, detail FROM audit WHERE action = :action ORDER BY id", action=action)
    return [{**row, "detail": json.loads(row["detail"])} for row in rows]


def test_a_declared_restore_learns_what_was_forgotten(either_shop: Shop) -> None:
    """Leases granted and events sent after the backup are told again: nothing is without cover, and nothing is lost."""
    shop = either_shop
    shop.publish(voucher("tea", total=10, budget_minor=1_000))
    one, other = shop.devices("a", "b")
    one.redeem(ORDER, "tea")
    one.sync()
    before = shop.pool("tea")
    backup = Backup(shop)
    one.redeem(ORDER, "tea")
    one.close(one.active()[0])
    one.sync()  # closes and gets a new lease
    (newer,) = one.active()
    one.redeem(ORDER, "tea")
    other.redeem(ORDER, "tea")
    one.sync()
    other.sync()
    after, minor_after = shop.pool("tea"), shop.pool("tea", "minor")
    backup.restore()
    assert shop.pool("tea") == before
    assert begin(shop) | {"unreported": []} == {
        "state": "recovering", "server_epoch": 2, "devices": 2, "unreported": [],
    }  # fmt: skip
    heard = one.sync()
    assert (heard.server_epoch, heard.recovering, heard.acknowledged) == (2, True, one.position(1))
    assert len(shop.rows("SELECT 1 FROM events")) == 1, "nothing is settled before the device knows of the new epoch"
    answer = one.sync()
    assert (answer.acknowledged, answer.exceptions, answer.recovering) == (one.position(4), [], True)
    assert state(shop) == "recovering"
    report(other)
    assert state(shop) == "normal"
    (known,) = shop.rows("SELECT state, units, known_units FROM leases WHERE id = :id", id=newer.id)
    assert known == {"state": "open", "units": newer.units, "known_units": 1}
    assert shop.flags() == []
    assert (shop.pool("tea"), shop.pool("tea", "minor")) == (after, minor_after)
    assert one.sync().recovering is False
    adopted = audited(shop, "lease.adopt")
    assert [(row["who"], row["object"], row["detail"]["device"]) for row in adopted] == [("server", newer.id, one.id)]
    assert [row["who"] for row in audited(shop, "recovery.end")] == ["server"]


def test_a_second_declaration_waits_for_the_first_recovery(shop: Shop) -> None:
    """While one is under way another is refused in one sentence; each is audited."""
    shop.device()
    begin(shop)
    refused = shop.post("/v1/recovery/begin")
    assert (refused.status_code, refused.json()["code"]) == (409, "WRONG_STATE")
    assert "epoch 2" in refused.json()["detail"]
    (row,) = audited(shop, "recovery.begin")
    assert (row["who"], row["detail"]["server_epoch"], row["detail"]["was"]) == ("operator", 2, "normal")


def test_while_it_recovers_nothing_is_granted_or_recalled(shop: Shop) -> None:
    """No grant, no online use of a limited voucher; no ageing lease is asked back, as it could not be granted anew."""
    shop.publish(voucher("tea", total=4), voucher("jam"), voucher("milk", total=4, offline={"policy": "online_only"}))
    one, other = shop.devices("a", "b")
    begin(shop)
    report(one)
    shop.publish(voucher("coffee", total=4))
    shop.clock.advance(days=8)
    answer = one.sync()
    assert (answer.leases, answer.recall, answer.state) == ([], [], DeviceState.ACTIVE)
    refused = shop.online(new_id(), "milk")
    assert (refused.status_code, refused.json()["code"]) == (503, "RECOVERING")
    assert shop.online(new_id(), "jam").json()["redeemed"] is True
    report(other)
    assert one.sync().leases != []
    assert shop.online(new_id(), "milk").json()["redeemed"] is True


def test_an_operator_ends_it_early_and_late_comers_are_adopted(either_shop: Shop) -> None:
    """F falls below 0 by what a late device held: nothing is granted and idle leases are asked back until it is 0."""
    shop = either_shop
    shop.publish(voucher("tea", total=6))
    backup = Backup(shop)
    late = shop.device("a")
    assert late.active()[0].units == 6
    backup.restore()
    other = shop.device("b", synced=False)
    other.fetch()
    begin(shop)
    ended = shop.post("/v1/recovery/end").json()
    assert (ended["state"], [one["id"] for one in ended["unreported"]]) == ("normal", [other.id])
    late.enrol_again()
    report(other)
    assert shop.pool("tea")["held"] == 3, "half is left for the other device"
    late.redeem(ORDER, "tea")
    report(late)
    assert shop.pool("tea") | {"free": -3, "held": 9, "uncovered": 0} == shop.pool("tea")
    answer = late.sync()
    assert answer.recall == [one.id for one in late.active()]
    other.redeem(ORDER, "tea")
    other.sync_closing()
    assert other.active() == []
    assert shop.pool("tea")["free"] == -1
    late.sync_closing()
    pool = shop.pool("tea")
    assert pool["free"] + pool["held"] == 4
    assert pool["free"] >= 0
    assert shop.flags() == []


def test_the_end_says_whom_it_did_not_wait_for(shop: Shop) -> None:
    """Ended by an operator: audited with the devices that had not reported; without a recovery it is refused."""
    assert shop.post("/v1/recovery/end").status_code == 409
    device = shop.device()
    begin(shop)
    assert [one["id"] for one in shop.get("/v1/recovery")["unreported"]] == [device.id]
    assert [one["id"] for one in shop.post("/v1/recovery/end").json()["unreported"]] == [device.id]
    (row,) = audited(shop, "recovery.end")
    assert (row["who"], row["detail"]["unreported"]) == ("operator", [device.id])
    assert state(shop) == "normal"


def test_a_late_comer_is_granted_nothing_before_it_has_reported(shop: Shop) -> None:
    """After an early end, too: it may hold what the database has forgotten, and is told that it is to send again."""
    shop.publish(voucher("tea", total=4))
    device = shop.device(synced=False)
    device.fetch()
    begin(shop)
    shop.post("/v1/recovery/end")
    heard = device.sync()
    assert (heard.leases, heard.recovering) == ([], True)
    without = device.sync(held=None)
    assert (without.leases, without.recovering) == ([], True)
    told = device.sync()
    assert (len(told.leases), told.recovering) == (1, False)


def test_active_and_suspended_devices_count(either_shop: Shop) -> None:
    """A suspended one still sells offline until it hears of it; lost and revoked ones are not waited for."""
    devices = either_shop.devices("a", "b", "c", "d")
    for device, verb in zip(devices, ["suspend", "revoke", "lost"], strict=False):
        assert either_shop.post(f"/v1/devices/{device.id}/{verb}").status_code == 200
    suspended, _, _, active = devices
    assert begin(either_shop)["devices"] == 2
    report(active)
    assert [one["id"] for one in either_shop.get("/v1/recovery")["unreported"]] == [suspended.id]
    report(suspended)
    assert state(either_shop) == "normal"


def test_a_device_that_is_gone_for_good_is_revoked_and_no_longer_waited_for(either_shop: Shop) -> None:
    """The recovery ends with the last device that it waited for."""
    one, gone = either_shop.devices("a", "b")
    begin(either_shop)
    report(one)
    assert state(either_shop) == "recovering"
    either_shop.post(f"/v1/devices/{gone.id}/revoke")
    assert state(either_shop) == "normal"


def test_a_device_has_reported_with_the_end_of_its_journal(shop: Shop) -> None:
    """Batch by batch: only the one that ends at its head counts, and leases are adopted with any of them."""
    shop.publish(voucher("tea", total=5))
    backup = Backup(shop)
    device = shop.device()
    for _ in range(3):
        device.redeem(ORDER, "tea")
    backup.restore()
    begin(shop)
    device.enrol_again()
    device.sync()
    answer = device.sync(through=2)
    assert (answer.acknowledged, answer.leases_full, answer.exceptions) == (device.position(2), False, [])
    assert state(shop) == "recovering"
    device.sync()
    assert state(shop) == "normal"
    assert shop.rows("SELECT known_units FROM leases") == [{"known_units": 3}]


def test_a_device_enrolled_while_it_recovers_has_nothing_to_report(shop: Shop) -> None:
    """It enrolled in the new epoch, so nothing of it was forgotten; it waits for its leases with the others."""
    shop.publish(voucher("tea", total=5))
    old = shop.device("a")
    begin(shop)
    new = shop.device("b")
    assert (new.answer.recovering, new.active()) == (True, [])
    report(old)
    assert state(shop) == "normal"


# adoption


def test_leases_that_make_no_sense_are_not_adopted(shop: Shop) -> None:
    """Of no voucher, with a measure that it has not, above its limit, or under a number or id that is known."""
    shop.publish(voucher("tea", total=5), voucher("jam"), voucher("coffee", total=5))
    one, other = shop.devices("a", "b")
    mine = {lease.voucher_id: lease for lease in one.active()}[one.vouchers["tea"].id]
    theirs = other.active()[0]
    begin(shop)
    one.sync()
    good = msgspec.structs.replace(mine, id=new_id(), number=50, voucher_id=one.vouchers["coffee"].id, units=5)
    bad = [
        msgspec.structs.replace(good, id=new_id(), number=51, voucher_id=NONE),
        msgspec.structs.replace(good, id=new_id(), number=52, voucher_id=one.vouchers["jam"].id),
        msgspec.structs.replace(good, id=new_id(), number=53, minor=100),
        msgspec.structs.replace(good, id=new_id(), number=54, units=None),
        msgspec.structs.replace(good, id=new_id(), number=55, units=6),
        msgspec.structs.replace(good, id=new_id(), number=mine.number),
        msgspec.structs.replace(theirs, number=56),
    ]
    one.forgiving = True
    one.sync(held=[mine, *bad, good], lease_number=60)
    adopted = [row["object"] for row in audited(shop, "lease.adopt")]
    assert adopted == [good.id]
    assert shop.rows("SELECT device_id FROM leases WHERE id = :id", id=theirs.id) == [{"device_id": other.id}]
    assert shop.rows("SELECT lease_number FROM devices WHERE id = :id", id=one.id) == [{"lease_number": 60}]


def test_after_its_report_a_device_adopts_nothing_more(shop: Shop) -> None:
    """What it tells once it has told everything is new, and so was never granted."""
    shop.publish(voucher("tea", total=5))
    one, _ = shop.devices("a", "b")
    begin(shop)
    report(one)
    invented = msgspec.structs.replace(one.active()[0], id=new_id(), number=1_000)
    one.forgiving = True
    one.sync(held=[invented], lease_number=one.lease_number)
    assert audited(shop, "lease.adopt") == []


@pytest.mark.parametrize("granted_before", [True, False], ids=["the first is known", "both are forgotten"])
def test_two_leases_of_a_voucher_are_adopted_one_after_the_other(either_shop: Shop, granted_before: bool) -> None:
    """The second was granted after the close of the first, which is in the events that follow."""
    shop = either_shop
    shop.publish(voucher("tea", total=5))
    device = shop.device(synced=False)
    device.fetch()
    backup = Backup(shop)
    device.sync()
    if granted_before:
        backup = Backup(shop)
    (first,) = device.active()
    device.redeem(ORDER, "tea")
    device.close(first)
    device.sync()
    (second,) = device.active()
    for _ in range(2):
        device.redeem(ORDER, "tea")
    backup.restore()
    begin(shop)
    device.sync()
    device.forgiving = True  # it holds the second one only
    device.sync(through=1)
    device.forgiving = False
    states = {row["id"]: (row["state"], row["burned_by"]) for row in shop.rows("SELECT * FROM leases")}
    assert states == {first.id: ("open", None), second.id: ("burned", "lost")}
    assert device.sync().exceptions == []
    rows = {row["id"]: (row["state"], row["known_units"]) for row in shop.rows("SELECT * FROM leases")}
    assert rows == {first.id: ("closed", 1), second.id: ("open", 2)}
    pool = shop.pool("tea")
    assert (pool["free"], pool["held"], pool["closed_used"], pool["uncovered"]) == (0, 4, 1, 0)
    assert state(shop) == "normal"


def test_what_came_before_the_declaration_gets_its_cover_back(either_shop: Shop) -> None:
    """Uses of a forgotten lease are stored without cover first; the adopted lease then covers them, once."""
    shop = either_shop
    shop.publish(voucher("tea", total=5, budget_minor=1_000))
    backup = Backup(shop)
    device = shop.device()
    for _ in range(2):
        device.redeem(ORDER, "tea")
    backup.restore()
    device.forgiving = True
    begin(shop)
    shop.post("/v1/recovery/end")
    device.enrol_again()
    device.sync()
    device.recovering = False
    device.sync()  # as a device of an older release, which tells no leases
    assert (shop.pool("tea")["uncovered"], shop.pool("tea", "minor")["uncovered"]) == (2, 200)
    device.redeem(ORDER, "tea")
    device.recovering = True
    device.sync()
    pool = shop.pool("tea")
    assert (pool["uncovered"], pool["held"], pool["free"]) == (0, 5, 0)
    assert shop.pool("tea", "minor")["uncovered"] == 0
    assert shop.rows("SELECT known_units, known_minor FROM leases") == [{"known_units": 3, "known_minor": 300}]
    assert {row["cover"] for row in shop.rows("SELECT cover FROM redemption_uses")} == {"lease"}


def test_a_forgotten_lease_of_a_lost_device_stays_burned(shop: Shop) -> None:
    """It was declared lost again after the restore: what it held counts as used up, and its late close returns it."""
    shop.publish(voucher("tea", total=5))
    device = shop.device(synced=False)
    device.fetch()
    backup = Backup(shop)
    device.sync()
    (lease,) = device.active()
    device.redeem(ORDER, "tea")
    backup.restore()
    shop.post(f"/v1/devices/{device.id}/lost")
    begin(shop)
    device.forgiving = True
    report(device)
    assert shop.rows("SELECT state, burned_by FROM leases") == [{"state": "burned", "burned_by": "lost"}]
    assert shop.pool("tea")["held"] == 5
    device.close(lease)
    device.sync()
    assert (shop.pool("tea")["held"], shop.pool("tea")["free"]) == (0, 4)


def test_what_is_sent_again_is_not_late(shop: Shop) -> None:
    """When the device last had contact was forgotten with its events, so nothing says that it was offline too long."""
    shop.publish(voucher("jam"))
    device = shop.device()
    backup = Backup(shop)
    for _ in range(3):
        shop.clock.advance(days=6)
        device.redeem(ORDER, "jam")
        device.sync()
    backup.restore()
    begin(shop)
    report(device)
    assert shop.flags() == []
    assert len(shop.rows("SELECT 1 FROM redemptions")) == 3


def test_the_same_request_of_an_old_epoch_gets_the_same_answer(shop: Shop) -> None:
    """Byte for byte, and nothing of it is stored either time."""
    shop.publish(voucher("jam"))
    device = shop.device()
    device.redeem(ORDER, "jam")
    begin(shop)
    body = device.request()
    first, repeat = device.post(body), device.post(body)
    assert (first.status_code, first.content) == (200, repeat.content)
    assert shop.rows("SELECT 1 FROM events") == []


def test_a_copy_that_hears_of_an_epoch_comes_to_light_as_a_fork(shop: Shop) -> None:
    """It is told of a place in its own journal, goes on from there, and its own event is kept on a branch."""
    shop.publish(voucher("jam"))
    device = shop.device()
    device.redeem(ORDER, "jam")
    device.sync()
    copied = TinyDevice(device.url, device.clock)
    copied.__dict__.update(device.__dict__ | {"events": [*device.events], "hashes": [*device.hashes]})
    for one in (device, copied):
        one.redeem(ORDER, "jam")
    device.sync()
    begin(shop)
    assert copied.sync().acknowledged == copied.position(1)
    assert copied.sync().state is DeviceState.SUSPENDED
    assert [row["branch"] for row in shop.rows("SELECT branch FROM events ORDER BY branch")] == [0, 0, 1]


# undeclared


SIGNS = [
    ({"ledger_mark": 1_000}, "ledger mark 1000"),
    ({"server_epoch": 2}, "epoch 2"),
    ({"lease_number": 7}, "lease number 7"),
    ({}, "event 3"),
]


@pytest.mark.parametrize(("sign", "why"), SIGNS, ids=["ledger mark", "epoch", "leases", "journal"])
def test_what_a_device_has_seen_and_the_server_has_not_is_an_undeclared_restore(
    shop: Shop, sign: dict[str, Any], why: str
) -> None:
    """Each of the signs of an active device stops all grants; a suspended device is not believed."""
    shop.publish(voucher("tea", total=4))
    turned_away, device, other = (shop.device(store, synced=False) for store in "abc")
    shop.post(f"/v1/devices/{turned_away.id}/suspend")
    assert turned_away.post(with_head(turned_away, sign)).status_code == 200
    assert state(shop) == "normal"
    answer = device.post(with_head(device, sign))
    assert answer.status_code == 200
    assert state(shop) == "restore_suspected"
    assert shop.rows("SELECT 1 FROM leases") == []
    other.fetch()
    other.sync()
    assert other.active() == []
    assert shop.online(new_id(), "tea").json()["code"] == "RECOVERING"
    (row,) = audited(shop, "restore.suspect")
    assert row["object"] == device.id
    assert why in row["detail"]["why"]
    assert shop.rows("SELECT branches FROM devices WHERE id = :id", id=device.id) == [{"branches": 1}]


def with_head(device: TinyDevice, sign: dict[str, Any]) -> bytes:
    """A request without events whose head says this; or, if nothing, that three events were acknowledged."""
    if not sign:
        device.events, device.hashes = [StoredEvent(b"", b"")] * 3, [digest("x")] * 3
        device.acknowledged = 3
    return device.request(**sign)


def test_a_declaration_leads_out_of_a_suspicion(shop: Shop) -> None:
    """Status says what to do; the recovery begins, and the device that raised the suspicion reports like all others."""
    shop.publish(voucher("tea", total=4))
    device = shop.device(synced=False)
    device.fetch()
    backup = Backup(shop)
    device.sync()
    device.redeem(ORDER, "tea")
    device.sync()
    backup.restore()
    device.forgiving = True
    device.post(device.request())
    (note,) = [note for note in shop.get("/v1/status")["notes"] if device.id in note]
    assert "recovery begin" in note
    assert begin(shop)["server_epoch"] == 2
    (row,) = audited(shop, "recovery.begin")
    assert row["detail"]["suspected_by"] == device.id
    assert any("0 of 1 devices" in note for note in shop.get("/v1/status")["notes"])
    device.forgiving = False
    report(device)
    assert state(shop) == "normal"
    assert shop.pool("tea")["held"] == 4


def test_a_suspicion_leaves_forgotten_leases_to_their_device(shop: Shop) -> None:
    """A device with leases that the server forgot is not told that it holds none: it would give them up."""
    shop.publish(voucher("tea", total=4))
    device = shop.device(synced=False)
    device.fetch()
    backup = Backup(shop)
    device.sync()
    backup.restore()
    device.forgiving, device.ledger_mark = True, 0
    answer = device.sync()
    assert (answer.leases_full, answer.leases, answer.recall) == (False, [], [])
    assert len(device.active()) == 1


def test_another_restore_while_it_recovers_is_suspected_too(shop: Shop) -> None:
    """A device that saw more in the new epoch than the database holds leads back to a suspicion."""
    shop.publish(voucher("jam"))
    one, _ = shop.devices("a", "b")
    begin(shop)
    backup = Backup(shop)
    report(one)
    backup.restore()
    one.post(one.request())
    assert state(shop) == "restore_suspected"
    assert begin(shop)["server_epoch"] == 3
    report(one)
    assert state(shop) == "recovering"


def test_marks_of_an_epoch_that_is_over_prove_nothing(shop: Shop) -> None:
    """A device that has yet to hear of the new epoch has seen higher marks, of course."""
    device = shop.device()
    begin(shop)
    device.post(device.request(ledger_mark=1_000, lease_number=9))
    assert state(shop) == "recovering"


# the command line


def test_recovery_on_the_command_line(shop: Shop) -> None:
    """begin, status and end; an end without --yes changes nothing and says what it risks, and each refusal is a
    sentence."""
    data = shop.settings.data
    device = shop.device("counter")
    check_refused(run(data, "recovery", "end", "--yes"), "no recovery is under way")
    begun = run(data, "recovery", "begin")
    assert (begun.returncode, begun.stdout) == (0, "epoch 2 has begun; 1 devices are to report\n")
    check_refused(run(data, "recovery", "begin"), "under way already")
    told = run(data, "recovery", "status").stdout
    assert "0 of 1 devices have reported" in told
    assert device.id in told
    refused = run(data, "recovery", "end")
    check_refused(refused, "limits exceeded", "--yes")
    assert state(shop) == "recovering"
    done = run(data, "recovery", "end", "--yes")
    assert done.returncode == 0
    assert device.id in done.stdout
    assert "normal" in done.stdout
    assert state(shop) == "normal"


# durable


def test_durable_is_what_the_last_backup_holds(shop: Shop) -> None:
    """Never above what is acknowledged, and of a copy never what it does not share."""
    shop.publish(voucher("jam"))
    device = shop.device()
    for _ in range(3):
        device.redeem(ORDER, "jam")
    device.sync(through=2)
    shop.rows("UPDATE devices SET durable_seq = seq, durable_hash = hash")
    assert device.sync().durable == device.position(2)
    begin(shop)
    assert device.sync().durable == device.position(2)
    copied = TinyDevice(device.url, device.clock)
    copied.__dict__.update(device.__dict__ | {"events": device.events[:2], "hashes": device.hashes[:2]})
    copied.acknowledged = 2
    copied.redeem(ORDER, "jam", minor=1)
    assert copied.sync().durable == copied.position(2), "the branches differ after what is durable"
    shop.rows("UPDATE devices SET durable_seq = seq, durable_hash = hash")
    copied.redeem(ORDER, "jam")
    assert copied.sync().durable == copied.position(0)


def test_durable_is_never_above_what_is_acknowledged(shop: Shop) -> None:
    """A device that asks again for its first events hears that these are durable, not more."""
    shop.publish(voucher("jam"))
    device = shop.device()
    for _ in range(3):
        device.redeem(ORDER, "jam")
    device.sync()
    shop.rows("UPDATE devices SET durable_seq = seq, durable_hash = hash")
    answer = device.sync(after=0, through=1)
    assert (answer.acknowledged, answer.durable) == (device.position(1), device.position(1))


def test_outcomes_are_told_again_after_a_recovery(shop: Shop) -> None:
    """An event that the server did not forget is passed over, and what was said of it is said again."""
    shop.publish(voucher("jam"))
    device = shop.device()
    device.redeem(ORDER, "jam", minor=99)
    device.post(device.request())
    begin(shop)
    device.sync()
    device.acknowledged = 0
    assert [one.outcome for one in device.sync().exceptions] == [Outcome.FLAGGED]
    assert shop.clock() - timedelta(days=1) < device.answer.server_time
