"""Revising: every revision is kept, some fields never change, and I1 holds for a limit that does."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from tallystick_shared.signing import sha256_hex
from tests.server.conftest import ORDER, voucher
from tests.server.tiny_device import NONE, new_id

if TYPE_CHECKING:
    from tests.server.conftest import Shop


def put(shop: Shop, code: str, **fields: Any) -> httpx2.Response:
    """Revises the voucher of this code to one with these fields."""
    (row,) = shop.rows("SELECT id FROM vouchers WHERE folded = :folded", folded=code.lower())
    return put_at(shop, row["id"], voucher(code, **fields))


def put_at(shop: Shop, voucher_id: str, document: dict[str, Any]) -> httpx2.Response:
    content = json.dumps(document).encode()
    headers = shop.headers | {"Content-Type": "application/json"}
    return httpx2.put(f"{shop.url}/v1/vouchers/{voucher_id}", content=content, headers=headers)


def check_revised(response: httpx2.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    return dict(response.json())


def check_refused(response: httpx2.Response, code: str, path: str = "") -> None:
    assert (response.status_code, response.json()["code"]) == (409 if code == "WRONG_STATE" else 422, code)
    assert [one["path"] for one in response.json().get("errors", [])] == ([path] if path else [])


def check_i1(shop: Shop) -> None:
    """For each pool its parts are what the tables of leases and uses say, counted here once more."""
    for pool in shop.rows("SELECT * FROM pools"):
        measure, voucher_id = pool["measure"], pool["voucher_id"]
        leases = shop.rows("SELECT * FROM leases WHERE voucher_id = :id", id=voucher_id)
        mine = {one["id"] for one in leases if one[measure] is not None}
        held = sum(one[measure] for one in leases if one["id"] in mine and one["state"] in ("open", "burned"))
        closed = sum(one[f"known_{measure}"] for one in leases if one["id"] in mine and one["state"] == "closed")
        uses = shop.rows("SELECT * FROM redemption_uses WHERE voucher_id = :id", id=voucher_id)
        online = sum(one[measure] for one in uses if one["cover"] == "online")
        leased = [one for one in uses if one["cover"] == "lease" and one["lease_id"] in mine]
        bare = sum(one[measure] for one in uses if one["cover"] != "online" and one not in leased)
        voided = sum(one[f"voided_{measure}"] for one in uses)
        assert (pool["held"], pool["closed_used"], pool["online"], pool["uncovered"], pool["voided"]) == (
            held, closed, online, bare, voided,
        )  # fmt: skip
        assert pool["free"] == pool["limit"] - held - closed - online - bare + voided


def test_every_published_revision_is_kept(either_shop: Shop) -> None:
    """A revision more, in the bundle and in the database; the first stays as it was, byte for byte."""
    either_shop.publish(voucher("Tea", total=5))
    device = either_shop.device()
    first = device.vouchers["tea"]
    found = check_revised(put(either_shop, "Tea", total=5, status="paused"))
    manifest = device.fetch()
    second = device.vouchers["tea"]
    assert (found["revision"], first.revision, second.revision, second.id) == (2, 1, 2, first.id)
    assert (found["sha256"], found["voucher"]["status"]) == (sha256_hex(bytes(second.voucher)), "paused")
    stored = either_shop.rows("SELECT revision, json FROM voucher_revisions ORDER BY revision")
    assert [bytes(row["json"]) for row in stored] == [bytes(first.voucher), bytes(second.voucher)]
    assert (manifest.version, len(manifest.deltas)) == (3, 1)


def test_the_same_again_changes_nothing(shop: Shop) -> None:
    """Equal fields in another order and spelling are the same bytes: no revision, no version, no note."""
    shop.publish(voucher("Tea", total=5))
    document = {"limits": {"total": 5, "budget_minor": None}} | voucher("Tea", total=5) | {"status": "active"}
    (row,) = shop.get("/v1/vouchers")["vouchers"]
    assert check_revised(put_at(shop, row["id"], document))["revision"] == 1
    assert (shop.rows("SELECT version FROM scopes"), shop.rows("SELECT 1 FROM audit")) == ([{"version": 2}], [])


def test_an_event_is_settled_by_the_revision_it_names(shop: Shop) -> None:
    """A till that had not heard of the new amount is right about the old one."""
    shop.publish(voucher("tea", total=5))
    device = shop.device()
    check_revised(put(shop, "tea", total=5, discount={"type": "fixed", "amount_minor": 300}))
    device.redeem(ORDER, "tea")
    assert device.sync().exceptions == []
    assert shop.online(new_id(), "tea").json()["result"]["refused"] != []
    assert [row["settled_minor"] for row in shop.rows("SELECT settled_minor FROM redemption_uses")] == [100]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("code", {"code": "other"}),
        ("discount.type", {"discount": {"type": "percentage", "percent": 10}}),
        ("currency", {"currency": "EUR"}),
    ],
)
def test_what_a_voucher_is_never_changes(shop: Shop, path: str, fields: dict[str, Any]) -> None:
    """Its folded code, the kind of its discount and its currency; the spelling of the code may."""
    shop.publish(voucher("tea"))
    (row,) = shop.get("/v1/vouchers")["vouchers"]
    check_refused(put_at(shop, row["id"], voucher("tea", currency="USD") | fields), "FIXED_FIELD", path)
    assert check_revised(put_at(shop, row["id"], voucher(" TEA ")))["code"] == "TEA"
    assert shop.rows("SELECT code, folded, revision FROM vouchers") == [{"code": "TEA", "folded": "tea", "revision": 2}]


def test_a_withdrawn_or_unknown_voucher_is_not_revised(shop: Shop) -> None:
    """Deactivation is for good; each in one sentence."""
    shop.publish(voucher("tea"))
    (row,) = shop.get("/v1/vouchers")["vouchers"]
    shop.post(f"/v1/vouchers/{row['id']}/deactivate")
    check_refused(put(shop, "tea", status="paused"), "WRONG_STATE")
    assert put_at(shop, NONE, voucher("tea")).status_code == 404
    shop.publish(voucher("jam"))
    check_refused(put(shop, "jam", discount={"type": "fixed"}), "INVALID_FIELD", "discount.amount_minor")
    assert [one["action"] for one in shop.rows("SELECT action FROM audit")] == ["voucher.deactivate"]


def test_a_changed_limit_moves_what_is_free(either_shop: Shop) -> None:
    """By the difference, both measures; below what is spoken for free is negative, and leases are asked back."""
    either_shop.publish(voucher("tea", total=5, budget_minor=1_000))
    device = either_shop.device()
    held = either_shop.pool("tea")["held"]
    check_revised(put(either_shop, "tea", total=8, budget_minor=1_500))
    assert (either_shop.pool("tea")["free"], either_shop.pool("tea", "minor")["limit"]) == (8 - held, 1_500)
    check_i1(either_shop)
    assert device.sync().recall == []
    check_revised(put(either_shop, "tea", total=1, budget_minor=1_500))
    assert either_shop.pool("tea")["free"] == 1 - held < 0
    check_i1(either_shop)
    answer = either_shop.online(new_id(), "tea").json()
    assert [one["reason"] for one in answer["result"]["refused"]] == ["LIMIT_REACHED"]
    device.redeem(ORDER, "tea")
    assert device.sync_closing().exceptions == []
    assert either_shop.pool("tea")["closed_used"] == 1
    check_i1(either_shop)


def test_a_new_limit_counts_what_was_used_before_it(either_shop: Shop) -> None:
    """Online, offline and voided uses of a voucher without limits are in its first pool, as if it had been there."""
    either_shop.publish(voucher("tea"), voucher("jam"))
    device = either_shop.device()
    for _ in range(3):
        assert either_shop.online(new_id(), "tea").json()["redeemed"] is True
    offline = [device.redeem(ORDER | {"id": f"o{number}"}, "tea") for number in range(2)]
    device.redeem(ORDER, "jam")
    device.void(offline[0], "tea", minor=100)
    device.sync()
    check_revised(
        put(
            either_shop, "tea", total=10, budget_minor=450, offline={"policy": "soft", "max_units": 9, "max_minor": 900}
        )
    )
    units, minor = either_shop.pool("tea"), either_shop.pool("tea", "minor")
    assert (units["online"], units["uncovered"], units["voided"], units["free"]) == (3, 2, 1, 6)
    assert (minor["online"], minor["uncovered"], minor["voided"], minor["free"]) == (300, 200, 100, 50)
    check_i1(either_shop)
    device.redeem(ORDER | {"id": "later"}, "tea")
    device.sync()
    assert either_shop.pool("tea")["uncovered"] == 3
    check_i1(either_shop)


def test_a_lease_that_is_older_than_a_limit_uses_it_without_cover(shop: Shop) -> None:
    """It knows units only: what it spends of a budget that came later is counted all the same, and it is asked back."""
    shop.publish(voucher("tea", total=5))
    device = shop.device()
    device.redeem(ORDER, "tea")
    device.sync()
    check_revised(put(shop, "tea", total=5, budget_minor=1_000))
    assert (shop.pool("tea", "minor")["uncovered"], shop.pool("tea", "minor")["held"]) == (100, 0)
    device.redeem(ORDER | {"id": "o2"}, "tea")
    answer = device.sync()
    assert (answer.recall, answer.exceptions) == ([device.active()[0].id], [])
    assert shop.pool("tea", "minor")["uncovered"] == 200
    check_i1(shop)
    device.sync_closing()
    (lease,) = device.active()
    assert (lease.units, lease.minor) == (3, 300), "the next one knows both"
    check_i1(shop)


def test_a_limit_is_removed_only_where_nothing_is_leased(shop: Shop) -> None:
    """With a lease out it is refused in words that say how it comes back; a limit that returns counts everything."""
    shop.publish(voucher("tea", total=5))
    device = shop.device()
    device.redeem(ORDER, "tea")
    check_refused(put(shop, "tea"), "LEASED", "limits.total")
    assert shop.pool("tea")["limit"] == 5
    check_revised(put(shop, "tea", total=5, offline={"policy": "online_only"}))
    device.sync_closing()
    assert (device.active(), shop.pool("tea")["closed_used"]) == ([], 1)
    check_revised(put(shop, "tea"))
    assert shop.rows("SELECT 1 FROM pools") == []
    check_revised(put(shop, "tea", total=3))
    assert (shop.pool("tea")["closed_used"], shop.pool("tea")["free"]) == (1, 2)
    check_i1(shop)


def test_a_burned_lease_stays_spoken_for_while_there_is_no_limit(shop: Shop) -> None:
    """It is not out any more, so the limit can go; once there is one again, the lost units are missing from it."""
    shop.publish(voucher("tea", total=5))
    device = shop.device()
    (lease,) = device.active()
    shop.post(f"/v1/devices/{device.id}/lost")
    check_revised(put(shop, "tea"))
    check_revised(put(shop, "tea", total=9))
    assert (shop.pool("tea")["held"], shop.pool("tea")["free"]) == (lease.units, 9 - (lease.units or 0))
    check_i1(shop)


def test_another_policy_asks_leases_back(shop: Shop) -> None:
    """A voucher that becomes exclusive needs all of its limit in one hand; one that becomes quota needs nothing."""
    shop.publish(voucher("tea", total=4))
    device, other = shop.devices("store-1", "store-2")
    assert other.active()
    check_revised(put(shop, "tea", total=4, offline={"policy": "exclusive"}))
    assert device.sync_closing().recall == []
    other.sync_closing()
    check_i1(shop)
    device.sync()
    (lease,) = [*device.active(), *other.active()]
    assert lease.units == 4
    recalled = "SELECT id FROM leases WHERE recalled_at IS NOT NULL ORDER BY id"
    before = shop.rows(recalled)
    check_revised(put(shop, "tea", total=4))
    assert shop.rows(recalled) == before


def test_the_audit_says_what_changed_from_what_to_what(shop: Shop) -> None:
    """Field by field, exactly as published; null for what was left out."""
    shop.publish(voucher("tea", discount={"type": "percentage", "percent": 10}, status="paused"))
    check_revised(put(shop, "tea", discount={"type": "percentage", "percent": 12.5}, total=5))
    (row,) = shop.rows("SELECT who, action, object, detail FROM audit")
    assert (row["who"], row["action"]) == ("operator", "voucher.revise")
    assert row["object"] == shop.get("/v1/vouchers")["vouchers"][0]["id"]
    assert json.loads(row["detail"]) == {
        "revision": 2,
        "changed": {
            "discount": [{"type": "percentage", "percent": 10}, {"type": "percentage", "percent": 12.5}],
            "limits": [None, {"total": 5}],
            "status": ["paused", None],
        },
    }


def test_revisions_at_once_come_one_after_the_other(either_shop: Shop) -> None:
    """While uses, leases and other revisions go on: numbers without gaps, the last limit, and I1."""
    either_shop.publish(voucher("tea", total=50), voucher("jam"))
    device = either_shop.device()
    limits = [40, 60, 80, 100, 120]

    def work(number: int) -> int:
        if number % 2:
            return either_shop.online(new_id(), "tea", "jam").status_code
        index = number // 2
        put(either_shop, "jam", total=limits[index], offline={"policy": "online_only"})
        return put(either_shop, "tea", total=limits[index]).status_code

    device.redeem(ORDER, "tea")
    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(work, range(10)))
    device.sync()
    assert found == [200] * 10
    query = "SELECT r.revision FROM voucher_revisions r JOIN vouchers v ON v.id = r.voucher_id WHERE v.code = 'tea'"
    assert sorted(row["revision"] for row in either_shop.rows(query)) == [1, 2, 3, 4, 5, 6]
    check_i1(either_shop)
