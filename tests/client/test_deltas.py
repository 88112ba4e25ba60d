"""Deltas on a till: what is fetched, what is written, and what happens where they do not lead on."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any

import msgspec
import pytest

from tallystick_client import Till, Untrusted, fetching
from tallystick_client.blobs import Part
from tallystick_client.store import Store
from tallystick_shared.bundle import DeltaRef, Manifest
from tallystick_shared.engine import Reason
from tallystick_shared.signing import SigningKey, Typ, peek
from tests.client.conftest import ONCE, TEN, Shop, order, sell
from tests.client.fake_server import Reply, loses_the_request, passes, says

MANY = [{**TEN, "code": f"CODE{number}"} for number in range(300)]


@pytest.fixture
def till(shop: Shop) -> Till:
    shop.server.publish(TEN, ONCE, *MANY)
    return shop.enroll()


def fetched(shop: Shop, till: Till) -> list[str]:
    """The paths that a sync asks for, past the sync itself and the manifest."""
    shop.server.requests.clear()
    till.sync()
    return [one.partition(" ")[2] for one in shop.server.requests[2:]]


def codes(till: Till, *asked: str) -> list[str]:
    """Those of the codes that apply."""
    return [code for code in asked if till.preview(order(), [code]).applied]


def test_a_change_is_fetched_as_one_delta(till: Till, shop: Shop) -> None:
    """Put, revised and dropped: the delta alone, which is small; and the till sells what is in force."""
    shop.server.publish({**TEN, "code": "NEW"})
    shop.server.publish({**TEN, "discount": {"type": "percentage", "percent": 20}})
    shop.server.drop("CODE7")
    first, second, third = [f"/v1/blobs/{ref.sha256}" for ref in shop.server.delta_refs()[-3:]]
    assert fetched(shop, till) == [first, second, third]
    assert codes(till, "NEW", "CODE7", "CODE8") == ["NEW", "CODE8"]
    assert till.preview(order(), ["TEN"]).discount_minor == 270
    assert till.status().bundle_vouchers == 302
    till.close()
    again = shop.open()
    assert codes(again, "NEW", "CODE7", "CODE8") == ["NEW", "CODE8"]
    assert again.preview(order(), ["TEN"]).discount_minor == 270
    assert fetched(shop, again) == []


def test_what_a_till_has_is_not_fetched_again(till: Till, shop: Shop) -> None:
    """A delta merged from versions that it has and one that it has not leads on all the same."""
    shop.server.publish({**TEN, "code": "NEW1"})
    till.sync()
    shop.server.publish({**TEN, "code": "NEW2"})
    merged = shop.server.delta_refs()[:1]
    refs = [DeltaRef(merged[0].from_version, *shop.server._keep(shop.server.delta(1, 3)))]
    shop.server.delta_refs = lambda: refs  # type: ignore[method-assign]
    assert fetched(shop, till) == [f"/v1/blobs/{refs[0].sha256}"]
    assert codes(till, "NEW1", "NEW2", "TEN") == ["NEW1", "NEW2", "TEN"]


def as_ref(shop: Shop, lines: bytes) -> dict[str, Any]:
    sha256, size = shop.server._keep(lines)
    return {"sha256": sha256, "bytes": size}


def test_a_new_till_takes_an_older_snapshot_and_what_follows(till: Till, shop: Shop) -> None:
    """The server need not make a snapshot for each version: one and the deltas after it are enough."""
    shop.server.snapshot_version = 1
    shop.server.publish({**TEN, "code": "NEW"})
    shop.server.drop("CODE1")
    other = shop.enroll("other", sync=False)
    paths = fetched(shop, other)
    blobs = [shop.server.snapshot_ref().sha256, *(ref.sha256 for ref in shop.server.delta_refs())]
    assert paths == [f"/v1/blobs/{sha256}" for sha256 in blobs]
    assert codes(other, "NEW", "CODE1", "CODE2") == ["NEW", "CODE2"]
    other.close()
    assert codes(shop.open("other"), "NEW", "CODE1", "CODE2") == ["NEW", "CODE2"]


def spoilt(_path: str, answer: Callable[[], Reply]) -> Reply:
    return 200, {}, answer()[2][:-1] + b"\x00"


@pytest.mark.parametrize("fault", [spoilt, says(404, "NOT_FOUND")])
def test_a_delta_that_does_not_come_whole_means_the_snapshot(till: Till, shop: Shop, fault: Any) -> None:
    """Spoilt on its way, or gone from the server: the snapshot is taken in the same sync."""
    shop.server.publish({**TEN, "code": "NEW"})
    shop.server.script = [passes, passes, fault]
    assert fetched(shop, till)[-1] == f"/v1/blobs/{shop.server.snapshot_ref().sha256}"
    assert codes(till, "NEW", "TEN") == ["NEW", "TEN"]


def test_a_delta_that_leads_elsewhere_means_the_snapshot(till: Till, shop: Shop) -> None:
    """The state digest tells: nothing of the delta is kept, and a delta that leads elsewhere for ever does no harm."""
    right = shop.server.delta_refs
    shop.server.publish({**TEN, "code": "NEW"})
    wrong = as_ref(shop, shop.server.delta(0, 1))
    shop.server.delta_refs = lambda: [msgspec.structs.replace(one, **wrong) for one in right()]  # type: ignore[method-assign]
    assert fetched(shop, till)[-1] == f"/v1/blobs/{shop.server.snapshot_ref().sha256}"
    assert codes(till, "NEW", "TEN", "CODE9") == ["NEW", "TEN", "CODE9"]
    till.close()
    assert codes(shop.open(), "NEW", "TEN", "CODE9") == ["NEW", "TEN", "CODE9"]


def test_a_line_that_breaks_between_two_deltas_changes_nothing(till: Till, shop: Shop) -> None:
    """All deltas of a manifest are one transaction: until the last has come the bundle before is in force."""
    shop.server.publish({**TEN, "code": "NEW1"})
    shop.server.publish({**TEN, "code": "NEW2"})
    shop.server.script = [passes, passes, passes, loses_the_request]
    with pytest.raises(Exception, match="no line"):
        till.sync()
    assert (codes(till, "NEW1", "NEW2", "TEN"), till.status().bundle_version) == (["TEN"], 1)
    till.sync()
    assert codes(till, "NEW1", "NEW2", "TEN") == ["NEW1", "NEW2", "TEN"]


def test_a_new_epoch_takes_the_snapshot(till: Till, shop: Shop) -> None:
    """A server that was restored may count other versions: what is held is of another history."""
    shop.server.publish({**TEN, "code": "NEW"})
    shop.server.epoch = 2
    assert fetched(shop, till)[-1] == f"/v1/blobs/{shop.server.snapshot_ref().sha256}"
    assert codes(till, "NEW", "TEN") == ["NEW", "TEN"]


def test_a_till_does_not_pile_up_deltas_for_ever(till: Till, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past so many blobs the snapshot is taken, and what was before it leaves the disk."""
    monkeypatch.setattr(fetching, "BLOBS_MAX", 6)
    for number in range(7):
        shop.server.publish({**TEN, "code": f"NEW{number}"})
        till.sync()
    with closing(sqlite3.connect(shop.work / "till" / "cache" / "cache.db")) as connection:
        keys = [key for (key,) in connection.execute("SELECT key FROM Cache")]
    assert len([key for key in keys if key.startswith("blob/")]) <= 3
    assert till.status().bundle_vouchers == 302 + 7


def test_another_process_takes_only_the_delta(till: Till, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads what is new from the cache, and what it had decoded stays."""
    other = shop.open()
    assert codes(other, "CODE5") == ["CODE5"]
    shop.server.publish({**TEN, "code": "NEW"})
    till.sync()
    read: list[str] = []
    blob_of = Store._blob

    def noted(store: Store, part: Part) -> bytes:
        read.append(part.sha256)
        return blob_of(store, part)

    monkeypatch.setattr(Store, "_blob", noted)
    assert codes(other, "NEW", "CODE5") == ["NEW", "CODE5"]
    assert read == [shop.server.delta_refs()[-1].sha256]


def test_a_part_that_is_left_out_is_not_overlooked(till: Till, shop: Shop) -> None:
    """Whoever takes the delta that withdrew a voucher out of the cache makes the till fetch the bundle again."""
    shop.server.drop("TEN")
    shop.server.publish({**TEN, "code": "NEW"})
    till.sync()
    till.close()
    with closing(sqlite3.connect(shop.work / "till" / "cache" / "cache.db")) as connection, connection:
        (raw,) = connection.execute("SELECT value FROM Cache WHERE key = 'bundle/main'").fetchone()
        parts = msgspec.json.decode(raw)
        assert len(parts["blobs"]) == 3
        del parts["blobs"][1]
        connection.execute("UPDATE Cache SET value = ? WHERE key = 'bundle/main'", (msgspec.json.encode(parts),))
    again = shop.open()
    assert again.status().freshness == "none"
    again.sync()
    assert codes(again, "TEN", "NEW") == ["NEW"]


def test_a_power_cut_between_a_bundle_and_its_root_leaves_vouchers(till: Till, shop: Shop) -> None:
    """The cache has the bundle of the new key, the journal not yet its root: the one before is in force."""
    server = shop.server
    server.bundle_key = SigningKey.generate()
    server.roots.append(server.make_root(2))
    server.publish({**TEN, "code": "NEW"})
    keep_floor = till._keeper.journal.write
    calls = []

    def dies() -> Any:
        calls.append(1)
        if len(calls) == 3:  # prepare, accept, and then the root with its bundle
            raise KeyboardInterrupt
        return keep_floor()

    till._keeper.journal.write = dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        till.sync()
    till.close()
    again = shop.open()
    assert codes(again, "TEN", "NEW") == ["TEN"]
    again.sync()
    assert codes(again, "TEN", "NEW") == ["TEN", "NEW"]
    assert again.status().bundle_version == 2


def test_a_hidden_code_is_found_by_who_types_it(till: Till, shop: Shop) -> None:
    """It is nowhere on the disk, and what it travels as is no code."""
    secret = "Q7M2-XWV9-KTPR-4HDC"
    shop.server.publish({**TEN, "code": secret}, hidden=True)
    till.sync()
    travels = shop.server.vouchers[secret.lower()].code
    result = till.preview(order(), [f" {secret.lower()} "])
    assert [one.code for one in result.applied] == [secret.lower()]
    assert [one.code for one in till.preview(order(), [secret]).applied] == [secret]
    assert till.preview(order(), [travels]).refused[0].reason is Reason.UNKNOWN_CODE
    for file in (shop.work / "till").rglob("*"):
        if file.is_file():
            assert secret.lower().encode() not in file.read_bytes().lower()
    till.redeem(order(), [secret])
    till.close()
    assert codes(shop.open(), secret, travels) == [secret]


def test_an_unknown_code_is_unknown(till: Till, shop: Shop) -> None:
    """Neither a code nor the digest of one."""
    assert codes(till, "NOBODY", "sha256:" + "0" * 64) == []


def test_a_manifest_is_a_few_hundred_bytes(till: Till, shop: Shop) -> None:
    """However many vouchers there are."""
    raw = shop.server.manifest()
    manifest = msgspec.json.decode(peek(raw, Typ.MANIFEST)[1], type=Manifest)
    assert (manifest.snapshot.vouchers, len(raw) < 1500) == (302, True)
    sell(till, 1)
    shop.server.bundle_key = SigningKey.generate()
    shop.server.publish({**TEN, "code": "NEW"})
    with pytest.raises(Untrusted):
        till.sync()
    assert codes(till, "TEN", "NEW") == ["TEN"]
