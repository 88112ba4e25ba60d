"""The file of a journal: how it is made and opened, and what a till says where that cannot be."""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tallystick_client import Till, schema
from tallystick_client.journal import FILE_NAME, Journal
from tallystick_client.schema import USER_VERSION
from tallystick_shared.journal import EVENT_BYTES_MAX, EventType
from tests.client.conftest import TEN, Shop, order
from tests.client.test_chain import change
from tests.client.test_terminal_words import ID, said


@pytest.fixture
def till(shop: Shop) -> Till:
    shop.server.publish(TEN)
    return shop.enroll()


@pytest.fixture
def path(till: Till, shop: Shop) -> Path:
    return shop.work / "till" / FILE_NAME


def test_a_journal_that_cannot_be_opened_says_why(till: Till, path: Path, shop: Shop) -> None:
    """None at all, somebody else's, of a newer release, and no journal."""
    till.close()

    def opened() -> tuple[str, str]:
        return said(lambda: Journal._opened(path))

    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {USER_VERSION + 1}")
        assert opened() == ("NEEDS_UPDATE", f"{path} was written by a newer Tallystick: update this one")
        connection.execute(f"PRAGMA user_version = {USER_VERSION}")
        connection.execute("PRAGMA application_id = 7")
        assert opened() == ("JOURNAL_DAMAGED", f"{path} is not a journal of Tallystick")
    os.chown(path, 12345, -1)
    owners = f"belongs to user 12345, this process runs as user {os.geteuid()}"
    assert opened() == ("NOT_OURS", f"{path} {owners}")
    path.unlink()
    assert opened() == ("NOT_A_TILL", f"there is no journal at {path}: this till has to be enrolled again")


def test_a_damaged_journal_is_named_where_it_lies_now(till: Till, path: Path) -> None:
    """With its log files, under one name, with what to do."""
    till.close()
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).write_bytes(suffix.encode())
    path.write_bytes(b"not a database at all " * 400)
    aside = path.with_name(f"{path.name}.damaged-today")
    assert said(lambda: Journal.open(path, label="today")) == (
        "JOURNAL_DAMAGED",
        f"the journal was damaged and is kept as {aside}: keep that file, it holds what was redeemed, and "
        "enrol this till again in another directory",
    )
    assert aside.exists()
    assert not path.exists()


def test_a_damaged_journal_goes_with_its_log_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the log may be all that there is of a redemption; a folder that takes no names is told."""
    path = tmp_path / FILE_NAME
    suffixes = ("", "-wal", "-shm")
    for suffix in suffixes:
        path.with_name(path.name + suffix).write_bytes(suffix.encode())
    aside = schema.set_aside(path, "today")
    assert aside == tmp_path / f"{FILE_NAME}.damaged-today"
    assert [aside.with_name(aside.name + suffix).read_bytes() for suffix in suffixes] == [b"", b"-wal", b"-shm"]
    assert len(list(tmp_path.iterdir())) == 3
    path.write_bytes(b"")

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "rename", refuse)
    assert said(lambda: schema.set_aside(path, "again")) == (
        "DISK",
        f"{path} cannot be set aside: Read-only file system",
    )


@pytest.mark.parametrize("part", ["", "-wal"])
def test_a_part_that_the_disk_cannot_read_is_named(tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file or its log, and wherever in it; a log that is not there is none."""
    path = tmp_path / FILE_NAME
    path.write_bytes(b"x" * 2_500_000)
    schema.demand_readable(path)
    broken = path.with_name(path.name + part)
    broken.write_bytes(b"x" * 2_500_000)
    real = os.pread

    def failing(descriptor: int, size: int, position: int) -> bytes:
        if position > 2_000_000 and os.readlink(f"/proc/self/fd/{descriptor}") == str(broken):
            raise OSError(errno.EIO, "Input/output error")
        return real(descriptor, size, position)

    monkeypatch.setattr(os, "pread", failing)
    assert said(lambda: schema.demand_readable(path)) == ("DISK", f"{broken} cannot be read: Input/output error")


def test_a_journal_that_cannot_be_made_says_why(tmp_path: Path, till: Till) -> None:
    """No folder, a name that is taken, and one that cannot be given at the end; then there is no till."""
    state = till._keeper.journal.state()
    missing = tmp_path / "missing" / FILE_NAME
    assert said(lambda: schema.create(missing)) == ("DISK", f"{missing} cannot be made: No such file or directory")
    taken = tmp_path / "taken"
    taken.mkdir()
    assert said(lambda: schema.create(taken)) == ("DISK", f"{taken} cannot be made: File exists")
    assert said(lambda: Journal.create(taken, state, 1, b"root")) == ("DISK", f"{taken} cannot be made: Is a directory")
    assert sorted(one.name for one in tmp_path.iterdir() if one.name.startswith("taken")) == ["taken", "taken.new"]
    taken.rmdir()
    Journal.create(taken, state, 1, b"root")
    with closing(sqlite3.connect(taken)) as connection:
        assert connection.execute("SELECT * FROM enrolment").fetchall() == []
    assert not (tmp_path / "taken.new").exists()


def test_a_pragma_that_does_not_take_is_named(tmp_path: Path) -> None:
    """With what it stays, so that whoever is asked for help knows."""
    assert said(lambda: schema.connect(Path(":memory:"))) == (
        "DISK",
        ":memory: cannot be opened with journal_mode = wal: it stays memory",
    )


def test_who_is_busy_is_the_other_process(till: Till, path: Path) -> None:
    """What SQLite says becomes a sentence on every way into the journal."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        till._keeper.journal._connection.execute("PRAGMA busy_timeout = 0")
        assert said(lambda: till.redeem(order(), ["TEN"])) == (
            "BUSY",
            "another process of this till is writing: try again",
        )
        connection.execute("ROLLBACK")
    assert till.redeem(order(), ["TEN"]).redeemed


# ---- one event


def test_an_event_has_64_kib_at_most_with_its_body(till: Till) -> None:
    """The last byte that fits is taken, the next is refused with what it came to; nothing of it is kept."""
    terminal = till._keeper.terminal

    def write(size: int) -> int:
        with terminal.journal.write() as writing:
            judged = terminal.judged(writing)
            return writing.append(EventType.CLOCK_ANOMALY, f"{ID[:-1]}{writing.state.head_seq}", judged, b"x" * size)

    write(1)
    with terminal.journal.read() as view:
        ((envelope,),) = view.run("SELECT envelope FROM events").fetchall()
    room = EVENT_BYTES_MAX - len(envelope)
    assert write(room) == 2
    assert said(lambda: write(room + 1)) == (
        "EVENT_TOO_LARGE",
        "the order is too large to be kept: 65537 bytes with its result, at most 65536",
    )
    assert till.status().head == 2


def test_a_fork_and_a_lost_state_are_told(till: Till, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one is the program's mistake, the other the disk's."""
    with monkeypatch.context() as patch:
        patch.setattr("tallystick_client.journal.os.getpid", lambda: -1)
        assert said(till.status) == ("FORKED", "a till must be opened by the process that uses it, after any fork")
    change(path, "UPDATE state SET mark_at = 'noon'")
    code, sentence = said(till.status)
    assert (code, sentence[: len(f"the journal {path} is damaged: ")]) == (
        "JOURNAL_DAMAGED",
        f"the journal {path} is damaged: ",
    )
    change(path, "DELETE FROM state")
    assert said(till.status) == ("JOURNAL_DAMAGED", f"the journal {path} has lost its state")
