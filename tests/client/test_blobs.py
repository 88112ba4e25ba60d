"""Blobs of a bundle: one refused case for each of the rules 17 to 25, and what deltas do."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tallystick_client import blobs
from tallystick_client.blobs import delta, deltas_after, demand_state, ends_of, snapshot, summed, together, unpack
from tallystick_client.trust import Trusted
from tallystick_shared.bundle import BlobRef, DeltaRef, Manifest, drop_line, put_line, state_digest
from tallystick_shared.errors import Untrusted
from tallystick_shared.signing import sha256_hex
from tests.client.conftest import ONCE, TEN
from tests.client.fake_clock import FakeClock
from tests.client.fake_server import FakeServer
from tests.client.test_trust import HASH, LATER, check_refused


@pytest.fixture
def server() -> FakeServer:
    server = FakeServer(FakeClock())
    server.publish(TEN, ONCE)
    return server


def packed(lines: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(lines)


def ref_of(blob: bytes, vouchers: int = 2) -> BlobRef:
    return BlobRef(1, sha256_hex(blob), len(blob), vouchers)


def delta_of(blob: bytes) -> DeltaRef:
    return DeltaRef(1, sha256_hex(blob), len(blob))


def test_rule_17_a_blob_has_its_size(server: FakeServer) -> None:
    """One byte more or less is refused before it is hashed, and so is what is larger than any blob may be."""
    blob, _ = server.blob()
    check_refused("TOO_LARGE", lambda: snapshot(blob + b"x", ref_of(blob)))
    check_refused("TOO_LARGE", lambda: snapshot(blob[:-1], ref_of(blob)))
    check_refused("TOO_LARGE", lambda: delta(blob + b"x", delta_of(blob)))


def test_rule_18_a_blob_has_its_digest(server: FakeServer) -> None:
    """One bit off is refused."""
    blob, _ = server.blob()
    check_refused("WRONG_DIGEST", lambda: snapshot(blob[:-1] + bytes([blob[-1] ^ 1]), ref_of(blob)))
    check_refused("WRONG_DIGEST", lambda: delta(blob[:-1] + bytes([blob[-1] ^ 1]), delta_of(blob)))


def test_rule_19_a_blob_unpacks_to_a_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small blob that unpacks to very much is cut off, not unpacked; what is no zstd is refused."""
    bomb = packed(b"\n" * 50_000_000)
    assert len(bomb) < 10_000
    check_refused("TOO_LARGE", lambda: unpack(bomb, 1_000_000))
    monkeypatch.setattr(blobs, "BLOB_UNPACKED_BYTES_MAX", 1_000_000)
    check_refused("TOO_LARGE", lambda: snapshot(bomb, ref_of(bomb)))
    check_refused("TOO_LARGE", lambda: delta(bomb, delta_of(bomb)))
    check_refused("MALFORMED", lambda: unpack(b"not zstd at all", 100))
    deep = packed(b'{"x":' + b"[" * 9_000 + b"]" * 9_000 + b"}\n")
    check_refused("MALFORMED", lambda: snapshot(deep, ref_of(deep)))


SKIPPED = b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip"


CASES = ["two", "empty behind", "skip before", "skip behind", "skip", "tail", "short", "no sum"]


@pytest.mark.parametrize("case", CASES)
def test_rule_19_a_blob_is_one_whole_frame(case: str) -> None:
    """Readers of zstd differ in what they make of anything else (prove-bundles, seed 1, case 0: most were taken)."""
    good, summed_up = packed(b"tally"), zstandard.ZstdCompressor(write_checksum=True).compress(b"tally")
    raw = {
        "two": good + packed(b"stick"), "empty behind": good + packed(b""), "skip before": SKIPPED + good,
        "skip behind": good + SKIPPED, "skip": SKIPPED, "tail": good + b"\x28", "short": good[:-1],
        "no sum": summed_up[:-4],
    }[case]  # fmt: skip
    check_refused("MALFORMED", lambda: unpack(raw, 1_000))
    assert unpack(good, 1_000) == unpack(summed_up, 1_000) == b"tally"


@pytest.mark.parametrize("case", ["no JSON", "a drop", "a voucher twice", "a code twice"])
def test_rule_20_a_snapshot_puts_each_voucher_once(server: FakeServer, case: str) -> None:
    """Whatever else a line does is refused."""
    one, two = server.vouchers.values()
    lines = {
        "no JSON": put_line(one) + b"{\n",
        "a drop": put_line(one) + drop_line(two.id),
        "a voucher twice": put_line(one) + put_line(msgspec.structs.replace(two, id=one.id)),
        "a code twice": put_line(one) + put_line(msgspec.structs.replace(two, code=one.code)),
    }[case]
    blob = packed(lines)
    check_refused("MALFORMED", lambda: snapshot(blob, ref_of(blob)))


def test_rule_21_a_snapshot_has_its_number(server: FakeServer) -> None:
    """Another number of vouchers is refused."""
    blob, _ = server.blob()
    check_refused("STATE_DIGEST", lambda: snapshot(blob, ref_of(blob, vouchers=3)))
    assert set(snapshot(blob, ref_of(blob))) == {"ten", "once"}


@pytest.mark.parametrize("case", ["put twice", "put and dropped", "a code twice"])
def test_rule_22_a_delta_says_one_thing_of_a_voucher(server: FakeServer, case: str) -> None:
    """What it says twice could mean either."""
    one, two = server.vouchers.values()
    lines = {
        "put twice": put_line(one) + put_line(one),
        "put and dropped": put_line(one) + drop_line(one.id),
        "a code twice": put_line(one) + put_line(msgspec.structs.replace(two, code=one.code)),
    }[case]
    blob = packed(lines)
    check_refused("MALFORMED", lambda: delta(blob, delta_of(blob)))


def test_rule_24_all_of_it_leads_to_the_state(server: FakeServer) -> None:
    """A sum that is not the manifest's is refused."""
    blob, digest = server.blob()
    vouchers = summed(snapshot(blob, ref_of(blob)))
    trusted = Trusted.pin(server.roots[0], version=1, sha256=sha256_hex(server.roots[0]))
    manifest = trusted.manifest(server.manifest(), "main", now=LATER)
    demand_state(vouchers.parts_sum, manifest)
    check_refused("STATE_DIGEST", lambda: demand_state(vouchers.parts_sum + 1, manifest))
    assert state_digest(vouchers.parts_sum) == digest == manifest.state_digest != HASH


def test_rule_25_no_delta_takes_the_code_of_another_voucher(server: FakeServer) -> None:
    """Unless the one that had it goes in the same step; and nothing is changed where it is refused."""
    blob, _ = server.blob()
    vouchers = summed(snapshot(blob, ref_of(blob)))
    one, two = server.vouchers.values()
    thief = msgspec.structs.replace(two, code=one.code)
    check_refused("MALFORMED", lambda: vouchers.sum_after({two.id: thief}))
    assert set(vouchers.by_code) == {"ten", "once"}
    changes = {two.id: thief, one.id: None}
    vouchers.apply(changes, vouchers.sum_after(changes))
    assert vouchers.by_code == {one.code: thief}


def test_a_line_that_names_no_voucher_it_has_is_nothing(server: FakeServer) -> None:
    """A drop of what is not there changes neither vouchers nor sum: deltas may overlap what is held."""
    blob, _ = server.blob()
    vouchers = summed(snapshot(blob, ref_of(blob)))
    changes = {"01920000-0000-7000-8000-000000000000": None}
    before = vouchers.parts_sum
    assert vouchers.sum_after(changes) == before
    vouchers.apply(changes, before)
    assert set(vouchers.by_code) == {"ten", "once"}


_STEPS = st.lists(
    st.lists(st.tuples(st.sampled_from("ABCDEF"), st.integers(0, 3)), min_size=1, max_size=4), min_size=1, max_size=8
)


@given(steps=_STEPS, data=st.data())
def test_from_any_version_the_deltas_after_it_lead_to_the_newest(steps: list[Any], data: st.DataObject) -> None:
    """Whatever was put, revised and dropped between, from any version that is held and over any merging of deltas."""
    server = FakeServer(FakeClock())
    for step in steps:
        for code, percent in step:
            made = {"code": code, "discount": {"type": "percentage", "percent": percent + 1}}
            if percent:
                server.publish(made)
            elif code.lower() in server.vouchers:
                server.drop(code)
    if server.version < 2:
        return
    held = data.draw(st.integers(1, server.version))
    cuts = sorted({1, *data.draw(st.sets(st.integers(1, server.version - 1)))})
    lines = [server.delta(old, new) for old, new in zip(cuts, [*cuts[1:], server.version], strict=True)]
    refs = [DeltaRef(cut, *server._keep(text)) for cut, text in zip(cuts, lines, strict=True)]
    trusted = Trusted.pin(server.roots[0], version=1, sha256=sha256_hex(server.roots[0]))
    manifest = trusted.manifest(server.manifest(deltas=refs), "main", now=LATER)
    after = deltas_after(manifest, held)
    assert after is not None
    assert all(end > held for ref, end in ends_of(manifest) if ref in after)
    vouchers = summed({one.code: one for one in server.states[held].values()})
    changes = together(delta(server.blobs[ref.sha256], ref) for ref in after)
    total = vouchers.sum_after(changes)
    demand_state(total, manifest)
    vouchers.apply(changes, total)
    assert vouchers.by_code == {one.code: one for one in server.vouchers.values()}
    assert len(vouchers) == len(server.vouchers)


def test_what_is_older_than_the_first_delta_has_none(server: FakeServer) -> None:
    """Then the snapshot is taken; so for a state that is newer than the manifest."""
    for number in range(4):
        server.publish({**TEN, "code": f"NEW{number}"})
    server.deltas_from = 3
    trusted = Trusted.pin(server.roots[0], version=1, sha256=sha256_hex(server.roots[0]))
    manifest: Manifest = trusted.manifest(server.manifest(), "main", now=LATER)
    assert [deltas_after(manifest, version) is None for version in (1, 2, 3, 4, 5, 6)] == [
        True, True, False, False, False, True,
    ]  # fmt: skip
    with pytest.raises(Untrusted):
        snapshot(b"", manifest.snapshot)
