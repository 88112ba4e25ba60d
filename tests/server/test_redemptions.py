"""Online redemptions: hard limits under any number of simultaneous requests, and one effect for one id."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.server.conftest import ORDER, voucher
from tests.server.tiny_device import NONE, new_id

if TYPE_CHECKING:
    import httpx2

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
