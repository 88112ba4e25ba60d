"""A server restored from a backup: declared and undeclared, adoption, reports, its end (protocol.md, section 7)."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from tallystick_server import recovery
from tallystick_server.operations import opened
from tallystick_shared.wire import DeviceState
from tests.server.conftest import ORDER, voucher
from tests.server.restoring import Backup
from tests.server.test_operations import check_refused, run
from tests.server.tiny_device import TinyDevice, new_id

if TYPE_CHECKING:
    from tests.server.conftest import Shop


def begin(shop: Shop, *, all_known: bool = True) -> dict[str, Any]:
    """Declares a restore; by default with the word that no device enrolled since, so that it ends by itself."""

    async def work() -> recovery.Progress:
        async with opened(shop.settings, shop.clock()) as server:
            now = shop.clock()
            return await server.database.write(lambda t: recovery.begin(t, now=now, all_known=all_known))

    return dict(msgspec.to_builtins(asyncio.run(work())))


def epoch_of(shop: Shop) -> int:
    return int(shop.clock().timestamp())


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
    begun, epoch = begin(shop), epoch_of(shop)
    assert (begun["state"], begun["server_epoch"], begun["devices"]) == ("recovering", epoch, 2)
    assert (begun["ends_by_itself"], begun["returned"]) == (True, [])
    heard = one.sync()
    assert (heard.server_epoch, heard.recovering, heard.acknowledged) == (epoch, True, one.position(1))
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


def test_a_declaration_while_it_recovers_begins_a_new_epoch(shop: Shop) -> None:
    """The backup that was restored may have been made in a recovery: all report once more, and each is audited."""
    device = shop.device()
    first = begin(shop)["server_epoch"]
    report(device)
    assert state(shop) == "normal"
    begin(shop, all_known=False)
    report(device)
    again = shop.post("/v1/recovery/begin").json()
    assert (again["state"], len(again["unreported"])) == ("recovering", 1)
    rows = audited(shop, "recovery.begin")
    assert [(row["who"], row["detail"]["was"]) for row in rows] == [
        ("operator", "normal"), ("operator", "normal"), ("operator", "recovering"),
    ]  # fmt: skip
    assert [row["detail"]["server_epoch"] - first for row in rows] == [0, 1, 2]


def test_two_restores_of_one_backup_begin_two_epochs(shop: Shop) -> None:
    """The second forgets the first with everything else; what devices saw in it is not taken for what they see now."""
    shop.publish(voucher("jam"))
    device = shop.device()
    backup = Backup(shop)
    first = begin(shop)["server_epoch"]
    report(device)
    device.redeem(ORDER, "jam")
    device.sync()
    backup.restore()
    shop.clock.advance(minutes=1)
    second = begin(shop)["server_epoch"]
    assert (first, second) == (epoch_of(shop) - 60, epoch_of(shop))
    report(device)
    assert state(shop) == "normal"
    assert len(shop.rows("SELECT 1 FROM redemptions")) == 1


def test_a_recovery_does_not_end_before_unknown_devices_have_come(either_shop: Shop) -> None:
    """A till that enrolled since the backup holds units that this database thinks free: only an operator ends it."""
    shop = either_shop
    shop.publish(voucher("tea", total=6))
    known = shop.device("a", synced=False)
    backup = Backup(shop)
    away = shop.device("b")
    assert away.active()[0].units == 3
    backup.restore()
    begun = shop.post("/v1/recovery/begin").json()
    assert (begun["ends_by_itself"], begun["devices"]) == (False, 1)
    known.fetch()
    report(known)
    assert (state(shop), shop.get("/v1/recovery")["unreported"]) == ("recovering", [])
    assert known.sync().leases == []
    (note,) = [note for note in shop.get("/v1/status")["notes"] if "recovering" in note]
    assert "all 1 known devices have reported" in note
    assert "recovery end --yes" in note
    away.enrol_again()
    report(away)
    (came,) = shop.get("/v1/recovery")["returned"]
    assert (came["id"], came["state"]) == (away.id, "active")
    assert shop.post("/v1/recovery/end").json()["state"] == "normal"
    assert [one.units for one in known.sync().leases] == [3], "what the other holds was not granted again"
    assert shop.pool("tea") | {"free": 0, "held": 6} == shop.pool("tea")


def test_a_server_that_knows_no_device_says_what_to_do(shop: Shop) -> None:
    """Nobody is to report, so nothing ends it but the operator, who hears that, however it was begun."""
    for all_known in (False, True):
        begin(shop, all_known=all_known)
        (note,) = [note for note in shop.get("/v1/status")["notes"] if "recovering" in note]
        assert "knows no device" in note
        assert "recovery end --yes" in note
    assert shop.post("/v1/recovery/end").json()["state"] == "normal"


def test_a_recovery_says_from_when_on_decisions_are_forgotten(shop: Shop) -> None:
    """The time of the newest sync or audited change before it; an operator has to do again what came later."""
    device = shop.device()
    at = shop.clock()
    shop.clock.advance(hours=1)
    begun = begin(shop)
    assert datetime.fromisoformat(begun["known_until"]) == at
    assert shop.get("/v1/recovery")["known_until"] == begun["known_until"]
    shop.post(f"/v1/devices/{device.id}/suspend")
    assert datetime.fromisoformat(begin(shop)["known_until"]) == at + timedelta(hours=1)


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
    assert shop.post(f"/v1/devices/{late.id}/resume").status_code == 200
    report(other)
    assert shop.pool("tea")["held"] == 3, "half is left for the other device"
    late.redeem(ORDER, "tea")
    report(late)
    assert shop.pool("tea") | {"free": -3, "held": 9, "uncovered": 0} == shop.pool("tea")
    (adopted,) = audited(shop, "lease.adopt")
    assert adopted["detail"]["overdrawn"] == {"units": 3}
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


# the command line


def test_recovery_on_the_command_line(shop: Shop) -> None:
    """begin, status and end; an end without --yes changes nothing and says what it risks, and each refusal is a
    sentence."""
    data = shop.settings.data
    device = shop.device("counter")
    check_refused(run(data, "recovery", "end", "--yes"), "no recovery is under way")
    begun = run(data, "recovery", "begin")
    assert begun.returncode == 0
    assert begun.stdout.endswith(" has begun; 1 devices are to report\n")
    assert "recovery end --yes" in begun.stderr
    assert "is forgotten" in begun.stderr
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
