"""Online redemptions: hard limits under any number of simultaneous requests, and one effect for one id."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx2
import msgspec
import pytest

from tallystick_shared.errors import Untrusted
from tallystick_shared.journal import encode
from tallystick_shared.signing import Typ, sha256_hex, verify
from tallystick_shared.wire import RedeemAnswer, RedeemRequest
from tests.server.conftest import ORDER, voucher
from tests.server.tiny_device import NONE, new_id

if TYPE_CHECKING:
    from tests.server.conftest import Shop


def together(shop: Shop, ids: list[str], code: str, *, customers: list[str]) -> list[httpx2.Response]:
    def one(pair: tuple[str, str]) -> httpx2.Response:
        return shop.online(pair[0], code, order=ORDER | {"customer": {"id": pair[1]}})

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(one, zip(ids, customers, strict=True)))


def test_fifty_at_once_get_exactly_what_there_is(either_shop: Shop) -> None:
    """A limit of 3 under 50 simultaneous requests gives exactly 3."""
    either_shop.publish(voucher("tea", total=3))
    answers = together(either_shop, [new_id() for _ in range(50)], "tea", customers=[f"c{n}" for n in range(50)])
    assert [one.status_code for one in answers] == [200] * 50
    assert sum(one.json()["redeemed"] for one in answers) == 3
    refused = next(one.json() for one in answers if not one.json()["redeemed"])
    assert refused["result"]["refused"][0]["reason"] == "LIMIT_REACHED"
    assert (either_shop.pool("tea")["free"], either_shop.pool("tea")["online"]) == (0, 3)


def test_a_budget_is_not_overdrawn_at_once(either_shop: Shop) -> None:
    """A budget of 2.50 under 20 simultaneous discounts of 1.00 pays two."""
    either_shop.publish(voucher("tea", budget_minor=250))
    answers = together(either_shop, [new_id() for _ in range(20)], "tea", customers=[f"c{n}" for n in range(20)])
    assert sum(one.json()["redeemed"] for one in answers) == 2
    assert either_shop.pool("tea", "minor")["free"] == 50


def test_one_customer_at_once_is_one_customer(either_shop: Shop) -> None:
    """`per_customer` is hard online: 10 simultaneous requests of one customer give 1."""
    either_shop.publish(voucher("tea", per_customer=1))
    answers = together(either_shop, [new_id() for _ in range(10)], "tea", customers=["anna"] * 10)
    assert [one.status_code for one in answers] == [200] * 10
    assert sum(one.json()["redeemed"] for one in answers) == 1


def test_one_id_at_once_is_one_redemption(either_shop: Shop) -> None:
    """The same request ten times at once has one effect and ten equal answers."""
    either_shop.publish(voucher("tea", total=5))
    answers = together(either_shop, [NONE] * 10, "tea", customers=["anna"] * 10)
    assert len({one.content for one in answers}) == 1
    assert either_shop.pool("tea")["online"] == 1


def test_one_id_for_two_orders_is_refused(shop: Shop) -> None:
    """An id that was used for something else is a conflict, and nothing is redeemed."""
    shop.publish(voucher("tea", total=5))
    assert shop.online(NONE, "tea").json()["redeemed"] is True
    other = shop.online(NONE, "tea", order=ORDER | {"id": "order-2"})
    assert (other.status_code, other.json()["code"]) == (409, "IDENTIFIER_REUSED")


def test_what_devices_hold_is_not_redeemed_online(shop: Shop) -> None:
    """Units in a lease are spoken for, used or not."""
    shop.publish(voucher("tea", total=2))
    shop.device()
    assert shop.online(new_id(), "tea").json()["result"]["refused"][0]["reason"] == "LIMIT_REACHED"


@pytest.mark.parametrize(("code", "reason"), [("none", "UNKNOWN_CODE"), ("tea", "INACTIVE")])
def test_unknown_and_withdrawn_codes_are_refused_as_values(shop: Shop, code: str, reason: str) -> None:
    """A refusal is an answer, not an error."""
    shop.publish(voucher("tea"))
    (row,) = shop.get("/v1/vouchers")["vouchers"]
    shop.post(f"/v1/vouchers/{row['id']}/deactivate")
    answer = shop.online(new_id(), code)
    assert answer.status_code == 200
    assert [one["reason"] for one in answer.json()["result"]["refused"]] == [reason]


def test_a_device_sees_its_own_scope_only(shop: Shop) -> None:
    """Online as offline, a device redeems what its scope holds; other codes are unknown to it."""
    shop.post("/v1/scopes", {"name": "web"})
    shop.publish(voucher("tea"), scope="web")
    device = shop.device()
    assert device.answer_online(ORDER, ["tea"], new_id()).redeemed is False
    assert shop.device(scope="web", synced=False).answer_online(ORDER, ["tea"], new_id()).redeemed is True


def test_an_operator_cannot_speak_for_a_device(shop: Shop) -> None:
    """`device` is for a device's own signature."""
    device = shop.device()
    body = {"id": new_id(), "order": ORDER, "codes": ["tea"], "device": device.id}
    response = shop.post("/v1/redemptions", body)
    assert (response.status_code, response.json()["errors"][0]["path"]) == (422, "device")


def test_a_redemption_is_of_the_store_of_its_device(shop: Shop) -> None:
    """Whatever store a device's order names; of an operator, the order's, or none."""
    shop.publish(voucher("tea"))
    device, named = shop.device("store-2", synced=False), ORDER | {"store_id": "store-9"}
    asked = {new_id(): "store-2", new_id(): "store-9", new_id(): None}
    of_device, of_operator, of_nobody = asked
    assert device.answer_online(named, ["tea"], of_device).redeemed is True
    assert shop.online(of_operator, "tea", order=named).json()["redeemed"] is True
    assert shop.online(of_nobody, "tea").json()["redeemed"] is True
    assert {one["redemption_id"]: one["store_id"] for one in shop.rows("SELECT * FROM redemptions")} == asked


@pytest.mark.parametrize(
    "body", [b"{", b'{"id":"\xff"}', b'{"order":' + b"[" * 100_000], ids=["cut", "no text", "deep"]
)
def test_what_is_no_json_is_refused_in_a_sentence(shop: Shop, body: bytes) -> None:
    """Of the whole body, so it has no path."""
    response = httpx2.post(
        f"{shop.url}/v1/redemptions", content=body, headers=shop.headers | {"Content-Type": "application/json"}
    )
    (error,) = response.json()["errors"]
    assert (response.status_code, error["path"], error["expected"]) == (422, "", "must be JSON")


def test_an_answer_to_a_device_is_signed_over_its_request(shop: Shop) -> None:
    """It names the device and the digest of the request's exact bytes; a repeat gets the same of its own bytes."""
    shop.publish(voucher("tea", total=5))
    shop.device("store-2", synced=False)
    device, attempt = shop.device(), new_id()
    first, again = (device.redeem_online(ORDER, ["tea"], attempt) for _ in range(2))
    assert {one.headers["content-type"] for one in (first, again)} == {"application/jose"}
    order = msgspec.Raw(msgspec.json.encode(ORDER))
    bodies = [device.key.sign(Typ.REDEEM, encode(RedeemRequest(attempt, order, ["tea"], device.id)))]
    bodies.append(device.key.sign(Typ.REDEEM, encode(RedeemRequest(attempt, order, ["tea", "tea"], device.id))))
    answer = msgspec.json.decode(
        verify(device.post_online(bodies[0]).content, device.receipt, Typ.REDEEMED), type=RedeemAnswer
    )
    assert (answer.id, answer.device, answer.request_sha256) == (attempt, device.id, sha256_hex(bodies[0]))
    assert answer.redeemed is True
    other = device.post_online(bodies[1])
    assert (other.status_code, other.json()["code"]) == (409, "IDENTIFIER_REUSED")
    assert shop.pool("tea")["online"] == 1
    with pytest.raises(Untrusted):
        verify(first.content, device.bundle, Typ.REDEEMED)


def test_an_operators_answer_is_plain(shop: Shop) -> None:
    """JSON, bound to no device."""
    shop.publish(voucher("tea"))
    answer = shop.online(new_id(), "tea")
    assert answer.headers["content-type"] == "application/json"
    assert (answer.json()["device"], answer.json()["request_sha256"]) == (None, None)


@pytest.mark.parametrize("state", ["recovering", "restore_suspected"])
def test_a_restored_server_redeems_no_limited_voucher_online(either_shop: Shop, state: str) -> None:
    """It may have forgotten uses and leases: 503, so that a till sells from its lease. Others, and repeats, go on."""
    either_shop.publish(voucher("tea", total=5), voucher("pot", budget_minor=500), voucher("jam"))
    device, before = either_shop.device(synced=False), new_id()
    assert either_shop.online(before, "tea").json()["redeemed"] is True
    either_shop.rows("UPDATE server SET state = :state", state=state)
    for code in ("tea", "pot"):
        for refused in (either_shop.online(new_id(), code), device.redeem_online(ORDER, [code], new_id())):
            assert (refused.status_code, refused.json()["code"]) == (503, "RECOVERING")
            assert refused.headers["retry-after"]
    assert either_shop.online(before, "tea").json()["redeemed"] is True
    assert either_shop.online(new_id(), "jam").json()["redeemed"] is True
    assert either_shop.online(new_id(), "none").json()["redeemed"] is False
    assert either_shop.pool("tea")["online"] == 1
    either_shop.rows("UPDATE server SET state = 'normal'")
    assert either_shop.online(new_id(), "tea").json()["redeemed"] is True


def test_what_a_device_redeems_online_is_kept_with_all_that_is_asked_of_it_later(shop: Shop) -> None:
    """Device, time, customer, digests and uses; a unit of the customer's, and one that the device sold."""
    shop.publish(voucher("tea", total=5, budget_minor=1_000))
    device, attempt, nobody = shop.device(synced=False), new_id(), new_id()
    assert device.answer_online(ORDER, ["tea"], attempt).redeemed is True
    assert shop.online(nobody, "tea", order=ORDER | {"customer": None}).json()["redeemed"] is True
    first, second = sorted(shop.rows("SELECT * FROM redemptions"), key=lambda row: row["redemption_id"] != attempt)
    assert (first["issuer"], first["device_id"], first["customer_id"]) == (device.id, device.id, "anna")
    assert (second["issuer"], second["device_id"], second["customer_id"]) == ("operator", None, None)
    assert [(row["online"], row["body_sha256"]) for row in (first, second)] == [(1, None)] * 2
    assert len({row["content_sha256"] for row in (first, second)}) == 2
    assert msgspec.json.decode(first["result"])["applied"][0]["discount_minor"] == 100
    (published,) = shop.get("/v1/vouchers")["vouchers"]
    for use in shop.rows("SELECT * FROM redemption_uses"):
        assert (use["voucher_id"], use["revision_sha256"]) == (published["id"], published["sha256"])
        assert (use["units"], use["minor"], use["settled_minor"]) == (1, 100, 100)
        assert (use["lease_id"], use["cover"], use["voided_units"], use["voided_minor"]) == (None, "online", 0, 0)
    assert shop.rows("SELECT customer_id, units FROM customer_uses") == [{"customer_id": "anna", "units": 1}]
    assert shop.rows("SELECT device_id, units FROM demand") == [{"device_id": device.id, "units": 1}]
    for measure, each in (("units", 1), ("minor", 100)):
        pool = shop.pool("tea", measure)
        assert (pool["online"], pool["free"]) == (2 * each, pool["limit"] - 2 * each)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [({"total": 2}, "LIMIT_REACHED"), ({"budget_minor": 299}, "BUDGET_EXHAUSTED")],
)
def test_the_last_of_a_limit_is_redeemed_and_no_more(shop: Shop, limits: dict[str, int], reason: str) -> None:
    """The refusal says how much has been used, or is left."""
    shop.publish(voucher("tea", **limits))
    assert [shop.online(new_id(), "tea").json()["redeemed"] for _ in range(3)] == [True, True, False]
    (refused,) = shop.online(new_id(), "tea").json()["result"]["refused"]
    assert refused["reason"] == reason
    told = {name: refused["detail"].get(name) for name in ("limit", "used", "discount_minor", "left_minor")}
    used = {"limit": 2, "used": 2, "discount_minor": None, "left_minor": None}
    left = {"limit": None, "used": None, "discount_minor": 100, "left_minor": 99}
    assert told == (used if reason == "LIMIT_REACHED" else left)


def test_a_customer_redeems_as_often_as_the_limit_says(shop: Shop) -> None:
    """Each customer by themselves, of each voucher by itself; and whoever has no name not at all."""
    shop.publish(voucher("tea", per_customer=2), voucher("jam", per_customer=1))
    berta = ORDER | {"customer": {"id": "berta"}}
    assert [shop.online(new_id(), "tea").json()["redeemed"] for _ in range(3)] == [True, True, False]
    assert shop.online(new_id(), "jam").json()["redeemed"] is True
    assert shop.online(new_id(), "tea", order=berta).json()["redeemed"] is True
    (refused,) = shop.online(new_id(), "tea").json()["result"]["refused"]
    assert (refused["reason"], refused["detail"]["used"]) == ("CUSTOMER_LIMIT_REACHED", 2)
    assert shop.online(new_id(), "tea", order=ORDER | {"customer": {}}).json()["redeemed"] is False
    uses = {(row["customer_id"], row["units"]) for row in shop.rows("SELECT * FROM customer_uses")}
    assert uses == {("anna", 2), ("anna", 1), ("berta", 1)}


def test_a_bad_field_is_named_with_its_place(shop: Shop) -> None:
    """Of the request, of the order in it, and of one of its codes."""
    good = {"id": new_id(), "order": ORDER, "codes": ["tea"]}
    for fields, path in (
        ({"codes": "tea"}, "codes"),
        ({"order": ORDER | {"currency": "EURO"}}, "order.currency"),
        ({"codes": ["tea", ""]}, "codes[1]"),
    ):
        response = shop.post("/v1/redemptions", good | fields)
        assert (response.status_code, [one["path"] for one in response.json()["errors"]]) == (422, [path])
