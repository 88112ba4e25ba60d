"""The wire: the short version holds, what is broken on purpose does not, and the harness's parts do what they say."""

from __future__ import annotations

import socket
import warnings
from pathlib import Path

import pytest

from tallystick_client.errors import LineError, TallystickError
from tests.proof import wire
from tests.proof.runner import controls, short
from tests.proof.tally import Tally
from tests.proof.wire_answers import FAULTS
from tests.proof.wire_books import Clean
from tests.proof.wire_case import COUNTERS
from tests.proof.wire_faults import CALLS, FIRST
from tests.proof.wire_relay import kind_of, length_of
from tests.proof.wire_tills import judged, sentence_wrong


def test_the_short_version_holds() -> None:
    """200 faults lose, double and exceed nothing, every till converges, and every kind of fault was met."""
    tally = short("wire")
    assert tally.failures == []
    assert tally.holds, tally
    assert wire.lacks(tally) == []


def test_what_is_broken_on_purpose_is_found() -> None:
    """Each control fails, and by what it broke."""
    found = controls("wire")
    assert [name for name, tally in found.items() if tally.holds] == []
    doubled = ("a till that falls back offline under a new id", "a server that forgets the ids of online redemptions")
    for name in doubled:
        assert found[name].doubled
    repeated = found["a server that takes a repeated sync for news"]
    assert repeated.converged < repeated.tills
    said = {name: " ".join(one.what for one in tally.failures) for name, tally in found.items()}
    assert "followed a redirect" in said["a till that follows redirects"]
    assert "a stray refusal after the answer" in said["a till that uses its connections again"]
    assert "new-till" in said["a till that takes any signed answer for its own"]


def test_every_call_can_meet_every_fault() -> None:
    """A fault is only spared a call that has no such moment, and each order of all pairs has every pair once."""
    for fault in FAULTS.values():
        assert fault.calls == set(FIRST) if fault.connects else fault.calls >= {"manifest"} or len(fault.calls) >= 4
    assert {call for call, _ in wire.PAIRS} == set(CALLS)
    for whole in range(2):
        assert sorted(wire.order_of(7, whole)) == sorted(wire.PAIRS)
    assert wire.order_of(7, 0) != wire.order_of(7, 1)
    assert {name for _, name in wire.order_of(7, 0)[: len(FAULTS)]} == set(FAULTS)


def test_the_cases_meet_all_pairs_in_turn() -> None:
    """No pair is left out between one case and the next."""
    cases = -(-len(wire.PAIRS) // (wire.ROUNDS * COUNTERS))
    met = [pair for case in range(cases) for pair in wire.planned(3, case)]
    assert set(met) == set(wire.PAIRS)


def test_a_run_that_met_nothing_lacks_everything() -> None:
    """What proves nothing does not pass."""
    assert len(wire.lacks(Tally())) > len(FAULTS)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"POST /v1/sync HTTP/1.1", "sync"),
        (b"POST /v1/redemptions HTTP/1.1", "online"),
        (b"POST /v1/devices HTTP/1.1", "enrol"),
        (b"POST /v1/devices/again HTTP/1.1", "again"),
        (b"GET /v1/roots/1 HTTP/1.1", "root"),
        (b"GET /v1/blobs/ab HTTP/1.1", "blob"),
        (b"GET /v1/scopes/main/manifest HTTP/1.1", "manifest"),
        (b"GET /live HTTP/1.1", "other"),
    ],
)
def test_a_request_is_of_one_kind(head: bytes, kind: str) -> None:
    """What a fault is aimed at is told by the first line of a request."""
    assert kind_of(head) == kind
    assert length_of(head + b"\r\nContent-Length: 17\r\n\r\n") == 17


def test_what_escapes_and_what_is_no_sentence_is_seen() -> None:
    """An error that is not the client's own, a code that is none, and what a terminal would act on."""
    assert "escapes" in judged(ValueError("x"))
    assert "escapes" in judged(LineError("a bug", code="INTERNAL"))
    assert "escapes" in judged(TallystickError("of no family"))
    assert "code" in sentence_wrong("fine", "\x1b[2J")
    assert "sentence" in sentence_wrong("a\x1b[2Jb", "CODE")
    assert judged(LineError("the line is down")) == ""


def test_what_is_left_open_or_warned_of_is_seen() -> None:
    """A file that stays open, a warning and an error that nobody could raise are failures of the case."""

    class Stub:
        def __init__(self) -> None:
            self.said: list[str] = []

        def fail(self, sentence: str) -> None:
            self.said.append(sentence)

    stub = Stub()
    with pytest.MonkeyPatch.context() as patch, socket.socket() as outside:
        patch.setattr("tests.proof.wire_books.WATCHDOG_S", 0.05)
        with Clean(stub):  # type: ignore[arg-type]
            left = socket.socket()
            warnings.warn("a leak", ResourceWarning, stacklevel=1)
    assert outside.fileno() < 0
    left.close()
    assert any("left open: socket" in sentence for sentence in stub.said)
    assert any("ResourceWarning: a leak" in sentence for sentence in stub.said)


REPEATED = [
    ("again", "Content-Length too short"),
    ("online", "a stray answer after the answer"),
    ("online", "a stray refusal after the answer"),
    ("sync", "a stray answer after the answer"),
    ("enrol", "an odd problem"),
    ("sync", "an odd Retry-After"),
    ("manifest", "an odd ETag"),
    ("sync", "a redirect"),
    ("sync", "a portal with cookies"),
]


def test_what_was_found_stays_mended(tmp_path: Path) -> None:
    """Seed 1, cases 0 to 4: what was left over in a connection was the next answer; headers and codes that escaped."""
    tally = wire.run(1, 0, tmp_path, REPEATED, whole=False)
    assert tally.failures == []
    assert tally.holds, tally
