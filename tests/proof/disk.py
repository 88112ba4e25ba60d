"""Disk errors: the n-th system call of a till fails with EIO or ENOSPC, once or from there on; or the file system is
read-only from there on (EROFS), or the quota used up (EDQUOT).

A case is one shop, one kind of error, and some fifteen lives of its till. In each some steps are done on a disk that
fails, in a thread of their own, and then others by the same process on one that is well again; half of the processes
then end without closing the till. After each life `till_day_check` opens it anew.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import msgspec

from tests.proof.straced import Lived, Zygote
from tests.proof.tally import Tally
from tests.proof.till_day import Life, Step, make_step, plan
from tests.proof.till_day_check import HARMLESS, Checked, read
from tests.proof.till_day_shop import TILL, Shop, own_folder, template

LIVES = 15


class Mode(NamedTuple):
    error: str
    onwards: bool


MODES = [Mode("EIO", False), Mode("ENOSPC", False), Mode("EIO", True), Mode("ENOSPC", True)]
RARER = [Mode("EROFS", True), Mode("EDQUOT", True)]
"""Of every fifth case; neither fails a `pread64`."""
SALE = {"pwrite64": 10, "fdatasync": 2, "pread64": 4}
SYNC = {"pwrite64": 40, "fdatasync": 6, "pread64": 8, "openat": 3}
OPENING = {"pwrite64": 50, "fdatasync": 10, "unlink": 4, "ftruncate": 4, "pread64": 40, "openat": 16, "chmod": 1}
SMALL_FILES = {"rename": 3, "unlink": 6, "fsync": 6, "write": 4, "pwrite64": 90, "fdatasync": 12, "openat": 14,
               "mkdir": 2, "chmod": 2, "pread64": 20}  # fmt: skip
CALLS = {"sync": SYNC, "lost": SYNC, "close": OPENING, "open": OPENING, "forget": OPENING, "enroll": SMALL_FILES,
         "export": SMALL_FILES}  # fmt: skip
"""What fails, and up to which number, by the step that it begins with; a sale and its like where there is none."""
STRUCK = sorted({call for calls in CALLS.values() for call in calls})
DAMAGED = "JOURNAL_DAMAGED"
STORAGE = {"DISK", "DISK_FULL", "BUSY", "UNCERTAIN"}
"""What a till may say of a disk."""
SCENES = {"day": 20, "open": 5, "bundle": 5, "enroll": 2, "export": 2}


class Case:
    """`broken`: what breaks the product in each life, and `calls` all that fails then, for a negative control."""

    def __init__(
        self, seed: int, case: int, work: Path, broken: str = "", scenes: Mapping[str, int] = SCENES,
        calls: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        self.case, self.broken, self.scenes, self.calls = case, broken, scenes, calls
        self.chance = random.Random(f"{seed} {case} disk")
        self.mode = MODES[case % len(MODES)] if case % 5 != 4 else RARER[case // 5 % len(RARER)]
        self.shop = Shop.copy(template(), work)
        self.tally = Tally()
        self.known = Checked(self.shop, self.tally, case)
        self.numbers = 0

    def run(self) -> Tally:
        with self.shop.serving():
            for _ in range(LIVES):
                scene = self.chance.choices(list(self.scenes), list(self.scenes.values()))[0]
                getattr(self, f"scene_{scene}")()
                self.known.check(self.chance)
                if self.tally.failures:
                    break
            self.known.converge()
        self.known.audit()
        return self.tally

    # ---- what happens

    def scene_day(self) -> None:
        self.strike(TILL, self.steps(self.chance.randint(1, 3)))

    def scene_open(self) -> None:
        self.strike(TILL, [self.step("close"), *self.steps(1)], before=self.steps(1))

    def scene_bundle(self) -> None:
        mark, count = f"{self.case}-{self.numbers}", self.chance.choice([1, 3, 40])
        discount = {"type": "fixed", "amount_minor": 40}
        self.shop.publish([{"code": f"NEW-{mark}-{one}", "discount": discount} for one in range(count)])
        self.strike(TILL, [self.step("sync"), *self.steps(1)])

    def scene_export(self) -> None:
        target = self.shop.work / f"journal-{self.numbers}.file"
        self.strike(TILL, [Step(self.next(), "export", target=str(target))])
        self.known.exported(target, final=False)

    def scene_enroll(self) -> None:
        """It fails, and is repeated with the same token by the same process, and by the next one."""
        name, token = f"till-{len(self.shop.tills)}", self.shop.token()
        step = Step(self.next(), "enroll", target=self.shop.url, token=token)
        again = [msgspec.structs.replace(step, number=self.next()) for _ in range(2)]
        lived = self.strike(name, [step], after=[again[0], self.step("sync")])
        if not any(one.kind == "enroll" and one.done and not one.error for one in lived.said):
            self.tally.fail(self.case, f"an enrolment could not be repeated: {lived.said[-1].why}")
        self.shop.tills.append(name)

    # ---- how

    def next(self) -> int:
        self.numbers += 1
        return self.numbers

    def step(self, kind: str) -> Step:
        return make_step(self.chance, self.next(), kind, self.known.ids)

    def steps(self, count: int) -> list[Step]:
        steps = plan(self.chance, count, first=self.numbers + 1, known=self.known.ids)
        self.numbers += count
        self.known.ids += [one.id for one in steps if one.kind in ("redeem", "online")]
        return steps

    def again(self, steps: list[Step]) -> list[Step]:
        return [
            msgspec.structs.replace(one, number=self.next())
            for one in steps
            if one.kind in ("redeem", "void", "return")
        ]

    def strike(
        self, name: str, failing: list[Step], *, before: list[Step] | None = None, after: list[Step] | None = None
    ) -> Lived:
        """One life: some steps, those on a disk that fails, and in most lives some on one that is well again."""
        first = before if before is not None or name != TILL else self.steps(self.chance.randint(0, 1))
        first = first or []
        if after is None:
            after = []
            if self.chance.random() < 0.7:
                after = [*self.again(failing), self.step("redeem"), self.step("sync")]
        calls = self.calls or CALLS.get(failing[0].kind, SALE)
        if self.mode in RARER:
            calls = {name: count for name, count in calls.items() if name != "pread64"}
        call = self.chance.choice(list(calls))
        steps = [*first, *failing, *after]
        clock = self.shop.clock
        life = Life(
            str(self.shop.path(name)), steps, (len(first), len(first) + len(failing)), clock.wall, clock.boot,
            clock.ran_s, self.broken, abrupt=self.chance.random() < 0.5,
        )  # fmt: skip
        clock.run(minutes=len(steps))
        lived = zygote(self.mode).live(life, {call: self.chance.randint(1, calls[call])})
        self.known.hear(name, steps, lived)
        self.count(call, lived)
        self.judge(lived, {one.number for one in failing})
        return lived

    def count(self, call: str, lived: Lived) -> None:
        if lived.signal or lived.status:
            self.tally.fail(self.case, f"a till's process ended with {lived.signal or lived.status}")
        struck = [one for one in lived.calls if one.struck and one.path.startswith(str(self.shop.work))]
        if struck:
            self.tally.units += 1
            self.tally.fault(f"{self.mode.error} {call}{' and on' if self.mode.onwards else ''}")

    def judge(self, lived: Lived, failing: set[int]) -> None:
        """What the till said of it."""
        not_written: dict[str, str] = {}
        for said in lived.said:
            if not said.done:
                continue
            not_written.pop(said.id, "")
            if said.error and said.error not in HARMLESS:
                self.tally.see(f"{said.kind}: {said.error}")
                if said.error == DAMAGED and "or cannot be read" in said.why and self.mode.error == "EIO":
                    continue  # SQLite tells these two apart no more than we do; the next opening does
                if said.error not in STORAGE:
                    self.tally.fail(self.case, f"{said.kind} on a failing disk answered {said.error}: {said.why}")
                elif said.number not in failing:
                    self.tally.fail(self.case, f"{said.kind} did not go on when the disk was well: {said.why}")
                elif "nothing was" in said.why and said.kind in ("redeem", "void"):
                    not_written[said.id] = said.kind
            elif said.number in failing:
                self.tally.see(f"{said.kind}: went on all the same")
        for one, kind in not_written.items():
            journal = read(self.shop.path())
            there = one in (journal.redemptions if kind == "redeem" else journal.voids)
            if there and one not in self.known.acknowledged and one not in self.known.voided:
                self.tally.fail(self.case, f"{one}: the till said that nothing was written, and its {kind} is there")


@cache
def zygote(mode: Mode) -> Zygote:
    logs = own_folder("strace") / "logs"
    return Zygote(logs, f"error={mode.error}", STRUCK, onwards=mode.onwards, quiet=True, when=1000)


def prove(seed: int, case: int, work: Path) -> Tally:
    return Case(seed, case, work).run()


def lacks(tally: Tally) -> list[str]:
    """Each kind of call with each error in a long run; the most frequent in any."""
    calls = STRUCK if tally.units >= 1000 else ["pwrite64", "fdatasync", "pread64"]
    said = []
    for call in calls:
        for error in ("EIO", "ENOSPC"):
            if not any(fault.startswith(f"{error} {call}") for fault in tally.faults):
                said.append(f"{call} never failed with {error}")
    for error in ("EROFS", "EDQUOT") if tally.units >= 1000 else ():
        if not any(fault.startswith(error) for fault in tally.faults):
            said.append(f"nothing failed with {error}")
    for code in ("DISK", "UNCERTAIN", "DISK_FULL"):
        if not any(met.endswith(f": {code}") for met in tally.seen):
            said.append(f"no step was answered with {code}")
    return said + ([] if tally.acknowledged else ["nothing was acknowledged"])


def control(broken: str, calls: Mapping[str, int], cases: int = 8) -> Callable[[int, Path], Tally]:
    """Until it is found, at most so many cases, in which only these calls fail."""

    def broken_on_purpose(seed: int, work: Path) -> Tally:
        whole = Tally()
        for case in range(cases):
            folder = work / str(case)
            folder.mkdir()
            whole.add(Case(seed, case, folder, f"tests.proof.disk_broken:{broken}", {"day": 1}, calls).run())
            if not whole.holds:
                break
        return whole

    return broken_on_purpose


CONTROLS = {
    "a commit that failed answered as redeemed": control("answered_as_redeemed", {"pwrite64": 8, "fdatasync": 2}),
    "a commit that failed in its sync called not written": control("called_not_written", {"fdatasync": 2}),
    "errors of SQLite let through": control("let_through", {"pwrite64": 8}),
}
