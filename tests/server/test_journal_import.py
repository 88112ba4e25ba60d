"""Journals as files: taken with the same checks as over the line, whole batches only, any number of times."""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
import sys
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from tallystick_server import recovery
from tallystick_server.journals import Imported, import_journals
from tallystick_server.operations import opened
from tallystick_shared.journal import EventType, encode
from tallystick_shared.journal_file import FORMAT, VERSION, FileHeader, write_batch, write_header
from tallystick_shared.signing import Typ, sha256_hex
from tallystick_shared.wire import EnrolAgain
from tests.server.conftest import ORDER, Shop, voucher
from tests.server.restoring import Backup
from tests.server.test_recovery import begin
from tests.server.tiny_device import TinyDevice, new_id

COMMAND = str(Path(sys.executable).parent / "tallystick-server")


def write(shop: Shop, device: TinyDevice, *bodies: bytes, name: str = "journal.tally", **fields: object) -> Path:
    """A file of these batches, and a header that fits unless `fields` say otherwise."""
    values: dict[str, object] = {
        "format": FORMAT, "v": VERSION, "device": device.id, "server": device.enrolled.server, "name": "till",
        "store_id": "store-1", "made_at": shop.clock(), "batches": len(bodies), "events": len(device.events),
        "final": False,
    }  # fmt: skip
    file = shop.settings.data / name
    header = FileHeader(**(values | fields))  # type: ignore[arg-type]
    file.write_bytes(b"".join([write_header(header), *map(write_batch, bodies)]))
    return file


def batches(device: TinyDevice, size: int) -> list[bytes]:
    """All that waits, in batches of so many events."""
    ends = [*range(device.acknowledged, len(device.events), size), len(device.events)]
    return [device.request(after=after, through=through) for after, through in pairwise(ends)]


def bring(shop: Shop, *files: Path) -> list[Imported]:
    return asyncio.run(import_journals(shop.settings, list(files), now=shop.clock()))


@pytest.fixture
def device(shop: Shop) -> TinyDevice:
    """A till with a lease of ONCE, and nine sales that the server does not have."""
    shop.publish(voucher("ONCE", total=10), voucher("OPEN"))
    device = shop.device()
    for _ in range(7):
        device.redeem(ORDER, "open")
    for _ in range(2):
        device.redeem(ORDER, "once")
    return device


def stored(shop: Shop) -> int:
    return int(shop.rows("SELECT count(*) AS n FROM events")[0]["n"])


def test_a_file_is_settled_as_a_sync_is(either_shop: Shop) -> None:
    """The same events, outcomes, uses and pools as over the line; the close gives the rest back, granted to nobody."""
    either_shop.publish(voucher("ONCE", total=10), voucher("OPEN"))
    device = either_shop.device()
    device.redeem(ORDER, "open")
    device.redeem(ORDER, "once")
    device.redeem(ORDER, "open", at=either_shop.clock() + timedelta(days=3))
    lease = device.lease_of("once")
    assert lease is not None
    device.close(lease)
    (done,) = bring(either_shop, write(either_shop, device, *batches(device, 2)))
    assert (done.device, done.stored, done.known, done.refused) == (device.id, 4, 0, "")
    assert done.outcomes == {"applied": 3, "flagged": 1}
    assert either_shop.flags() == ["TIME_UNCERTAIN"]
    pool = either_shop.pool("ONCE")
    assert (pool["free"], pool["held"], pool["closed_used"]) == (9, 0, 1)


def test_a_file_imported_twice_changes_nothing(shop: Shop, device: TinyDevice) -> None:
    """However many batches it has, and if the till came online in between."""
    file = write(shop, device, *batches(device, 2))
    assert bring(shop, file)[0].stored == 9
    before = shop.rows("SELECT * FROM events"), shop.rows("SELECT * FROM pools"), shop.rows("SELECT * FROM redemptions")
    for _ in range(2):
        (again,) = bring(shop, file)
        assert (again.stored, again.known, again.refused, again.outcomes) == (0, 9, "", {})
    after = shop.rows("SELECT * FROM events"), shop.rows("SELECT * FROM pools"), shop.rows("SELECT * FROM redemptions")
    assert after == before
    device.redeem(ORDER, "open")
    device.sync()
    assert bring(shop, file)[0].known == 9
    assert stored(shop) == 10
    assert shop.rows("SELECT branches FROM devices") == [{"branches": 1}]


@pytest.mark.parametrize("damaged", [1, 3, 5])
def test_a_changed_byte_refuses_its_batch_and_all_after_it(shop: Shop, device: TinyDevice, damaged: int) -> None:
    """Those before it are whole, and stay; the number of the batch is said."""
    file = write(shop, device, *batches(device, 2))
    lines = file.read_bytes().splitlines(keepends=True)
    line = bytearray(lines[damaged])
    line[len(line) // 2] ^= 1
    file.write_bytes(b"".join([*lines[:damaged], bytes(line), *lines[damaged + 1 :]]))
    (done,) = bring(shop, file)
    assert (done.refused_batch, done.stored) == (damaged, 2 * (damaged - 1))
    assert done.refused == "its digest is not that of what it holds (DAMAGED_FILE)"
    assert stored(shop) == 2 * (damaged - 1)
    whole = write(shop, device, *batches(device, 2))
    assert bring(shop, whole)[0].refused == ""
    assert stored(shop) == 9


def test_every_byte_counts(shop: Shop, device: TinyDevice) -> None:
    """Whichever byte of a file is changed, it is noticed, and nothing at or after it is stored."""
    file = write(shop, device, *batches(device, 9))
    raw = file.read_bytes()
    for place in [*range(0, len(raw), 97), len(raw) - 1]:
        file.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        (done,) = bring(shop, file)
        assert done.refused, f"the change of byte {place} was not noticed"
    assert stored(shop) == 0


def test_a_file_that_was_cut_short_is_noticed(shop: Shop, device: TinyDevice) -> None:
    """In the middle of a batch, between two, and in the header: what is whole is taken, the rest is named."""
    file = write(shop, device, *batches(device, 3))
    lines = file.read_bytes().splitlines(keepends=True)
    for kept, number, why in (
        (lines[0][:-20], 0, "it is cut short"),
        (b"".join(lines[:2]) + lines[2][:-5], 2, "it is cut short"),
        (b"".join(lines[:3]), 3, "the file ends before it"),
        (b"".join([*lines, lines[3]]), 4, "has more"),
    ):
        file.write_bytes(kept)
        (done,) = bring(shop, file)
        assert done.refused_batch == number
        assert why in done.refused
    assert stored(shop) == 9


def test_what_is_no_journal_is_refused_in_a_sentence(shop: Shop, device: TinyDevice) -> None:
    """Another file, a newer format, a batch of somebody else, a file that is not there; the others are taken."""
    other = shop.device("store-2")
    other.redeem(ORDER, "open")
    nothing = shop.settings.data / "voucher.ndjson"
    nothing.write_text('{"code": "TEN"}\n')
    files = [
        nothing,
        write(shop, device, *batches(device, 9), name="newer", v=2),
        write(shop, device, *batches(other, 9), name="mixed"),
        shop.settings.data / "absent",
        write(shop, device, *batches(device, 9), name="good"),
    ]
    done = bring(shop, *files)
    assert [one.refused.rpartition("(")[2] for one in done] == [
        "DAMAGED_FILE)", "NEEDS_UPDATE)", "DAMAGED_FILE)", "NO_FILE)", "",
    ]  # fmt: skip
    assert stored(shop) == 9


def test_a_forged_batch_is_not_believed(shop: Shop, device: TinyDevice) -> None:
    """A good digest of the line helps nobody: the batch is signed, and its chain is followed."""
    body = batches(device, 9)[0]
    thief = TinyDevice(device.url, shop.clock)
    thief.id, thief.start, thief.enrolled = device.id, device.start, device.enrolled
    thief.append(EventType.REDEEM, [], encode({}))
    for bad in (body[:-1] + bytes([body[-1] ^ 1]), body.replace(b".", b".x", 1), thief.request()):
        (done,) = bring(shop, write(shop, device, bad))
        assert done.refused_batch == 1
    assert stored(shop) == 0


@pytest.mark.parametrize("state", ["suspended", "revoked", "lost"])
def test_a_device_that_is_turned_away_still_brings_its_journal(shop: Shop, device: TinyDevice, state: str) -> None:
    """What it sold is a fact; a lost one's close returns what it did not use."""
    assert shop.post(f"/v1/devices/{device.id}/{ {'suspended': 'suspend', 'revoked': 'revoke', 'lost': 'lost'}[state] }"
                     ).status_code < 300  # fmt: skip
    lease = device.lease_of("once")
    assert lease is not None
    device.close(lease)
    (done,) = bring(shop, write(shop, device, *batches(device, 4)))
    assert (done.stored, done.refused) == (10, "")
    pool = shop.pool("ONCE")
    assert (pool["free"], pool["held"], pool["closed_used"]) == (8, 0, 2)
    assert shop.rows("SELECT state FROM devices") == [{"state": state}]


def test_nothing_is_granted_to_a_till_that_does_not_hear_of_it(shop: Shop) -> None:
    """The answer to a batch in a file reaches nobody; nor is a retired till granted anything, even online."""
    shop.publish(voucher("ONCE", total=10))
    absent = shop.device(synced=False)
    assert bring(shop, write(shop, absent, absent.request()))[0].refused == ""
    assert absent.sync(retired=True).leases == []
    assert shop.pool("ONCE")["held"] == 0
    assert absent.sync().leases != []


def test_a_restored_server_says_from_where_it_needs_the_journal(shop: Shop, device: TinyDevice) -> None:
    """A gap is no fork; a file of an older epoch is taken where nothing is missing before it, and else says what to
    export instead."""
    device.ledger_mark = 1_000
    (done,) = bring(shop, write(shop, device, device.request(after=5)))
    assert done.refused == (
        "this server was restored from a backup, is in epoch 1 and knows this till only up to event 0: "
        "export with --epoch 1 --after 0 (RESTORED)"
    )
    assert bring(shop, write(shop, device, device.request(after=0, through=3)))[0].stored == 3

    async def declare() -> int:
        async with opened(shop.settings, shop.clock()) as server:
            begun = await server.database.write(lambda transaction: recovery.begin(transaction, now=shop.clock()))
            return begun.server_epoch

    epoch = asyncio.run(declare())
    (done,) = bring(shop, write(shop, device, device.request(after=5)))
    assert f"is in epoch {epoch} and knows this till only up to event 3: export with --epoch {epoch} --after 3" in (
        done.refused
    )
    assert stored(shop) == 3
    file = write(shop, device, device.request(after=3, server_epoch=epoch, held=device.active()))
    (done,) = bring(shop, file)
    assert (done.refused, done.stored, stored(shop)) == ("", 6, 9)
    assert shop.rows("SELECT branches, state FROM devices") == [{"branches": 1, "state": "active"}]


def test_a_file_of_an_older_epoch_is_settled_with_its_leases(either_shop: Shop) -> None:
    """Of a till that is gone it is all there is: imported, forgotten by a restore, and imported once more."""
    shop = either_shop
    shop.publish(voucher("ONCE", total=10))
    device = shop.device(synced=False)
    device.fetch()
    backup = Backup(shop)
    device.sync()
    (lease,) = device.active()
    for _ in range(3):
        device.redeem(ORDER, "once")
    device.close(lease)
    device.recovering = True  # every export tells the leases that are held where a batch begins
    ends = [0, 2, 4]
    bodies = [device.request(after=after, through=through, retired=True) for after, through in pairwise(ends)]
    file = write(shop, device, *bodies, final=True)
    assert bring(shop, file)[0].stored == 4
    before = shop.pool("ONCE")
    backup.restore()
    begin(shop)
    assert shop.pool("ONCE")["held"] == 0
    (done,) = bring(shop, file)
    assert (done.stored, done.refused, done.outcomes) == (4, "", {"applied": 4})
    assert (shop.pool("ONCE"), shop.flags()) == (before, [])
    assert shop.rows("SELECT state FROM server") == [{"state": "normal"}], "a retired till has said all"
    assert shop.rows("SELECT state FROM devices") == [{"state": "revoked"}]


def test_a_file_of_a_till_that_goes_on_is_not_its_last_word(shop: Shop) -> None:
    """What it brings is settled; the till itself still has to come, and may hold more by then."""
    shop.publish(voucher("OPEN"))
    device = shop.device()
    device.redeem(ORDER, "open")
    device.recovering = True
    file = write(shop, device, device.request())
    begin(shop)
    assert bring(shop, file)[0].stored == 1
    assert shop.get("/v1/recovery")["unreported"][0]["id"] == device.id


def test_a_file_takes_a_forgotten_till_in_again(shop: Shop) -> None:
    """Enrolled since the backup and never online again: the proof in the header is checked as over the line."""
    shop.publish(voucher("ONCE", total=10))
    backup = Backup(shop)
    device, other = shop.device("a"), shop.device("b")
    device.redeem(ORDER, "once")
    backup.restore()
    device.recovering = True
    body = device.request(retired=True)
    begin(shop, all_known=False)
    assert "not enrolled here (UNKNOWN_DEVICE)" in bring(shop, write(shop, device, body))[0].refused
    forged = write(shop, device, body, again=proof(device, other.enrolment[1]))
    assert "WRONG_ENROLMENT" in bring(shop, forged)[0].refused
    (done,) = bring(shop, write(shop, device, body, again=proof(device, device.enrolment[1])))
    assert (done.stored, done.refused, shop.flags()) == (1, "", [])
    assert shop.rows("SELECT known_units FROM leases") == [{"known_units": 1}]


def proof(device: TinyDevice, answer: bytes) -> str:
    message = EnrolAgain(device.id, device.enrolment[0].decode(), answer.decode(), new_id())
    return device.key.sign(Typ.ENROL_AGAIN, encode(message)).decode()


def test_a_file_of_a_higher_epoch_is_refused_and_proves_nothing(shop: Shop, device: TinyDevice) -> None:
    """A typing mistake in --epoch must not stop all grants."""
    (done,) = bring(shop, write(shop, device, device.request(server_epoch=12)))
    assert "it is of epoch 12, and this server is in epoch 1" in done.refused
    assert "(WRONG_EPOCH)" in done.refused
    assert shop.rows("SELECT state FROM server") == [{"state": "normal"}]
    assert stored(shop) == 0


def test_the_command_says_what_it_did(shop: Shop, device: TinyDevice) -> None:
    """One line a file; exit code 2 where anything was refused, and the rest was done."""
    good = write(shop, device, *[device.request(retired=True)], name="good")
    bad = shop.settings.data / "bad"
    bad.write_bytes(good.read_bytes()[:-3])
    command = [COMMAND, "--data", str(shop.settings.data), "journal", "import", str(bad), str(good)]
    environment = os.environ | {"TALLYSTICK_DATABASE_URL": shop.settings.database_url, "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 2
    assert f"{good}: device {device.id}, 9 events stored (9 applied), 0 known" in done.stdout
    assert f"{bad}: batch 1 of 1 and those after it: it is cut short (DAMAGED_FILE)" in done.stderr
    assert "was retired" in done.stderr
    assert shop.rows("SELECT state FROM devices") == [{"state": "revoked"}]
    assert subprocess.run(command, capture_output=True, timeout=60, env=environment).returncode == 2
    (told,) = shop.rows("SELECT who, object FROM audit WHERE action = 'device.revoked'")
    assert told["object"] == device.id
    assert "Traceback" not in done.stderr


def test_a_file_without_its_last_batch_is_no_last_word(shop: Shop, device: TinyDevice) -> None:
    """The header is not signed, so it may leave some out: the till is not revoked before its last event is here."""
    device.recovering = True
    bodies = [device.request(after=after, through=min(after + 3, 9), retired=True) for after in (0, 3, 6)]
    (done,) = bring(shop, write(shop, device, *bodies[:2], final=True))
    assert (done.stored, done.refused) == (6, "")
    assert shop.rows("SELECT state FROM devices") == [{"state": "active"}]
    assert bring(shop, write(shop, device, *bodies, final=True, name="whole.tally"))[0].stored == 3
    assert shop.rows("SELECT state FROM devices") == [{"state": "revoked"}]


@pytest.mark.parametrize("case", ["loose bits", "nested"])
def test_a_file_has_one_spelling(shop: Shop, device: TinyDevice, case: str) -> None:
    """With digests made good: base64 is canonical, and a header is no tower (prove-bundles, seed 1, case 0)."""
    (body,) = batches(device, 9)
    while len(body) % 3 != 1:
        device.redeem(ORDER, "open")
        (body,) = batches(device, 99)
    header, text = write(shop, device, body).read_bytes().split(b"\n")[0].partition(b" ")[2], base64.b64encode(body)
    assert text.endswith(b"==")
    if case == "nested":
        header = header[:-1] + b',"x":' + b"[" * 9_000 + b"]" * 9_000 + b"}"
    else:
        text = text[:-3] + bytes([text[-3] + 1]) + b"=="
    file = shop.settings.data / "changed.tally"
    file.write_bytes(b"".join(sha256_hex(one).encode() + b" " + one + b"\n" for one in (header, text)))
    (done,) = bring(shop, file)
    assert done.refused.endswith("(NOT_A_JOURNAL_FILE)" if case == "nested" else "(DAMAGED_FILE)")
    assert stored(shop) == 0
