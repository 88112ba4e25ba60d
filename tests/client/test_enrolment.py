"""Enrolment over real HTTP: one token, one till, one pinned root."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from tallystick_client import LineError, NotNow, StorageError, Till, Untrusted, schema
from tallystick_client.directory import CONFIG_NAME
from tallystick_shared.errors import CallerError
from tallystick_shared.signing import SigningKey
from tallystick_shared.wire import DeviceState, EnrolmentToken
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


@pytest.mark.parametrize("reads", [False, True])
def test_the_journal_of_a_new_till_has_all_in_its_file(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, reads: bool
) -> None:
    """A close that does not bring the log into the file does not say so (disk row, seed 1, case 10), and the file is
    renamed without its log: it is brought there before, or there is no till."""
    others: list[sqlite3.Connection] = []
    real = schema.create

    def create(path: Path) -> sqlite3.Connection:
        connection = real(path)
        other = sqlite3.connect(path, isolation_level=None)
        if reads:
            other.execute("BEGIN")
        other.execute("SELECT * FROM sqlite_master").fetchall()
        others.append(other)  # while it is open, no close of another empties the log
        return connection

    monkeypatch.setattr(schema, "create", create)
    monkeypatch.setattr(schema, "BUSY_TIMEOUT_MS", 10)
    folder, token = shop.work / "x", shop.server.token()
    if reads:
        with pytest.raises(StorageError, match="enrol again") as caught:
            Till.enroll(folder, shop.server.url, token, clock=shop.clock)
        assert caught.value.code == "BUSY"
        assert not (folder / CONFIG_NAME).exists()
        others.pop().close()
        monkeypatch.setattr(schema, "create", real)
    Till.enroll(folder, shop.server.url, token, clock=shop.clock).close()
    for other in others:
        other.close()
    with Till.open(folder, clock=shop.clock) as till:
        assert till.sync().acknowledged == 0


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


def test_names_are_on_the_disk_before_anything_rests_on_them(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by `make prove-power` (seed 1, case 1): a power cut took the whole folder of a till, its key that the
    server had taken, its cache below a floor, or its journal under a config that said that there was one."""
    log: list[tuple[str, str]] = []
    fsync, rename = os.fsync, Path.rename

    def synced(descriptor: int) -> None:
        log.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        log.append(("rename", str(target)))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    shop.server.publish(TEN)
    folder = shop.work / "of a shop" / "of a till"
    till = Till.enroll(folder, shop.server.url, shop.server.token(), clock=shop.clock)
    key, journal, config = (
        log.index(("rename", str(folder / name))) for name in ("device.key", "journal.sqlite3", "config.json")
    )
    assert {("sync", str(shop.work)), ("sync", str(folder.parent))} <= set(log[:key])
    assert ("sync", str(folder)) in log[journal:config]
    enrolled = len(log)
    till.sync()
    till.close()
    assert ("sync", str(folder)) in log[enrolled:]


def test_a_suspended_till_uploads_and_gets_nothing(till: Till, shop: Shop) -> None:
    """Its journal arrives; no new bundle is fetched."""
    sell(till, 2)
    shop.server.device.state = DeviceState.SUSPENDED
    shop.server.publish({**TEN, "code": "NEW"})
    report = till.sync()
    assert (report.acknowledged, report.state, report.bundle_version) == (2, "suspended", 1)
    with pytest.raises(NotNow):
        till.redeem(order(), ["TEN"])


@pytest.mark.parametrize("version", ["0", "01", "+1", "\u0661", "1" + "0" * 5_000])
@pytest.mark.parametrize("digest", ["a" * 64, "A" * 64, "a" * 63 + "\n"])
def test_a_token_has_one_spelling(version: str, digest: str) -> None:
    """But for the white space around it (prove-bundles, seed 1, case 0: other digits and zeros were read)."""
    with pytest.raises(ValueError, match="an enrolment token has the form"):
        EnrolmentToken.parse(f"tally1.secretsecretsecret.{version}.{digest}")
    assert EnrolmentToken.parse(f" tally1.secretsecretsecret.10.{'a' * 64}\n").root_version == 10
