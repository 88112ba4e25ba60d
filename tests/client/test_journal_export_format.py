"""The bytes of a journal, on a till and in a file: what is written, and by which sentence anything else is refused."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from tallystick_client import Till
from tallystick_client.journal import new_id, stored_events
from tallystick_shared.errors import Untrusted
from tallystick_shared.journal import (
    Envelope,
    EventType,
    StoredEvent,
    chain_next,
    chain_start,
    encode,
    join_events,
    read_envelope,
    split_events,
)
from tallystick_shared.journal_file import FileHeader, read_batch, read_header, write_batch, write_header
from tallystick_shared.signing import SigningKey, b64u_decode
from tests.client.conftest import TEN, Shop, sell
from tests.client.fake_clock import START
from tests.client.test_terminal_words import said

ID = "0190b6a0-0000-7000-8000-000000000001"
HASH = "ab" * 32
ENVELOPE = Envelope(1, EventType.VOID, ID, 1, START, "boot-1", 7, 1, "1", [], HASH, ID)
HEADER = FileHeader("tallystick-journal", 1, ID, ID, "till", "309", START, 1, 2, False)


def line(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode() + b" " + content + b"\n"


# ---- events


def test_the_chain_is_what_the_protocol_says() -> None:
    """SHA-256 over the name of the format, both ids and the key; then over the hash before and the envelope."""
    key = SigningKey.generate()
    start = hashlib.sha256(b"tallystick-journal-v1" + HASH.encode()[:36] + ID.encode() + b64u_decode(key.jwk()["x"]))
    assert chain_start(HASH[:36], ID, key) == start.hexdigest()
    assert chain_next(HASH, b"{}") == hashlib.sha256(b"\xab" * 32 + b"{}").hexdigest()


def test_events_are_pairs_of_lines() -> None:
    """Envelope and body, each ended by a newline, also an erased body; nothing at all is no event."""
    events = [StoredEvent(b"{1}", b"{2}"), StoredEvent(b"{3}", b"")]
    assert join_events(events) == b"{1}\n{2}\n{3}\n\n"
    assert split_events(b"{1}\n{2}\n{3}\n\n") == events
    assert split_events(b"") == []
    assert join_events([]) == b""


def header(**changed: Any) -> bytes:
    return line(encode(msgspec.structs.replace(HEADER, **changed)))


GOOD = line(base64.b64encode(b"tally"))
REFUSED: list[tuple[str, str, Callable[[], object]]] = [
    ("UNREADABLE", "the envelope cannot be read: ", lambda: read_envelope(b"{}")),
    ("UNREADABLE", "the envelope cannot be read: ", lambda: read_envelope(b"\xff")),
    ("UNREADABLE", "envelope version 2 is not known here",
     lambda: read_envelope(encode(msgspec.structs.replace(ENVELOPE, v=2)))),
    ("MALFORMED", "the events are not pairs of lines, each ended by a newline", lambda: split_events(b"{1}\n")),
    ("MALFORMED", "the events are not pairs of lines, each ended by a newline", lambda: split_events(b"{1}\n{2}")),
    ("MALFORMED", "the events are not pairs of lines, each ended by a newline", lambda: split_events(b"{1}")),
    ("NOT_A_JOURNAL_FILE", "its first line is no header of a journal: ", lambda: read_header(line(b"{}"))),
    ("NOT_A_JOURNAL_FILE", "it is no journal of Tallystick", lambda: read_header(header(format="tally"))),
    ("NEEDS_UPDATE", "it was written by a newer Tallystick: update this one", lambda: read_header(header(v=2))),
    ("DAMAGED_FILE", "it is cut short", lambda: read_header(header()[:-1])),
    ("DAMAGED_FILE", "it is cut short", lambda: read_batch(GOOD[:-1])),
    ("DAMAGED_FILE", "it is cut short", lambda: read_batch(b"")),
    ("DAMAGED_FILE", "its digest is not that of what it holds", lambda: read_batch(b"0" + GOOD[1:])),
    ("DAMAGED_FILE", "its digest is not that of what it holds", lambda: read_batch(GOOD.replace(b" ", b"  "))),
    ("DAMAGED_FILE", "its digest is not that of what it holds", lambda: read_header(header().upper())),
    ("DAMAGED_FILE", "it is not base64", lambda: read_batch(line(b"dGF!sbHk="))),
    ("DAMAGED_FILE", "it is not base64", lambda: read_batch(line(b"dGFsbHk"))),
    ("DAMAGED_FILE", "it is not canonical base64", lambda: read_batch(line(b"dGFsbHl="))),
]  # fmt: skip


@pytest.mark.parametrize(("code", "sentence", "call"), REFUSED)
def test_what_is_no_journal_is_refused_in_words(code: str, sentence: str, call: Callable[[], object]) -> None:
    """With the code by which a program knows whether to look at the disk, the file or the release."""
    with pytest.raises(Untrusted):
        call()
    got, words = said(call)
    assert (got, words[: len(sentence)] if sentence.endswith(": ") else words) == (code, sentence)


def test_a_file_is_lines_with_their_digests() -> None:
    """Header and batches are read as they were written; a header may have fields that this release does not know."""
    assert write_header(HEADER) == header()
    assert read_header(header()) == HEADER
    more = {**msgspec.json.decode(encode(HEADER)), "colour": "red"}
    assert read_header(line(encode(more))) == HEADER
    assert write_batch(b"tally") == GOOD
    assert read_batch(GOOD) == b"tally"
    assert read_envelope(encode(ENVELOPE)) == ENVELOPE


# ---- on the till


def test_a_batch_has_as_many_events_as_fit(till: Till) -> None:
    """So many events, or so many bytes with their line ends, to the last byte; but one event at least."""
    sell(till, 3)
    with till._keeper.journal.read() as view:
        every = stored_events(view, 0, 500, 10**6)
        sizes = [len(one.envelope) + len(one.body) + 2 for one in every]
        assert len(join_events(every)) == sum(sizes)
        whole = sizes[0] + sizes[1]
        for after_seq, events_max, bytes_max, wanted in (
            (0, 2, 10**6, every[:2]),
            (1, 9, 10**6, every[1:]),
            (3, 9, 10**6, []),
            (0, 9, whole, every[:2]),
            (0, 9, whole - 1, every[:1]),
            (0, 9, 1, every[:1]),
            (0, 9, sum(sizes), every),
        ):
            assert stored_events(view, after_seq, events_max, bytes_max) == wanted


@pytest.mark.parametrize("after_s", [0, 1, 86_400])
def test_ids_are_of_version_7_and_of_their_time(after_s: int) -> None:
    """They sort by when they were made, by the till's own time, and no two are the same."""
    at = START + timedelta(seconds=after_s)
    one, two = new_id(at), new_id(at)
    assert one != two
    assert one[14] == two[14] == "7"
    assert int(one.replace("-", "")[:12], 16) == int(at.timestamp()) * 1000


@pytest.fixture
def till(shop: Shop) -> Till:
    shop.server.publish(TEN)
    return shop.enroll()
