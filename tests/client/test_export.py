"""`tallystick journal`: what the journal says, whether it is whole, and its way to the server as a file."""

from __future__ import annotations

import json
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tallystick_client import CallerError, LineError, NotNow, StorageError, Till
from tallystick_client.exporting import Exported, Restored, export
from tallystick_client.forgetting import Forgotten, forget
from tallystick_client.journal import FILE_NAME
from tallystick_client.listing import entries
from tallystick_shared.journal import EventType
from tallystick_shared.journal_file import FileHeader, read_batch, read_header
from tallystick_shared.signing import Typ, peek
from tallystick_shared.wire import EventOutcome, Outcome, digest_of
from tests.client.conftest import ONCE, TEN, Shop, arrived, order, rows, sell
from tests.client.fake_server import loses_the_answer, loses_the_request

COMMAND = str(Path(sys.executable).parent / "tallystick")


@pytest.fixture
def till(shop: Shop) -> Till:
    """With a lease of five units of ONCE, two of them used, and one event that the server has."""
    shop.server.publish(TEN, ONCE)
    till = shop.enroll()
    shop.server.grant(shop.server.device, "ONCE", units=5)
    till.sync()
    sell(till, 1)
    till.sync()
    sell(till, 2, "ONCE")
    return till


def run(shop: Shop, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [COMMAND, "--dir", str(shop.work / "till"), "journal", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={"COLUMNS": "200"})
    assert "Traceback" not in done.stderr
    return done


def read(file: Path) -> tuple[FileHeader, list[bytes]]:
    with file.open("rb") as lines:
        return read_header(next(lines)), [read_batch(line) for line in lines]


def bring(shop: Shop, file: Path) -> None:
    """To the server, which asserts the signature, the digests and the chain of each batch."""
    for body in read(file)[1]:
        assert shop.server._sync(body)[0] == 200


def exported(shop: Shop, till: Till, name: str = "journal.tally", *, final: bool = False) -> tuple[Path, Exported]:
    file = shop.work / name
    return file, export(till._keeper, file, final=final)


# ---- export


def test_a_file_holds_what_waits_as_a_sync_would_send_it(till: Till, shop: Shop) -> None:
    """Made without a network, private, and the server has everything once it is brought there."""
    shop.offline()
    file, done = exported(shop, till)
    shop.back_online()
    header, bodies = read(file)
    assert (done.events, done.batches, done.first_seq) == (2, 1, 2)
    assert (header.device, header.events, header.batches, header.final) == (shop.server.device.id, 2, 1, False)
    assert len(bodies) == 1
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    bring(shop, file)
    assert arrived(shop) == [one for (one,) in rows(shop, "SELECT id FROM events ORDER BY seq")]
    assert shop.server.heads[-1].leases_digest == digest_of(list(shop.server.device.leases.values()))
    assert till.redeem(order(8), ["ONCE"]).redeemed, "it still sells"
    assert till.sync().acknowledged == 3


def test_batches_follow_each_other_and_each_is_small_enough(till: Till, shop: Shop) -> None:
    """More than 500 events are several batches, even where the line made the till send small ones."""
    shop.server.caps = shop.server.caps.__class__(redemptions=None)
    with till._keeper.journal.write() as writing:
        writing.change(batch_events_max=1)
    sell(till, 501)
    file, done = exported(shop, till)
    assert (done.events, done.batches) == (503, 2)
    bring(shop, file)
    assert [head.events.count for head in shop.server.heads[-2:]] == [500, 3]
    assert till._keeper.journal.state().batch_events_max == 1, "nothing is written"
    assert till.sync().acknowledged == 503


def test_a_final_export_gives_the_leases_back_and_ends_sales_for_good(till: Till, shop: Shop) -> None:
    """Whatever becomes of the file: the next opening says so too, online as offline; voids still work."""
    file, done = exported(shop, till, final=True)
    assert (done.closed, done.events) == (1, 3)
    bring(shop, file)
    (close,) = shop.server.device.envelopes(EventType.LEASE_CLOSE)
    assert [use.units for use in close.uses] == [2]
    assert shop.server.device.leases == {}
    assert shop.server.heads[-1].retired
    again = shop.open()
    for redeem in (again.redeem, again.redeem_online):
        with pytest.raises(NotNow, match="retired") as caught:
            redeem(order(9), ["TEN"])
        assert caught.value.code == "RETIRED"
    assert "retired" in again.status().notes[0]
    again.void(arrived(shop)[0])
    second, _ = exported(shop, again, "second.tally")
    bring(shop, second)
    assert len(shop.server.device.envelopes(EventType.VOID)) == 1


def test_a_retired_till_keeps_no_lease_that_comes_late(till: Till, shop: Shop) -> None:
    """A grant whose answer was lost is told again at the next sync, and closed at the one after."""
    exported(shop, till, final=True)
    till.sync()
    shop.server.grant(shop.server.device, "ONCE", units=4)
    till.sync()
    till.sync()
    assert shop.server.device.leases == {}
    closes = shop.server.device.envelopes(EventType.LEASE_CLOSE)
    assert [use.units for close in closes for use in close.uses] == [2, 0]


def test_what_the_server_has_already_is_passed_over(till: Till, shop: Shop) -> None:
    """The answer to the last sync was lost, so the file begins before what the server knows."""
    shop.server.script = [loses_the_answer]
    with pytest.raises(LineError):
        till.sync()
    sell(till, 1)
    file, done = exported(shop, till)
    assert done.first_seq == 2
    bring(shop, file)
    assert len(set(arrived(shop))) == len(arrived(shop)) == 4


def test_a_restored_server_gets_what_it_asks_for(till: Till, shop: Shop) -> None:
    """Everything after what it knows, in its epoch, with the leases held there; the till itself is as before."""
    before = till._keeper.journal.state()
    file = shop.work / "again.tally"
    done = export(till._keeper, file, final=False, restored=Restored(7, 0))
    assert (done.events, done.first_seq) == (3, 1)
    bring(shop, file)
    head = shop.server.heads[-1]
    assert (head.server_epoch, head.after.seq) == (7, 0)
    assert [lease.units for lease in head.held or ()] == [5]
    assert till._keeper.journal.state() == before
    with pytest.raises(CallerError, match="from event 0 to 3, not event 9"):
        export(till._keeper, shop.work / "more.tally", final=False, restored=Restored(7, 9))
    alone = run(shop, "export", str(shop.work / "alone.tally"), "--epoch", "7")
    assert (alone.returncode, "go together" in alone.stderr) == (2, True)


def test_a_till_with_nothing_to_send_still_tells_that_it_is_retired(shop: Shop) -> None:
    """One batch without events, signed, so that the server grants nothing more."""
    till = shop.enroll()
    file, done = exported(shop, till, final=True)
    assert (done.events, done.batches) == (0, 1)
    bring(shop, file)
    assert shop.server.heads[-1].retired


def test_nothing_is_overwritten_and_nothing_is_left_half_written(till: Till, shop: Shop) -> None:
    """A file that is there is refused before the till is retired; a folder that is not leaves no trace."""
    file = shop.work / "kept"
    file.write_text("mine")
    with pytest.raises(CallerError, match="overwrites nothing"):
        export(till._keeper, file, final=True)
    assert file.read_text() == "mine"
    assert not till._keeper.journal.state().retired
    with pytest.raises(StorageError, match="cannot be written"):
        export(till._keeper, shop.work / "nowhere" / "file", final=False)
    assert not list(shop.work.glob("*.new"))


def test_a_file_that_cannot_be_made_retires_nothing(till: Till, shop: Shop) -> None:
    """The till goes on selling; names that the system cannot take are a sentence too."""
    nowhere = shop.work / "no-stick" / "file"
    for file in (nowhere, shop.work / ("x" * 300)):
        with pytest.raises(StorageError, match="cannot be written"):
            export(till._keeper, file, final=True)
    assert not till._keeper.journal.state().retired
    assert till.redeem(order(8), ["ONCE"]).redeemed


def test_a_file_proves_the_enrolment_and_tells_the_leases(till: Till, shop: Shop) -> None:
    """The server that takes it may have been restored from a backup that knows neither; the till notes none of it."""
    file, _ = exported(shop, till, final=True)
    header, bodies = read(file)
    assert header.again is not None
    assert peek(header.again.encode(), Typ.ENROL_AGAIN)[0] == till._keeper.key.kid
    bring(shop, file)
    assert len(bodies) == 1
    assert [lease.units for lease in shop.server.heads[-1].held or ()] == [5]
    assert not till._keeper.journal.state().recovering


def test_an_id_that_is_no_text_is_refused_in_a_sentence(till: Till, shop: Shop) -> None:
    """As a shell passes on what was typed in another encoding."""
    till.close()
    command = [COMMAND.encode(), b"--dir", str(shop.work / "till").encode(), b"journal"]
    forgotten = subprocess.run([*command, b"forget", b"M\xfcller"], capture_output=True, timeout=60)
    assert (forgotten.returncode, b"must be text in UTF-8" in forgotten.stderr) == (2, True)
    made = subprocess.run([*command, b"export", b"x" * 300], capture_output=True, timeout=60)
    assert (made.returncode, b"cannot be written" in made.stderr) == (2, True)


def test_an_export_waits_for_no_sync_and_says_so(till: Till, shop: Shop) -> None:
    """Two at once would send the same events twice over; the one that comes second is told."""
    lock = till._keeper.directory.lock()
    assert lock.take()
    with pytest.raises(LineError, match="syncing"):
        exported(shop, till)
    lock.release()
    assert exported(shop, till)[1].events == 2


# ---- list and verify


def test_the_list_says_what_became_of_each_event(till: Till, shop: Shop) -> None:
    """Where it is, what the server said of it, what it gave, and whether it was voided."""
    first = rows(shop, "SELECT id FROM events WHERE seq = 1")[0][0]
    till.void(first)
    shop.server.exceptions = [EventOutcome(2, rows(shop, "SELECT id FROM events WHERE seq = 2")[0][0],
                                           Outcome.FLAGGED, ["LATE"])]  # fmt: skip
    shop.server.durable = True
    till.sync()
    sell(till, 1)
    with till._keeper.journal.read() as view:
        found = entries(view, waiting=False, limit=10)
        waiting = entries(view, waiting=True, limit=10)
        newest = entries(view, waiting=False, limit=2)
    said = [(one.seq, one.type, one.amount_minor, one.codes, one.outcome, one.voided) for one in found]
    assert said == [
        (1, "redeem", 135, ["TEN"], "applied", True),
        (2, "redeem", 300, ["ONCE"], "flagged", False),
        (3, "redeem", 300, ["ONCE"], "applied", False),
        (4, "void", -135, ["TEN"], "applied", False),
        (5, "redeem", 135, ["TEN"], None, False),
    ]
    assert [one.state for one in found] == ["durable"] * 4 + ["waiting"]
    assert (found[1].reasons, found[3].ref, found[3].ref_seq, found[3].currency) == (["LATE"], first, 1, "EUR")
    assert waiting == found[4:]
    assert newest == found[3:]


def test_the_commands_say_it_to_people_and_to_programs(till: Till, shop: Shop) -> None:
    """A receipt can be found and voided by what is printed; erased bodies are said to be."""
    till.close()
    shown = run(shop, "list")
    assert shown.returncode == 0
    receipt = json.loads(run(shop, "list", "--json", "--limit", "1").stdout)
    assert (receipt["seq"], receipt["codes"], receipt["state"]) == (3, ["ONCE"], "waiting")
    assert receipt["id"] in shown.stdout
    assert "EUR 3.00" in shown.stdout
    assert len(run(shop, "list", "--json", "--waiting").stdout.splitlines()) == 2
    verified = run(shop, "verify")
    head = rows(shop, "SELECT head_hash FROM state")[0][0]
    assert (verified.returncode, head in verified.stdout) == (0, True)
    assert verified.stdout.startswith("3 events are as they were written")
    file = shop.work / "out.tally"
    assert run(shop, "export", str(file), "--final").returncode == 0
    assert read(file)[0].final


DAMAGE = {
    "UPDATE events SET envelope = x'00' WHERE seq = 2": "the chain breaks at event 2",
    "UPDATE events SET hash = replace(hash, 'a', 'b') WHERE seq = 3": "the chain breaks at event 3",
    "DELETE FROM events WHERE seq = 2": "the chain breaks at event 2",
    "DELETE FROM events WHERE seq = 3": "the chain breaks at event 3",
    "UPDATE events SET body = x'7b7d' WHERE seq = 2": "the body of event 2 was changed",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_verify_names_the_first_event_that_is_not_as_it_was(till: Till, shop: Shop, damage: str) -> None:
    """Exit code 2, one sentence, and the journal stays where it is."""
    till.close()
    path = shop.work / "till" / FILE_NAME
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DROP TRIGGER events_never_change")
        connection.execute(damage)
    done = run(shop, "verify")
    assert (done.returncode, done.stdout) == (2, "")
    assert DAMAGE[damage] in done.stderr
    assert done.stderr.count("\n") == 1
    assert path.exists()


# ---- forget


def content(shop: Shop) -> bytes:
    return b"".join(part.read_bytes() for part in (shop.work / "till").glob(f"{FILE_NAME}*"))


def test_a_customer_is_forgotten_and_nothing_else_changes(till: Till, shop: Shop) -> None:
    """No byte of the id is left in the journal's files; the chain, the counts and other customers stay."""
    till.redeem(order(20, customer="bertha-the-other"), ["TEN"])
    mine = till.redeem(order(21, customer="customer-to-forget"), ["TEN"])
    till.void(mine.id, reason="customer-to-forget was here")
    shop.server.script = [loses_the_request]
    till.redeem_online(order(22, customer="customer-to-forget"), ["TEN"])
    with till._keeper.journal.read() as view:
        before = view.state
    till.sync()
    assert b"customer-to-forget" in content(shop)
    done = forget(till._keeper.journal, "customer-to-forget")
    assert (done.bodies, done.attempts, done.waiting) == (3, 1, 0)
    assert b"customer-to-forget" not in content(shop)
    assert b"bertha-the-other" in content(shop)
    assert till._keeper.journal.verify() == before.head_seq
    assert run(shop, "verify").stdout.startswith(f"{before.head_seq} events are as they were written; 3 have no body")
    assert till._keeper.journal.state().waiting == 0
    assert till.sync().state == "active"
    assert forget(till._keeper.journal, "customer-to-forget").bodies == 0
    with pytest.raises(CallerError, match="was voided before"):
        till.void(mine.id)
    kept = sell(till, 1)[0]
    till.sync()
    forget(till._keeper.journal, "anna")
    with pytest.raises(CallerError, match="was erased from this till"):
        till.void(kept)


def test_what_waits_is_sent_before_it_is_forgotten(till: Till, shop: Shop) -> None:
    """The server has to see the order first; the command says so, and does the rest once it was sent."""
    assert forget(till._keeper.journal, "anna") == Forgotten(1, 0, 2)
    assert [len(body) > 0 for (body,) in rows(shop, "SELECT body FROM events ORDER BY seq")] == [False, True, True]
    refused = run(shop, "forget", "anna")
    assert refused.returncode == 1
    assert "2 wait for the server" in refused.stdout
    till.sync()
    assert run(shop, "forget", "anna").returncode == 0
    assert b'"anna"' not in content(shop)
    assert len(arrived(shop)) == 3


def test_a_forgotten_customer_starts_anew(till: Till, shop: Shop) -> None:
    """The salted counter goes too: with the salt beside it, it could be asked whether this customer was here."""
    welcome: dict[str, Any] = {**TEN, "code": "WELCOME", "limits": {"per_customer": 1}}
    shop.server.publish(TEN, ONCE, welcome)
    till.sync()
    assert till.redeem(order(30), ["WELCOME"]).redeemed
    till.redeem(order(31, customer="bertha"), ["WELCOME"])
    assert not till.redeem(order(32), ["WELCOME"]).redeemed
    till.sync()
    forget(till._keeper.journal, "anna")
    assert till.redeem(order(33), ["WELCOME"]).redeemed
    assert not till.redeem(order(34, customer="bertha"), ["WELCOME"]).redeemed
