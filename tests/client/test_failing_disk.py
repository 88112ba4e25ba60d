"""A till whose disk fails to read, or whose other processes come between: nothing of what was told is lost."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from queue import SimpleQueue

import pytest

from tallystick_client import BackgroundSync, CallerError, InvalidInput, Returned, StorageError, Till, TryLater, syncing
from tallystick_client.actions import Woken
from tallystick_client.journal import FILE_NAME, Journal, Writing
from tallystick_client.loops import run
from tallystick_client.pausing import asked_wait_s, own_wait_s
from tallystick_client.terminal import _note_anomaly
from tests.client.conftest import ONCE, TEN, Shop, order, rows
from tests.client.fake_server import Reply, loses_the_answer, says

OWN = "0190b6a0-0000-7000-8000-000000000001"
ONLINE = {**TEN, "code": "ONLINE", "offline": {"policy": "online_only"}}
HALF = {**TEN, "discount": {"type": "percentage", "percent": 50}}
LITTLE = {**TEN, "discount": {"type": "percentage", "percent": 1}}
SEES = """
import sys
from pathlib import Path
from tallystick_client import Till
from tests.client.fake_clock import FakeClock
with Till.open(Path(sys.argv[1]), clock=FakeClock()) as till:
    status = till.status()
    print(status.head, status.bundle_vouchers, till._keeper.journal.verify())
"""


@pytest.fixture
def till(shop: Shop) -> Till:
    shop.server.publish(TEN, ONCE, ONLINE)
    return shop.enroll()


def another_process_sees(shop: Shop) -> list[int]:
    """Head, vouchers and verified events, by a process that opens the till and closes it again."""
    command = [sys.executable, "-c", SEES, str(shop.work / "till")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


def unreadable(_descriptor: int, _count: int, _position: int) -> bytes:
    raise OSError(5, "Input/output error")


# ---- locks: SQLite's are the process's own, and go with any descriptor of the file that it closes


def test_a_second_look_at_a_failing_disk_costs_no_receipt(
    shop: Shop, till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that looked through its journal still holds its locks, so that the next one to close does not take the
    log away from under it."""

    def damaged(_journal: Journal) -> None:
        raise StorageError("malformed", code="JOURNAL_DAMAGED")

    with monkeypatch.context() as failing:
        failing.setattr(Journal, "check_head", damaged)
        failing.setattr(os, "pread", unreadable)
        with pytest.raises(StorageError, match="cannot be read: Input/output error"):
            shop.open()
    assert another_process_sees(shop) == [0, 3, 0]
    till.redeem(order(1), ["TEN"])
    assert another_process_sees(shop) == [1, 3, 1]
    till.redeem(order(2), ["TEN"])
    assert another_process_sees(shop) == [2, 3, 2]


def test_a_second_look_at_the_cache_costs_no_bundle(shop: Shop, till: Till) -> None:
    """The same of the cache: what this process keeps afterwards is what the others sell by."""
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    with pytest.raises(StorageError, match="the disk failed to read the cache: try again"):
        till._keeper.store._refuse(error)
    assert another_process_sees(shop) == [0, 3, 0]
    shop.server.publish(TEN, ONCE, ONLINE, {**TEN, "code": "MORE"})
    till.sync()
    assert another_process_sees(shop) == [0, 4, 0]


# ---- a cache that cannot be read


@pytest.fixture
def without_cache(shop: Shop, till: Till, monkeypatch: pytest.MonkeyPatch) -> tuple[Till, str]:
    """A till, opened again, and its sale, where a sector of the cache cannot be read for good."""
    sale = till.redeem(order(), ["TEN"]).id
    till.close()
    database = shop.work / "till" / "cache" / "cache.db"
    raw = bytearray(database.read_bytes())
    raw[4096:] = os.urandom(len(raw) - 4096)
    database.write_bytes(raw)
    monkeypatch.setattr(os, "pread", unreadable)
    return shop.open(), sale


def test_an_unreadable_cache_stops_no_void_and_no_event(shop: Shop, without_cache: tuple[Till, str]) -> None:
    """Vouchers cannot be redeemed without them, but what was redeemed goes back and to the server."""
    till, sale = without_cache
    with pytest.raises(StorageError, match="cannot be read: Input/output error"):
        till.redeem(order(2), ["TEN"])
    assert till.void(sale).refund_minor == 1215
    with pytest.raises(StorageError, match="cannot be read: Input/output error"):
        till.sync()
    status = till.status()
    assert (status.acknowledged, status.waiting, status.freshness) == (2, 0, "none")
    assert [note for note in status.notes if "cannot be read: Input/output error" in note]


def test_an_unreadable_cache_sends_no_online_redemption(shop: Shop, without_cache: tuple[Till, str]) -> None:
    """What came of it could not be kept, and a unit would be taken that nobody has."""
    till, _ = without_cache
    with pytest.raises(StorageError, match="cannot be read: Input/output error"):
        till.redeem_online(order(2), ["ONLINE"])
    assert shop.server.redemptions == {}
    assert rows(shop, "SELECT state FROM attempts") == []


def test_an_answer_that_came_is_kept_whatever_became_of_the_cache(
    shop: Shop, till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache became unreadable while the server answered."""

    def fails(_view: Writing) -> None:
        raise StorageError("the disk failed to read the cache: try again", code="DISK")

    def answers(_path: str, answer: Callable[[], Reply]) -> Reply:
        monkeypatch.setattr(till._keeper.terminal, "bundle", fails)
        return answer()

    shop.server.script = [answers]
    receipt = till.redeem_online(order(), ["ONLINE"])
    assert (receipt.redeemed, receipt.online) == (True, True)
    assert rows(shop, "SELECT state FROM attempts") == [("redeemed",)]


def test_an_unreadable_cache_stops_no_background_sync(
    shop: Shop, without_cache: tuple[Till, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes to its turn, and sends; then it says what the disk does."""
    till, _ = without_cache
    monkeypatch.setattr(syncing, "LOOK_S", 0.01)
    monkeypatch.setattr(syncing, "SPREAD_S", 0.0)
    heard: SimpleQueue[BackgroundSync] = SimpleQueue()
    till.start_syncing(on_report=heard.put)
    shop.clock.run(hours=2)
    error = heard.get(timeout=30).error
    assert error is not None
    assert error.code == "DISK"
    assert till._keeper.journal.state().acknowledged_seq == 1


def test_what_is_known_of_customers_outlives_an_unreadable_cache(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the end of a voucher was put off is not known without the cache."""
    once = {**TEN, "code": "EACH", "limits": {"per_customer": 1}}
    shop.server.publish({**once, "valid_until": (shop.clock.now() + timedelta(days=1)).isoformat()})
    till = shop.enroll()
    assert till.redeem(order(1), ["EACH"]).redeemed
    shop.server.publish({**once, "valid_until": (shop.clock.now() + timedelta(days=9)).isoformat()})
    till.sync()
    shop.clock.run(days=1, hours=2)
    terminal = till._keeper.terminal
    with monkeypatch.context() as failing:
        failing.setattr(terminal, "readable_bundle", lambda _view: None)
        till.sync()
    assert not till.redeem(order(2), ["EACH"]).redeemed


# ---- a commit that fails, and another process


def test_a_bundle_whose_commit_failed_is_not_sold_by(shop: Shop, till: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may keep the next one under the same serial: prices are those of the journal's bundle."""
    other = shop.open()
    assert till.preview(order(), ["TEN"]).discount_minor == 135
    shop.server.publish(HALF)
    journal = till._keeper.journal
    commit = journal._commit

    def fails(event_id: str) -> None:
        if journal._connection.execute("SELECT bundle_version FROM state").fetchone()[0] == 2:
            raise StorageError("the disk failed", code="UNCERTAIN")
        commit(event_id)

    monkeypatch.setattr(journal, "_commit", fails)
    with pytest.raises(StorageError, match="the disk failed"):
        till.sync()
    monkeypatch.undo()
    shop.server.publish(LITTLE)
    other.sync()
    assert [one.preview(order(), ["TEN"]).discount_minor for one in (other, till)] == [14, 14]


def test_only_a_sale_or_a_void_is_asked_for_again(till: Till) -> None:
    """Nobody asks for the other events: their ids would be taken for that of the sale."""
    keeper = till._keeper
    judged = keeper.terminal.judged
    with keeper.journal.write() as writing:
        keeper.terminal.clock.turn(days=-9)  # type: ignore[attr-defined]
        _note_anomaly(writing, judged(writing))
        assert writing.state.head_seq == 1
        assert writing.event_id == ""


# ---- an attempt that another process voided


def test_an_attempt_that_was_voided_meanwhile_blocks_no_later_sale(shop: Shop, till: Till) -> None:
    """One process has looked it up, another voids it, and the first goes on: it stays voided, and the same order can be
    redeemed anew."""
    shop.server.script = [loses_the_answer]
    lost = till.redeem_online(order(), ["ONLINE"])
    assert not lost.redeemed
    keeper = till._keeper
    machine = keeper.online_machine(order(), ["ONLINE"], None)
    shop.open().void(lost.id)
    with pytest.raises(CallerError, match="was voided on this till: redeem anew") as caught:
        run(machine, Woken(), keeper, till._line)
    assert caught.value.code == "VOIDED"
    assert rows(shop, "SELECT state FROM attempts") == [("refused",)]
    again = till.redeem_online(order(), ["ONLINE"])
    assert again.redeemed
    assert again.id != lost.id


# ---- what comes back


@pytest.mark.parametrize("own", [None, OWN])
def test_lines_that_come_back_may_be_read_only_once(till: Till, own: str | None) -> None:
    """A return of one unit from a generator is of one unit."""
    sale = till.redeem(order(), ["TEN"]).id
    assert till.void(sale, returned=iter([Returned("1", 1)]), id=own).refund_minor == 405


@pytest.mark.parametrize(
    ("returned", "field"),
    [
        ([Returned("1", 1.0)], "returned[0].units"),  # type: ignore[arg-type]
        ([Returned("1", True)], "returned[0].units"),
        ([Returned("1", "1")], "returned[0].units"),  # type: ignore[arg-type]
        ([Returned("1", 2), Returned("1", -1)], "returned[1].units"),
        ([Returned("1", 0)], "returned[0].units"),
        ([Returned(["1"], 1)], "returned[0].line_id"),  # type: ignore[arg-type]
        ([("1", 1)], "returned[0]"),
        ("1", "returned[0]"),
        (None, "returned"),
    ],
)
def test_what_is_no_line_with_whole_units_gives_nothing_back(till: Till, returned: list[Returned], field: str) -> None:
    """Also under an id that was used: it is never compared with what it is not."""
    sale = till.redeem(order(), ["TEN"]).id
    till.void(sale, returned=[Returned("1", 1)], id=OWN)
    head = till.status().head
    for own in (None, OWN):
        with pytest.raises(InvalidInput) as caught:
            till.void(sale, returned=returned, id=own)
        assert caught.value.path == field
    assert till.status().head == head


def test_a_reason_is_text(till: Till) -> None:
    """Nothing is given back for one that is none."""
    sale = till.redeem(order(), ["TEN"]).id
    with pytest.raises(InvalidInput, match="reason: must be text"):
        till.void(sale, reason=5)  # type: ignore[arg-type]
    assert till.status().head == 1


# ---- disks that cannot be written, folders that cannot be made


def test_a_journal_on_a_read_only_disk_can_be_listed(shop: Shop, till: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it holds is wanted most when the disk has become read-only; a sale is still refused in one sentence."""
    till.redeem(order(1), ["TEN"])
    real = os.statvfs(shop.work)
    read_only = os.statvfs_result([*tuple(real)[:8], real.f_flag | os.ST_RDONLY, *tuple(real)[9:]])
    monkeypatch.setattr(os, "statvfs", lambda _path: read_only)
    connect: Callable[..., sqlite3.Connection] = sqlite3.connect

    def opened(database: Path, **given: object) -> sqlite3.Connection:
        return connect(f"file:{database}?mode=ro", uri=True, **given)

    monkeypatch.setattr(sqlite3, "connect", opened)
    found = shop.open()
    assert found._keeper.journal.verify() == 1
    with pytest.raises(StorageError, match="nothing was written"):
        found.redeem(order(2), ["TEN"])


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path, shop: Shop) -> None:
    """Also where its parents cannot even be looked at."""
    with pytest.raises(StorageError, match="cannot be made: File name too long"):
        Till.enroll(tmp_path / ("a" * 300) / "till", shop.server.url, shop.server.token(), clock=shop.clock)


def test_a_new_till_begins_without_the_log_of_another(shop: Shop, till: Till) -> None:
    """A journal was set aside and its log was not, as the power went: the log is kept, and no part of the new till."""
    till.redeem(order(1), ["TEN"])
    folder = shop.work / "till"
    log = folder / f"{FILE_NAME}-wal"
    shutil.copy(log, folder / "kept")
    till.close()
    (folder / FILE_NAME).rename(folder / f"{FILE_NAME}.damaged-x")
    (folder / "kept").rename(log)
    (folder / "config.json").unlink()
    shop.server.publish(TEN)
    new = shop.enroll(sync=False)
    assert new.status().head == 0
    assert [one.name for one in folder.glob("*-wal") if "damaged" in one.name]


# ---- clocks


def test_a_clock_that_was_wrong_for_a_minute_after_boot_is_forgotten(shop: Shop, till: Till) -> None:
    """Nothing was sold by it, so that the time is what the corrected clock says."""
    clock = shop.clock
    clock.reboot(minutes=5)
    clock.turn(hours=40)
    till._keeper.tick()
    clock.turn(hours=-40)
    clock.run(minutes=1)
    assert till.status().at == clock.now()


@pytest.mark.parametrize(("headers", "asks"), [({}, "the till"), ({"retry-after": "1800"}, "the server")])
def test_an_appointment_of_a_clock_that_leapt_is_none(
    shop: Shop, till: Till, headers: dict[str, str], asks: str
) -> None:
    """Its time stands where it was before that boot, and it does not wait for as long as it was off (fleet, seed 1,
    case 26)."""
    clock = shop.clock
    clock.reboot(hours=20)
    shop.server.script = [says(503, **headers)]
    with pytest.raises(TryLater):
        till.sync()
    clock.turn(days=100)
    tick = till._keeper.tick()
    state = till._keeper.journal.state()
    kept = state.not_before_at if asks == "the server" else state.next_attempt_at
    assert tick.seconds_until(kept) > 3600
    assert asked_wait_s(state, tick) == 0
    assert own_wait_s(state, tick) == 0 or asks == "the server"
    till.sync()
