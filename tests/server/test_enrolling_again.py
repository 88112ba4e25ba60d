"""A device comes back to a server that was restored from a backup older than its enrolment (protocol.md, section 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from tallystick_server import rotating
from tallystick_shared.signing import SigningKey, Typ
from tallystick_shared.wire import EnrolmentToken
from tests.server.conftest import ORDER, voucher
from tests.server.restoring import Backup
from tests.server.test_recovery import audited, begin, epoch_of, report, state
from tests.server.tiny_device import NONE, Refused, TinyDevice, new_id

if TYPE_CHECKING:
    from tests.server.conftest import Shop


def refusal(asking: TinyDevice, **fields: Any) -> tuple[int, str]:
    with pytest.raises(Refused) as refused:
        asking.enrol_again(**fields)
    return refused.value.status, refused.value.code


def test_a_forgotten_device_is_added_again_as_it_was(either_shop: Shop) -> None:
    """The same id, store and scope, at the start of its journal; it then sends all of it, and asking twice adds one."""
    shop = either_shop
    shop.publish(voucher("tea", total=5))
    backup = Backup(shop)
    device = shop.device("harbour")
    device.redeem(ORDER, "tea")
    device.sync()
    device.redeem(ORDER, "tea")
    backup.restore()
    begin(shop)
    assert device.post(device.request()).json()["code"] == "UNKNOWN_DEVICE"
    first, second = device.enrol_again(), device.enrol_again()
    assert (first.device, first.store_id, first.scope, first.server_epoch) == (
        device.id,
        "harbour",
        "main",
        epoch_of(shop),
    )
    assert second.device == first.device
    report(device)
    assert device.acknowledged == 2
    assert shop.rows("SELECT known_units FROM leases") == [{"known_units": 2}]
    assert [(row["who"], row["object"]) for row in audited(shop, "device.again")] == [(device.id, device.id)]


def test_a_device_whose_enrolment_the_line_repeated_comes_back_all_the_same(shop: Shop) -> None:
    """Its request, delivered once more after the restore, finds its token unspent and makes a device that nobody knows
    of: the real one was refused for ever, because of its own key (fleet, seed 1, case 2)."""
    token = shop.token()
    backup = Backup(shop)
    device = TinyDevice(shop.url, shop.clock)
    device.enrol(token)
    device.sync()
    backup.restore()
    begin(shop)
    assert httpx2.post(f"{shop.url}/v1/devices", content=device.enrolment[0]).status_code == 201
    (ghost,) = shop.rows("SELECT id FROM devices")
    assert device.enrol_again().device == device.id
    report(device)
    assert [row["id"] for row in shop.rows("SELECT id FROM devices")] == [device.id]
    assert [row["device_id"] for row in shop.rows("SELECT device_id FROM enrolment_tokens")] == [device.id]
    (row,) = audited(shop, "device.again")
    assert row["detail"]["gave_way"] == ghost["id"]


@pytest.mark.parametrize("decided", ["revoke", "suspend", "lost"])
def test_a_device_that_an_operator_decided_about_gives_way_to_nobody(shop: Shop, decided: str) -> None:
    """Its key came back as an active device under the older id, and the revocation was undone."""
    device, ghost = with_a_ghost(shop)
    assert shop.post(f"/v1/devices/{ghost}/{decided}").status_code == 200
    before = shop.rows("SELECT id, state FROM devices")
    refused_for(device, ghost)
    assert shop.rows("SELECT id, state FROM devices") == before
    assert audited(shop, "device.again") == []


def test_a_device_that_redeemed_online_gives_way_to_nobody(either_shop: Shop) -> None:
    """It never synced, and redemptions and demand are of it: that was an error of the database, each time."""
    shop = either_shop
    shop.publish(voucher("jam"))
    device, ghost = with_a_ghost(shop)
    real, device.id = device.id, ghost
    assert device.redeem_online(ORDER, ["jam"], new_id()).status_code == 200
    device.id = real
    refused_for(device, ghost)
    assert [row["id"] for row in shop.rows("SELECT id FROM devices")] == [ghost]


def refused_for(device: TinyDevice, ghost: str) -> None:
    """A till with a journal is not told to make a new key, but whom an operator has to decide about."""
    with pytest.raises(Refused, match=f"an operator has to decide about the device {ghost}, which has this key") as no:
        device.enrol_again()
    assert (no.value.status, no.value.code) == (409, "EXISTS")


def with_a_ghost(shop: Shop) -> tuple[TinyDevice, str]:
    """A device that a restore forgot, and the id of the one that its repeated request made."""
    token = shop.token()
    backup = Backup(shop)
    device = TinyDevice(shop.url, shop.clock)
    device.enrol(token)
    device.sync()
    backup.restore()
    begin(shop, all_known=False)
    assert httpx2.post(f"{shop.url}/v1/devices", content=device.enrolment[0]).status_code == 201
    (row,) = shop.rows("SELECT id FROM devices")
    return device, row["id"]


def test_an_enrolment_of_this_epoch_proves_an_undeclared_restore(shop: Shop) -> None:
    """It is refused as a thing to try later, nothing is granted from then on, and no device is added."""
    backup = Backup(shop)
    device = shop.device()
    backup.restore()
    assert refusal(device) == (503, "RECOVERING")
    assert state(shop) == "restore_suspected"
    assert shop.rows("SELECT 1 FROM devices") == []
    begin(shop)
    assert device.enrol_again().server_epoch == epoch_of(shop)


def test_a_forgotten_token_lets_nobody_else_in_once_its_device_came_again(shop: Shop) -> None:
    """Its spending was forgotten with the device; the device brings it back."""
    token = shop.token()
    backup = Backup(shop)
    device = TinyDevice(shop.url, shop.clock)
    device.enrol(token)
    backup.restore()
    begin(shop)
    device.enrol_again()
    with pytest.raises(Refused) as refused:
        TinyDevice(shop.url, shop.clock).ask_to_enrol(EnrolmentToken.parse(token))
    assert refused.value.code == "TOKEN_USED"


def test_a_token_that_was_used_again_keeps_nobody_out(shop: Shop) -> None:
    """Where a second device was faster, both are in, and the audit says so."""
    token = shop.token()
    backup = Backup(shop)
    device, second = TinyDevice(shop.url, shop.clock), TinyDevice(shop.url, shop.clock)
    device.enrol(token)
    backup.restore()
    begin(shop)
    second.enrol(token)
    assert device.enrol_again().device == device.id
    (row,) = audited(shop, "device.again")
    assert row["detail"]["token_used_by"] == second.id


def test_a_scope_that_is_gone_is_named(shop: Shop) -> None:
    """The device is not added until an operator made the scope again."""
    backup = Backup(shop)
    shop.post("/v1/scopes", {"name": "north"})
    device = shop.device(scope="north", synced=False)
    backup.restore()
    begin(shop)
    assert refusal(device) == (404, "NOT_FOUND")
    shop.post("/v1/scopes", {"name": "north"})
    assert device.enrol_again().scope == "north"


def test_only_this_servers_own_answer_to_this_key_lets_a_device_in(shop: Shop) -> None:
    """Each part is verified: who signs, what was asked, what was answered, and for which device."""
    backup = Backup(shop)
    device, other = shop.device("a"), shop.device("b")
    backup.restore()
    begin(shop)
    theirs = [part.decode() for part in other.enrolment]
    forged = SigningKey.generate().sign(Typ.ENROLLED, b"{}").decode()
    assert refusal(device, request=theirs[0])[1] == "UNKNOWN_KEY"
    assert refusal(device, enrolled=theirs[1])[1] == "WRONG_ENROLMENT"
    assert refusal(device, enrolled=forged)[1] == "UNKNOWN_KEY"
    assert refusal(device, device=NONE)[1] == "WRONG_ENROLMENT"
    assert refusal(device, request="x")[1] == "MALFORMED"
    mine, device.key = device.key, SigningKey.generate()
    assert refusal(device)[1] == "UNKNOWN_KEY"
    device.key = mine
    assert shop.rows("SELECT 1 FROM devices") == []
    shop.rows("UPDATE server SET server_id = :id", id=new_id())
    assert refusal(device)[1] == "WRONG_ENROLMENT"
    assert shop.rows("SELECT 1 FROM devices") == []


def test_a_receipt_key_that_was_changed_still_counts(shop: Shop) -> None:
    """A device that enrolled under an earlier root comes back under a later one, once an operator confirms it."""
    backup = Backup(shop)
    device = shop.device()
    change = rotating.Change(receipt=True)
    rotating.begin(shop.settings, change, [shop.settings.keys / "root.jwk"], now=shop.clock())
    backup.restore()
    begin(shop)
    device.receipt |= receipt_keys(shop)
    assert device.enrol_again().root_version == 2
    assert shop.rows("SELECT state FROM devices WHERE id = :id", id=device.id) == [{"state": "pending"}]
    assert shop.post(f"/v1/devices/{device.id}/resume").status_code == 200
    report(device)
    assert device.answer.state == "active"


def test_a_stolen_key_that_was_changed_proves_nothing_by_itself(shop: Shop) -> None:
    """It stops no grants, and what it lets in is pending: it is granted nothing, and no lease it claims is adopted."""
    shop.publish(voucher("tea", total=5))
    backup = Backup(shop)
    thief = shop.device()
    change = rotating.Change(receipt=True)
    rotating.begin(shop.settings, change, [shop.settings.keys / "root.jwk"], now=shop.clock())
    backup.restore()
    honest = shop.device("honest", synced=False)
    thief.receipt |= receipt_keys(shop)
    thief.enrol_again()
    assert state(shop) == "normal"
    thief.forgiving = thief.recovering = True
    answer = thief.sync()
    assert (answer.state, answer.leases) == ("pending", [])
    begin(shop)
    thief.sync()
    thief.sync()
    assert shop.rows("SELECT 1 FROM leases") == []
    assert shop.pool("tea")["free"] == 5
    (row,) = audited(shop, "device.again")
    assert (row["detail"]["state"], row["detail"]["key_in_use"]) == ("pending", False)
    report(honest)
    assert thief.id not in {one["id"] for one in shop.get("/v1/recovery")["unreported"]}


def test_who_comes_back_while_nothing_recovers_is_pending(shop: Shop) -> None:
    """After the end of the recovery nobody waits for it; an operator says whether it is one of theirs."""
    backup = Backup(shop)
    device = shop.device()
    backup.restore()
    begin(shop, all_known=False)
    shop.post("/v1/recovery/end")
    device.enrol_again()
    assert shop.rows("SELECT state FROM devices") == [{"state": "pending"}]
    shop.post(f"/v1/devices/{device.id}/resume")
    report(device)
    assert device.answer.state == "active"


def receipt_keys(shop: Shop) -> dict[str, Any]:
    later = TinyDevice(shop.url, shop.clock)
    later.ask_to_enrol(EnrolmentToken.parse(shop.token()))
    return later.receipt


def test_a_revoked_device_comes_back_as_it_is(shop: Shop) -> None:
    """A known device is answered as if it was new, and stays what an operator made of it."""
    device = shop.device()
    shop.post(f"/v1/devices/{device.id}/revoke")
    assert device.enrol_again().device == device.id
    assert shop.rows("SELECT state FROM devices") == [{"state": "revoked"}]
