"""Deltas: from every version they are named for they lead to the newest one, and cost what changed and no more."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from math import log2
from typing import TYPE_CHECKING, Any

import httpx2
import msgspec
import pytest
import zstandard
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import func, select, update

from tallystick_server import blobs, bundles, deltas, tables, vouchers
from tallystick_server.deltas import KEPT_MAX, Delta, merge_from
from tallystick_server.operations import initialise
from tallystick_server.server import Server, open_server
from tallystick_server.settings import Settings
from tallystick_shared.bundle import DELTAS_MAX, BlobRef, BundleVoucher, DeltaRef, Manifest, read_lines, state_digest
from tallystick_shared.bundle import voucher_digest as part_of
from tallystick_shared.model import parse_voucher
from tallystick_shared.signing import SigningKey, Typ, peek, sha256_hex
from tests.server.conftest import voucher
from tests.server.fake_clock import FakeClock

if TYPE_CHECKING:
    from tests.server.conftest import Shop

State = dict[str, bytes]
"""Published revision by voucher id."""
_scopes = (f"scope-{number}" for number in itertools.count())


class Scope:
    """A scope of a server that is not served: what an operator does to it, and what a device would hold."""

    def __init__(self, server: Server, clock: FakeClock) -> None:
        self.server, self.clock, self.name = server, clock, next(_scopes)
        self.ids: list[str] = []
        self.codes = itertools.count()

    async def publish(self, count: int) -> None:
        codes = [f"{self.name}-{next(self.codes)}" for _ in range(count)]
        one = parse_voucher(voucher("any"), default_currency="USD")
        batch = [msgspec.structs.replace(one, code=code) for code in codes]
        self.ids += await self.server.database.write(
            lambda t: vouchers.publish(t, batch, [self.name], now=self.clock())
        )

    async def revise(self, index: int, amount_minor: int) -> None:
        voucher_id = self.ids[index]
        discount = {"type": "fixed", "amount_minor": amount_minor}
        raw = json.dumps(voucher(f"{self.name}-{index}", discount=discount)).encode()
        await self.server.database.write(
            lambda t: vouchers.revise(t, voucher_id, raw, self.server.settings, now=self.clock())
        )

    async def deactivate(self, index: int) -> None:
        voucher_id = self.ids[index]
        await self.server.database.write(lambda t: vouchers.deactivate(t, voucher_id, now=self.clock()))

    async def manifest(self) -> Manifest:
        return msgspec.json.decode(peek(await bundles.manifest(self.server, self.name), Typ.MANIFEST)[1], type=Manifest)

    async def stored(self) -> State:
        """What the database says is in force, by a query of its own."""
        query = (
            select(tables.vouchers.c.id, tables.voucher_revisions.c.json)
            .join(tables.scope_vouchers, tables.scope_vouchers.c.voucher_id == tables.vouchers.c.id)
            .join(tables.voucher_revisions, tables.voucher_revisions.c.voucher_id == tables.vouchers.c.id)
            .where(tables.scope_vouchers.c.scope == self.name, tables.vouchers.c.deactivated_at.is_(None))
            .order_by(tables.voucher_revisions.c.revision)
        )
        async with self.server.database.read() as connection:
            return {row.id: bytes(row.json) for row in await connection.execute(query)}

    async def applied(self, state: State, refs: list[BlobRef | DeltaRef]) -> State:
        found = dict(state)
        for ref in refs:
            raw = await blobs.blob(self.server, ref.sha256)
            assert (sha256_hex(raw), len(raw)) == (ref.sha256, ref.bytes)
            for line in read_lines(zstandard.decompress(raw)):
                if isinstance(line, BundleVoucher):
                    found[line.id] = bytes(line.voucher)
                else:
                    found.pop(line, None)
        return found

    async def count(self, table: Any) -> int:
        async with self.server.database.read() as connection:
            return int((await connection.execute(select(func.count()).select_from(table))).scalar_one())


def past(manifest: Manifest, version: int) -> list[BlobRef | DeltaRef]:
    """The deltas that a device at this version takes."""
    bounds = [*(one.from_version for one in manifest.deltas), manifest.version]
    return [one for one, end in zip(manifest.deltas, bounds[1:], strict=True) if end > version]


@pytest.fixture
def made(settings: Settings, clock: FakeClock) -> Settings:
    asyncio.run(initialise(settings, now=clock()))
    return settings


@asynccontextmanager
async def scope_of(settings: Settings, clock: FakeClock) -> AsyncIterator[Scope]:
    server = open_server(settings, clock)
    try:
        scope = Scope(server, clock)
        await server.database.write(lambda t: bundles.create_scope(t, scope.name, now=clock()))
        yield scope
    finally:
        await server.database.close()


@pytest.fixture
def small_deltas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots are made anew after few changes, so that a short story meets several."""
    monkeypatch.setattr(deltas, "SNAPSHOT_MIN", 5)


STORY = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.integers(1, 8)),
        st.tuples(st.just("revise"), st.integers(0, 30)),
        st.tuples(st.just("revise"), st.integers(0, 30)),
        st.tuples(st.just("deactivate"), st.integers(0, 30)),
        st.tuples(st.just("wait"), st.sampled_from([1, 4, 20])),
        st.tuples(st.just("manifest"), st.just(0)),
        st.tuples(st.just("manifest"), st.just(0)),
    ),
    min_size=5,
    max_size=40,
)


async def play(scope: Scope, story: list[tuple[str, int]]) -> None:
    """Whatever happens, whoever holds a version that the deltas are named for arrives at the newest state."""
    held: dict[int, State] = {}
    for number, (step, value) in enumerate([*story, ("manifest", 0)]):
        if step == "publish":
            await scope.publish(value)
        elif step == "wait":
            scope.clock.advance(days=value)
        elif step == "manifest":
            manifest, now = await scope.manifest(), await scope.stored()
            digest = state_digest(sum(part_of(one, sha256_hex(raw)) for one, raw in now.items()))
            assert manifest.state_digest == digest
            start = await scope.applied({}, [manifest.snapshot])
            assert len(start) == manifest.snapshot.vouchers
            assert await scope.applied(start, past(manifest, manifest.snapshot.version)) == now
            first = min([one.from_version for one in manifest.deltas], default=manifest.version)
            assert manifest.snapshot.version >= first
            for version, state in held.items():
                if version >= first:
                    assert await scope.applied(state, past(manifest, version)) == now
            held[manifest.version] = now
        elif left := sorted(await scope.stored()):
            index = scope.ids.index(left[value % len(left)])
            await (scope.revise(index, 1 + number) if step == "revise" else scope.deactivate(index))


@pytest.mark.usefixtures("small_deltas")
@given(story=STORY)
@example(story=[("publish", 8), ("manifest", 0), ("deactivate", 0), ("revise", 3), ("manifest", 0), ("publish", 1)])
@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_version_that_deltas_are_named_for_leads_to_the_newest(
    made: Settings, story: list[tuple[str, int]]
) -> None:
    """And the snapshot with what came after it does, whatever was published, revised and withdrawn in between."""

    async def run() -> None:
        async with scope_of(made, FakeClock()) as scope:
            await play(scope, story)
            assert await scope.count(tables.scope_changes) == 0

    asyncio.run(run())


@pytest.mark.usefixtures("small_deltas")
def test_a_long_story_of_single_changes_keeps_few_deltas_and_many_versions(made: Settings, clock: FakeClock) -> None:
    """After each of 120 changes in a scope of 300: a handful of deltas, and old versions among those they serve."""

    async def run() -> tuple[int, int, list[int]]:
        async with scope_of(made, clock) as scope:
            await scope.publish(300)
            held: dict[int, State] = {}
            most, snapshots = 0, set[int]()
            for number in range(120):
                manifest = await scope.manifest()
                most, snapshots = max(most, len(manifest.deltas)), snapshots | {manifest.snapshot.version}
                held[manifest.version] = await scope.stored()
                await scope.revise(number, 500)
            manifest, now = await scope.manifest(), await scope.stored()
            served = [version for version in held if version >= manifest.deltas[0].from_version]
            for version in served:
                assert await scope.applied(held[version], past(manifest, version)) == now
            return most, len(snapshots), served

    most, snapshots, served = asyncio.run(run())
    assert most <= 12
    assert snapshots == 2, "75 changes, a quarter of the scope, are worth a new snapshot"
    assert len(served) == 120


def test_merging_costs_each_change_few_writings() -> None:
    """n changes, a manifest after each: O(log n) deltas, and every change is written O(log n) times."""
    at = datetime(2026, 1, 1, tzinfo=UTC)
    kept: list[Delta] = []
    written = most = 0
    count = 5_000
    for version in range(1, count + 1):
        if kept:
            start = merge_from(kept, 0, version)
            changes = sum(one.changes for one in kept[start:])
            written += changes if start < len(kept) - 1 else 0
            kept[start:] = [Delta(kept[start].from_version, "", 0, changes, at)]
        kept.append(Delta(version, "", 0, 1, at))
        written += 1
        most = max(most, len(kept))
    assert most <= log2(count) + 2 < KEPT_MAX < DELTAS_MAX
    assert written <= count * (log2(count) + 1)


async def work_of_one_change(settings: Settings, clock: FakeClock, vouchers_in_scope: int) -> dict[str, int]:
    """What the database engine and the new blobs cost where one voucher of a scope is revised."""
    async with scope_of(settings, clock) as scope:
        await scope.publish(vouchers_in_scope)
        await scope.manifest()
        await scope.revise(0, 500)
        await scope.manifest()
        before = await scope.count(tables.blobs)
        steps = 0

        def step() -> int:
            nonlocal steps
            steps += 1
            return 0

        async with scope.server.database.engine.connect() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            await driver.set_progress_handler(step, 1)
        await scope.revise(vouchers_in_scope // 2, 600)
        manifest = await scope.manifest()
        async with scope.server.database.engine.connect() as connection:
            same: Any = (await connection.get_raw_connection()).driver_connection
            assert same is driver, "all of it was counted"
            await driver.set_progress_handler(None, 1)
        lines = list(read_lines(zstandard.decompress(await blobs.blob(scope.server, manifest.deltas[-1].sha256))))
        new = await scope.count(tables.blobs) - before
        return {"database steps": steps, "lines of the delta": len(lines), "new blobs": new}


def test_one_change_costs_the_same_in_a_scope_of_any_size(made: Settings, clock: FakeClock) -> None:
    """Counted in the instructions of the database engine: as many among 20,000 vouchers as among 1,000."""
    small = asyncio.run(work_of_one_change(made, clock, 1_000))
    large = asyncio.run(work_of_one_change(made, clock, 20_000))
    steps = small.pop("database steps"), large.pop("database steps")
    # an id more or less in a page of an index is an instruction
    assert 100 < min(steps) <= max(steps) < min(steps) + 20
    assert small == large == {"lines of the delta": 1, "new blobs": 1}


def test_a_change_of_much_of_a_scope_is_a_snapshot(shop: Shop) -> None:
    """More than a quarter at once notes nothing voucher by voucher, and devices take the snapshot."""
    device = shop.device(synced=False)
    device.fetch()
    shop.publish(*(voucher(f"a{number}") for number in range(150)))
    assert shop.rows("SELECT 1 FROM scope_changes") == []
    manifest = device.fetch()
    assert (manifest.deltas, manifest.snapshot.version, len(device.vouchers)) == ([], manifest.version, 150)
    shop.publish(voucher("b"))
    assert len(shop.rows("SELECT 1 FROM scope_changes")) == 1
    assert [one.from_version for one in device.fetch().deltas] == [manifest.version]


def test_signing_again_names_the_same_blobs(shop: Shop) -> None:
    """At half-life, and when the bundle key was changed, nothing is made but the signature."""
    device = shop.device(synced=False)
    first = device.fetch()
    shop.publish(voucher("tea"))
    before = device.fetch()
    assert (before.deltas[0].from_version, len(before.deltas)) == (first.version, 1)
    shop.clock.advance(days=4)
    again = device.fetch()
    assert (again.snapshot, again.deltas, again.issued_at) == (before.snapshot, before.deltas, shop.clock())


def test_another_bundle_key_signs_anew(made: Settings, clock: FakeClock) -> None:
    """A manifest by a key that is not in use any more is not served again, though it is young."""

    async def run() -> None:
        async with scope_of(made, clock) as scope:
            await scope.publish(1)
            before = await scope.manifest()
            scope.server.keys.bundle = SigningKey.generate()
            clock.advance(seconds=1)
            signed = await bundles.manifest(scope.server, scope.name)
            assert peek(signed, Typ.MANIFEST)[0] == scope.server.keys.bundle.kid
            assert (await scope.manifest()).snapshot == before.snapshot

    asyncio.run(run())


async def new_epoch(scope: Scope, number: int) -> Manifest:
    async with scope.server.database.engine.begin() as connection:
        await connection.execute(update(tables.server).values(server_epoch=number))
    manifest = await scope.manifest()
    assert (manifest.server_epoch, manifest.deltas) == (number, [])
    assert manifest.snapshot.version == manifest.version
    assert await scope.applied({}, [manifest.snapshot]) == await scope.stored()
    return manifest


@pytest.mark.usefixtures("small_deltas")
def test_no_delta_leads_from_one_server_epoch_to_the_next(made: Settings, clock: FakeClock) -> None:
    """In a new epoch the manifest is signed anew, over a snapshot of its version and no deltas; then they begin."""

    async def run() -> None:
        async with scope_of(made, clock) as scope:
            await scope.publish(80)
            await scope.manifest()
            await scope.revise(0, 500)
            before = await scope.manifest()
            assert (len(before.deltas), before.snapshot.version) == (1, before.version - 1)
            first = await new_epoch(scope, 2)
            await scope.publish(1)
            later = await scope.manifest()
            assert [one.from_version for one in later.deltas] == [first.version]
            while later.snapshot.version != later.version:
                await scope.revise(later.version % 80, 500 + later.version)
                later = await scope.manifest()
            assert later.deltas, "of a snapshot of this very version, and deltas for devices with an older one"
            assert (await new_epoch(scope, 3)).snapshot == later.snapshot

    asyncio.run(run())


def test_two_requests_at_once_make_one_manifest(either_shop: Shop) -> None:
    """After a change, twelve devices ask at the same moment: one delta is made, and all get the same bytes."""
    device = either_shop.device(synced=False)
    device.fetch()
    either_shop.publish(voucher("tea"))
    either_shop.clock.ticks = timedelta(milliseconds=1)
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: device.get_manifest(), range(12)))
    assert {one.status_code for one in answers} == {200}
    assert len({one.content for one in answers}) == 1
    assert len(either_shop.rows("SELECT 1 FROM blobs")) == 2


def test_blobs_are_kept_for_devices_that_hold_an_older_manifest(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as that manifest is valid; then they are deleted, but what another scope names stays."""
    monkeypatch.setattr(deltas, "SNAPSHOT_MIN", 1)
    shop.post("/v1/scopes", {"name": "web"})
    device, other = shop.device(synced=False), shop.device(synced=False, scope="web")
    empty, of_web = device.fetch(), other.fetch()
    assert empty.snapshot.sha256 == of_web.snapshot.sha256, "both scopes are empty"
    shop.publish(voucher("a"), voucher("b"))
    older = device.fetch()

    def status(sha256: str) -> int:
        return httpx2.get(f"{shop.url}/v1/blobs/{sha256}").status_code

    shop.publish(voucher("c"), voucher("d"))
    device.fetch()
    assert status(older.snapshot.sha256) == 200
    shop.clock.advance(days=6)
    device.fetch()
    assert status(older.snapshot.sha256) == 200
    shop.clock.advance(days=4)
    device.fetch()
    assert status(older.snapshot.sha256) == 404
    assert status(of_web.snapshot.sha256) == 200
    assert other.fetch().snapshot == of_web.snapshot


def test_what_no_manifest_ever_named_goes_too(made: Settings, clock: FakeClock) -> None:
    """A blob that was made and left out is swept with the next manifest."""

    async def run() -> None:
        async with scope_of(made, clock) as scope:
            await scope.server.database.write(lambda t: blobs.store(t, [b"nobody names this"], clock()))
            assert await scope.count(tables.blobs) == 1
            manifest = await scope.manifest()
            assert await scope.count(tables.blobs) == 1
            assert await scope.applied({}, [manifest.snapshot]) == {}

    asyncio.run(run())


def test_old_deltas_are_named_no_longer_than_they_are_worth() -> None:
    """Not once they are a month old, nor where all are more to fetch than the snapshot; but those after it always."""
    at = datetime(2026, 1, 1, tzinfo=UTC)

    def kept(sizes: list[int], *, snapshot_version: int, snapshot_bytes: int = 1_000, days: int = 1) -> list[int]:
        given = [Delta(number, "", size, 1, at) for number, size in enumerate(sizes, 1)]
        snapshot = BlobRef(snapshot_version, "0" * 64, snapshot_bytes, 1)
        found = deltas.kept(given, snapshot, len(sizes) + 1, at + timedelta(days=days))
        return [one.from_version for one in found]

    assert kept([400, 400, 100], snapshot_version=4) == [1, 2, 3]
    assert kept([400, 400, 300], snapshot_version=4) == [2, 3]
    assert kept([400, 400, 300], snapshot_version=1) == [1, 2, 3]
    assert kept([1, 1, 1], snapshot_version=3, days=31) == [3]
    assert len(kept([1] * 60, snapshot_version=61)) == KEPT_MAX
