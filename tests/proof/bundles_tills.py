"""Whole tills on a disk: what comes over the line is changed, the till refuses it and goes on selling as before."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from tallystick_client.actions import Send
from tallystick_client.errors import CallerError, LineError, RemoteError
from tallystick_client.keeper import Keeper
from tallystick_shared.errors import TallystickError, Untrusted
from tallystick_shared.signing import Typ
from tests.proof.bundles_changes import Changed, at_place, by_chance, compact, dressed, places
from tests.proof.bundles_signed import OTHER_ID
from tests.proof.bundles_targets import same_root
from tests.proof.bundles_world import Template, World, payload
from tests.proof.tally import Tally

KINDS = (("sync answer", "/v1/sync"), ("root", "/v1/roots"), ("manifest", "/v1/scopes"), ("blob", "/v1/blobs"))
TURNS = 5
"""Of so many cases each makes one part of the attempts."""
DEEP = b'{"x":' + b"[" * 20_000 + b"]" * 20_000 + b"}"
EXTREME = ("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "9999-12-31T23:59:59Z", "1969-12-31T23:59:59Z")


class Changing:
    """What `Wire.change` is set to: answers to requests below `path` are changed; counts them."""

    def __init__(self, path: str, change: Callable[[bytes], bytes], status: int | None = None) -> None:
        self.path, self.change, self.status, self.count = path, change, status, 0

    def __call__(self, send: Send, status: int, body: bytes) -> tuple[int, bytes]:
        if not send.path.startswith(self.path) or (status >= 300 and self.status is None):
            return status, body
        self.count += 1
        return self.status or status, self.change(body)


def whole_tills(tally: Tally, case: int, made: Template, world: World, chance: random.Random, each: int) -> None:
    """`each`: attempts a kind of answer. In the end everything comes through unchanged."""
    anna = world.open("anna")
    number = 1000
    for name, path in KINDS:
        for changed, status in islice(_attempts(name, made, chance, each), case % TURNS, None, TURNS):
            number += 1
            before = _believed(anna)
            changing = Changing(path, changed, status)
            error = _refused(tally, case, f"whole till, {name}", lambda: world.sync("anna"), world, changing)
            if not changing.count:
                tally.fail(case, f"whole till: no {name} was asked for")
                return
            tally.units += 1
            tally.fault(f"whole till, {name} changed")
            if error is not None:
                tally.see(f"refused: {error.code}")
            _compare(tally, case, name, before, _believed(anna))
            world.sell("anna", number, "OPEN")
    _other_ways(tally, case, made, world, chance, each)
    world.sync("anna")
    tally.tills += 1
    with anna.journal.read() as view:
        told = view.state.acknowledged_seq == view.state.head_seq and view.state.bundle_version
    newest = payload(world.wire.last("GET", "/v1/scopes").body)["version"]
    tally.converged += told == newest
    world.sell("anna", 5000, "NEWEST")


def _attempts(
    name: str, made: Template, chance: random.Random, each: int
) -> Iterator[tuple[Callable[[bytes], bytes], int | None]]:
    for _ in range(each):
        yield partial(_other_root, made, partial(_at_any_place, chance)), None
    yield partial(_other_root, made, lambda raw: by_chance(raw, raw[::-1], chance).raw), None
    for raw in (
        b"",
        b"\x00",
        DEEP,
        b"[" * 20_000,
        b"\xff" * 9,
        b"<html>",
        b"null",
        *made.roots[:2],
    ):
        yield _always(raw), None
    for status in (400, 404, 409, 413, 422, 500, 503):
        yield lambda _: DEEP, status
    for status in (400, 503):
        yield lambda _: b'{"type":"x","title":"\xff","status":400,"detail":"d","code":"C"}', status
    if name == "sync answer":
        for change in _answers_of_no_use(made):
            yield change, None
    if name == "manifest":
        for field in ("issued_at", "expires_at"):
            for time in EXTREME:
                yield _signed(made.bundle, Typ.MANIFEST, {field: time}), None
        for cap in (10**9 + 1, 10**15, 2**63, 10**40):
            yield _signed(made.bundle, Typ.MANIFEST, {"caps": {"offline_s": cap}}), None
    if name in ("sync answer", "manifest"):
        key = made.receipt if name == "sync answer" else made.bundle
        picks = chance.sample(range(100), 5)
        for pick in picks:
            yield partial(_dressed, key.jwk()["x"], made, pick), None


def _always(raw: bytes) -> Callable[[bytes], bytes]:
    return lambda _: raw


def _at_any_place(chance: random.Random, raw: bytes) -> bytes:
    return _other(raw, at_place(raw, chance.randrange(places(raw))))


def _other(raw: bytes, changed: Changed) -> bytes:
    return changed.raw if changed.raw != raw else raw + b"\x00"


def _other_root(made: Template, change: Callable[[bytes], bytes], raw: bytes) -> bytes:
    """One byte more where of a root the outer object alone was changed, which nobody signed, and signatures hold."""
    changed = change(raw)
    try:
        made.trusted.next_root(changed)
    except Untrusted:
        return changed
    return raw + b"\x00" if same_root(raw)(changed) else changed


def _dressed(public_x: str, made: Template, pick: int, raw: bytes) -> bytes:
    return _other(raw, [one for one in dressed(raw, public_x, made.stranger) if one.raw != raw][pick])


def _signed(key: Any, typ: Typ, changed: dict[str, Any]) -> Callable[[bytes], bytes]:
    return lambda raw: key.sign(typ, compact(payload(raw) | changed))


def _answers_of_no_use(made: Template) -> Iterator[Callable[[bytes], bytes]]:
    """Signed by the right key, and nothing that a till could reckon with."""
    for time in EXTREME:
        yield _signed(made.receipt, Typ.ANSWER, {"server_time": time})
        lease = {"id": OTHER_ID, "number": 99, "voucher_id": OTHER_ID, "units": 1, "minor": 1, "expires_at": time}
        yield _signed(made.receipt, Typ.ANSWER, {"leases": [lease]})
    yield _signed(made.receipt, Typ.ANSWER, {"acknowledged": {"seq": 1, "hash": "7" * 64}})
    yield _signed(made.receipt, Typ.ANSWER, {"durable": {"seq": 0, "hash": "7" * 64}})
    yield _signed(made.receipt, Typ.ANSWER, {"request_sha256": "7" * 64})


def _refused(
    tally: Tally, case: int, what: str, work: Callable[[], object], world: World, changing: Changing
) -> TallystickError | None:
    world.wire.change = changing
    try:
        work()
    except (RemoteError, CallerError, LineError) as error:
        return error
    except Exception as error:  # noqa: BLE001 - whatever escapes is what this looks for
        tally.fail(case, f"{what}: {type(error).__name__}: {error}"[:300])
    else:
        tally.fail(case, f"{what}: a changed answer was taken")
    finally:
        world.wire.change = lambda send, status, body: (status, body)
    return None


def _believed(keeper: Keeper) -> dict[str, Any]:
    """All that is believed because of what was signed."""
    with keeper.journal.read() as view:
        found = {
            name: view.run(f"SELECT * FROM {name} ORDER BY 1").fetchall() for name in ("floors", "roots", "leases")
        }
        state = view.state
        bundle = keeper.terminal.bundle(view)
    found |= {"acknowledged": [state.acknowledged_seq], "epoch": [state.server_epoch], "mark": [state.ledger_mark]}
    return found | {"bundle": [] if bundle is None else [bundle.digest, len(bundle)], "version": [state.bundle_version]}


def _compare(tally: Tally, case: int, name: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    """A sync's own answer is taken before the bundle is asked for, so then only what comes with the bundle stays."""
    stays = set(before) if name == "sync answer" else {"floors", "roots", "bundle", "version"}
    for part in sorted(stays):
        if before[part] != after[part]:
            tally.fail(case, f"whole till: a changed {name} was refused, but it changed {part}")


def _other_ways(tally: Tally, case: int, made: Template, world: World, chance: random.Random, each: int) -> None:
    """Enrolling, and redeeming online."""
    for path in ("/v1/roots", "/v1/devices"):
        for _ in range(each):
            _enrolment(tally, case, made, world, Changing(path, partial(_at_any_place, chance)))
        for raw in islice((DEEP, b"", made.roots[1], made.passed[2].body), case % 2, None, 2):
            _enrolment(tally, case, made, world, Changing(path, _always(raw)))
    for attempt in range(each + 4):
        whole = (DEEP, b"", made.all("POST", "/v1/redemptions")[0].body, b"\xff")[attempt % 4]
        change = _always(whole) if attempt >= each else partial(_at_any_place, chance)
        world.wire.change = Changing("/v1/redemptions", change)
        tally.units += 1
        tally.fault("whole till, online answer changed")
        try:
            world.sell_online("dora", 6000 + attempt, "OPEN")
        except Exception as error:  # noqa: BLE001 - an offline sale takes its place, whatever came
            tally.fail(case, f"whole till, online answer: {type(error).__name__}: {error}"[:300])
        finally:
            world.wire.change = lambda send, status, body: (status, body)
    with world.open("dora").journal.read() as view:
        (taken,) = view.run("SELECT count(*) FROM attempts WHERE state = 'redeemed' AND answer IS NOT NULL").fetchone()
    if taken:
        tally.fail(case, f"whole till: {taken} changed online answers were taken")


def _enrolment(tally: Tally, case: int, made: Template, world: World, changing: Changing) -> None:
    error = _refused(tally, case, "whole till, enrolment", lambda: world.enrol("carl", made.token), world, changing)
    tally.units += 1
    tally.fault("whole till, enrolment's answers changed")
    if error is not None:
        tally.see(f"refused: {error.code}")
    if (world.work / "carl" / "config.json").exists():
        tally.fail(case, "whole till: it is enrolled by a changed answer")
