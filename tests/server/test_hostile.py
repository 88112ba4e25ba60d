"""What a lying device, a stranger or a slip of an operator may send: nothing of it blocks, mints or is a 500."""

from __future__ import annotations

import os
import stat
import subprocess
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tallystick_server.demand import Demand
from tallystick_shared.journal import EventType, Use, VoidBody, encode
from tallystick_shared.signing import Typ, b64u
from tallystick_shared.wire import Flag, Outcome, Want
from tests.server.conftest import ORDER, voucher
from tests.server.test_operations import COMMAND, check_refused, data, run
from tests.server.tiny_device import TinyDevice, new_id

if TYPE_CHECKING:
    from pathlib import Path

    from tests.server.conftest import Shop

__all__ = ["data"]
DEEP = b"[" * 30_000 + b"]" * 30_000


# events


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "1969-12-31T23:59:59Z"])
def test_an_event_of_no_time_is_quarantined(either_shop: Shop, at: str) -> None:
    """A time that no database holds keeps its event from counting, and none that follows it."""
    either_shop.publish(voucher("jam"))
    device = either_shop.device()
    device.redeem(ORDER, "jam")
    good = device.events.pop().envelope
    device.hashes.pop()
    moment = either_shop.clock().isoformat().replace("+00:00", "Z").encode()
    assert moment in good
    device.append_raw(good.replace(moment, at.encode()), b"{}")
    device.redeem(ORDER, "jam")
    assert [(one.seq, one.outcome) for one in device.sync().exceptions] == [(1, Outcome.QUARANTINED)]
    assert len(either_shop.rows("SELECT 1 FROM redemptions")) == 1
    assert device.sync().exceptions == []


@pytest.mark.parametrize("code", ["", " ", "\\u0001", "x" * 300])
def test_a_result_for_what_is_no_code_is_a_price_mismatch(shop: Shop, code: str) -> None:
    """The redemption counts; only its price waits for a person."""
    shop.publish(voucher("tea", total=5))
    device = shop.device()
    result = b'{"applied":[{"code":"%s","discount_minor":100,"lines":[]}]}' % code.encode()
    device.redeem(ORDER, "tea", body_result=result)
    assert [(one.outcome, one.reasons) for one in device.sync().exceptions] == [
        (Outcome.FLAGGED, [Flag.PRICE_MISMATCH])
    ]
    assert shop.rows("SELECT known_units FROM leases") == [{"known_units": 1}]


def test_a_body_nested_too_deeply_is_unreadable_and_counted(shop: Shop) -> None:
    """Its envelope is what counts."""
    shop.publish(voucher("tea", total=5))
    device = shop.device()
    device.redeem(ORDER, "tea", body_result=b"null")
    body = b'{"codes":[],"result":null,"salt":"","order":' + b"[" * 15_000 + b"]" * 15_000 + b"}"
    device.events[0] = type(device.events[0])(device.events[0].envelope, body)
    assert [one.reasons for one in device.sync().exceptions] == [[Flag.UNREADABLE]]
    assert shop.rows("SELECT known_units FROM leases") == [{"known_units": 1}]


def held_back(shop: Shop) -> TinyDevice:
    """A device with a share of `tea`, and another device's share free, to be had online."""
    shop.device("store-2", synced=False)
    return shop.device()


def void_all(device: TinyDevice, ref: str) -> None:
    device.append(EventType.VOID, [], encode(VoidBody("", 0, [], "salt")), ref=ref)


def test_a_void_of_an_online_attempt_whose_answer_was_lost_is_whole(shop: Shop) -> None:
    """Without uses it returns all that has not returned; of an unknown redemption, whose request may be lost, nothing,
    and nobody has to look at it. With uses that were never redeemed it is flagged."""
    shop.publish(voucher("tea", total=5, budget_minor=1_000, per_customer=1))
    device, attempt = held_back(shop), new_id()
    assert device.answer_online(ORDER, ["tea"], attempt).redeemed is True
    device.void(attempt, "tea", units=0, minor=30)
    void_all(device, attempt)
    void_all(device, new_id())
    device.void(new_id(), "tea", minor=100)
    assert [(one.seq, one.reasons) for one in device.sync().exceptions] == [(4, [Flag.WITHOUT_COVER])]
    assert (shop.pool("tea")["voided"], shop.pool("tea", "minor")["voided"]) == (1, 100)
    assert shop.rows("SELECT units FROM customer_uses") == [{"units": 0}]


def test_an_id_that_comes_again_on_a_void_is_stored_and_gives_nothing_more(shop: Shop) -> None:
    """A redemption's, another void's, another device's: a void counts by what it is of, and only up to what is left."""
    soft = {"policy": "soft", "max_units": 9, "max_minor": 900}
    shop.publish(voucher("tea", total=9, budget_minor=1_000, offline=soft))
    shared, devices = new_id(), [shop.device("store-1"), shop.device("store-2")]
    for device in devices:
        sold, other = device.redeem(ORDER, "tea"), device.redeem(ORDER | {"id": "order-2"}, "tea")
        for ref, event_id, minor in ((sold, shared, 60), (sold, shared, 60), (sold, other, 0), (other, sold, 100)):
            uses = [Use(device.voucher_of("tea").id, None, None, 0, minor)]
            device.append(EventType.VOID, uses, encode(VoidBody("", 0, [], "salt")), ref=ref, event_id=event_id)
        device.redeem(ORDER | {"id": "order-3"}, "tea", redemption_id=shared)
        exceptions = device.sync().exceptions
        assert [(one.seq, one.id, one.reasons) for one in exceptions] == [(4, shared, [Flag.ALREADY_VOIDED])]
    assert (shop.pool("tea")["voided"], shop.pool("tea", "minor")["voided"]) == (0, 400)
    assert shop.rows("SELECT count(*) AS n FROM redemptions") == [{"n": 6}]
    assert shop.rows("SELECT count(*) AS n FROM events") == [{"n": 14}]


STEPS = st.lists(st.sampled_from(["void", "void some", "redeem", "redeem less", "sync"]), max_size=6)


@given(steps=STEPS)
@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_voiding_an_online_attempt_and_its_fallback_mints_nothing(shop: Shop, steps: list[str]) -> None:
    """Whatever is voided before or after: what is free and leased never passes the limit less the effective uses."""
    code = "c" + new_id()
    shop.publish(voucher(code, total=6, budget_minor=1_000))
    device, attempt = held_back(shop), new_id()
    device.redeem_online(ORDER, [code], attempt)
    for step in steps:
        if step == "void":
            device.void(attempt, code, minor=100)
        elif step == "void some":
            device.void(attempt, code, units=0, minor=70)
        elif step == "sync":
            device.sync()
        else:
            device.redeem(ORDER, code, redemption_id=attempt, minor=50 if step == "redeem less" else None)
    device.sync()
    for measure in ("units", "minor"):
        pool = shop.pool(code, measure)
        mine = {"id": device.vouchers[code].id}
        (use,) = shop.rows(
            f"SELECT sum({measure} - voided_{measure}) AS n, sum(voided_{measure}) AS v FROM redemption_uses"
            " WHERE voucher_id = :id",
            **mine,
        )
        (left,) = shop.rows(
            f"SELECT coalesce(sum({measure} - known_{measure}), 0) AS n FROM leases"
            " WHERE voucher_id = :id AND state = 'open'",
            **mine,
        )
        assert pool["free"] + left["n"] <= pool["limit"] - use["n"]
        assert pool["voided"] == use["v"]


# requests

NUL = [
    ("GET", "/v1/blobs/%00", b""),
    ("GET", "/v1/vouchers/%00", b""),
    ("POST", "/v1/vouchers/%00/deactivate", b""),
    ("GET", "/v1/vouchers?code=%00", b""),
    ("GET", "/v1/vouchers?cursor=%00", b""),
    ("GET", "/v1/devices?cursor=%00", b""),
    ("GET", "/v1/flagged?state=%00", b""),
    ("GET", "/v1/flagged?cursor=" + "9" * 30, b""),
    ("POST", "/v1/flagged/" + "9" * 30 + "/resolve", b""),
    ("POST", "/v1/devices/%00/lost", b""),
    ("POST", "/v1/vouchers?scope=%00", b'{"code":"x","discount":{"type":"shipping"}}'),
    ("POST", "/v1/campaigns", b'{"id":"a\\u0000"}'),
    ("POST", "/v1/tokens", b'{"store_id":"a\\u0000"}'),
    ("POST", "/v1/tokens", b'{"store_id":"a","scope":"\\u0000"}'),
    ("POST", "/v1/redemptions", b'{"id":"%s","codes":["a"],"order":%s}' % (new_id().encode(), DEEP)),
    ("POST", "/v1/campaigns", b'{"id":%s}' % DEEP),
]


def test_no_value_is_a_500(either_shop: Shop) -> None:
    """U+0000, numbers of 30 digits and JSON nested deeply are problems of the caller, or things that are not there."""
    headers = either_shop.headers | {"Content-Type": "application/json"}
    accepted_on_sqlite = either_shop.settings.sqlite_file is not None
    for method, path, body in NUL:
        response = httpx2.request(method, either_shop.url + path, content=body, headers=headers)
        fine = {400, 404, 422} | ({200, 201} if accepted_on_sqlite else set())
        assert response.status_code in fine, (path, response.text)
    assert httpx2.get(f"{either_shop.url}/v1/blobs/%00").status_code == 404


@pytest.mark.parametrize(("typ", "path"), [(Typ.REDEEM, "/v1/redemptions"), (Typ.SYNC, "/v1/sync")])
def test_a_stranger_who_nests_deeply_is_refused(shop: Shop, typ: Typ, path: str) -> None:
    """Before any signature is checked, nesting is not JSON that is read."""
    head = b'{"alg":"Ed25519","typ":"%s","kid":"a"}' % typ.value.encode()
    payload = b'{"id":"%s","codes":["a"],"order":%s}' % (new_id().encode(), DEEP)
    token = ".".join(b64u(part) for part in (head, payload, b"s" * 64)).encode()
    headers = {"Content-Type": "application/jose"}
    response = httpx2.post(shop.url + path, content=token + b"\n" * (typ is Typ.SYNC), headers=headers)
    assert response.status_code in (400, 422), response.text


def test_a_scope_named_twice_is_one(shop: Shop) -> None:
    """The voucher is published there once."""
    body = voucher("tea")
    response = httpx2.post(f"{shop.url}/v1/vouchers?scope=main&scope=main", json=body, headers=shop.headers)
    assert (response.status_code, response.json()["scopes"]) == (201, ["main"])


def test_only_an_active_device_stops_the_granting(shop: Shop) -> None:
    """A suspended device's ledger mark is not believed; an active one's is, and status names the device."""
    turned_away, active = shop.device("a"), shop.device("b")
    shop.post(f"/v1/devices/{turned_away.id}/suspend")
    assert turned_away.post(turned_away.request(ledger_mark=10**6)).status_code == 200
    assert shop.get("/v1/status")["state"] == "normal"
    assert active.post(active.request(ledger_mark=10**6)).status_code == 200
    status: dict[str, Any] = shop.get("/v1/status")
    assert status["state"] == "restore_suspected"
    assert any(active.id in note for note in status["notes"])


# demand


def test_one_sync_adds_so_much_demand(shop: Shop) -> None:
    """A device that claims to have refused everybody adds a thousand units, not more."""
    shop.publish(voucher("tea", total=5))
    device = shop.device()
    device.wants = [Want(device.vouchers["tea"].id, 5_000)]
    device.sync()
    assert shop.rows("SELECT units FROM demand") == [{"units": 1_000}]


def test_scores_saturate() -> None:
    """More demand is a higher score, and a million times more is not a million times higher."""
    rows = [("a", "v", "c", 10**9), ("b", "v", "c", 500), ("d", "v", "c", 10**10)]
    scores = Demand(["a", "b", "d"], rows)
    liar, honest, greater = (scores.score(one, "v", "c") for one in ("a", "b", "d"))
    assert honest < liar < greater
    assert liar < 100 * honest


# the command line and the files


@pytest.mark.parametrize("there", [False, True], ids=["new directory", "existing directory"])
def test_the_database_is_its_owners_alone(tmp_path: Path, there: bool) -> None:
    """Under a umask of 022 nobody else reads a directory that is made here, nor the database anywhere."""
    data = tmp_path / "server"
    if there:
        data.mkdir(mode=0o755)
    made = subprocess.run([COMMAND, "--data", str(data), "init"], capture_output=True, umask=0o022, timeout=60)
    assert made.returncode == 0, made.stderr
    assert stat.S_IMODE(data.stat().st_mode) == (0o755 if there else 0o700)
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in data.glob("tallystick.sqlite3*")}
    assert set(found.values()) == {0o600}, found


def test_no_argument_is_unexpected(data: Path) -> None:
    """A store of no name, bytes that are no text and a port that is none: one sentence each, without the password."""
    check_refused(run(data, "token", "--store", ""), "store_id")
    check_refused(run(data, "token", "--store", "a\tb"), "store_id")
    check_refused(run(data, "token", "--store", "a" * 129), "store_id")
    check_refused(run(data, "token", "--store", os.fsdecode(b"\xff")), "UTF-8")
    for port in ("none", "99999"):
        url = f"postgresql://u:secret@host:{port}/x"
        refused = run(data, "status", TALLYSTICK_DATABASE_URL=url)
        check_refused(refused, "TALLYSTICK_DATABASE_URL")
        assert "secret" not in refused.stderr
