"""What must hold of a till's folder after a power cut. Reads the journal with raw SQL, `json` and `hashlib` first, so
that a mistake of the journal's own code is not repeated; then opens the till as the product does."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from tallystick_client import Till
from tallystick_client.errors import TallystickError
from tallystick_client.journal import FILE_NAME
from tallystick_client.keeper import Enroller
from tests.client.fake_clock import FakeClock
from tests.proof.power_record import Replay
from tests.proof.power_shop import Recording
from tests.proof.till_day import Said, Step
from tests.proof.till_day_shop import TILL


class Told(NamedTuple):
    """What was said before the cut. `enrolled`: the till may be used; `version`: of the bundle, at least; `sales`, in
    the journal or online, and `voids`, by the redemption's id, how many; `begun`: steps that had not ended; `server`:
    what may be the last request that the server had done. `spoilt`: the cache was damaged; `sells`: there is one, never
    damaged or fetched again."""

    enrolled: bool
    version: int
    sales: dict[str, Said]
    voids: Counter[str]
    begun: list[Step]
    forgot: bool
    exported: str
    retired: bool
    server: tuple[int, int]
    spoilt: bool
    sells: bool


def told(recording: Recording, replay: Replay) -> Told:
    ended = {one.number: one for one in replay.said if one.done}
    begun = [recording.steps[one.number] for one in replay.said if not one.done and one.number not in ended]
    well = [one for one in ended.values() if not one.error]
    done = [number for number, is_done in replay.requests.items() if is_done]
    syncs = [recording.versions[one.number] for one in well if one.kind == "sync"]
    spoils = [index for index, one in enumerate(replay.said) if one.kind == "spoil"]
    fetched = [index for index, one in enumerate(replay.said) if one.kind == "sync" and one.done and not one.error]
    exports = [one for one in well if one.kind in ("export", "final")]
    forgotten = {recording.steps[one.number].customer for one in replay.said if one.kind == "forget"}
    sales = [one for one in well if one.redeemed and one.kind in ("redeem", "online")]
    return Told(
        enrolled=not recording.token or any(one.kind == "enroll" for one in well),
        version=max([*syncs, recording.base.version]),
        sales={one.id: one for one in sales if one.kind == "redeem" or customer(recording, one) not in forgotten},
        voids=Counter(one.id for one in well if one.redeemed and one.kind in ("void", "return")),
        begun=begun,
        forgot=bool(forgotten),
        exported=recording.steps[exports[-1].number].target if exports else "",
        retired=any(one.kind == "final" for one in exports),
        spoilt=bool(spoils),
        sells=max([*fetched, 0 if recording.base.version else -1]) > max(spoils, default=-1),
        server=(max(done, default=0), max(replay.requests, default=0)),
    )


def customer(recording: Recording, sale: Said) -> str:
    """What was redeemed online is kept with the order, and goes with its customer."""
    return recording.steps[sale.number].customer


class Found(NamedTuple):
    """`wrong`: sentences; `lost`: of the sales that were acknowledged; `is_till`: it could be opened."""

    wrong: list[str]
    lost: int
    is_till: bool


def check(recording: Recording, said: Told, folder: Path, clock: FakeClock) -> Found:
    """Of an image in `folder`."""
    wrong = list(_exports(recording, said, folder))
    path = folder / TILL
    journal = path / FILE_NAME
    if (path / "config.json").exists() and journal.exists():
        raw, lost = _journal(recording, said, journal)
        wrong += raw
    else:
        lost = len(said.sales)
    try:
        with Till.open(path, clock=clock) as till:
            till._keeper.journal.verify()
            wrong += _usable(till, said)
            is_till = True
    except TallystickError as error:
        is_till = False
        if said.enrolled:
            wrong.append(f"the till cannot be opened: {error.code}, {error}")
        else:
            wrong += _can_enrol_again(recording, path, clock)
    if not recording.token:  # what an enrolment that was cut off left behind is set aside by the next
        wrong += [f"{one.name} was set aside" for one in path.glob("*.damaged-*")]
    if not said.spoilt:
        wrong += [f"{one.name} was set aside" for one in path.glob("*.refused-*")]
    return Found(wrong, lost, is_till)


def _can_enrol_again(recording: Recording, path: Path, clock: FakeClock) -> Iterator[str]:
    try:
        Enroller(path, recording.shop.url, recording.token, None, clock)
    except TallystickError as error:
        yield f"the enrolment cannot be repeated: {error.code}, {error}"


def _usable(till: Till, said: Told) -> Iterator[str]:
    state = till._keeper.journal.state()
    if said.retired and not state.retired:
        yield "a retired till redeems again"
    if state.bundle_version < said.version:
        yield f"the floor of the bundle is {state.bundle_version}, it was {said.version}"
    with till._keeper.journal.read() as view:
        bundle = till._keeper.terminal.bundle(view)
    if said.sells and bundle is None:
        yield "the till has no vouchers any more"
    if bundle is not None and bundle.manifest.version < max(said.version, state.bundle_version):
        yield f"the bundle is of version {bundle.manifest.version}, the floor of {state.bundle_version}"


def _exports(recording: Recording, said: Told, folder: Path) -> Iterator[str]:
    if said.exported and not (folder / "out" / Path(said.exported).name).exists():
        yield "the exported journal is not there"
    for path in folder.glob("out/*.tally"):
        if path.read_bytes() != (recording.shop.work / "out" / path.name).read_bytes():
            yield "the exported journal is not whole"


def _journal(recording: Recording, said: Told, path: Path) -> tuple[list[str], int]:
    try:
        with closing(sqlite3.connect(path)) as connection:
            (whole,) = connection.execute("PRAGMA integrity_check").fetchone()
            if whole != "ok":
                return [f"the journal is damaged: {whole}"], len(said.sales)
            tables = {
                name: [dict(zip([one[0] for one in rows.description], row, strict=True)) for row in rows]
                for name in ("state", "events", "leases", "attempts", "voids")
                for rows in [connection.execute(f"SELECT * FROM {name}")]
            }
    except sqlite3.Error as error:
        return [f"the journal cannot be read: {error}"], len(said.sales)
    state = tables["state"][0] if tables["state"] else {}
    if not state:
        return ["the journal has lost its state"], len(said.sales)
    events = {row["seq"]: row for row in tables["events"]}
    envelopes = [json.loads(row["envelope"]) for row in tables["events"]]
    wrong = [*_chain(state, events), *_same(recording, said, events), *_leases(tables["leases"], envelopes)]
    wrong += _server_has_no_more(recording, said, state, events)
    redeemed = {one["id"] for one in envelopes if one["type"] == "redeem"}
    redeemed |= {row["id"] for row in tables["attempts"] if row["state"] == "redeemed"}
    lost = said.sales.keys() - redeemed
    wrong += [f"the {said.sales[one].kind} of {one} was acknowledged, and is not there" for one in sorted(lost)]
    voids = Counter(one["ref"] for one in envelopes if one["type"] == "void")
    wrong += [
        f"a void of {one} was acknowledged, and is not there" for one in said.voids if said.voids[one] > voids[one]
    ]
    return wrong, len(lost)


def _chain(state: dict[str, Any], events: dict[int, dict[str, Any]]) -> Iterator[str]:
    if sorted(events) != list(range(state["base_seq"] + 1, state["head_seq"] + 1)):
        yield f"the journal holds {sorted(events)}, not what follows {state['base_seq']} up to {state['head_seq']}"
        return
    before, redemptions = state["base_hash"], 0
    for seq in sorted(events):
        row = events[seq]
        before = hashlib.sha256(bytes.fromhex(before) + row["envelope"]).hexdigest()
        redemptions += row["type"] == "redeem"
        if before != row["hash"]:
            yield f"the chain breaks at event {seq}"
            return
        body = row["body"]
        if body and hashlib.sha256(body).hexdigest() != json.loads(row["envelope"])["body_sha256"]:
            yield f"the body of event {seq} is not what it was"
    if before != state["head_hash"]:
        yield "the head is not the hash of the last event"
    if not state["base_seq"] and redemptions != state["head_redemptions"]:
        yield f"the head counts {state['head_redemptions']} redemptions, there are {redemptions}"


def _same(recording: Recording, said: Told, events: dict[int, dict[str, Any]]) -> Iterator[str]:
    """The till went on with what is there now: all of it must be in its last journal, byte for byte."""
    gone = recording.base.events.keys() - events.keys()
    if gone:
        yield f"events {sorted(gone)} were there before this day, and are not any more"
    for seq, row in events.items():
        envelope, body, digest = recording.final.events.get(seq, (b"", b"", ""))
        if (row["envelope"], row["hash"]) != (envelope, digest):
            yield f"event {seq} is not the one that was written"
        elif row["body"] != body and not (said.forgot and not row["body"]) and body:
            yield f"the body of event {seq} is not the one that was written"


def _leases(leases: list[dict[str, Any]], envelopes: list[dict[str, Any]]) -> Iterator[str]:
    """I2, from the events themselves."""
    units, minor = Counter[str](), Counter[str]()
    for envelope in envelopes:
        for use in envelope["uses"] if envelope["type"] == "redeem" else []:
            units[use["lease"]] += use["units"]
            minor[use["lease"]] += use["minor"]
    for lease in leases:
        used = lease["used_units"], lease["used_minor"]
        if used != (units[lease["id"]], minor[lease["id"]]):
            yield f"lease {lease['number']} says {used}, the events {units[lease['id']]} and {minor[lease['id']]}"


def _server_has_no_more(
    recording: Recording, said: Told, state: dict[str, Any], events: dict[int, dict[str, Any]]
) -> Iterator[str]:
    seq, digest = recording.heads[said.server[0]].get(state["device_id"], (0, ""))
    if seq > state["head_seq"] or (seq in events and events[seq]["hash"] != digest):
        yield f"the server has event {seq}, the till ends at {state['head_seq']}"
