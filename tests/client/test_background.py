"""Syncing in the background, on real threads, tasks, sockets and processes: no sale waits for it, no error ends it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tallystick_client import (
    AsyncTill,
    BackgroundSync,
    CallerError,
    StorageError,
    Till,
    TryLater,
    configure,
    line,
    online,
    syncing,
)
from tallystick_client.journal import Journal
from tallystick_client.keeper import Keeper
from tallystick_client.pausing import SPREAD_S
from tests.client.conftest import TEN, Shop, arrived, order
from tests.client.fake_clock import FakeClock
from tests.client.fake_server import FakeServer, Reply, loses_the_request, passes, says

WAIT_S = 30
"""For what must happen; nothing waits as long where it does."""


class Heard:
    """What `on_report` was told, in order."""

    def __init__(self) -> None:
        self._queue: queue.Queue[BackgroundSync] = queue.Queue()

    def __call__(self, done: BackgroundSync) -> None:
        self._queue.put(done)

    def next(self) -> BackgroundSync:
        return self._queue.get(timeout=WAIT_S)

    def nothing_more(self) -> bool:
        return self._queue.empty()

    def report(self) -> Any:
        done = self.next()
        assert done.error is None, done.error
        return done.report

    def error(self) -> Any:
        done = self.next()
        assert done.report is None
        return done.error


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """It looks often, so that turning the clock is enough; and it leaves no thread."""
    monkeypatch.setattr(syncing, "LOOK_S", 0.01)
    monkeypatch.setattr(syncing, "PAUSE_S", 0.01)
    monkeypatch.setattr(syncing, "SPREAD_S", 0.0)
    yield
    assert [one for one in threading.enumerate() if one.name == "tallystick-sync"] == []


@pytest.fixture
def till(shop: Shop) -> Till:
    shop.server.publish(TEN)
    return shop.enroll()


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> queue.Queue[float]:
    """For how long it went to sleep, each time."""
    asked: queue.Queue[float] = queue.Queue()
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        asked.put(seconds)
        await real(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return asked


# ---- when it syncs


def test_it_comes_again_when_the_manifest_says(shop: Shop, till: Till) -> None:
    """`poll_after_s` after the last sync, whoever made it, and not before; each report is told and kept."""
    heard = Heard()
    till.start_syncing(on_report=heard)
    sold = till.redeem(order(), ["TEN"]).id
    shop.clock.run(seconds=3599)
    assert heard.nothing_more()
    till.sync()
    shop.clock.run(seconds=3599)
    assert heard.nothing_more()
    shop.clock.run(seconds=1)
    assert heard.report().sent == 0
    till.redeem(order(2), ["TEN"])
    shop.clock.run(hours=1)
    assert heard.report().acknowledged == 1
    assert till.last_sync() == BackgroundSync(shop.clock.now(), heard_report(till), None)
    assert sold in arrived(shop)
    assert shop.server.requests.count("POST /v1/sync") == 4  # with the one of the enrolment


def heard_report(till: Till) -> Any:
    last = till.last_sync()
    assert last is not None
    return last.report


def test_a_merchant_may_have_it_come_sooner(shop: Shop, till: Till) -> None:
    """`every_s` bounds the time between two; a new till that never synced comes at once."""
    heard = Heard()
    till.start_syncing(on_report=heard, every_s=60)
    shop.clock.run(seconds=60)
    assert heard.report().state == "active"
    new = shop.enroll("new", sync=False)
    new.start_syncing(on_report=heard)
    assert heard.report().bundle_version == 1
    with pytest.raises(CallerError, match="every_s"):
        shop.open("new").start_syncing(every_s=0)


def test_it_keeps_the_journals_appointment(shop: Shop, till: Till, slept: queue.Queue[float]) -> None:
    """`Retry-After` binds it, across restarts; a line that is down is no end."""
    heard = Heard()
    shop.server.script = [says(503, **{"retry-after": "600"}), loses_the_request]
    till.start_syncing(on_report=heard)
    shop.clock.run(hours=1)
    assert isinstance(error := heard.error(), TryLater)
    assert error.next_attempt_at == till.status().next_sync_at
    assert 600 <= (error.next_attempt_at - shop.clock.now()).total_seconds() <= 600 + SPREAD_S
    till.stop_syncing()
    shop.clock.run(seconds=590)
    till.start_syncing(on_report=heard)
    requests = len(shop.server.requests)
    shop.clock.run(seconds=9)
    assert heard.nothing_more()
    assert len(shop.server.requests) == requests
    shop.clock.run(seconds=1 + SPREAD_S)
    assert isinstance(heard.error(), TryLater)
    for _ in range(slept.qsize() + 10):
        slept.get(timeout=WAIT_S)  # it looks, and it is not time
    assert heard.nothing_more()
    shop.clock.run(minutes=10)
    assert heard.report().state == "active"


def test_a_fleet_does_not_come_at_once(
    shop: Shop, till: Till, slept: queue.Queue[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no lot was drawn for the time, a part of the spread is waited as well."""
    monkeypatch.setattr(syncing, "SPREAD_S", 10_000_000.0)
    heard = Heard()
    till.start_syncing(on_report=heard)
    shop.clock.run(hours=2)
    assert any(slept.get(timeout=WAIT_S) > 100 for _ in range(500))
    till.stop_syncing()
    assert heard.nothing_more()


def test_only_one_process_of_a_till_talks_at_a_time(shop: Shop, till: Till) -> None:
    """Whoever finds the lock taken skips its turn and does not wait in line; then the other's sync counts for both."""
    heard, entered, leave = Heard(), threading.Event(), threading.Event()

    def stands(_path: str, answer: Any) -> Reply:
        entered.set()
        leave.wait(WAIT_S)
        reply: Reply = answer()
        return reply

    other = shop.open()
    shop.server.script = [stands]
    shop.clock.run(hours=1)
    till.start_syncing(on_report=heard)
    assert entered.wait(WAIT_S)
    other.start_syncing(on_report=heard)
    lock = other._keeper.directory.lock()
    assert not lock.take()
    lock.release()
    leave.set()
    assert heard.report().state == "active"
    other.stop_syncing()
    assert heard.nothing_more()
    assert other.last_sync() is None
    assert shop.server.requests.count("POST /v1/sync") == 2


# ---- no sale waits


@pytest.fixture
def deaf(shop: Shop) -> Iterator[socket.socket]:
    """A server that takes connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def points_at(shop: Shop, listening: socket.socket) -> None:
    configure(shop.work / "till", server_url=f"http://127.0.0.1:{listening.getsockname()[1]}")


def test_a_sale_commits_while_the_server_never_answers(shop: Shop, till: Till, deaf: socket.socket) -> None:
    """The request stands on a real socket; redeem and void return all the same, and stopping ends it at once."""
    till.close()
    points_at(shop, deaf)
    till = shop.open()
    shop.clock.run(hours=1)
    till.start_syncing()
    connection, _ = deaf.accept()
    with connection:
        assert connection.recv(4) == b"POST"
        receipt = till.redeem(order(), ["TEN"])
        assert till.void(receipt.id).refund_minor == 1215
        assert till.status().waiting == 2
        till.stop_syncing()
        while connection.recv(65536):
            pass  # the rest of the request, and then the end: the till has hung up
    assert till.last_sync() is None
    assert till.redeem(order(2), ["TEN"]).redeemed


def test_a_task_that_is_never_answered_is_cancelled(shop: Shop, till: Till, deaf: socket.socket) -> None:
    """The same for `AsyncTill`, by closing it."""
    till.close()
    points_at(shop, deaf)
    shop.clock.run(hours=1)

    async def main() -> None:
        deaf.setblocking(False)
        async with AsyncTill.open(shop.work / "till", clock=shop.clock) as till:
            till.start_syncing()
            connection, _ = await asyncio.get_running_loop().sock_accept(deaf)
            with connection:
                assert (await till.redeem(order(), ["TEN"])).redeemed
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
    assert shop.open().status().waiting == 1


def test_a_sale_commits_in_the_midst_of_every_request_of_a_sync(shop: Shop, till: Till) -> None:
    """The server stops at each request of a whole sync, roots and bundle and all; redeem and void go on at each."""
    shop.server.roots.append(shop.server.make_root(2))
    shop.server.publish(TEN)
    till.redeem(order(), ["TEN"])
    entered: queue.Queue[str] = queue.Queue()
    leave = threading.Semaphore(0)

    def stands(path: str, answer: Any) -> Reply:
        entered.put(path.split("/")[2])
        assert leave.acquire(timeout=WAIT_S)
        reply: Reply = answer()
        return reply

    shop.server.script = [stands] * 20
    shop.clock.run(hours=1)
    heard = Heard()
    till.start_syncing(on_report=heard)
    stood = []
    while heard.nothing_more():
        try:
            stood.append(entered.get(timeout=0.05))
        except queue.Empty:
            continue
        if stood.count(stood[-1]) == 1:  # each sale during a batch makes another batch
            receipt = till.redeem(order(len(stood) + 1), ["TEN"])
            assert till.void(receipt.id).refund_minor == 1215
        leave.release()
    assert heard.report().bundle_version == 2
    assert set(stood) == {"sync", "roots", "scopes", "blobs"}
    assert till.status().head == 1 + 2 * 4


# ---- errors


def test_it_outlives_every_error_and_tells_it(shop: Shop, till: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the disk says, a server that is not believed, and a bug: each is reported, and the next sync is made."""
    heard = Heard()
    real = Keeper.sync_machine
    failures: list[Exception] = [StorageError("the disk is full", code="DISK_FULL"), ZeroDivisionError("a bug")]

    def fails(self: Keeper, patient: bool) -> Any:
        if failures:
            raise failures.pop(0)
        return real(self, patient)

    monkeypatch.setattr(Keeper, "sync_machine", fails)
    shop.server.script = [lambda _path, _answer: (200, {}, b"nonsense")]
    shop.clock.run(hours=1)
    till.start_syncing(on_report=heard)
    assert heard.error().code == "DISK_FULL"
    bug = heard.error()
    assert (bug.code, type(bug.__cause__)) == ("INTERNAL", ZeroDivisionError)
    assert "ZeroDivisionError: a bug" in str(bug)
    assert heard.error().code not in ("INTERNAL", "NO_CONNECTION")
    shop.clock.run(minutes=5)
    assert heard.report().state == "active"


def test_a_journal_that_cannot_be_read_is_reported_and_not_asked_without_end(
    shop: Shop, till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where it fails before anything is due, there is a pause."""
    monkeypatch.setattr(syncing, "PAUSE_S", 10_000_000.0)
    heard = Heard()
    till.stop_syncing()

    def damaged(_self: Journal) -> Any:
        raise StorageError("the journal is damaged", code="JOURNAL_DAMAGED")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "read", damaged)
        till.start_syncing(on_report=heard)
        assert heard.error().code == "JOURNAL_DAMAGED"
        till.stop_syncing()
    assert heard.nothing_more()


def test_what_the_callback_raises_ends_nothing(shop: Shop, till: Till) -> None:
    """It is found in `last_sync`, beside the report, and the next sync is made and told."""
    heard = Heard()

    def breaks(done: BackgroundSync) -> None:
        heard(done)
        raise RuntimeError("the merchant's program")

    till.start_syncing(on_report=breaks)
    shop.clock.run(hours=1)
    heard.report()
    shop.clock.run(hours=1)
    heard.report()
    till._background._thread.join(0)  # type: ignore[union-attr] # alive, or this would be the end of it
    last = till.last_sync()
    assert last is not None
    assert last.report is not None


# ---- starting and stopping


def test_stopping_leaves_nothing_and_starting_again_goes_on(shop: Shop, till: Till) -> None:
    """Stopped twice, started twice, stopped by its own callback, closed in the midst: no thread, no warning."""
    till.stop_syncing()
    till.start_syncing()
    with pytest.raises(CallerError, match="already"):
        till.start_syncing()
    till.stop_syncing()
    till.stop_syncing()
    told = Heard()

    def enough(done: BackgroundSync) -> None:
        till.stop_syncing()
        told(done)

    till.start_syncing(on_report=enough)
    shop.clock.run(hours=1)
    assert told.report().state == "active"
    shop.clock.run(hours=1)
    till.start_syncing(on_report=told)
    assert told.report().state == "active"
    till.close()
    assert told.nothing_more()


def test_a_cancelled_task_leaves_what_it_writes_whole(shop: Shop, till: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing waits for the write that has begun, so that nothing is closed under it."""
    till.redeem(order(), ["TEN"])
    till.close()
    shop.clock.run(hours=1)
    began, ended = threading.Event(), threading.Event()
    real = Keeper.perform

    def slow(self: Keeper, change: Any) -> Any:
        began.set()
        cancelled.wait(WAIT_S)
        try:
            return real(self, change)
        finally:
            ended.set()

    monkeypatch.setattr(Keeper, "perform", slow)
    cancelled = threading.Event()

    async def main() -> None:
        async with AsyncTill.open(shop.work / "till", clock=shop.clock) as till:
            till.start_syncing()
            await asyncio.to_thread(began.wait, WAIT_S)
            asyncio.get_running_loop().call_later(0.05, cancelled.set)
        assert ended.is_set()

    asyncio.run(main())


def test_an_async_till_reports_and_is_stopped(shop: Shop, till: Till) -> None:
    """One task; its callback is called on the event loop."""
    till.redeem(order(), ["TEN"])
    till.close()

    async def main() -> None:
        told: asyncio.Queue[BackgroundSync] = asyncio.Queue()
        async with AsyncTill.open(shop.work / "till", clock=shop.clock) as till:
            till.start_syncing(on_report=told.put_nowait)
            with pytest.raises(CallerError, match="already"):
                till.start_syncing()
            shop.clock.run(hours=1)
            done = await asyncio.wait_for(told.get(), WAIT_S)
            assert done.report is not None
            assert done.report.acknowledged == 1
            assert till.last_sync() == done
            await till.stop_syncing()
            await till.stop_syncing()
            assert till.last_sync() is None
            assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_a_transport_of_the_callers_own_must_do_both(shop: Shop, till: Till) -> None:
    """Nothing goes around a transport that was given: one that cannot serve the background is refused."""
    till.close()

    class Only(httpx2.BaseTransport):
        pass

    refused = Till.open(shop.work / "till", clock=shop.clock, transport=Only())
    with pytest.raises(CallerError, match="AsyncBaseTransport"):
        refused.start_syncing()
    refused.close()

    class Both(httpx2.BaseTransport, httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            raise httpx2.ConnectError(f"no way to {request.url.path}")

    shop.clock.run(hours=1)
    heard = Heard()
    with Till.open(shop.work / "till", clock=shop.clock, transport=Both()) as till:
        till.start_syncing(on_report=heard)
        assert "no way to /v1/sync" in str(heard.error())


# ---- patience


def test_a_patient_sync_waits_without_the_lock(shop: Shop, till: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of both kinds of till: meanwhile a person, or another process, may sync."""
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        lock = till._keeper.directory.lock()
        assert lock.take()
        lock.release()
        waited.append(seconds)
        shop.clock.run(seconds=seconds)

    async def sleep_async(seconds: float) -> None:
        sleep(seconds)

    async def patient() -> None:
        async with AsyncTill.open(shop.work / "till", clock=shop.clock) as other:
            assert (await other.sync(patient=True)).state == "active"

    def fails() -> float:
        waited.clear()
        shop.server.script = [says(503, **{"retry-after": "600"})]
        with pytest.raises(TryLater) as caught:
            till.sync()
        return (caught.value.next_attempt_at - shop.clock.now()).total_seconds()

    monkeypatch.setattr(syncing, "LOOK_S", 100)
    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", sleep)
        due_s = fails()
        assert till.sync(patient=True).state == "active"
        assert sum(waited) >= due_s
    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "sleep", sleep_async)
        due_s = fails()
        asyncio.run(patient())
        assert sum(waited) >= due_s


def test_the_lock_is_free_though_a_forked_process_has_its_file_open(shop: Shop, till: Till) -> None:
    """A program that forked during a sync does not keep the till from syncing for as long as its child lives."""
    lock, other = till._keeper.directory.lock(), till._keeper.directory.lock()
    assert lock.take()
    childs = os.dup(lock._descriptor)
    lock.release()
    assert other.take()
    other.release()
    os.close(childs)


# ---- a server that sends on and on


@pytest.fixture
def dripping(deaf: socket.socket) -> Iterator[socket.socket]:
    """A server whose answer has a header that never ends."""
    over = threading.Event()

    def drip(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nx-slow: ")
            while not over.wait(0.01):
                connection.sendall(b"a")

    def listen() -> None:
        with contextlib.suppress(OSError):
            while True:
                threads.append(threading.Thread(target=drip, args=(deaf.accept()[0],)))
                threads[-1].start()

    threads = [threading.Thread(target=listen)]
    threads[0].start()
    yield deaf
    over.set()
    deaf.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()


def test_an_answer_that_drips_in_is_none(
    shop: Shop, till: Till, dripping: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time is for the whole answer, of both kinds of till; the customer goes on offline, and the thread ends."""
    till.close()
    points_at(shop, dripping)
    monkeypatch.setattr(online, "TIMEOUT_S", 0.3)
    monkeypatch.setattr(line, "ANSWER_TIMEOUT_S", 0.3)

    async def main() -> None:
        async with AsyncTill.open(shop.work / "till", clock=shop.clock) as till:
            receipt = await till.redeem_online(order(2), ["TEN"])
            assert (receipt.redeemed, receipt.online) == (True, False)
            with pytest.raises(TryLater, match="takes too long"):
                await till.sync()

    with Till.open(shop.work / "till", clock=shop.clock) as till:
        receipt = till.redeem_online(order(), ["TEN"])
        assert (receipt.redeemed, receipt.online) == (True, False)
        with pytest.raises(TryLater, match="takes too long"):
            till.sync()
    asyncio.run(main())
    for thread in threading.enumerate():
        if thread.name == "tallystick-line":
            thread.join(WAIT_S)
            assert not thread.is_alive()


def test_a_deadline_just_after_the_answer_ends_no_other_call(
    shop: Shop, till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection was given back by then, and whoever takes it next is not hung up."""
    within = line._Call.within

    def too_late(call: line._Call, seconds: float) -> None:
        within(call, seconds)
        monkeypatch.setattr(call, "is_alive", lambda: True)

    with monkeypatch.context() as slow:
        slow.setattr(line._Call, "within", too_late)
        with pytest.raises(TryLater, match="takes too long"):
            till.sync()
    shop.clock.run(hours=1)
    till.sync()


# ---- the command


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_the_command_keeps_syncing_until_it_is_told_to_end(tmp_path: Path, end: signal.Signals) -> None:
    """`sync --keep` for a service manager: a line for each sync, and exit code 0 at SIGTERM and Ctrl-C."""
    clock = FakeClock(datetime.now(UTC))
    command = [str(Path(sys.executable).parent / "tallystick"), "--dir", str(tmp_path / "till"), "sync", "--keep"]
    with FakeServer(clock).serving() as server:
        server.publish(TEN)
        server.script = [passes] * 3 + [says(503, **{"retry-after": "1"})]
        with Till.enroll(tmp_path / "till", server.url, server.token(), clock=clock) as till:
            assert till.status().last_sync_at is None
            with pytest.raises(TryLater):
                till.sync()
        kept = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert kept.stdout is not None
        assert json.loads(kept.stdout.readline())["bundle_version"] == 1
        kept.send_signal(end)
        out, error = kept.communicate(timeout=WAIT_S)
        assert (kept.returncode, out, error) == (0, "", "")
