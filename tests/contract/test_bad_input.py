"""Bad input, at every door: one clear sentence that names the field, a stable code, and nothing changed."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

if TYPE_CHECKING:
    from tests.contract.conftest import Shop

GOOD = {"code": "GOOD", "discount": {"type": "percentage", "percent": 10}}
ORDER = {
    "id": "o",
    "currency": "USD",
    "lines": [{"id": "1", "product_id": "p", "quantity": 1, "unit_price_minor": 999}],
}


def _voucher(**fields: Any) -> str:
    return json.dumps({"code": "BAD", "discount": {"type": "percentage", "percent": 10}} | fields)


def _tiers(*minimums: int) -> dict[str, Any]:
    fixed = {"type": "fixed", "amount_minor": 1}
    return {"type": "tiered", "tiers": [{"min": one, "discount": fixed} for one in minimums]}


BAD = [
    ("malformed JSON", '{"code": "BAD",', ""),
    ("an unknown field", _voucher(colour="red"), "colour"),
    ("a float for money", _voucher(discount={"type": "fixed", "amount_minor": 1.5}), "discount.amount_minor"),
    ("unsorted tiers", _voucher(discount=_tiers(500, 100)), "discount.tiers[1].min"),
    ("overlapping tiers", _voucher(discount=_tiers(100, 100)), "discount.tiers[1].min"),
    ("percent 0", _voucher(discount={"type": "percentage", "percent": 0}), "discount.percent"),
    ("percent above 100", _voucher(discount={"type": "percentage", "percent": 100.0001}), "discount.percent"),
    ("a code of 10,000 characters", _voucher(code="X" * 10_000), "code"),
]


@pytest.mark.parametrize(("voucher", "path"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_a_bad_voucher_is_refused_at_every_door(shop: Shop, voucher: str, path: str) -> None:
    """Import, API and `evaluate` each name the field and change nothing."""
    done = shop.operator("import", shop.write("bad.ndjson", GOOD, voucher))
    assert done.returncode == 2
    assert f"bad.ndjson:2: {path}" in done.stderr.replace("\n", "")
    _one_sentence(done.stderr)

    key = {"Authorization": f"Bearer {shop.key}", "Content-Type": "application/json"}
    answer = httpx2.post(f"{shop.server.url}/v1/vouchers", content=voucher, headers=key)
    assert answer.status_code in (400, 422)
    assert answer.headers["content-type"].startswith("application/problem+json")
    problem = answer.json()
    assert problem["code"]
    assert path in problem["detail"]
    assert len(answer.content) < 2_000, "the answer does not repeat what was sent"
    assert _vouchers(shop) == []

    order = json.dumps(ORDER)
    at = "2026-11-23T12:00:00Z"
    evaluated = shop.till("t", "evaluate", "-", given=f'{{"order": {order}, "vouchers": [{voucher}], "at": "{at}"}}')
    assert evaluated.returncode == 2
    assert (f"vouchers[0].{path}" if path else "") in evaluated.stderr
    _one_sentence(evaluated.stderr)


def test_a_voucher_over_several_lines_is_one_sentence(shop: Shop) -> None:
    """Pretty-printed JSON is told what the file should look like, not an error for each of its lines."""
    path = shop.work / "pretty.ndjson"
    path.write_text(json.dumps(GOOD, indent=2))
    done = shop.operator("import", str(path))
    assert done.returncode == 2
    assert "must hold each voucher whole on one line of its own" in " ".join(done.stderr.split())
    _one_sentence(done.stderr)


def test_a_file_is_imported_whole_or_not_at_all(shop: Shop) -> None:
    """Every bad line of a file is named, and its good lines are not published."""
    path = shop.write("many.ndjson", GOOD, _voucher(colour="red"), GOOD | {"code": "TWO"}, "not json")
    done = shop.operator("import", path)
    assert done.returncode == 2
    assert "many.ndjson:2:" in done.stderr
    assert "many.ndjson:4:" in done.stderr
    assert _vouchers(shop) == []


def test_an_enrolment_token_works_once(shop: Shop) -> None:
    """A second till with the same token is refused in one sentence, and nothing was enrolled."""
    token = shop.token("store")
    assert shop.till("till-a", "enroll", shop.server.url, token).returncode == 0
    second = shop.till("till-b", "enroll", shop.server.url, token)
    assert second.returncode in (2, 4)
    assert "TOKEN_USED" in second.stderr
    _one_sentence(second.stderr)
    assert _count(shop, "devices") == 1


def test_a_sync_body_of_100_megabytes_is_refused(shop: Shop) -> None:
    """413 as problem details, whether the size is announced or not, and the server goes on serving."""
    url = f"{shop.server.url}/v1/sync"
    announced = httpx2.post(url, content=b"x" * 100_000_000, timeout=60)
    assert announced.status_code == 413
    assert announced.json()["code"]

    def chunks() -> Iterator[bytes]:
        for _ in range(1000):
            yield b"x" * 100_000

    try:
        status = httpx2.post(url, content=chunks(), timeout=60).status_code
    except (httpx2.WriteError, httpx2.RemoteProtocolError, httpx2.ReadError):
        status = 413  # cut off while it was still sending: nothing was read on
    assert status == 413
    assert httpx2.get(f"{shop.server.url}/health/live").status_code == 200


def test_an_order_in_another_currency_is_refused_with_a_reason(shop: Shop) -> None:
    """A voucher in USD says CURRENCY_MISMATCH to an order in EUR, and the till records nothing."""
    fixed = {"code": "FIXED", "discount": {"type": "fixed", "amount_minor": 100}}
    assert shop.operator("import", shop.write("v.ndjson", fixed)).returncode == 0
    shop.enrol("till")
    order = shop.write("order.json", ORDER | {"currency": "EUR"})
    done = shop.till("till", "redeem", order, "--code", "FIXED", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["result"]["refused"][0]["reason"] == "CURRENCY_MISMATCH"
    assert shop.status("till")["waiting"] == 0


def test_a_database_that_is_not_there_is_named(shop: Shop) -> None:
    """A server pointed at an empty folder says what to do, for every command."""
    shop.data = shop.work / "nothing-here"
    for command in (["status"], ["serve", "--port", "0"], ["token", "--store", "s"], ["import", shop.write("v", GOOD)]):
        done = shop.operator(*command)
        assert done.returncode == 2, command
        assert "tallystick-server init" in done.stderr
        _one_sentence(done.stderr)
    assert not shop.data.exists() or not any(shop.data.rglob("*.sqlite3"))


def test_a_bundle_signed_by_another_server_changes_nothing(shop: Shop) -> None:
    """A till whose server was replaced refuses the new bundle, keeps the old one and goes on redeeming."""
    assert shop.operator("import", shop.write("v.ndjson", GOOD)).returncode == 0
    shop.enrol("till")
    other = shop.work / "other"
    shop.operator("--data", str(other), "init")
    shop.server.stop()
    shutil.rmtree(shop.data / "keys")
    shutil.copytree(other / "keys", shop.data / "keys")
    assert shop.operator("import", shop.write("w.ndjson", GOOD | {"code": "NEW"})).returncode == 0
    shop.server.start()
    done = shop.till("till", "sync")
    assert done.returncode == 4
    _one_sentence(done.stderr)
    order = shop.write("order.json", ORDER)
    assert shop.till("till", "redeem", order, "--code", "GOOD").returncode == 0


def _vouchers(shop: Shop) -> list[str]:
    connection = sqlite3.connect(shop.data / "tallystick.sqlite3")
    try:
        return [code for (code,) in connection.execute("SELECT code FROM vouchers")]
    finally:
        connection.close()


def _count(shop: Shop, table: str) -> int:
    connection = sqlite3.connect(shop.data / "tallystick.sqlite3")
    try:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
    finally:
        connection.close()


def _one_sentence(stderr: str) -> None:
    assert stderr.strip()
    assert "Traceback" not in stderr
    assert len(stderr) < 1_000
