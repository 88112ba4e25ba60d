"""Bundles, syncs, enrolments and journal files, with every bit flipped and every rule broken: nothing is ever taken.

A mutation is refused where the product's own error says so with a stable code in one sentence, and everything is as it
was before: a till's function gives no new state, the database of the server has seen no commit (SQLite's
`data_version`, asked after every mutation) and at the end of a case holds the very rows that it held before. Then every
good message is taken, so the refusals were not those of a server or till that takes nothing.
"""

from __future__ import annotations

import base64
import random
import re
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from unittest import mock

import msgspec

from tallystick_client import blobs
from tallystick_client.trust import Trusted
from tallystick_server import sync as syncing
from tallystick_shared import signing
from tallystick_shared.errors import CallerError, Untrusted
from tallystick_shared.journal import Position, chain_next, split_events
from tallystick_shared.wire import SyncHead
from tests.proof.bundles_changes import Changed, at_place, by_chance, dressed, exchanged, places
from tests.proof.bundles_server import changed_files, device_tries
from tests.proof.bundles_signed import FIELD, Try, signed_tries
from tests.proof.bundles_targets import Target, of_server, of_tills, over_http, whole_file
from tests.proof.bundles_tills import whole_tills
from tests.proof.bundles_world import Reopened, Template, World, scene
from tests.proof.fleet_chance import seeded
from tests.proof.tally import Tally

STRIPES = 100
"""After so many cases every bit, byte and length of every message has been changed."""
BY_CHANCE, OVER_HTTP, WHOLE_TILLS = 110, 20, 3
FIELD_PARTS = 4
_CODE = re.compile(r"[A-Z][A-Z0-9_]*")
RULES = [*map(str, range(1, 32)), *(f"S{number}" for number in range(1, 7)), "J5"]
ALL = frozenset({"places", "signed", "server", "files", "tills"})


class Bench:
    """Tries mutations and counts what becomes of them. `changes`: counts the commits of a database, where one is at
    stake."""

    def __init__(self, tally: Tally, case: int, changes: Callable[[], int] = lambda: 0) -> None:
        self.tally, self.case, self.changes = tally, case, changes
        self._seen = changes()

    def fail(self, what: str) -> None:
        self.tally.fail(self.case, what[:400])

    def good(self, target: Target) -> None:
        try:
            target.accept(target.raw)
        except Exception as error:  # noqa: BLE001 - a good message must not be refused for any reason
            self.fail(f"{target.name}: the good one is refused: {type(error).__name__}: {error}")
        self._seen = self.changes()

    def change(self, target: Target, changed: Changed) -> None:
        if changed.raw != target.raw:
            one = Try(target.name, changed.kind, changed.how, changed.raw, target.accept)
            self.attempt(one, target.same)

    def attempt(self, one: Try, same: Callable[[bytes], bool] = lambda raw: False) -> None:
        what = f"{one.target}: {one.kind}: {one.how}"
        try:
            one.accept(one.raw)
        except (Untrusted, CallerError) as error:
            self._count(one, what, error)
        except Exception as error:  # noqa: BLE001 - an error that is not the product's own is what this looks for
            self.fail(f"{what}: {type(error).__name__}: {error}")
        else:
            if not same(one.raw):
                self.fail(f"{what}: was taken")
            else:
                self.tally.see("not counted: the same signed bytes, by the page's reading")
        now = self.changes()
        if now != self._seen:
            self._seen = now
            self.fail(f"{what}: the database was changed")

    def _count(self, one: Try, what: str, error: Untrusted | CallerError) -> None:
        tally, sentence = self.tally, str(error)
        tally.units += 1
        tally.fault(one.kind)
        tally.see(f"of {one.target}")
        tally.see(f"refused: {error.code}")
        if not _CODE.fullmatch(error.code) or not sentence or "\n" in sentence or "Traceback" in sentence:
            self.fail(f"{what}: it says {error.code!r}: {sentence!r}")
        if one.code and one.code != error.code:
            self.fail(f"{what}: {error.code} where it should be {one.code}")
        elif one.rule:
            tally.see(f"by rule {one.rule}")


def prove(seed: int, case: int, work: Path) -> Tally:
    return _prove(seed, case, work, ALL)


def _prove(seed: int, case: int, work: Path, parts: frozenset[str]) -> Tally:
    tally, chance = Tally(), random.Random(f"{seed} {case}")
    with seeded(f"bundles {seed} {case}"):
        made, world = scene(work, seed)
        try:
            _all(tally, case, made, world, chance, parts)
        finally:
            world.close()
    return tally


def _all(tally: Tally, case: int, made: Template, world: World, chance: random.Random, parts: frozenset[str]) -> None:
    server = world.server
    assert isinstance(server, Reopened)
    tills, servers = of_tills(made, world), of_server(made, world)
    targets = {one.name: one for one in (*tills, *servers)}
    bench = Bench(tally, case)
    for target in tills:
        bench.good(target)
    anna = world.open("anna").journal
    rows, journal = server.rows(), _journal(world)
    with closing(sqlite3.connect(server.file)) as watching:
        commits = Bench(tally, case, lambda: int(watching.execute("PRAGMA data_version").fetchone()[0]))
        for target, benches in (*((one, bench) for one in tills), *((one, commits) for one in servers)):
            if "places" in parts:
                for changed in _of_form(target, list(targets.values()), case, made, chance):
                    benches.change(target, changed)
        if "signed" in parts:
            for one in _some(signed_tries(made, world, targets), case):
                bench.attempt(one)
        if "server" in parts:
            for one in _some(device_tries(made, targets), case):
                commits.attempt(one)
            for target in servers[:-1]:
                _over_http(commits, over_http(world, target), chance)
    if server.rows() != rows or _journal(world) != journal or anna.verify() < 0:
        tally.fail(case, "after all refusals the rows are not those of before")
    for target in tills:
        bench.good(target)
    for target in servers if parts == ALL else ():
        bench.good(target)
    if "files" in parts:
        _files(tally, case, made, world, chance)
    if "tills" in parts:
        server.put_back(made.work / "server" / server.file.name)
        whole_tills(tally, case, made, world, chance, WHOLE_TILLS)


def _journal(world: World) -> list[tuple[object, ...]]:
    with world.open("anna").journal.read() as view:
        return [tuple(row) for row in view.run("SELECT * FROM state").fetchall()]


def _of_form(
    target: Target, targets: list[Target], case: int, made: Template, chance: random.Random
) -> Iterator[Changed]:
    """The mutations of one message by whoever has no key."""
    count = places(target.raw)
    for number in range(case % STRIPES, count, STRIPES):
        yield at_place(target.raw, number)
    for _ in range(BY_CHANCE):
        yield by_chance(target.raw, chance.choice(targets).raw, chance)
    if target.jws:
        for changed in chance.sample(list(dressed(target.jws, target.public_x, made.stranger)), 40):
            yield changed._replace(raw=target.around(changed.raw))
        other = chance.choice([one for one in targets if one.jws and one.jws != target.jws])
        for changed in exchanged(target.jws, other.jws):
            yield changed._replace(raw=target.around(changed.raw))


def _some(tries: Iterator[Try], case: int) -> Iterator[Try]:
    """All that break a rule, and by turns those with a wrong field."""
    for number, one in enumerate(tries):
        if one.kind != FIELD or number % FIELD_PARTS == case % FIELD_PARTS:
            yield one


def _over_http(bench: Bench, target: Target, chance: random.Random) -> None:
    for _ in range(OVER_HTTP):
        number = chance.randrange(places(target.raw))
        kind, how, raw = at_place(target.raw, number)
        bench.change(target, Changed(f"{kind}, over HTTP", how, raw))


def _files(tally: Tally, case: int, made: Template, world: World, chance: random.Random) -> None:
    """Each on the database as it was. What is refused leaves, of what is signed, no more than the good file brings."""
    server, bench = world.server, Bench(tally, case)
    assert isinstance(server, Reopened)
    database = made.work / "server" / server.file.name
    accept, good = whole_file(world, world.work), made.pending["journal file"]
    server.put_back(database)
    before = set(server.rows().splitlines())
    bench.good(Target("journal file", good, accept))
    allowed = _events(server)
    files = list(changed_files(made, accept))
    files = [files[number] for number in range(case % 3, len(files), 3)]
    files += [(at_place(good, chance.randrange(places(good))), False) for _ in range(4)]
    for changed, same in files:
        server.put_back(database)
        if changed.raw == good:
            continue
        one = Try("journal file", f"{changed.kind}, imported", changed.how, changed.raw, accept)
        bench.attempt(one, lambda raw, same=same: same)  # type: ignore[misc]
        left = _events(server)
        if not left <= allowed:
            tally.fail(case, f"journal file: {changed.how}: it left events that the good file does not bring")
        state = server.read("SELECT state FROM devices WHERE id = ?", made.device_ids["ben"])
        if left != allowed and state != [("active",)]:
            tally.fail(case, f"journal file: {changed.how}: it left ben {state[0][0]}, with {len(left)} of his events")
    if not before:
        tally.fail(case, "the database was empty")


def _events(server: Reopened) -> set[tuple[object, ...]]:
    return set(server.read("SELECT device_id, branch, seq, hash, envelope, body, outcome FROM events"))


def lacks(tally: Tally) -> list[str]:
    """What a run of any size from the short one up should have met."""
    found = [f"rule {rule} refused nothing" for rule in RULES if not tally.seen.get(f"by rule {rule}")]
    kinds = ("bit flipped", "byte taken out", "byte doubled", "byte put in", "cut short", "bytes exchanged", "spliced",
             "another header", "another signature", "written otherwise", "parts of two messages",
             "signed by a stranger", "signed by another role", "signed, but against the rules",
             "signed, with a wrong field", "replayed",
             "file with its digests made good, imported", "bit flipped, over HTTP",
             *(f"whole till, {one} changed" for one in ("sync answer", "root", "manifest", "blob", "online answer")),
             "whole till, enrolment's answers changed")  # fmt: skip
    found += [f"no mutation of the kind {kind!r} was refused" for kind in kinds if not tally.faults.get(kind)]
    objects = ("first root", "next root", "root with new keys", "manifest", "snapshot", "delta", "sync answer",
               "enrolment's answer", "online answer", "enrolment token", "journal file", "sync", "enrolment",
               "enrolment again", "online redemption", "manifest request")  # fmt: skip
    found += [f"no {one} was changed" for one in objects if tally.seen.get(f"of {one}", 0) < 50]
    if not tally.tills:
        found.append("no whole till took part")
    return found


# ---- broken on purpose


def _no_digest(seed: int, work: Path) -> Tally:
    with mock.patch.object(blobs, "_demand_blob", return_value=None):
        return _prove(seed, 0, work, frozenset({"places"}))


def _no_role(seed: int, work: Path) -> Tally:
    with mock.patch.object(Trusted, "role_keys", lambda self, role: self._keys):
        return _prove(seed, 0, work, frozenset({"signed"}))


def _loose_base64(seed: int, work: Path) -> Tally:
    """joserfc is as strict as we are, so it has to be broken too."""

    def lenient(text: bytes) -> bytes:
        return base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))

    def ours(text: str) -> bytes:
        try:
            return lenient(text.encode())
        except ValueError as error:
            raise Untrusted("it is not base64url", code="MALFORMED") from error

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(signing, "b64u_decode", ours))
        for name, module in list(sys.modules.items()):
            if name.startswith("joserfc") and hasattr(module, "urlsafe_b64decode"):
                stack.enter_context(mock.patch.object(module, "urlsafe_b64decode", lenient))
        return _prove(seed, 0, work, frozenset({"places"}))


def _no_chain(seed: int, work: Path) -> Tally:
    honest = syncing._open

    def without(head: SyncHead, packed: bytes, request_sha256: str) -> object:
        try:
            return honest(head, packed, request_sha256)
        except Untrusted as error:
            if error.code != "BROKEN_CHAIN":
                raise
        end = head.after.hash
        for event in split_events(syncing._unpack(packed)):
            end = chain_next(end, event.envelope)
        through = Position(head.through.seq, end)
        return honest(msgspec.structs.replace(head, through=through), packed, request_sha256)

    with mock.patch.object(syncing, "_open", without):
        return _prove(seed, 0, work, frozenset({"server"}))


CONTROLS: dict[str, Callable[[int, Path], Tally]] = {
    "digests of blobs not compared": _no_digest,
    "signatures verified, but not whose role the key has": _no_role,
    "base64url of any spelling": _loose_base64,
    "a sync's chain not followed": _no_chain,
}
