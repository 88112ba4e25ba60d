"""The offline terminal: preview and redeem, what may be given away, and when a till may not redeem."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tallystick_client import CallerError, InvalidInput, NotNow, Receipt, StorageError, Till
from tallystick_client.journal import FILE_NAME
from tallystick_shared.bundle import Caps
from tallystick_shared.engine import Reason, result_json
from tallystick_shared.journal import EventType, RedeemBody, read_envelope
from tallystick_shared.model import order_json, parse_order
from tallystick_shared.wire import DeviceState
from tests.client.conftest import ONCE, TEN, Shop, order, rows

SOFT = {
    "code": "SOFT",
    "discount": {"type": "fixed", "amount_minor": 100},
    "limits": {"total": 100},
    "offline": {"policy": "soft", "max_units": 2, "max_minor": 10_000},
}
SOFT_MINOR = {**SOFT, "code": "SOFTMINOR", "offline": {"policy": "soft", "max_units": 9, "max_minor": 250}}
ONLINE = {**TEN, "code": "ONLINE", "offline": {"policy": "online_only"}}
EACH = {**TEN, "code": "EACH", "limits": {"per_customer": 1}}
SHORT = {**TEN, "code": "SHORT", "valid_until": "2026-11-24T09:00:00Z"}
ALSO = {**TEN, "code": "ALSO", "stacking": {"mode": "stackable"}}
ALL = (TEN, ALSO, ONCE, SOFT, SOFT_MINOR, ONLINE, EACH, SHORT)


@pytest.fixture
def till(shop: Shop) -> Till:
    """Offline from here on, with all vouchers and no lease."""
    shop.server.publish(*ALL)
    till = shop.enroll()
    shop.offline()
    return till


@pytest.fixture
def leased(shop: Shop) -> Till:
    """Offline from here on, with a lease of two units of ONCE."""
    shop.server.caps = Caps(offline_s=30 * 86_400)
    shop.server.publish(*ALL)
    till = shop.enroll()
    shop.server.grant(shop.server.device, "ONCE", units=2)
    till.sync()
    shop.offline()
    return till


def reason(receipt: Receipt) -> Reason:
    assert not receipt.redeemed
    return receipt.result.refused[0].reason


def dump(shop: Shop) -> str:
    with closing(sqlite3.connect(shop.work / "till" / FILE_NAME)) as connection:
        return "\n".join(connection.iterdump())


# ---- preview


def test_a_preview_writes_nothing_and_redeem_says_the_same(leased: Till, shop: Shop) -> None:
    """The journal is the same, byte for byte, after any number of previews; the redemption gives what it said."""
    before = dump(shop)
    previews = [leased.preview(order(), ["once", "TEN"]) for _ in range(3)]
    assert dump(shop) == before
    receipt = leased.redeem(order(), ["once", "TEN"])
    assert [result_json(one) for one in previews] == [result_json(receipt.result)] * 3


@pytest.mark.parametrize("form", ["dict", "bytes", "str", "Order"])
def test_an_order_comes_in_any_form(till: Till, form: str) -> None:
    """JSON as text or bytes, plain objects, or a parsed order."""
    plain = order()
    forms: dict[str, Any] = {
        "dict": plain,
        "bytes": json.dumps(plain).encode(),
        "str": json.dumps(plain),
        "Order": parse_order(plain),
    }
    assert till.preview(forms[form], ["TEN"]).discount_minor == 135


@pytest.mark.parametrize(
    ("given", "codes", "path"),
    [
        ({"id": "x"}, ["TEN"], ""),
        ({**order(), "colour": 1}, ["TEN"], "colour"),
        (order(), ["TEN", " "], "codes[1]"),
        (order(), ["x" * 200], "codes[0]"),
        (order(), ["A"] * 33, "codes"),
        (order(), "TEN", "codes"),
        (order(), [7], "codes"),
        (order(), None, "codes"),
    ],
)
def test_bad_input_names_its_field(till: Till, given: Any, codes: Any, path: str) -> None:
    """Preview and redeem both say where, and nothing is written."""
    for call in (till.preview, till.redeem):
        with pytest.raises(InvalidInput) as caught:
            call(given, codes)
        assert caught.value.path == path or not path
    assert till.status().head == 0


def test_a_till_that_never_synced_says_so(shop: Shop) -> None:
    """Without a bundle nothing can be previewed or redeemed, and the sentence says what to do."""
    till = shop.enroll(sync=False)
    for call in (till.preview, till.redeem):
        with pytest.raises(NotNow, match="sync it first") as caught:
            call(order(), ["TEN"])
        assert caught.value.code == "NO_BUNDLE"


# ---- redeem


def test_a_redemption_is_frozen_as_it_was(leased: Till, shop: Shop) -> None:
    """Envelope and body hold what was read, what was said, and the exact revision; the receipt is that event."""
    shop.clock.run(minutes=5)
    receipt = leased.redeem(order(), [" once "])
    assert (receipt.redeemed, receipt.at) == (True, shop.clock.now())
    ((envelope_raw, body_raw),) = rows(shop, "SELECT envelope, body FROM events")
    envelope, body = read_envelope(envelope_raw), msgspec.json.decode(body_raw, type=RedeemBody)
    assert (envelope.id, envelope.at, envelope.type) == (receipt.id, receipt.at, EventType.REDEEM)
    (use,) = envelope.uses
    assert (use.voucher_id, use.units, use.minor) == (shop.server.voucher_id("once"), 1, 300)
    assert use.lease == next(iter(shop.server.device.leases))
    assert bytes(body.order) == order_json(parse_order(order()))
    assert bytes(body.result) == result_json(receipt.result)
    assert body.codes == [" once "]
    assert envelope.bundle_version == 1


def test_several_vouchers_are_one_event(leased: Till, shop: Shop) -> None:
    """All uses of one redemption commit together."""
    receipt = leased.redeem(order(), ["once", "ALSO"])
    assert len(receipt.result.applied) == 2
    ((raw,),) = rows(shop, "SELECT envelope FROM events")
    uses = {use.voucher_id: use for use in read_envelope(raw).uses}
    once, also = (uses[shop.server.voucher_id(code)] for code in ("once", "also"))
    assert (once.minor, once.lease is None) == (300, False)
    assert (also.minor, also.lease is None) == (135, True)


def test_the_same_id_again_is_the_same_receipt(till: Till) -> None:
    """A repeat has no second effect; another order under the id is refused."""
    name = "0190b6a0-0000-7000-8000-000000000001"
    first = till.redeem(order(), ["TEN"], id=name)
    assert till.redeem(order(), ["TEN"], id=name) == first
    assert till.status().head == 1
    for given, codes in ((order(2), ["TEN"]), (order(), ["EACH"])):
        with pytest.raises(CallerError) as caught:
            till.redeem(given, codes, id=name)
        assert caught.value.code == "IDENTIFIER_REUSED"
    with pytest.raises(InvalidInput):
        till.redeem(order(), ["TEN"], id="order-1")
    assert till.status().head == 1


def test_an_order_too_large_for_the_journal_is_refused_whole(leased: Till, shop: Shop) -> None:
    """More than 64 KiB with its result: a sentence, and the lease is as it was."""
    large = order()
    large["lines"] += [{**large["lines"][0], "id": str(number)} for number in range(2, 800)]
    before = dump(shop)
    with pytest.raises(CallerError) as caught:
        leased.redeem(large, ["ONCE"])
    assert caught.value.code == "EVENT_TOO_LARGE"
    assert dump(shop) == before


def test_codes_that_were_refused_never_cost_a_sale(shop: Shop) -> None:
    """Thirty refused vouchers with long details beside a good one: the sale is kept, its receipt says all."""
    text = "x" * 240
    values = [f"{number}{text}" for number in range(200)]
    whens = [{"field": f"order.attributes.{name}", "op": "in", "value": values} for name in "abcde"]
    bad = [{**ALSO, "code": f"BAD{number}", "when": {"all": whens}} for number in range(30)]
    shop.server.publish(ALSO, *bad)
    till = shop.enroll()
    shop.offline()
    codes = ["ALSO", *(str(one["code"]) for one in bad)]
    receipt = till.redeem(order(1000), codes)
    assert receipt.redeemed
    assert [applied.code for applied in receipt.result.applied] == ["ALSO"]
    assert len(result_json(receipt.result)) > 64 * 1024
    again = till.redeem(order(1000), codes, id=receipt.id)
    assert (again.id, again.result.applied) == (receipt.id, receipt.result.applied)
    assert [(one.code, one.reason) for one in again.result.refused] == [
        (one.code, one.reason) for one in receipt.result.refused
    ]


def test_nothing_applied_writes_nothing_but_the_want(till: Till, shop: Shop) -> None:
    """A refusal leaves the journal as it was; one for want of a lease is told to the server with the next sync."""
    before = dump(shop)
    assert reason(till.redeem(order(), ["NOPE"])) is Reason.UNKNOWN_CODE
    assert dump(shop) == before
    for _ in range(2):
        assert reason(till.redeem(order(), ["ONCE"])) is Reason.NO_ALLOWANCE
    assert rows(shop, "SELECT * FROM wants") == [(shop.server.voucher_id("ONCE"), 2)]
    assert till.status().head == 0


# ---- what may be given away


def test_a_lease_gives_what_it_has_and_no_more(leased: Till) -> None:
    """Two units, then NO_ALLOWANCE."""
    assert [leased.redeem(order(number), ["ONCE"]).redeemed for number in range(3)] == [True, True, False]
    (lease,) = leased.status().leases
    assert (lease.code, lease.used_units, lease.units) == ("Once", 2, 2)


def test_a_lease_of_money_covers_whole_discounts_only(shop: Shop) -> None:
    """A discount above what is left of the minor is refused, not cut."""
    shop.server.publish({**TEN, "code": "BUDGET", "limits": {"budget_minor": 10_000}})
    till = shop.enroll()
    shop.server.grant(shop.server.device, "BUDGET", units=None, minor=200)
    till.sync()
    assert till.redeem(order(), ["BUDGET"]).result.discount_minor == 135
    assert reason(till.redeem(order(), ["BUDGET"])) is Reason.NO_ALLOWANCE
    assert till.redeem(order(price=200), ["BUDGET"]).result.discount_minor == 60


def test_an_expired_lease_gives_nothing(leased: Till, shop: Shop) -> None:
    """`expires_at` ends new use, on the dot."""
    (lease,) = leased.status().leases
    assert lease.expires_at - shop.clock.now() == timedelta(days=14)
    shop.clock.run(seconds=(lease.expires_at - shop.clock.now()).total_seconds() - 1)
    assert leased.redeem(order(), ["ONCE"]).redeemed
    shop.clock.run(seconds=1)
    assert reason(leased.redeem(order(), ["ONCE"])) is Reason.NO_ALLOWANCE


@pytest.mark.parametrize(("code", "given"), [("SOFT", 2), ("SOFTMINOR", 2)])
def test_a_soft_voucher_gives_its_bounded_risk(till: Till, code: str, given: int) -> None:
    """Up to `max_units` and `max_minor` on this device, in all."""
    assert sum(till.redeem(order(number), [code]).redeemed for number in range(5)) == given


def test_online_only_needs_a_connection(till: Till) -> None:
    """Refused offline, in words."""
    assert reason(till.redeem(order(), ["ONLINE"])) is Reason.NEEDS_CONNECTION


def test_a_customer_has_what_a_customer_may(till: Till) -> None:
    """Per customer on this device, in any order; nobody without an id."""
    assert till.redeem(order(1, customer="anna"), ["EACH"]).redeemed
    assert reason(till.redeem(order(2, customer="anna"), ["EACH"])) is Reason.CUSTOMER_LIMIT_REACHED
    assert till.redeem(order(3, customer="ben"), ["EACH"]).redeemed
    assert reason(till.redeem(order(4, customer=None), ["EACH"])) is Reason.CUSTOMER_LIMIT_REACHED


def test_what_is_known_of_customers_holds_no_id(till: Till, shop: Shop) -> None:
    """The table that survives purging has digests only."""
    till.redeem(order(1, customer="anna-the-customer"), ["EACH"])
    assert "anna" not in repr(rows(shop, "SELECT * FROM customer_uses"))


def test_a_stolen_bundle_key_does_not_turn_quota_into_open(leased: Till, shop: Shop) -> None:
    """Once leased, a voucher is never free on this till because a bundle says so."""
    for number in range(2):
        leased.redeem(order(number), ["ONCE"])
    shop.back_online()
    shop.server.publish({**ONCE, "limits": {}})
    leased.sync()
    assert reason(leased.redeem(order(9), ["ONCE"])) is Reason.NO_ALLOWANCE


# ---- caps


@pytest.mark.parametrize("state", [DeviceState.SUSPENDED, DeviceState.REVOKED, DeviceState.LOST])
def test_a_suspended_till_redeems_nothing_and_still_voids(shop: Shop, state: DeviceState) -> None:
    """It says what it is, and whom to call; voids go on."""
    shop.server.publish(TEN)
    till = shop.enroll()
    receipt = till.redeem(order(), ["TEN"])
    shop.server.device.state = state
    till.sync()
    with pytest.raises(NotNow, match=f"this till is {state.value}") as caught:
        till.redeem(order(), ["TEN"])
    assert caught.value.code == "SUSPENDED"
    assert till.void(receipt.id).refund_minor == 1350 - 135
    assert till.sync().acknowledged == 1
    assert till.status().state == state.value


def test_a_till_offline_for_too_long_says_since_when(till: Till, shop: Shop) -> None:
    """Fresh, then stale and still selling, then too old: refused, until it syncs."""
    receipt = till.redeem(order(), ["TEN"])
    assert till.status().freshness == "fresh"
    shop.clock.run(days=2, hours=23)
    assert till.status().freshness == "stale"
    assert till.redeem(order(), ["TEN"]).redeemed
    shop.clock.run(hours=2)
    assert till.status().freshness == "too_old"
    with pytest.raises(NotNow, match="offline since 2026-11-23 09:00 UTC") as caught:
        till.redeem(order(), ["TEN"])
    assert caught.value.code == "TOO_LONG_OFFLINE"
    assert till.preview(order(), ["TEN"]).discount_minor == 135
    till.void(receipt.id)
    shop.back_online()
    till.sync()
    assert till.redeem(order(), ["TEN"]).redeemed


@pytest.mark.parametrize("caps", [Caps(redemptions=3), Caps(amount_minor=400)])
def test_a_full_queue_refuses_in_words(shop: Shop, caps: Caps) -> None:
    """As many redemptions, or as much, as may wait; after a sync it goes on."""
    shop.server.caps = caps
    shop.server.publish(TEN)
    till = shop.enroll()
    for number in range(3):
        till.redeem(order(number), ["TEN"])
    with pytest.raises(NotNow, match="sync") as caught:
        till.redeem(order(4), ["TEN"])
    assert caught.value.code == "QUEUE_FULL"
    till.void(till._keeper.journal._connection.execute("SELECT id FROM events").fetchone()[0])
    till.sync()
    assert till.status().waiting_minor == 0
    assert till.redeem(order(5), ["TEN"]).redeemed


# ---- clocks


def test_a_clock_set_back_a_week_revives_nothing(till: Till, shop: Shop) -> None:
    """An expired voucher stays expired, and the clock's anomaly is in the journal, once."""
    shop.clock.run(days=1, seconds=1)
    assert reason(till.redeem(order(), ["SHORT"])) is Reason.EXPIRED
    till.redeem(order(), ["TEN"])
    shop.clock.turn(days=-7)
    for _ in range(3):
        assert reason(till.redeem(order(), ["SHORT"])) is Reason.EXPIRED
    receipt = till.redeem(order(), ["TEN"])
    assert receipt.at == shop.clock.now() + timedelta(days=7)
    assert rows(shop, "SELECT type FROM events ORDER BY seq") == [("redeem",), ("clock_anomaly",), ("redeem",)]
    assert till.status().clock_anomalies == 1
    assert any("clock" in note for note in till.status().notes)


def test_a_clock_set_back_over_a_reboot_revives_nothing(till: Till, shop: Shop) -> None:
    """Nor does a power cut help: the mark is in the journal."""
    shop.clock.run(days=1, seconds=1)
    till.redeem(order(), ["TEN"])
    till.close()
    shop.clock.reboot()
    shop.clock.turn(days=-7)
    assert reason(shop.open().redeem(order(), ["SHORT"])) is Reason.EXPIRED


def test_a_clock_set_ahead_a_year_does_not_stop_the_till(till: Till, shop: Shop) -> None:
    """In a boot that saw signed time the time is known: it is used, and the anomaly written down."""
    shop.clock.turn(days=365)
    receipt = till.redeem(order(), ["TEN"])
    assert receipt.at == shop.clock.now() - timedelta(days=365)
    assert till.status().clock_anomalies == 1


def test_a_till_off_for_a_month_does_not_sell_last_month(till: Till, shop: Shop) -> None:
    """After a long time off nobody knows the time: it is refused until a sync, however often it is asked."""
    till.close()
    shop.clock.reboot(days=30)
    till = shop.open()
    for _ in range(2):
        with pytest.raises(NotNow) as caught:
            till.redeem(order(), ["TEN"])
        assert caught.value.code == "TOO_LONG_OFFLINE"
    shop.back_online()
    till.sync()
    receipt = till.redeem(order(), ["TEN"])
    assert receipt.at == shop.clock.now()


def test_a_fork_of_the_process_must_open_its_own(till: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection carried over a fork would break the journal; it is refused before that."""
    monkeypatch.setattr("tallystick_client.journal.os.getpid", lambda: -1)
    with pytest.raises(CallerError) as caught:
        till.redeem(order(), ["TEN"])
    assert caught.value.code == "FORKED"


def test_a_till_needs_its_key(till: Till, shop: Shop, tmp_path: Path) -> None:
    """Without device.key, or with a broken one, there is no till, and the sentence says which file."""
    till.close()
    key = shop.work / "till" / "device.key"
    key.write_bytes(b"{}")
    with pytest.raises(StorageError, match=r"device\.key is damaged"):
        shop.open()
    key.unlink()
    with pytest.raises(StorageError, match=r"lost its device\.key"):
        shop.open()
    for missing in (tmp_path / "nothing", tmp_path):
        with pytest.raises(StorageError, match="enrol") as caught:
            Till.open(missing)
        assert caught.value.code == "NOT_A_TILL"
