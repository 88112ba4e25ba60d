"""Power cuts: a till's day, recorded call by call, and what may be on its disk if the power had gone at any moment."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from tallystick_client.journal import FILE_NAME
from tests.client.fake_clock import FakeClock
from tests.proof.power_check import Told, check, told
from tests.proof.power_disk import Image
from tests.proof.power_record import Replay
from tests.proof.power_shop import Recording, make, read_journal
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
SEEN = (
    "during nothing", "during enroll", "during sync", "during redeem", "during void", "during return", "during online",
    "during close", "during export", "in two processes", "went on", "enrolled again",
)  # fmt: skip


def prove(seed: int, case: int, work: Path) -> Tally:
    tally = Tally()
    _cuts(tally, seed, case, work)
    return tally


def lacks(tally: Tally) -> list[str]:
    lacking = [f"no image with this damage: {kind}" for kind in MET if not tally.faults.get(kind)]
    lacking += [f"no power cut of this kind: {kind}" for kind in SEEN if not tally.seen.get(kind)]
    if tally.acknowledged < tally.units:
        lacking.append(f"only {tally.acknowledged} redemptions were acknowledged before {tally.units} cuts")
    return lacking


def _broken(name: str, case: int, seed: int, work: Path) -> Tally:
    """Until an image shows it."""
    tally = Tally()
    _cuts(tally, seed, case, work, f"tests.proof.power_broken:{name}", images=60)
    return tally


CONTROLS: dict[str, Callable[[int, Path], Tally]] = {
    "broken on purpose, a journal with synchronous=NORMAL": partial(_broken, "journal_normal", 0),
    "broken on purpose, a cache with synchronous=NORMAL": partial(_broken, "cache_normal", 0),
    "broken on purpose, files that are not synced before they are renamed": partial(_broken, "files_unsynced", 1),
    "broken on purpose, folders that are not synced": partial(_broken, "folders_unsynced", 1),
}


def _cuts(tally: Tally, seed: int, case: int, work: Path, broken: str = "", *, images: int = IMAGES) -> None:
    """A product that is `broken` is not let go on: an image that shows it is enough."""
    chance = random.Random(f"{seed} {case}")
    recording = make(chance, work / "shop", LAST[case % len(LAST)], broken, fresh=FRESH[case % len(FRESH)])
    replay = Replay(recording.start())
    start_version = 0 if recording.fresh else read_journal(work / "shop" / "start" / TILL / FILE_NAME).version
    places = _places(chance, recording, images)
    for index, done in enumerate([None, *recording.dones]):
        if done is not None:
            replay.take(done)
        while places and places[-1] == index:
            places.pop()
            image = replay.disk.cut(chance, ordered=chance.random() < 0.4)
            said = told(recording, replay, start_version)
            wrong = _try(chance, work, tally, recording, said, image, to_go_on=not broken)
            during = ", ".join(step.kind for step in said.begun) or "nothing"
            damage = ", ".join(sorted(kind for kind, count in image.damage.items() if count))
            for one in wrong[:3]:
                tally.fail(case, f"{one} (cut after call {index} of the record, during {during}: {damage})")


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
) -> list[str]:
    """What does not hold of one image, in sentences."""
    folder = work / "image"
    folder.mkdir()
    image.write(folder)
    tally.units += 1
    tally.acknowledged += len(said.sales)
    for kind in sorted(kind for kind, count in image.damage.items() if count):
        tally.fault(kind)
    for kind in sorted({step.kind for step in said.begun}) or ["nothing"]:
        tally.see(f"during {kind}")
    tally.see("in two processes", len(said.begun) > 1)
    found = check(recording, said, folder, clock_after())
    tally.lost += found.lost
    wrong = found.wrong
    if to_go_on and not wrong and chance.randrange(GO_ON if found.is_till else ENROL_AGAIN) == 0:
        tally.see("went on" if found.is_till else "enrolled again")
        wrong = _go_on(chance, work / "after", recording, said, folder, tally, is_till=found.is_till)
        shutil.rmtree(work / "after")
    shutil.rmtree(folder)
    return wrong


def clock_after() -> FakeClock:
    """When the power is back."""
    clock = FakeClock()
    clock.reboot(hours=6)
    return clock


def _go_on(
    chance: random.Random, work: Path, recording: Recording, said: Told, folder: Path, tally: Tally, *, is_till: bool
) -> list[str]:
    """The till sells again, asks again for what it was at, and syncs with the server as it was; then the audit."""
    shutil.copytree(
        recording.shop.work / "server", work / "server", ignore=shutil.ignore_patterns("tallystick.sqlite3*")
    )
    shutil.copytree(recording.copies / str(chance.randint(*said.server)), work / "server", dirs_exist_ok=True)
    if (folder / TILL).exists():
        shutil.copytree(folder / TILL, work / TILL)
    shop = Shop(work)
    shop.clock = clock_after()
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
