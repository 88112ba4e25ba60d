"""Enrolment over real HTTP: one token, one till, one pinned root."""

from __future__ import annotations

import pytest

from tallystick_client import LineError, NotNow, Till, Untrusted
from tallystick_shared.errors import CallerError
from tallystick_shared.signing import SigningKey
from tallystick_shared.wire import DeviceState
from tests.client.conftest import ONCE, TEN, Shop, order, sell
from tests.client.fake_server import loses_the_answer, passes


@pytest.fixture
def till(shop: Shop) -> Till:
    shop.server.publish(TEN, ONCE)
    return shop.enroll()


def test_a_token_is_good_for_one_till(shop: Shop) -> None:
    """The second till is told in words; the first may repeat its enrolment after a lost answer."""
    token = shop.server.token()
    shop.server.script = [passes, passes, loses_the_answer]
    with pytest.raises(LineError):
        Till.enroll(shop.work / "one", shop.server.url, token, clock=shop.clock)
    Till.enroll(shop.work / "one", shop.server.url, token, clock=shop.clock).close()
    assert len(shop.server.devices) == 1
    with pytest.raises(CallerError, match="used by another device") as caught:
        Till.enroll(shop.work / "two", shop.server.url, token, clock=shop.clock)
    assert caught.value.code == "TOKEN_USED"


@pytest.mark.parametrize(
    ("url", "token", "path"),
    [
        ("ftp://x", "tally1.secretsecretsecret.1." + "0" * 64, "server_url"),
        ("https://", "tally1.secretsecretsecret.1." + "0" * 64, "server_url"),
        ("http://x:y", "tally1.secretsecretsecret.1." + "0" * 64, "server_url"),
        ("http://127.0.0.1:9", "a-secret", "token"),
    ],
)
def test_a_bad_enrolment_names_what_is_wrong(shop: Shop, url: str, token: str, path: str) -> None:
    """And never repeats the token."""
    with pytest.raises(CallerError) as caught:
        Till.enroll(shop.work / "x", url, token, clock=shop.clock)
    assert str(caught.value).startswith(path)
    assert "secret." not in str(caught.value)


def test_the_pin_of_the_token_decides(shop: Shop) -> None:
    """A server with another root is refused, nothing is enrolled, and there is no till afterwards."""
    token = shop.server.token()
    shop.server.root_key = SigningKey.generate()
    shop.server.roots[0] = shop.server.make_root(1)
    with pytest.raises(Untrusted) as caught:
        Till.enroll(shop.work / "x", shop.server.url, token, clock=shop.clock)
    assert caught.value.code == "ROOT_PIN"
    assert shop.server.devices == {}
    with pytest.raises(CallerError):
        Till.open(shop.work / "x")


def test_a_till_enrols_through_later_roots(shop: Shop) -> None:
    """A token made before the keys changed still leads to today's keys."""
    token = shop.server.token()
    shop.server.receipt_key = SigningKey.generate()
    shop.server.roots.append(shop.server.make_root(2))
    with Till.enroll(shop.work / "x", shop.server.url, token, clock=shop.clock) as till:
        assert till.sync().state == "active"


def test_a_suspended_till_uploads_and_gets_nothing(till: Till, shop: Shop) -> None:
    """Its journal arrives; no new bundle is fetched."""
    sell(till, 2)
    shop.server.device.state = DeviceState.SUSPENDED
    shop.server.publish({**TEN, "code": "NEW"})
    report = till.sync()
    assert (report.acknowledged, report.state, report.bundle_version) == (2, "suspended", 1)
    with pytest.raises(NotNow):
        till.redeem(order(), ["TEN"])
