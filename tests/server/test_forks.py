"""Forks: each of the four signs, what becomes of the copies, and what an operator is told (protocol.md, I5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from tallystick_shared.wire import DeviceState, Flag
from tests.server.conftest import ORDER, voucher
from tests.server.test_operations import check_refused, run
from tests.server.test_recovery import audited
from tests.server.test_sync import clone
from tests.server.tiny_device import Refused, TinyDevice

if TYPE_CHECKING:
    from tests.server.conftest import Shop


def challenge(device: TinyDevice) -> str:
    """What the refusal of a request that ends too early carries."""
    with pytest.raises(Refused) as refused:
        device.sync()
    assert (refused.value.status, refused.value.code) == (409, "STALE_REQUEST")
    return refused.value.challenge


def detail(shop: Shop, device: TinyDevice) -> Any:
    return shop.get(f"/v1/devices/{device.id}")


def test_an_older_copy_is_a_fork_before_it_sold_anything(either_shop: Shop) -> None:
    """Refused once with a challenge, it comes again with it: made later, and still older than what is known."""
    shop = either_shop
    shop.publish(voucher("tea", total=5))
    device = shop.device()
    old = clone(device)
    device.redeem(ORDER, "tea")
    device.sync()
    nonce = challenge(old)
    assert len(nonce) == 64
    assert shop.rows("SELECT state FROM devices") == [{"state": "active"}]
    answer = old.sync(nonce=nonce)
    assert (answer.state, answer.acknowledged) == (DeviceState.SUSPENDED, old.position(0))
    assert shop.rows("SELECT state, burned_by FROM leases") == [{"state": "burned", "burned_by": "forked"}]
    (row,) = audited(shop, "device.fork")
    assert (row["object"], row["detail"]["branch"]) == (device.id, 1)
    assert "older copy" in row["detail"]["sign"]
    (lease,) = row["detail"]["leases"]
    assert (lease["code"], lease["rest_units"], lease["known_units"]) == ("tea", 4, 1)


def test_what_the_older_copy_sells_goes_to_the_branch_it_was_given(shop: Shop) -> None:
    """It came without events of its own; its first one fills that branch and opens no other."""
    shop.publish(voucher("jam"))
    device = shop.device()
    old = clone(device)
    device.redeem(ORDER, "jam")
    device.sync()
    old.sync(nonce=challenge(old))
    assert [one["events"] for one in detail(shop, device)["branches"]] == [1, 0]
    for _ in range(2):
        old.redeem(ORDER, "jam")
        old.sync()
    device.redeem(ORDER, "jam")
    assert device.sync().acknowledged == device.position(2)
    assert [one["events"] for one in detail(shop, device)["branches"]] == [2, 2]


def test_an_overtaken_request_is_no_fork_whatever_its_nonce(shop: Shop) -> None:
    """A challenge is of what is known now: one that was given out earlier, or of another device, proves nothing."""
    shop.publish(voucher("jam"))
    device, other = shop.devices("a", "b")
    device.redeem(ORDER, "jam")
    late = device.request()
    device.redeem(ORDER, "jam")
    device.sync()
    old = clone(device)
    old.events, old.hashes, old.acknowledged = old.events[:1], old.hashes[:1], 1
    first = challenge(old)
    assert device.post(late).json()["challenge"] == first
    device.redeem(ORDER, "jam")
    device.sync()
    with pytest.raises(Refused) as refused:
        old.sync(nonce=first)
    assert refused.value.challenge not in ("", first)
    assert [device.sync().state, other.sync().state] == [DeviceState.ACTIVE] * 2


def test_an_honest_device_answers_a_challenge_with_more_than_is_known(shop: Shop) -> None:
    """Its newer journal is taken in, whatever the nonce."""
    shop.publish(voucher("jam"))
    device = shop.device()
    device.redeem(ORDER, "jam")
    late = device.request()
    device.redeem(ORDER, "jam")
    device.sync()
    nonce: str = device.post(late).json()["challenge"]
    assert device.sync(nonce=nonce).state == DeviceState.ACTIVE


def test_a_problem_without_a_challenge_has_no_such_field(shop: Shop) -> None:
    """Only the refusal of a journal that ends too early carries one."""
    refused = httpx2.get(f"{shop.url}/v1/status")
    assert refused.status_code == 401
    assert "challenge" not in refused.json()


def test_exposure_says_what_copies_can_sell_and_what_they_sold(either_shop: Shop) -> None:
    """Two copies sell from one lease: what fits is covered once, the rest is flagged, and both are told apart."""
    shop = either_shop
    shop.publish(voucher("tea", total=4, budget_minor=400), voucher("jam", total=9))
    device = shop.device()
    copied = clone(device)
    copied.used = {}
    for _ in range(3):
        device.redeem(ORDER, "tea")
        copied.redeem(ORDER, "tea")
    device.sync()
    answer = copied.sync()
    assert [one.reasons for one in answer.exceptions] == [[Flag.WITHOUT_COVER]] * 2
    found = detail(shop, device)
    assert (found["state"], found["forked"]) == ("suspended", True)
    assert [(one["branch"], one["events"], one["last_seq"]) for one in found["branches"]] == [(0, 3, 3), (1, 3, 3)]
    jam, tea = found["leases"]
    assert (jam["rest_units"], jam["rest_minor"], jam["branches"]) == (9, None, [])
    assert (tea["rest_units"], tea["rest_minor"], tea["currency"]) == (0, 0, "USD")
    assert (tea["uncovered_units"], tea["uncovered_minor"], tea["branches"]) == (2, 200, [0, 1])
    (row,) = audited(shop, "device.fork")
    assert [one["uncovered_units"] for one in row["detail"]["leases"]] == [0, 2]
    assert shop.pool("tea") | {"free": -2, "uncovered": 2, "held": 4} == shop.pool("tea")


def test_devices_show_says_it_in_words(shop: Shop) -> None:
    """An operator reads how many copies there are, what each can cost in uses and money, and what to do."""
    shop.publish(voucher("tea", total=4, budget_minor=1_000))
    device = shop.device("harbour")
    data = shop.settings.data
    fine = run(data, "devices", "show", device.id).stdout
    assert "in use twice" not in fine
    assert "tea: open, 0 uses and 0.00 USD of 4 uses and 4.00 USD used" in fine
    copied = clone(device)
    copied.used = {}
    for one in (device, copied):
        one.redeem(ORDER, "tea")
        one.sync()
    said = run(data, "devices", "show", device.id).stdout
    for words in ("in use twice: 2 copies", "journal 1: 1 events", "tea: 2 uses and 2.00 USD", "enrol the till anew"):
        assert words in said, said
    assert "used by journals 0 and 1" in said
    assert any(device.id in note and "twice" in note for note in shop.get("/v1/status")["notes"])
    assert "in use twice" in run(data, "devices", "list").stdout
    check_refused(run(data, "devices", "show", "nobody"), "no such device")


def test_a_reported_use_that_went_down_is_a_fork_that_stays_one(shop: Shop) -> None:
    """It has one journal only, and is not to be believed all the same: it cannot be resumed."""
    shop.publish(voucher("tea", total=5))
    device = shop.device()
    device.redeem(ORDER, "tea")
    device.sync()
    device.used.clear()
    device.redeem(ORDER, "tea")
    device.used.clear()
    assert device.sync().state == DeviceState.SUSPENDED
    assert len(shop.rows("SELECT 1 FROM events WHERE branch = 0")) == 2
    (row,) = audited(shop, "device.fork")
    assert "less use of a lease" in row["detail"]["sign"]
    refused = shop.post(f"/v1/devices/{device.id}/resume")
    assert refused.status_code == 409
    assert "enrol the till anew" in refused.json()["detail"]


def test_a_suspended_device_is_resumed_where_it_has_one_journal(shop: Shop) -> None:
    """It gets leases again; each change is audited, and an active device cannot be resumed."""
    shop.publish(voucher("tea", total=5))
    device = shop.device(synced=False)
    device.fetch()
    assert shop.post(f"/v1/devices/{device.id}/resume").status_code == 409
    shop.post(f"/v1/devices/{device.id}/suspend")
    assert device.sync().leases == []
    assert shop.post(f"/v1/devices/{device.id}/resume").json() == {"id": device.id, "state": "active"}
    assert len(device.sync().leases) == 1
    assert [row["detail"] for row in audited(shop, "device.active")] == [{"was": "suspended"}]
    assert [row["who"] for row in audited(shop, "device.suspended")] == ["operator"]


def test_devices_are_changed_on_the_command_line(shop: Shop) -> None:
    """suspend, resume, move, revoke and lost; a change that cannot be is one sentence."""
    device, data = shop.device(), shop.settings.data
    shop.post("/v1/scopes", {"name": "north"})
    for verb, state in (("suspend", "suspended"), ("resume", "active"), ("revoke", "revoked"), ("lost", "lost")):
        if verb == "revoke":
            assert "in scope north" in run(data, "devices", "move", device.id, "north").stdout
        assert run(data, "devices", verb, device.id).stdout == f"device {device.id} is {state}\n"
    check_refused(run(data, "devices", "resume", device.id), "a lost device cannot become active")
    check_refused(run(data, "devices", "move", device.id, "main"), "lost")
