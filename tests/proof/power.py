"""Power cuts: a till's day, recorded call by call, and what may be on its disk if the power had gone at any moment."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from tests.proof.power_check import Told, check, told
from tests.proof.power_disk import Image
from tests.proof.power_record import Replay
from tests.proof.power_shop import Recording, clock_after, follow, make, put_back
from tests.proof.tally import Tally
from tests.proof.till_day import Day, Life, Step, attempt
from tests.proof.till_day_shop import TILL, Shop

IMAGES = 200
"""Of one recording."""
GO_ON = 25
"""Of so many images, one till goes on with its day, at the server as it was then."""
ENROL_AGAIN = 6
"""Of so many that are no till yet, one is enrolled."""


FRESH = (False, True, False, True, False)
LAST = ("", "export", "export", "final", "")
"""By case: whether the till is enrolled on that day, and with what it ends."""
MET = (
    "ordered", "strict", "writes dropped", "writes reordered", "cuts dropped", "torn", "torn within a sector", "zeros",
    "garbage", "create lost", "mkdir lost", "rename lost", "unlink lost", "entries reordered",
)  # fmt: skip
"""Kinds of damage."""
TWICE = 3
"""Of so many cases, one has a second day, which begins with what a power cut left of the first."""
SEEN = (
    "during nothing", "during enroll", "during sync", "during redeem", "during void", "during return", "during online",
    "during close", "during export", "in two processes", "went on", "enrolled again",
    "after an earlier cut",
)  # fmt: skip


def prove(seed: int, case: int, work: Path) -> Tally:
    chance, tally = random.Random(f"{seed} {case}"), Tally()
    recording = make(chance, work / "shop", LAST[case % len(LAST)], "", fresh=FRESH[case % len(FRESH)])
    if case % TWICE != 1:
        _cuts(chance, tally, case, work, recording, IMAGES)
        return tally
    left = _cuts(chance, tally, case, work, recording, IMAGES // 2)
    none_yet = [one for one in left if not one[0].enrolled and not one[2]]
    said, image, _ = chance.choice(none_yet or left)
    image.write(work / "left")
    after = follow(chance, recording, work / "after a cut", work / "left", chance.randint(*said.server))
    tally.see("after an earlier cut", IMAGES // 2)
    tally.see("enrolled after an earlier cut", IMAGES // 2 * bool(after.token))
    _cuts(chance, tally, case, work, after, IMAGES // 2)
    return tally


def lacks(tally: Tally) -> list[str]:
    lacking = [f"no image with this damage: {kind}" for kind in MET if not tally.faults.get(kind)]
    lacking += [f"no power cut of this kind: {kind}" for kind in SEEN if not tally.seen.get(kind)]
    if tally.acknowledged < tally.units:
        lacking.append(f"only {tally.acknowledged} redemptions were acknowledged before {tally.units} cuts")
    return lacking


def _broken(name: str, seed: int, work: Path, *, fresh: bool = False) -> Tally:
    """No till goes on here: an image that shows it is enough."""
    chance, tally = random.Random(seed), Tally()
    recording = make(chance, work / "shop", "", f"tests.proof.power_broken:{name}", fresh=fresh)
    _cuts(chance, tally, 0, work, recording, 60, to_go_on=False)
    return tally


CONTROLS: dict[str, Callable[[int, Path], Tally]] = {
    "a journal with synchronous=NORMAL": partial(_broken, "journal_normal"),
    "a cache with synchronous=NORMAL": partial(_broken, "cache_normal"),
    "files that are not synced before they are renamed": partial(_broken, "files_unsynced", fresh=True),
    "folders that are not synced": partial(_broken, "folders_unsynced", fresh=True),
}


def _cuts(
    chance: random.Random,
    tally: Tally,
    case: int,
    work: Path,
    recording: Recording,
    count: int,
    *,
    to_go_on: bool = True,
) -> list[tuple[Told, Image, bool]]:
    """The images of which everything holds, with what was said before, and whether it is a till."""
    replay, left = Replay(recording.start()), []
    places = _places(chance, recording, count)
    for index, done in enumerate([None, *recording.dones]):
        if done is not None:
            replay.take(done)
        while places and places[-1] == index:
            places.pop()
            image = replay.disk.cut(chance, ordered=chance.random() < 0.4)
            said = told(recording, replay)
            wrong, is_till = _try(chance, work, tally, recording, said, image, to_go_on=to_go_on)
            if not wrong and not said.spoilt:
                left.append((said, image, is_till))
            during = ", ".join(step.kind for step in said.begun) or "nothing"
            damage = ", ".join(sorted(kind for kind, count in image.damage.items() if count))
            for one in wrong[:3]:
                tally.fail(case, f"{one} (cut after call {index} of the record, during {during}: {damage})")
    return left


def _places(chance: random.Random, recording: Recording, count: int) -> list[int]:
    """Where to cut, the last first: after so many calls. A third of them anywhere, a third by the kind of call and the
    file, as most of them write the log, and a third where several names are not sure, which could come apart."""
    kinds = [f"{done.kind} {Path(done.other or done.path).name}" for done in recording.dones]
    by_kind = [[index for index, one in enumerate(kinds) if one == kind] for kind in sorted(set(kinds))]
    replay, several = Replay(recording.start()), []
    for index, done in enumerate(recording.dones, 1):
        replay.take(done)
        several += [index] * (replay.disk.unsure() > 1)
    places = []
    for number in range(count):
        match number % 3:
            case 0:
                places.append(chance.randrange(len(kinds) + 1))
            case 1:
                places.append(chance.choice(chance.choice(by_kind)) + chance.randrange(2))
            case _:
                places.append(chance.choice(several))
    return sorted(places, reverse=True)


def _try(
    chance: random.Random,
    work: Path,
    tally: Tally,
    recording: Recording,
    said: Told,
    image: Image,
    *,
    to_go_on: bool,
) -> tuple[list[str], bool]:
    """What does not hold of one image, in sentences, and whether it is a till."""
    folder = work / "image"
    image.write(folder)
    tally.units += 1
    tally.acknowledged += len(said.sales)
    for kind in sorted(kind for kind, count in image.damage.items() if count):
        tally.fault(kind)
    for kind in sorted({step.kind for step in said.begun}) or ["nothing"]:
        tally.see(f"during {kind}")
    tally.see("in two processes", len(said.begun) > 1)
    found = check(recording, said, folder, clock_after(recording))
    tally.lost += found.lost
    wrong = found.wrong
    if to_go_on and not wrong and chance.randrange(GO_ON if found.is_till else ENROL_AGAIN) == 0:
        tally.see("went on" if found.is_till else "enrolled again")
        wrong = _go_on(chance, work / "after", recording, said, folder, tally, is_till=found.is_till)
        shutil.rmtree(work / "after")
    shutil.rmtree(folder)
    return wrong, found.is_till


def _go_on(
    chance: random.Random, work: Path, recording: Recording, said: Told, folder: Path, tally: Tally, *, is_till: bool
) -> list[str]:
    """The till sells again, asks again for what it was at, and syncs with the server as it was; then the audit."""
    put_back(recording, work, chance.randint(*said.server))
    if (folder / TILL).exists():
        shutil.copytree(folder / TILL, work / TILL)
    shop = Shop(work)
    shop.clock = clock_after(recording)
    wrong = []
    with shop.serving() as url:
        life = Life(str(shop.path()), [], at=shop.clock.now(), boot=shop.clock.boot, ran_s=shop.clock.ran_s)
        day = Day(life)
        if not is_till:
            again = attempt(day, Step(1, "enroll", target=url, token=recording.token))
            if again.error:
                return [f"the enrolment cannot be repeated: {again.error}, {again.why}"]
        wrong += _again(chance, day, recording, said)
        day.close()
        shop.clock.run(hours=1)
        late = shop.converge()
        wrong += late
        tally.tills += 1
        tally.converged += not late
    report = shop.audited()
    tally.lost += report.lost
    tally.doubled += report.doubled
    tally.mismatched += report.mismatched
    tally.over_limit += report.over_limit
    return [*wrong, *report.broken] + ([] if report.holds else [f"the audit: {report}"])


def _again(chance: random.Random, day: Day, recording: Recording, said: Told) -> list[str]:
    """In flight: whatever the answer is. Acknowledged: the same receipt. New: it sells."""
    wrong = []
    retired = day.till._keeper.journal.state().retired
    for step in said.begun:
        if step.kind in ("redeem", "online", "void", "return", "sync"):
            again = attempt(day, step)
            if again.error in ("INTERNAL", "CONSTRAINT", "JOURNAL_DAMAGED"):
                wrong.append(f"{step.kind} again: {again.error}, {again.why}")
    sales = [recording.steps[one.number] for one in said.sales.values()]
    for step in chance.sample(sales, min(3, len(sales))):
        again = attempt(day, msgspec.structs.replace(step, kind="redeem"))
        was = said.sales[step.id]
        may_differ = said.forgot or step.id in said.voids or any(one.id == step.id for one in said.begun)
        if not may_differ and (again.redeemed, again.shares) != (was.redeemed, was.shares):
            wrong.append(f"{step.kind} of {step.id} again gives {again}, it gave {was}")
    new = attempt(day, Step(0, "redeem", "01a207a9-0000-7000-8000-000000000001", ["OPEN"], price=700))
    if not new.redeemed and not retired and said.sells:
        wrong.append(f"the till does not sell: {new.error}, {new.why}")
    return wrong
