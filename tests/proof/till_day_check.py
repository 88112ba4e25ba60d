"""What must hold of a till whose process or disk failed, from what its cashier was told; reads with sqlite3 and json.

Only the chain's own check and asking again go through the client; in the end `benchmarks.audit` looks at all there is.
"""

from __future__ import annotations

import hashlib
import json
import random
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from tallystick_client import Till
from tallystick_client.errors import TallystickError
from tallystick_shared.journal_file import read_batch, read_header
from tests.proof.straced import Lived
from tests.proof.tally import Tally
from tests.proof.till_day import Said, Step
from tests.proof.till_day_shop import TILL, Shop

FLAGS = {"TIME_UNCERTAIN", "LATE", "CUSTOMER_LIMIT"}
"""What the server may flag although nobody lies: the clocks of these days differ by minutes, and are offline."""
HARMLESS = {"IDENTIFIER_REUSED", "UNKNOWN_REDEMPTION", "ALREADY_VOIDED", "ERASED", "NO_CONNECTION", "RETIRED",
            "TOO_LONG_OFFLINE", "NO_BUNDLE", "INVALID_FIELD", "VOIDED", "MIXED_DIRECTORY"}  # fmt: skip
"""Codes that a till of a sound disk may answer a step of a day with."""


class Journal(NamedTuple):
    """One till's journal as its file has it: rows by name of the column."""

    state: dict[str, Any]
    events: list[dict[str, Any]]
    leases: dict[str, dict[str, Any]]
    voids: dict[str, str]
    returns: Counter[tuple[str, str]]
    attempts: set[str]
    sound: str

    @property
    def whole(self) -> bool:
        """Nothing of it was purged."""
        return bool(self.state["base_seq"] == 0)

    @property
    def void_ids(self) -> set[str]:
        """Of voids and returns."""
        return {event["id"] for event in self.events if event["type"] == "void"}

    @property
    def redemptions(self) -> dict[str, int]:
        """Minor units by id."""
        found = {}
        for event in self.events:
            if event["type"] == "redeem":
                found[event["id"]] = sum(use["minor"] for use in json.loads(event["envelope"])["uses"])
        return found


def read(path: Path) -> Journal:
    """Through a connection of its own; the till may be open."""
    with closing(sqlite3.connect(path / "journal.sqlite3")) as connection:
        connection.row_factory = sqlite3.Row

        def rows(query: str) -> list[dict[str, Any]]:
            return [dict(row) for row in connection.execute(query)]

        connection.execute("BEGIN")
        (state,) = rows("SELECT * FROM state")
        (sound,) = connection.execute("PRAGMA integrity_check").fetchone()
        return Journal(
            state,
            rows("SELECT * FROM events ORDER BY seq"),
            {row["id"]: row for row in rows("SELECT * FROM leases")},
            {row["redemption_id"]: row["void_id"] for row in rows("SELECT * FROM voids")},
            Counter({(row["redemption_id"], row["line_id"]): row["units"] for row in rows("SELECT * FROM returns")}),
            {row["id"] for row in rows("SELECT id FROM attempts")},
            str(sound),
        )


def wrong(journal: Journal) -> list[str]:
    """Sentences on what is half done: event, head, use of leases, voids and returns belong together."""
    state, events = journal.state, journal.events
    found = [] if journal.sound == "ok" else [f"integrity_check says {journal.sound}"]
    before, at = state["base_hash"], state["base_seq"]
    used: Counter[tuple[str, str]] = Counter()
    returned: Counter[tuple[str, str]] = Counter()
    voids = {}
    for event in events:
        at += 1
        before = hashlib.sha256(bytes.fromhex(before) + event["envelope"]).hexdigest()
        if event["seq"] != at or event["hash"] != before:
            return [*found, f"the chain breaks at event {at}"]
        envelope = json.loads(event["envelope"])
        if event["type"] == "redeem":
            for use in envelope["uses"]:
                used[use["lease"], "units"] += use["units"]
                used[use["lease"], "minor"] += use["minor"]
        if event["type"] == "void":
            lines = json.loads(event["body"])["returned"] if event["body"] else None
            if lines == []:
                voids[envelope["ref"]] = event["id"]
            for line in lines or []:
                returned[envelope["ref"], line["line_id"]] += line["units"]
    if (at, before) != (state["head_seq"], state["head_hash"]):
        found.append(f"the head is {state['head_seq']}, the last event {at}")
    if not journal.whole:
        return found
    if state["head_redemptions"] != len(journal.redemptions):
        found.append(f"{state['head_redemptions']} redemptions at the head, {len(journal.redemptions)} events")
    if state["head_minor"] != sum(journal.redemptions.values()):
        found.append("the amounts at the head are not those of the events")
    for lease in journal.leases.values():
        for name in ("units", "minor"):
            if lease[f"used_{name}"] != used[lease["id"], name]:
                found.append(f"a lease has {lease[f'used_{name}']} {name} used, its events {used[lease['id'], name]}")
    erased = any(event["type"] == "void" and not event["body"] for event in events)
    if not erased and (voids != journal.voids or returned != journal.returns):
        found.append("voids and returns are not those of the events")
    return found


class Checked:
    """What the cashiers of a shop were told, and whether it is so. Puts what it finds into `tally`."""

    def __init__(self, shop: Shop, tally: Tally, case: int) -> None:
        self.shop, self.tally, self.case = shop, tally, case
        self.ids: list[str] = []
        self.sales: dict[str, Step] = {}
        self.acknowledged: dict[str, Said] = {}
        self.voided: set[str] = set()
        self.forgotten: set[str] = set()
        self.given_back: dict[str, int] = {}
        before = read(shop.path())
        self.earlier, self.asked_voids = set(before.redemptions), before.void_ids
        self.in_flight: Step | None = None
        self.last_kind = ""

    def fail(self, sentence: str) -> None:
        self.tally.fail(self.case, sentence)

    # ---- what was said

    def hear(self, name: str, steps: list[Step], lived: Lived) -> None:
        """All that a process said before it ended."""
        by_number = {step.number: step for step in steps}
        doing: Step | None = None
        for said in lived.said:
            step = by_number[said.number]
            doing = None if said.done else step
            if said.done:
                self.take(step, said)
            elif step.kind == "forget":
                self.forgotten.add(step.customer)
            elif step.kind in ("void", "return"):
                self.asked_voids.add(step.own)
            elif step.kind in ("redeem", "online"):
                self.sales.setdefault(step.id, step)
        self.last_kind = "between two steps" if doing is None else doing.kind
        if name == TILL:
            self.in_flight = doing

    def take(self, step: Step, said: Said) -> None:
        if said.error == "INTERNAL":
            self.fail(f"{step.kind} ended with {said.why}")
        if step.kind == "void" and said.redeemed:
            self.voided.add(step.id)
        if step.own and said.error in ("CONSTRAINT", "IDENTIFIER_REUSED"):
            self.fail(f"the {step.kind} {step.own} was refused: {said.why}")
        if step.kind in ("void", "return") and said.redeemed:
            first = self.given_back.setdefault(step.own, said.minor)
            if first != said.minor:
                self.tally.doubled += 1
                self.fail(f"the {step.kind} {step.own} gave back {first} first and {said.minor} when asked again")
        if step.kind not in ("redeem", "online"):
            return
        if said.id != step.id:
            self.tally.doubled += 1
            self.fail(f"{step.id} was redeemed as {said.id}")
        self.tally.see("redeemed" if said.redeemed else "refused")
        before = self.acknowledged.get(step.id)
        if said.redeemed and before is None:
            self.acknowledged[step.id] = said
            self.tally.acknowledged += 1
        elif before is not None and not said.error and (said.minor, said.shares) != (before.minor, before.shares):
            self.tally.doubled += 1
            self.fail(f"{step.id} gave {before.shares} first and {said.shares} when it was asked for again")

    # ---- whether it is so

    def check(self, chance: random.Random) -> None:
        """Opens the till in this process, looks at all of it, and asks for some redemptions again."""
        for path in self.shop.paths():
            for aside in [*path.glob("*damaged*"), *path.glob("*refused*")]:
                if path == self.shop.path() or "cache" in aside.name:
                    self.fail(f"{aside.name} was set aside")
        try:
            till = self.shop.open()
        except TallystickError as error:
            self.fail(f"the till does not open any more: {error}")
            return
        with till:
            self.look(till, chance)

    def look(self, till: Till, chance: random.Random) -> None:
        """The same, of a till that is open."""
        journal = read(self.shop.path())
        self._compare(till, journal)
        self._ask_again(till, chance)

    def _compare(self, till: Till, journal: Journal) -> None:
        till._keeper.journal.verify()
        for sentence in wrong(journal):
            self.fail(sentence)
        here, there = journal.redemptions, self._on_server()
        for redemption_id, said in self.acknowledged.items():
            minor = here.get(redemption_id, there.get(redemption_id))
            if minor is None or (said.kind == "redeem" and journal.whole and redemption_id not in here | there):
                self.tally.lost += 1
                self.fail(f"{redemption_id} was acknowledged and is nowhere")
            elif minor != said.minor:
                self.tally.mismatched += 1
        for redemption_id in here.keys() - self.sales.keys() - self.earlier:
            self.tally.doubled += 1
            self.fail(f"{redemption_id} was redeemed, and nobody asked for it")
        for redemption_id in self.voided:
            if redemption_id not in journal.voids:
                self.fail(f"the void of {redemption_id} is gone")
        if journal.whole:
            for void_id in self.given_back.keys() - journal.void_ids:
                self.fail(f"the void {void_id} was told to the cashier and is gone")
        for void_id in journal.void_ids - self.asked_voids:
            self.tally.doubled += 1
            self.fail(f"{void_id} gave back, and nobody asked for it")
        doing = self.in_flight
        if doing is not None and doing.kind in ("redeem", "void"):
            there_is = doing.id in here if doing.kind == "redeem" else doing.id in journal.voids
            self.tally.see("in flight, recorded" if there_is else "in flight, not recorded")

    def _on_server(self) -> dict[str, int]:
        with closing(sqlite3.connect(self.shop.settings.sqlite_file or "")) as connection:
            query = "SELECT redemption_id, sum(minor) FROM redemption_uses GROUP BY redemption_id"
            return dict(connection.execute(query).fetchall())

    def _ask_again(self, till: Till, chance: random.Random) -> None:
        """For what was in flight, and some of what was acknowledged: the same receipt, and one effect.

        A till forgets an id with the events that it purges, and with a customer that it is told to forget.
        """
        known = self.still_known()
        wanted = chance.sample(known, min(2, len(known)))
        doing, self.in_flight = self.in_flight, None
        if doing is not None and doing.kind in ("void", "return"):
            self._void_again(till, doing)
        if doing is not None and doing.kind in ("redeem", "online") and doing.customer not in self.forgotten:
            wanted = list(dict.fromkeys([*wanted, doing.id]))
        for redemption_id in wanted:
            sale = self.sales[redemption_id]
            try:
                receipt = till.redeem(sale.order(), sale.codes, id=sale.id)
            except TallystickError as error:
                if error.code not in HARMLESS or (error.code == "IDENTIFIER_REUSED" and not self._is_void(sale.id)):
                    self.fail(f"asked for {sale.id} again: {error}")
                continue
            self.tally.see("asked again")
            shares = {one.code: one.discount_minor for one in receipt.result.applied}
            minor = sum(shares.values())
            self.take(sale, Said(sale.number, sale.kind, True, receipt.id, receipt.redeemed, minor, shares))

    def _void_again(self, till: Till, step: Step) -> None:
        """Twice, whether it is on the disk or not."""
        for _ in range(2):
            try:
                receipt = till.void(step.id, returned=step.returned(), id=step.own)
            except TallystickError as error:
                if error.code not in HARMLESS - {"IDENTIFIER_REUSED"}:
                    self.fail(f"asked for the {step.kind} {step.own} again: {error}")
                return
            self.tally.see(f"{step.kind} asked again")
            self.take(step, Said(step.number, step.kind, True, step.id, True, receipt.refund_minor))

    def still_known(self) -> list[str]:
        """Acknowledged redemptions that the till still knows by their ids."""
        journal = read(self.shop.path())
        here = journal.redemptions.keys() | journal.attempts
        return [one for one in self.acknowledged if one in here and self.sales[one].customer not in self.forgotten]

    def _is_void(self, redemption_id: str) -> bool:
        return redemption_id in read(self.shop.path()).voids

    def exported(self, target: Path, *, final: bool = True) -> None:
        """Where there is a file it is whole, and if it is the final one its till redeems no more."""
        if not target.exists():
            return
        try:
            header, *batches = target.read_bytes().splitlines(keepends=True)
            whole = read_header(header).batches == len([read_batch(one) for one in batches])
        except (TallystickError, ValueError) as error:
            whole = False
            self.fail(f"half a file was exported: {error}")
        if not whole:
            self.fail("the exported file has not all its batches")
        if final and not read(self.shop.path()).state["retired"]:
            self.fail("the journal was exported for good, and its till goes on")

    def converge(self) -> None:
        late = self.shop.converge()
        self.tally.tills += len(self.shop.tills)
        self.tally.converged += len(self.shop.tills) - len(late)
        for sentence in late:
            self.fail(f"not converged: {sentence}")

    def audit(self) -> None:
        """After all tills have synced: nothing lost, doubled, beyond a limit or different; no flag without a reason."""
        report = self.shop.audited()
        for name in ("lost", "doubled", "over_limit", "mismatched"):
            setattr(self.tally, name, getattr(self.tally, name) + getattr(report, name))
        for sentence in report.broken:
            self.fail(sentence)
        there = self._on_server()
        for redemption_id, said in self.acknowledged.items():
            if redemption_id not in there:
                self.tally.lost += 1
                self.fail(f"{redemption_id} was acknowledged and never reached the server")
            elif there[redemption_id] != said.minor:
                self.tally.mismatched += 1
        for flag, count in report.flagged.items():
            self.tally.see(f"flagged {flag}", count)
            if flag not in FLAGS and count:
                self.fail(f"the server flagged {count} as {flag}")
