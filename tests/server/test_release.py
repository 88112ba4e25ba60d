"""The ends of a lease: released at risk, overdrawn, of another scope (protocol.md, section 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tallystick_shared.wire import Flag, Outcome
from tests.server.conftest import ORDER, voucher
from tests.server.test_operations import check_refused, run
from tests.server.test_recovery import audited
from tests.server.test_revise import check_revised, put
from tests.server.test_sync import clone
from tests.server.tiny_device import NONE, TinyDevice

if TYPE_CHECKING:
    from tests.server.conftest import Shop


def sold(shop: Shop, units: int = 1) -> TinyDevice:
    """A device with a lease of five uses and five discounts, of which so many are known."""
    shop.publish(voucher("tea", total=5, budget_minor=500))
    device = shop.device()
    for _ in range(units):
        device.redeem(ORDER, "tea")
    device.sync()
    return device


def sums(shop: Shop, measure: str = "units") -> tuple[int, ...]:
    """F, O + V, X, q of open and burned, u of closed, k of released."""
    pool = shop.pool("tea", measure)
    names = ("free", "uncovered", "held", "closed_used", "released_known")
    return tuple(pool[name] for name in names)


def release(shop: Shop, lease_id: str) -> Any:
    return shop.post(f"/v1/leases/{lease_id}/release")


def test_a_released_lease_gives_back_what_is_not_known_to_be_used(either_shop: Shop) -> None:
    """held falls by q, what is known moves to the released, and the rest is free; audited, with what it frees."""
    device = sold(either_shop, 2)
    (lease,) = device.active()
    done = release(either_shop, lease.id).json()
    assert (done["known_units"], done["freed_units"], done["known_minor"], done["freed_minor"]) == (2, 3, 200, 300)
    assert sums(either_shop) == (3, 0, 0, 0, 2)
    assert sums(either_shop, "minor") == (300, 0, 0, 0, 200)
    (row,) = audited(either_shop, "lease.release")
    assert (row["who"], row["object"], row["detail"]["freed_units"]) == ("operator", lease.id, 3)


def test_what_is_known_of_a_released_lease_is_in_a_later_limit(either_shop: Shop) -> None:
    """A limit that returns counts what was used of leases that were released, and no more of them."""
    device = sold(either_shop, 2)
    (lease,) = device.active()
    release(either_shop, lease.id)
    check_revised(put(either_shop, "tea"))
    assert either_shop.rows("SELECT 1 FROM pools") == []
    check_revised(put(either_shop, "tea", total=9, budget_minor=900))
    assert sums(either_shop) == (7, 0, 0, 0, 2)
    assert sums(either_shop, "minor") == (700, 0, 0, 0, 200)


def test_what_is_used_of_a_released_lease_later_has_no_cover(either_shop: Shop) -> None:
    """The promise is broken, and it is said: each use counts against what is free, and is flagged."""
    device = sold(either_shop)
    (lease,) = device.active()
    device.redeem(ORDER, "tea")
    release(either_shop, lease.id)
    assert [(one.outcome, one.reasons) for one in device.sync().exceptions] == [(Outcome.FLAGGED, [Flag.WITHOUT_COVER])]
    assert sums(either_shop)[1] == 1
    assert sums(either_shop)[4] == 1
    assert lease.id not in [one.id for one in device.active()], "the device is told that it holds it no more"
    (row,) = either_shop.rows("SELECT known_units, state FROM leases WHERE id = :id", id=lease.id)
    assert row == {"known_units": 1, "state": "released"}


def test_the_late_close_of_a_released_lease_changes_nothing(shop: Shop) -> None:
    """Its units are free already: they never come back twice."""
    device = sold(shop)
    (lease,) = device.active()
    shop.post(f"/v1/devices/{device.id}/suspend")
    release(shop, lease.id)
    before = sums(shop)
    device.close(lease)
    assert [one.outcome for one in device.sync().exceptions] == [Outcome.DUPLICATE]
    assert sums(shop) == before == (4, 0, 0, 0, 1)


def test_a_burned_lease_can_be_released_once(shop: Shop) -> None:
    """Of a forked device too, whose close would return nothing; a second time, and a closed or unknown one, is not."""
    device = sold(shop)
    (lease,) = device.active()
    copied = clone(device)
    device.redeem(ORDER, "tea")
    copied.redeem(ORDER, "tea", minor=1)
    device.sync()
    copied.sync()
    assert sums(shop) == (0, 0, 5, 0, 0)
    assert release(shop, lease.id).json()["was"] == "burned"
    assert sums(shop) == (2, 0, 0, 0, 3)
    again = release(shop, lease.id)
    assert (again.status_code, again.json()["code"]) == (409, "WRONG_STATE")
    assert "released" in again.json()["detail"]
    assert release(shop, NONE).status_code == 404


def test_a_closed_lease_cannot_be_released(shop: Shop) -> None:
    """Nothing is held for it."""
    device = sold(shop)
    (lease,) = device.active()
    device.close(lease)
    device.sync()
    assert release(shop, lease.id).status_code == 409


def test_a_release_on_the_command_line_wants_to_be_meant(shop: Shop) -> None:
    """Without --yes it says that the limit can be exceeded and changes nothing; with it, it says what is free."""
    device, data = sold(shop), shop.settings.data
    (lease,) = device.active()
    check_refused(run(data, "devices", "release", lease.id), "beyond the voucher's limit", "--yes")
    assert sums(shop) == (0, 0, 5, 0, 0)
    done = run(data, "devices", "release", lease.id, "--yes")
    assert (done.returncode, done.stdout) == (
        0, f"lease {lease.id} is released: 4 uses and 400 minor units are free again\n",
    )  # fmt: skip
    assert "without cover" in done.stderr


def test_a_close_that_waits_is_finished_for_a_lost_device_too(shop: Shop) -> None:
    """An unreadable event kept it waiting; the person who resolves it lets the rest return, lost or not."""
    device = sold(shop)
    (lease,) = device.active()
    shop.post(f"/v1/devices/{device.id}/lost")
    device.append_raw(b"not json")
    device.close(lease)
    device.sync()
    assert sums(shop) == (0, 0, 5, 0, 0)
    for flag in shop.get("/v1/flagged")["flagged"]:
        shop.post(f"/v1/flagged/{flag['id']}/resolve")
    assert sums(shop) == (4, 0, 0, 1, 0)


# F at or below 0


def test_an_overdrawn_voucher_is_granted_to_nobody_and_asked_back(either_shop: Shop) -> None:
    """As after a lowered limit: holders close until nothing is missing, and what is over is granted anew."""
    shop = either_shop
    shop.publish(voucher("tea", total=9))
    devices = shop.devices("a", "b", "c")
    shop.rows('UPDATE pools SET "limit" = "limit" - 4, free = free - 4')
    assert shop.pool("tea")["free"] == -4
    newcomer = shop.device("d")
    assert newcomer.active() == []
    first, second, third = devices
    assert first.sync_closing().leases == []
    assert shop.pool("tea")["free"] == -1
    second.sync_closing()
    assert shop.pool("tea")["free"] + shop.pool("tea")["held"] == 5
    assert shop.pool("tea")["free"] >= 0
    assert [one.units for one in third.active()] == [3], "nothing is missing any more"


def test_a_voucher_that_is_out_whole_is_not_asked_back(shop: Shop) -> None:
    """F = 0 is how every voucher stands whose units are all with the tills that sell them."""
    shop.publish(voucher("tea", total=4))
    one, other = shop.devices("a", "b")
    assert shop.pool("tea")["free"] == 0
    assert (one.sync().recall, other.sync().recall) == ([], [])


# scope


def test_a_moved_device_hears_of_its_scope_and_gets_its_vouchers(shop: Shop) -> None:
    """The answer names the new scope, the lease of the old one returns by the device's close, and it is audited."""
    shop.publish(voucher("tea", total=5))
    shop.post("/v1/scopes", {"name": "north"})
    shop.publish(voucher("coffee", total=5), scope="north")
    device = shop.device()
    (lease,) = device.active()
    response = shop.post(f"/v1/devices/{device.id}/move", {"scope": "north"})
    assert response.json() == {"id": device.id, "scope": "north"}
    answer = device.sync()
    assert answer.scope == "north"
    assert [one.voucher_id for one in answer.leases] != [lease.voucher_id]
    assert len(answer.leases) == 1
    device.close(lease)
    device.sync()
    assert (shop.pool("tea")["free"], shop.pool("coffee")["held"]) == (5, 5)
    assert device.get_manifest("north").status_code == 200
    assert device.get_manifest("main").status_code == 404
    (row,) = audited(shop, "device.move")
    assert (row["who"], row["detail"]) == ("operator", {"from": "main", "to": "north"})


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [("move", {"scope": "nowhere"}, 404), ("move", {}, 422), ("move", {"scope": ""}, 422)],
    ids=["no such scope", "no scope", "empty"],
)
def test_a_move_to_nowhere_is_refused(shop: Shop, path: str, body: dict[str, str], status: int) -> None:
    """And the device stays where it was."""
    device = shop.device()
    assert shop.post(f"/v1/devices/{device.id}/{path}", body).status_code == status
    assert shop.post(f"/v1/devices/{NONE}/move", {"scope": "main"}).status_code == 404
    assert shop.get(f"/v1/devices/{device.id}")["scope"] == "main"
