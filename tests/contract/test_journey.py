"""The main job, with the real commands and the real server, as an operator and a cashier would do it."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2

from benchmarks.audit import audit

if TYPE_CHECKING:
    from tests.contract.conftest import Shop

ORDER = {
    "id": "order-1",
    "currency": "USD",
    "lines": [{"id": "1", "product_id": "tea", "quantity": 3, "unit_price_minor": 450}],
    "customer": {"id": "anna"},
}
TEN = {"code": "TEN", "discount": {"type": "percentage", "percent": 10}}
ONCE = {"code": "Once", "discount": {"type": "fixed", "amount_minor": 300}, "limits": {"total": 1}}


def test_what_a_till_redeems_offline_is_settled_to_the_cent(shop: Shop) -> None:
    """Redeemed with the server stopped, synced when it is back: the server's table has the till's amount."""
    assert shop.operator("import", shop.write("v.ndjson", TEN, ONCE)).returncode == 0
    shop.enrol("till")
    shop.server.stop()
    order = shop.write("order.json", ORDER)
    preview = json.loads(shop.till("till", "preview", order, "--code", " once ", "--json").stdout)
    redeemed = json.loads(shop.till("till", "redeem", order, "--code", " once ", "--json").stdout)
    assert redeemed["redeemed"] is True
    assert redeemed["result"] == preview
    assert redeemed["result"]["discount_minor"] == 300
    again = shop.till("till", "redeem", order, "--code", "ONCE", "--json")
    assert again.returncode == 1
    assert json.loads(again.stdout)["result"]["refused"][0]["reason"] == "NO_ALLOWANCE"
    assert shop.till("till", "sync").returncode == 3, "the line is down, and the command says so"
    shop.server.start()
    assert shop.till("till", "sync").returncode == 0
    report = asyncio.run(audit(_url(shop), [shop.work / "till"]))
    assert report.holds, report
    assert (report.redeemed, report.discount_minor, report.settled_minor) == (1, 300, 300)


def test_a_void_offline_gives_the_unit_back(shop: Shop) -> None:
    """A voided redemption of the last unit can be redeemed again after the till has synced."""
    assert shop.operator("import", shop.write("v.ndjson", ONCE)).returncode == 0
    shop.enrol("till")
    shop.server.stop()
    order = shop.write("order.json", ORDER)
    receipt = json.loads(shop.till("till", "redeem", order, "--code", "ONCE", "--json").stdout)
    void = json.loads(shop.till("till", "void", receipt["id"], "--json").stdout)
    assert void["refund_minor"] == 3 * 450 - 300, "what was paid goes back, not the list price"
    shop.server.start()
    assert shop.till("till", "sync").returncode == 0
    assert shop.till("till", "sync").returncode == 0
    assert shop.till("till", "redeem", order, "--code", "ONCE").returncode == 0
    assert shop.till("till", "sync").returncode == 0
    report = asyncio.run(audit(_url(shop), [shop.work / "till"]))
    assert report.holds, report
    assert (report.redeemed, report.voided) == (2, 1)


def test_two_tills_cannot_both_have_the_last_unit(shop: Shop) -> None:
    """Of two tills offline together, one alone holds the lease of a voucher with a limit of 1."""
    assert shop.operator("import", shop.write("v.ndjson", ONCE)).returncode == 0
    shop.enrol("till-a")
    shop.enrol("till-b")
    shop.server.stop(signal.SIGKILL)
    order = shop.write("order.json", ORDER)
    codes = [shop.till(till, "redeem", order, "--code", "ONCE").returncode for till in ("till-a", "till-b")]
    assert sorted(codes) == [0, 1]


def test_an_app_redeems_online_with_the_operator_key_only(shop: Shop) -> None:
    """Online redemption: once for one id, refused over the limit, and nothing at all without a key."""
    assert shop.operator("import", shop.write("v.ndjson", ONCE)).returncode == 0
    body = {"id": "0190b6a0-0000-7000-8000-000000000001", "order": ORDER, "codes": ["once"]}
    url, key = f"{shop.server.url}/v1/redemptions", {"Authorization": f"Bearer {shop.key}"}
    assert httpx2.post(url, json=body).status_code == 401
    first, repeat = httpx2.post(url, json=body, headers=key), httpx2.post(url, json=body, headers=key)
    assert first.json()["redeemed"] is True
    assert repeat.json() == first.json()
    other = httpx2.post(url, json=body | {"id": "0190b6a0-0000-7000-8000-000000000002"}, headers=key).json()
    assert other["redeemed"] is False
    assert other["result"]["refused"][0]["reason"] == "LIMIT_REACHED"
    changed = httpx2.post(url, json=body | {"codes": ["ONCE", "TEN"]}, headers=key)
    assert changed.status_code == 409
    assert changed.json()["code"] == "IDENTIFIER_REUSED"


def test_the_same_request_after_a_power_cut_is_one_redemption(shop: Shop) -> None:
    """A till that is asked again with the id of a redemption it has answers with the receipt it gave."""
    assert shop.operator("import", shop.write("v.ndjson", TEN)).returncode == 0
    shop.enrol("till")
    line = json.dumps({"id": "0190b6a0-0000-7000-8000-000000000003", "order": ORDER, "codes": ["TEN"]}) + "\n"
    first = shop.till("till", "redeem", "--stream", "-", given=line).stdout
    assert shop.till("till", "redeem", "--stream", "-", given=line).stdout == first
    assert shop.status("till")["waiting"] == 1


def _url(shop: Shop) -> str:
    database: Path = shop.data / "tallystick.sqlite3"
    return f"sqlite+aiosqlite:///{database}"
