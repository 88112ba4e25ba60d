"""Bodies past their time and customers who are to be forgotten: erased for good, and no count changes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tallystick_server import privacy
from tallystick_shared.errors import CallerError, InvalidInput
from tallystick_shared.journal import EventType, chain_next, read_envelope
from tests.server.conftest import ORDER, Shop, voucher
from tests.server.tiny_device import TinyDevice, new_id

COMMAND = str(Path(sys.executable).parent / "tallystick-server")
GONE = "customer-to-forget"
HERS: dict[str, Any] = ORDER | {"customer": {"id": GONE, "segments": ["seg-of-the-forgotten"]}}
SOMEONES: dict[str, Any] = ORDER | {"customer": {"id": "bertha"}}


def forget(shop: Shop, customer: str = GONE) -> privacy.Forgotten:
    return asyncio.run(privacy.forget(shop.settings, customer, now=shop.clock()))


def erase(shop: Shop, days: int) -> int:
    settings = msgspec.structs.replace(shop.settings, body_retention_s=days * 86_400)
    return asyncio.run(privacy.erase_old_bodies(settings, now=shop.clock()))


ACCOUNTS = (
    "SELECT * FROM pools ORDER BY voucher_id, measure",
    "SELECT * FROM redemption_uses ORDER BY redemption_id, voucher_id",
    "SELECT device_id, branch, seq, event_id, type, envelope, hash, outcome, reasons FROM events ORDER BY 1, 2, 3",
    "SELECT * FROM leases ORDER BY id",
    "SELECT * FROM flags ORDER BY id",
    "SELECT voucher_id, customer_id, units FROM customer_uses WHERE customer_id = 'bertha' ORDER BY 1",
)


def accounts(shop: Shop) -> list[Any]:
    return [shop.rows(query) for query in ACCOUNTS]


def bodies(shop: Shop) -> list[bytes]:
    return [bytes(row["body"]) for row in shop.rows("SELECT body FROM events ORDER BY device_id, branch, seq")]


def in_files(shop: Shop, text: str) -> bool:
    """Whether the database's own files hold these bytes anywhere, deleted or not."""
    return any(text.encode() in part.read_bytes() for part in shop.settings.data.glob("tallystick.sqlite3*"))


def a_day(shop: Shop) -> TinyDevice:
    """Sales of two customers, one of them voided, one flagged, one fork, and one online."""
    shop.publish(voucher("ONCE", total=10), voucher("OPEN"), voucher("EACH", per_customer=1))
    vip = {"field": "customer.segments", "op": "contains", "value": "vip"}
    shop.publish(voucher("VIP", when=vip))
    device = shop.device()
    voided = device.redeem(HERS, "open")
    device.redeem(SOMEONES, "each")
    device.redeem(HERS, "once")
    device.redeem(HERS, "each", at=shop.clock() + timedelta(days=3))
    device.void(voided, "open", minor=100)
    device.sync()
    assert shop.online(new_id(), "OPEN", "VIP", order=HERS).json()["redeemed"]
    return device


def test_a_forgotten_customer_is_nowhere_and_every_count_is_as_before(either_shop: Shop) -> None:
    """Bodies, ids at redemptions, counters; pools, uses, envelopes and the other customer are untouched."""
    shop = either_shop
    device = a_day(shop)
    before = accounts(shop)
    assert "TIME_UNCERTAIN" in shop.flags()
    done = forget(shop)
    assert (done.redemptions, done.bodies, done.waiting, done.unreadable) == (4, 4, 1, 0)
    assert accounts(shop) == before
    assert [bool(body) for body in bodies(shop)] == [False, True, False, False, False]
    assert {row["customer_id"] for row in shop.rows("SELECT customer_id FROM redemptions")} == {None, "bertha"}
    assert shop.rows("SELECT * FROM customer_uses WHERE customer_id = :one", one=GONE) == []
    chain = device.start
    for row in shop.rows("SELECT envelope, hash FROM events ORDER BY seq"):
        chain = chain_next(chain, bytes(row["envelope"]))
        assert chain == row["hash"]
    for row in shop.rows("SELECT * FROM redemptions") + shop.rows("SELECT * FROM audit"):
        assert GONE not in repr(row)
        assert "seg-of-the-forgotten" not in repr(row)


def test_no_byte_of_a_forgotten_customer_is_left_in_the_files(shop: Shop) -> None:
    """SQLite leaves what is deleted in its file and its log until something needs the room; here it is overwritten."""
    a_day(shop)
    assert in_files(shop, GONE)
    forget(shop)
    assert not in_files(shop, GONE)
    assert not in_files(shop, "seg-of-the-forgotten")
    assert in_files(shop, "bertha")


def test_the_audit_tells_that_somebody_was_forgotten_not_who(shop: Shop) -> None:
    """A digest that whoever knows the id can compare, and how much it was."""
    a_day(shop)
    forget(shop)
    (row,) = shop.rows("SELECT * FROM audit WHERE action = 'customer.forget'")
    assert row["object"].startswith("sha256:")
    assert json.loads(row["detail"]) == {"redemptions": 4, "bodies": 4, "waiting": 1}


def test_what_is_sent_again_is_still_known(shop: Shop) -> None:
    """The same events over the line, the same redemption under another number, the same online request."""
    shop.publish(voucher("OPEN"))
    device = shop.device()
    sold = device.redeem(HERS, "open")
    online = new_id()
    device.sync()
    answer = shop.online(online, "OPEN", order=HERS).json()
    forget(shop)
    before = accounts(shop)
    device.sync(after=0)
    assert accounts(shop) == before
    again = shop.online(online, "OPEN", order=HERS).json()
    assert (again["id"], again["redeemed"]) == (answer["id"], True)
    uses = read_envelope(device.events[0].envelope).uses
    device.append(EventType.REDEEM, uses, device.events[0].body, event_id=sold)
    device.sync()
    assert [one.outcome for one in device.answer.exceptions] == ["duplicate"]
    assert shop.rows("SELECT count(*) AS n FROM redemptions") == [{"n": 2}]


def test_a_void_after_forgetting_gives_back_what_was_frozen(shop: Shop) -> None:
    """Its amounts are those of the uses, and the unit returns to the pool once."""
    shop.publish(voucher("ONCE", total=10, budget_minor=1_000))
    device = shop.device()
    sold = device.redeem(HERS, "once")
    lease = device.lease_of("once")
    assert lease is not None
    device.close(lease)
    device.sync_closing()
    forget(shop)
    device.void(sold, "once", minor=100)
    device.sync()
    assert device.answer.exceptions == []
    assert (shop.pool("ONCE")["voided"], shop.pool("ONCE", "minor")["voided"]) == (1, 100)


def test_a_forgotten_customer_starts_anew_and_the_others_do_not(shop: Shop) -> None:
    """`per_customer` counts from nothing for this one only; voiding what was forgotten takes from nobody."""
    shop.publish(voucher("EACH", per_customer=1))
    first = new_id()
    for customer, order in ((GONE, HERS), ("bertha", SOMEONES)):
        assert shop.online(first if customer == GONE else new_id(), "EACH", order=order).json()["redeemed"]
        assert not shop.online(new_id(), "EACH", order=order).json()["redeemed"]
    forget(shop)
    assert shop.online(new_id(), "EACH", order=HERS).json()["redeemed"]
    assert not shop.online(new_id(), "EACH", order=HERS).json()["redeemed"]
    assert not shop.online(new_id(), "EACH", order=SOMEONES).json()["redeemed"]


def test_every_branch_of_a_journal_is_searched(shop: Shop) -> None:
    """A fork is kept, and holds customers like any other journal; so do events that no redemption was made of."""
    shop.publish(voucher("OPEN"))
    device = shop.device()
    device.redeem(HERS, "open")
    device.sync()
    copy_of, hashes = device.events[:], device.hashes[:]
    device.redeem(SOMEONES, "open")
    device.sync()
    device.events, device.hashes, device.acknowledged = copy_of, hashes, 1
    device.redeem(HERS, "open")
    device.redeem(HERS, "open", redemption_id=new_id())
    device.post(device.request())
    assert shop.rows("SELECT branches FROM devices") == [{"branches": 2}]
    done = forget(shop)
    assert done.bodies == 3
    assert not in_files(shop, GONE)
    assert forget(shop) == privacy.Forgotten(0, 0, 0, 0)


def test_what_cannot_be_read_is_left_and_said(shop: Shop) -> None:
    """A body that is no JSON may hold anybody: it stays for a person, and the operator is told."""
    shop.publish(voucher("OPEN"))
    device = shop.device()
    device.append_raw(b"no envelope", f"no body of {GONE}".encode())
    device.append_raw(b"no envelope either", b"nothing about anyone")
    device.sync()
    assert forget(shop).unreadable == 1
    assert all(bodies(shop))
    with pytest.raises(InvalidInput, match="--customer"):
        forget(shop, "")


def test_old_bodies_are_erased_but_those_that_wait_for_a_person(
    either_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pages; young ones stay, flagged and quarantined ones until a person has resolved every flag of theirs."""
    monkeypatch.setattr(privacy, "PAGE", 2)
    shop = either_shop
    shop.publish(voucher("OPEN"))
    device = shop.device()
    for _ in range(5):
        device.redeem(HERS, "open")
    device.redeem(HERS, "open", at=shop.clock() + timedelta(days=2))
    device.append_raw(b"no envelope", b"no body")
    device.sync()
    shop.clock.advance(days=30)
    device.redeem(HERS, "open")
    device.sync()
    before = accounts(shop)
    assert erase(shop, 31) == 0
    assert erase(shop, 29) == 5
    assert [bool(body) for body in bodies(shop)] == [False] * 5 + [True] * 3
    assert accounts(shop) == before
    for flag in shop.get("/v1/flagged")["flagged"]:
        assert shop.post(f"/v1/flagged/{flag['id']}/resolve", {"note": "seen"}).status_code < 300
    assert erase(shop, 29) == 2
    assert erase(shop, 29) == 0
    assert len(shop.rows("SELECT * FROM audit WHERE action = 'bodies.erase'")) == 4


def test_old_results_say_nothing_of_their_customers(either_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Online ones have no body to be erased, and a till's clock may be years ahead: both are cut, young ones stay."""
    monkeypatch.setattr(privacy, "PAGE", 1)
    shop = either_shop
    vip = {"field": "customer.segments", "op": "contains", "value": "vip"}
    shop.publish(voucher("OPEN"), voucher("VIP", when=vip))
    device = shop.device()
    refused = b'{"refused":[{"code":"VIP","reason":"CONDITION_NOT_MET","detail":{"was":["seg-of-the-forgotten"]}}],'
    device.redeem(HERS, "open", at=shop.clock() + timedelta(days=2_000), body_result=refused + b'"applied":[]}')
    device.sync()
    for flag in shop.get("/v1/flagged")["flagged"]:
        shop.post(f"/v1/flagged/{flag['id']}/resolve", {"note": "seen"})
    online = new_id()
    assert shop.online(online, "OPEN", "VIP", order=HERS).json()["redeemed"]
    shop.clock.advance(days=30)
    assert shop.online(new_id(), "OPEN", "VIP", order=HERS).json()["redeemed"]

    def telling() -> list[bool]:
        rows = shop.rows("SELECT result FROM redemptions ORDER BY online, at")
        return [b"seg-of-the-forgotten" in row["result"] for row in rows]

    before = accounts(shop)
    assert telling() == [True, True, True]
    assert (erase(shop, 31), telling()) == (0, [True, True, True])
    assert (erase(shop, 29), telling()) == (1, [False, False, True])
    assert accounts(shop) == before
    again = shop.online(online, "OPEN", "VIP", order=HERS).json()
    assert (again["redeemed"], [one["reason"] for one in again["result"]["refused"]]) == (True, ["CONDITION_NOT_MET"])
    (first, _) = shop.rows("SELECT detail FROM audit WHERE action = 'bodies.erase' ORDER BY id DESC")
    assert json.loads(first["detail"])["results"] == 1


def test_nothing_is_erased_unless_an_operator_says_how_old(shop: Shop) -> None:
    """Without a retention the command refuses, in a sentence that names the setting."""
    with pytest.raises(CallerError, match="TALLYSTICK_BODY_RETENTION_S") as caught:
        asyncio.run(privacy.erase_old_bodies(shop.settings, now=shop.clock()))
    assert caught.value.code == "NO_RETENTION"


def test_the_commands_work_beside_a_running_server(shop: Shop) -> None:
    """`forget` and `erase-bodies` as an operator runs them; errors are one sentence."""
    a_day(shop)

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [COMMAND, "--data", str(shop.settings.data), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | environment)

    done = run("forget", "--customer", GONE)
    assert (done.returncode, done.stdout) == (0, "forgotten at 4 redemptions; 4 bodies erased\n")
    assert "1 of these events wait for a person" in done.stderr
    refused = run("erase-bodies")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    erased = run("erase-bodies", TALLYSTICK_BODY_RETENTION_S="1")
    assert (erased.returncode, erased.stdout.split()[0]) == (0, "1")


def test_a_result_without_details_is_the_same_otherwise() -> None:
    """What the customer was is cut out of refusals, which a till can still read, and nothing else is touched."""
    refused = [{"code": "VIP", "reason": "CONDITION_NOT_MET", "detail": {"was": ["seg"]}}]
    raw = json.dumps({"total_minor": 5, "refused": refused, "applied": []}).encode()
    without = json.loads(privacy.without_details(raw))
    assert without == {"total_minor": 5, "refused": [refused[0] | {"detail": {"message": ""}}], "applied": []}
    assert privacy.without_details(b"null") == b"null"
