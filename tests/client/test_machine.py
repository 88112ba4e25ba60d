"""The sync machine by itself: its table, its waits, and a crash between any two of its actions."""

from __future__ import annotations

import re
from collections.abc import Generator
from datetime import timedelta

import pytest

from tallystick_client import Till
from tallystick_client.actions import (
    Action,
    Answer,
    Done,
    Event,
    Failed,
    LineDown,
    Persist,
    Persisted,
    Send,
    Start,
    Tick,
    Wait,
    Woken,
    retry_after_s,
)
from tallystick_client.errors import TryLater
from tallystick_client.machine import Machine
from tallystick_client.pausing import BACKOFF_MAX_S, SPREAD_S
from tallystick_client.phases import TRANSITIONS, Phase
from tallystick_shared.journal import EventType
from tests.client.conftest import ONCE, TEN, Shop, arrived, order, sell
from tests.client.fake_clock import START
from tests.client.fake_server import problem


def test_the_table_is_whole() -> None:
    """Every phase but the last has a way on, every phase can be reached, and the end can be reached from each."""
    assert set(TRANSITIONS) == set(Phase) - {Phase.DONE}
    reached = {target for events in TRANSITIONS.values() for targets in events.values() for target in targets}
    assert reached == set(Phase) - {Phase.IDLE}
    ends = {Phase.DONE}
    while more := {
        phase
        for phase, events in TRANSITIONS.items()
        if phase not in ends and any(targets & ends for targets in events.values())
    }:
        ends |= more
    assert ends == set(Phase)


@pytest.fixture
def till(shop: Shop) -> Till:
    shop.server.publish(TEN, ONCE)
    return shop.enroll()


def test_an_event_out_of_place_is_misuse(till: Till) -> None:
    """A driver that mixes up the order is stopped, not obeyed."""
    machine, start = till._keeper.sync_machine(False)
    tick = till._keeper.tick()
    for event in (Woken(), LineDown("x"), Answer(200, {}, b"")):
        with pytest.raises(RuntimeError, match="no event of phase idle"):
            machine.step(event, tick)
    assert isinstance(machine.step(start, tick), Persist)
    with pytest.raises(RuntimeError, match="no event of phase preparing"):
        machine.step(start, tick)


def drive(
    till: Till, *, patient: bool = False, jitter: float = 0.5
) -> Generator[tuple[Action, Machine], Event | None, None]:
    """Each action of a sync; takes what became of it, but performs itself what is to be persisted."""
    machine, start = till._keeper.sync_machine(patient)
    given: Event | None = start
    while True:
        tick = till._keeper.tick()
        tick = Tick(tick.at, tick.clock, tick.nonce, jitter)
        assert given is not None
        action = machine.step(given, tick)
        answer = yield action, machine
        if isinstance(action, Done):
            return
        given = till._keeper.perform(action.change) if isinstance(action, Persist) else answer


@pytest.mark.parametrize("jitter", [0.0, 0.5, 0.999])
@pytest.mark.parametrize("failures", [1, 3, 8, 40])
def test_the_jitter_is_drawn_after_the_cap(till: Till, failures: int, jitter: float) -> None:
    """However many failures: a wait of U(0, cap), so that a fleet that failed together does not come together."""
    for number in range(failures):
        steps = drive(till, jitter=jitter)
        action, _ = next(steps)
        while not isinstance(action, Send):
            action, _ = steps.send(None)
        failed, _ = steps.send(LineDown("down"))
        assert isinstance(failed, Persist)
        assert isinstance(failed.change, Failed)
        wait_s = (failed.change.next_attempt_at - START).total_seconds()
        assert wait_s == pytest.approx(jitter * min(BACKOFF_MAX_S, 2 * 2 ** min(number + 1, 20)))
        done, _ = steps.send(None)
        assert isinstance(done, Done)
        assert isinstance(done.error, TryLater)
        assert done.error.code == "NO_CONNECTION"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120),
        ("0", 0),
        ("99999999999999", 86_400),
        ("Mon, 23 Nov 2026 09:01:00 GMT", 60),
        ("Mon, 23 Nov 2020 09:01:00 GMT", 0),
        ("soon", 0),
        ("-5", 0),
        ("", 0),
    ],
)
def test_retry_after_is_read_in_both_its_forms(text: str, seconds: float) -> None:
    """Seconds or a date; nonsense counts as nothing, and more than a day as a day."""
    status, headers, body = problem(503, "BUSY", "not now", **{"retry-after": text})
    assert retry_after_s(Answer(status, headers, body), START) == seconds


def test_a_patient_sync_waits_its_turn(till: Till, shop: Shop) -> None:
    """Until the kept time of the next attempt; without one, a random part of the spread."""
    action, _ = next(drive(till, patient=True, jitter=0.5))
    assert action == Wait(SPREAD_S * 0.5)
    with till._keeper.journal.write() as writing:
        writing.change(next_attempt_at=shop.clock.now() + timedelta(seconds=42))
    action, _ = next(drive(till, patient=True))
    assert action == Wait(42)
    with till._keeper.journal.write() as writing:
        writing.change(next_attempt_at=shop.clock.now() + timedelta(days=900))
    action, _ = next(drive(till, patient=True))
    assert action == Wait(0), "a time that far off was kept under a wrong clock"


def answer_of(shop: Shop, send: Send) -> Answer:
    status, headers, body = shop.server.answer(send.method, send.path, send.headers, send.body)
    return Answer(status, {name.lower(): value for name, value in headers.items()}, body)


def test_a_crash_between_any_two_actions_loses_and_doubles_nothing(till: Till, shop: Shop) -> None:
    """The process dies at each action in turn, before or after it took effect; the next syncs make everything good."""
    server = shop.server
    made: list[str] = []
    for stop_at in range(14):
        server.publish({**TEN, "code": f"NEW{stop_at}"})
        if not server.device.leases:
            server.grant(server.device, "ONCE", units=3)
        made += sell(till, 2)
        receipt = till.redeem(order(stop_at), ["ONCE"])
        made += [receipt.id] * receipt.redeemed
        steps = drive(till)
        action, _ = next(steps)
        for _ in range(stop_at // 2):
            if isinstance(action, Done):
                break
            answer = answer_of(shop, action) if isinstance(action, Send) else None
            action, _ = steps.send(answer)
        if stop_at % 2 and isinstance(action, Send):
            answer_of(shop, action)
        elif stop_at % 2 and isinstance(action, Persist):
            till._keeper.perform(action.change)
        steps.close()
        till.close()
        till = shop.open()
    till.sync()
    till.sync()
    assert arrived(shop) == made
    assert till._keeper.journal.verify() == till.status().head == len(server.device.events)
    held = {lease.id: lease.units for lease in till.status().leases}
    assert held == {lease.id: lease.units for lease in server.device.leases.values()}
    closes = [use.lease for one in server.device.envelopes(EventType.LEASE_CLOSE) for use in one.uses]
    assert len(closes) == len(set(closes))


def test_nothing_secret_is_in_what_is_sent_in_clear(till: Till, shop: Shop) -> None:
    """Line 1 and the headers name the device, never its private key."""
    sell(till, 1)
    secret = re.search(r'"d":"([^"]+)"', (shop.work / "till" / "device.key").read_text())
    assert secret is not None
    steps = drive(till)
    action, _ = next(steps)
    while not isinstance(action, Done):
        if isinstance(action, Send):
            assert secret[1].encode() not in action.body + repr(action.headers).encode()
        action, _ = steps.send(answer_of(shop, action) if isinstance(action, Send) else None)


def test_machines_are_values_of_their_inputs(till: Till) -> None:
    """The same inputs give the same request, byte for byte: time and chance come from outside."""
    machine, start = till._keeper.sync_machine(False)
    tick = till._keeper.tick()
    sent = []
    for one in (machine, Machine(machine._device, machine._key)):
        action = one.step(Start(start.reading, start.trusted, start.held), tick)
        assert isinstance(action, Persist)
        sent.append(one.step(Persisted(start.reading), tick))
    assert sent[0] == sent[1]
