"""Crash points: the till's process is killed at the n-th of its system calls, again and again, in all that it does.

A case is one shop and some thirty lives of its till: each a process under strace that is killed in the midst of a step
(a sale, a void, a sync, the keeping of a bundle, an enrolment, an export, the upgrade of an old journal, a purge), some
while they recover from the kill before. In between, and at the end, `till_day_check` looks at what is left.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import msgspec

from tests.client.test_upgrade import downgrade
from tests.proof.straced import Lived, Zygote
from tests.proof.tally import Tally
from tests.proof.till_day import Life, Step, make_step, plan
from tests.proof.till_day_check import Checked, read
from tests.proof.till_day_shop import TILL, Shop, own_folder, template

LIVES = 30
SALE = {"pwrite64": 10, "fdatasync": 2, "write": 2}
"""What is struck, and up to which number. `write` is also what tells the cashier: killed there, it is on the disk and
nobody heard of it."""
SYNC = {"pwrite64": 40, "fdatasync": 6, "write": 2}
OPENING = {"pwrite64": 50, "fdatasync": 10, "unlink": 4, "ftruncate": 4, "write": 2}
SMALL_FILES = {"rename": 3, "unlink": 6, "fsync": 6, "write": 6, "pwrite64": 90, "fdatasync": 12, "ftruncate": 2}
CALLS = {"sync": SYNC, "lost": SYNC, "close": OPENING, "open": OPENING, "forget": OPENING, "enroll": SMALL_FILES,
         "final": SMALL_FILES}  # fmt: skip
"""By the step that is struck; a sale and its like where there is none."""
STRUCK = sorted({call for calls in CALLS.values() for call in calls})
SCENES = {"day": 24, "bundle": 4, "void": 3, "enroll": 1, "upgrade": 1, "purge": 1}


class Case:
    """`broken`: what breaks the product in each life, for a negative control."""

    def __init__(
        self, seed: int, case: int, work: Path, broken: str = "", scenes: Mapping[str, int] = SCENES, lives: int = LIVES
    ) -> None:
        self.case, self.broken, self.scenes, self.lives = case, broken, scenes, lives
        self.chance = random.Random(f"{seed} {case}")
        self.shop = Shop.copy(template(), work)
        self.tally = Tally()
        self.known = Checked(self.shop, self.tally, case)
        self.numbers = 0

    def run(self) -> Tally:
        with self.shop.serving():
            for _ in range(self.lives):
                scene = self.chance.choices(list(self.scenes), list(self.scenes.values()))[0]
                getattr(self, f"scene_{scene}")()
                if self.chance.random() < 0.5:
                    self.known.check(self.chance)
                if self.tally.failures:
                    break
            if not self.tally.failures and self.chance.random() < 0.3:
                self.scene_final()
            self.known.check(self.chance)
            self.known.converge()
        self.known.audit()
        return self.tally

    # ---- what happens

    def scene_day(self) -> None:
        steps = self.steps(self.chance.randint(2, 5))
        self.ask_for_an_older_one(steps)
        self.strike(TILL, steps, self.chance.randrange(len(steps)))

    def scene_bundle(self) -> None:
        """New vouchers: the till keeps a delta, or a snapshot where there are many."""
        count = self.chance.choice([1, 3, 40])
        mark = f"{self.case}-{self.numbers}"
        discount = {"type": "fixed", "amount_minor": 40}
        self.shop.publish([{"code": f"NEW-{mark}-{one}", "discount": discount} for one in range(count)])
        steps = [self.step("sync"), self.step("close"), *self.steps(2)]
        self.strike(TILL, steps, 0)

    def scene_void(self) -> None:
        """A void or a return is asked for again by the next processes, whatever was told of it."""
        sale = self.step("redeem")
        void = make_step(self.chance, self.next(), self.chance.choice(["void", "return"]), [sale.id])
        self.strike(TILL, [sale, void], 1)
        for struck in (True, False):
            if void.own in read(self.shop.path()).void_ids:
                self.tally.see("a void asked for again")
            self.strike(TILL, [msgspec.structs.replace(void, number=self.next())], 0, struck=struck)

    def scene_enroll(self) -> None:
        """Again with the same token, until it is done."""
        name, token = f"till-{len(self.shop.tills)}", self.shop.token()
        for again in range(6):
            step = Step(self.next(), "enroll", target=self.shop.url, token=token)
            lived = self.strike(name, [step, self.step("sync")], 0, struck=again < 5)
            enrolled = [one for one in lived.said if one.kind == "enroll" and one.done]
            if enrolled and enrolled[0].error not in ("", "MIXED_DIRECTORY"):
                self.tally.fail(self.case, f"an enrolment could not be repeated: {enrolled[0].why}")
            if enrolled:
                break
        self.shop.tills.append(name)

    def scene_upgrade(self) -> None:
        """A journal of the first release is opened."""
        self.known.check(self.chance)  # and with that it is closed, and all of it in its file
        downgrade(self.shop.path() / "journal.sqlite3")
        for struck in (True, True, False):
            self.strike(TILL, [self.step("open"), self.step("close")], 0, struck=struck, alone=True)

    def scene_purge(self) -> None:
        """After three months what is durable on the server leaves the till."""
        self.known.check(self.chance)  # and what was in flight is asked for again while the till knows its id
        self.shop.clock.run(days=91)
        steps = [self.step("sync"), self.step("sync"), *self.steps(1)]
        self.strike(TILL, steps, self.chance.randrange(2))

    def scene_final(self) -> None:
        """The journal as a file, and the till retired; again under another name where it was cut off."""
        for again in range(3):
            target = self.shop.work / f"journal-{again}.file"
            step = Step(self.next(), "final", target=str(target))
            self.strike(TILL, [step], 0, struck=again < 2)
            self.known.exported(target)

    # ---- how

    def next(self) -> int:
        self.numbers += 1
        return self.numbers

    def step(self, kind: str) -> Step:
        return make_step(self.chance, self.next(), kind, self.known.ids)

    def steps(self, count: int) -> list[Step]:
        steps = plan(self.chance, count, first=self.numbers + 1, known=self.known.ids)
        self.numbers += count
        again = self.known.in_flight
        forgotten = again is not None and again.customer in self.known.forgotten
        kinds = ("redeem", "online", "void", "return")
        if again is not None and not forgotten and again.kind in kinds and self.chance.random() < 0.7:
            steps.insert(0, msgspec.structs.replace(again, number=self.next()))  # by the next process, as it was
        return steps

    def ask_for_an_older_one(self, steps: list[Step]) -> None:
        """Of those that the till knows now: it forgets an id with what a sync purges, and with a customer."""
        known = self.known.still_known()
        if known and self.chance.random() < 0.3:
            asked = msgspec.structs.replace(self.known.sales[self.chance.choice(known)], number=self.next())
            forgets = ("sync", "down", "lost", "forget")
            place = next((index for index, one in enumerate(steps) if one.kind in forgets), len(steps))
            steps.insert(place, asked)

    def strike(self, name: str, steps: list[Step], begin: int, *, struck: bool = True, alone: bool = False) -> Lived:
        """One life. Unless it is to be `alone`, a second process may have the till open all the while, and goes on."""
        calls = CALLS.get(steps[begin].kind, SALE)
        call = self.chance.choice(list(calls))
        number = self.chance.randint(1, calls[call])
        clock = self.shop.clock
        life = Life(
            str(self.shop.path(name)), steps, (begin, len(steps)), clock.wall, clock.boot, clock.ran_s, self.broken
        )
        clock.run(minutes=len(steps))
        beside = name == TILL and not alone and self.chance.random() < 0.35
        with self.shop.open() if beside else nullcontext() as till:
            lived = zygote().live(life, {call: number} if struck else {})
            self.known.hear(name, steps, lived)
            if till is not None:
                self.tally.see("a second process went on")
                self.known.look(till, self.chance)
        if lived.signal == signal.SIGKILL:
            self.tally.units += 1
            self.tally.fault(call)
            self.tally.see(f"killed in {self.known.last_kind}")
            last = next((one for one in reversed(lived.calls) if one.struck), None)
            if last is not None and last.path:
                self.tally.see(f"at {kind_of(last.path)}")
        elif lived.signal or lived.status:
            self.tally.fail(self.case, f"a till's process ended with {lived.signal or lived.status}")
        return lived


def kind_of(path: str) -> str:
    """Which file of a till it is."""
    name = Path(path).name
    return name if name.startswith(("journal.sqlite3", "cache.db")) and "file" not in name else "another file"


@cache
def zygote() -> Zygote:
    return Zygote(own_folder("strace") / "logs", "signal=KILL", STRUCK)


def prove(seed: int, case: int, work: Path) -> Tally:
    return Case(seed, case, work).run()


def lacks(tally: Tally) -> list[str]:
    """Each kind of call and each kind of step must have been met; what is rare only in a long run."""
    wanted = STRUCK if tally.units >= 1000 else ["pwrite64", "fdatasync", "write", "unlink"]
    said = [f"no kill at {call}" for call in wanted if not tally.faults.get(call)]
    kinds = ["redeem", "sync"]
    if tally.units >= 1000:
        kinds += ["void", "return", "online", "enroll", "open", "final", "close", "forget"]
    said += [f"no kill in {kind}" for kind in kinds if not tally.seen.get(f"killed in {kind}")]
    for met in ("in flight, recorded", "in flight, not recorded", "asked again", "a void asked for again"):
        if not tally.seen.get(met):
            said.append(f"never met: {met}")
    return said + ([] if tally.acknowledged else ["nothing was acknowledged"])


def control(broken: str, scenes: Mapping[str, int], cases: int = 8) -> Callable[[int, Path], Tally]:
    """Until it is found, at most so many cases of few lives in these scenes."""

    def broken_on_purpose(seed: int, work: Path) -> Tally:
        whole = Tally()
        for case in range(cases):
            folder = work / str(case)
            folder.mkdir()
            whole.add(Case(seed, case, folder, f"tests.proof.crashes_broken:{broken}", scenes, 8).run())
            if not whole.holds:
                break
        return whole

    return broken_on_purpose


CONTROLS = {
    "the receipt before the commit": control("early_receipt", {"day": 1}),
    "the use of a lease committed apart from its event": control("lease_apart", {"day": 1}),
    "small files written in their place": control("written_in_place", {"enroll": 1}),
    "an id that is not looked up": control("forgets_ids", {"day": 1}),
    "a void that gives back again when it is asked for again": control("gives_back_again", {"void": 1}),
}
