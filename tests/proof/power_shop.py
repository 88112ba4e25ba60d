"""One recorded day: a shop, what its till is to do, what was done to the disk, and what the journal held in the end."""

from __future__ import annotations

import random
import shutil
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from tallystick_client.directory import CONFIG_NAME
from tallystick_client.journal import FILE_NAME
from tallystick_server import rotating
from tests.client.fake_clock import FakeClock
from tests.proof.power_day import Spec, copy_database
from tests.proof.power_disk import Disk
from tests.proof.power_record import Done, record
from tests.proof.till_day import Life, Step, make_step, plan
from tests.proof.till_day_shop import TILL, Shop, template

OFFLINE = ("redeem", "void", "return", "close")


class Journal(NamedTuple):
    """Read with nothing but sqlite3. `events`: envelope, body and hash by number; `version`: of the bundle."""

    events: dict[int, tuple[bytes, bytes, str]]
    version: int


def read_journal(path: Path) -> Journal:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        rows = connection.execute("SELECT seq, envelope, body, hash FROM events").fetchall()
        (version,) = connection.execute("SELECT bundle_version FROM state").fetchone()
    return Journal({seq: (bytes(envelope), bytes(body), digest) for seq, envelope, body, digest in rows}, version)


class Recording(NamedTuple):
    """`versions`: of the bundle, by the number of the sync that brought at least that. `base`: the journal before, and
    `final` after it. `token`: of a till that is enrolled on it. `heads`: of the till's chain, as the server has it, by
    the number of the request it had done."""

    shop: Shop
    copies: Path
    dones: list[Done]
    token: str
    steps: dict[int, Step]
    versions: dict[int, int]
    base: Journal
    final: Journal
    heads: dict[int, dict[str, tuple[int, str]]]

    def start(self) -> Disk:
        return Disk(self.shop.work, self.shop.work / "start")


def make(chance: random.Random, work: Path, last: str, broken: str, *, fresh: bool) -> Recording:
    """A day of a till that is enrolled on it (`fresh`), or of one that was there before. `last`: a step before its last
    sync, `export` or `final`, or none."""
    shop = Shop.copy(template(), work)
    if fresh:
        shutil.rmtree(shop.path())
    return _recorded(chance, shop, shop.token() if fresh else "", last, broken)


def follow(chance: random.Random, before: Recording, work: Path, image: Path, request: int) -> Recording:
    """The day after a power cut, of what it left in `image`, with the server after `request`. A till that is none yet
    is enrolled with the token that it had."""
    put_back(before, work, request)
    shutil.copytree(image, work, dirs_exist_ok=True)
    shop = Shop(work)
    shop.clock = clock_after(before)
    is_till = (shop.path() / CONFIG_NAME).exists()
    return _recorded(chance, shop, "" if is_till else before.token, "", "")


def put_back(recording: Recording, work: Path, request: int) -> None:
    """The server as it was after `request`."""
    database = shutil.ignore_patterns("tallystick.sqlite3*")
    shutil.copytree(recording.shop.work / "server", work / "server", ignore=database)
    shutil.copytree(recording.copies / str(request), work / "server", dirs_exist_ok=True)


def clock_after(recording: Recording) -> FakeClock:
    """When the power is back."""
    clock = FakeClock(recording.shop.clock.now())
    clock.boot = recording.shop.clock.boot
    clock.reboot(hours=6)
    return clock


def _recorded(chance: random.Random, shop: Shop, token: str, last: str, broken: str) -> Recording:
    work = shop.work
    (work / "out").mkdir(exist_ok=True)
    copies, versions = work / "copies", [0]
    copy_database(shop.settings.data, copies / "0")
    base = Journal({}, 0) if token else read_journal(shop.path() / FILE_NAME)
    with shop.serving() as url:
        for name in (TILL, "out"):
            if (work / name).exists():
                shutil.copytree(work / name, work / "start" / name)
        rounds = _rounds(chance, shop, Step(1, "enroll", target=url, token=token) if token else None, last, broken)

        def between(number: int) -> None:
            versions.append(read_journal(shop.path() / FILE_NAME).version)
            keys = rotating.Change(bundle=chance.random() < 0.5, receipt=chance.random() < 0.3)
            if keys.bundle or keys.receipt:
                rotating.begin(shop.settings, keys, [shop.settings.keys / "root.jwk"], now=shop.clock.now())
            code = f"NEW-{number}-{chance.randrange(10**6)}"
            shop.publish([{"code": code, "discount": {"type": "fixed", "amount_minor": 40}}])

        told = work / "told"
        spec = Spec(rounds, str(told), str(shop.settings.data), str(copies), chance.choice([8, 20, 60, 1000]))
        dones = record(spec, work, between)
    final = read_journal(shop.path() / FILE_NAME)
    versions.append(final.version)
    steps = {step.number: step for lives in rounds for life in lives for step in life.steps}
    brought = {
        step.number: versions[index]
        for index, lives in enumerate(rounds, 1)
        for step in lives[0].steps
        if step.kind == "sync"
    }
    heads = {int(one.name): _heads(one / "tallystick.sqlite3") for one in copies.iterdir()}
    return Recording(shop, copies, dones, token, steps, brought, base, final, heads)


def _rounds(chance: random.Random, shop: Shop, enroll: Step | None, last: str, broken: str) -> list[list[Life]]:
    at, ran_s, boot, ids = shop.clock.now(), shop.clock.ran_s, shop.clock.boot, list[str]()
    rounds, number = [], 1
    for index in range(3):
        first = [Step(number + 1, "sync")]
        if not index:
            first = [] if enroll is None else [enroll, *first]
        number += len(first) + 1
        planned = plan(chance, chance.randint(5, 12), first=number, known=ids)
        number += len(planned)
        if index == 1 and chance.random() < 0.3:
            planned.insert(chance.randrange(len(planned)), Step(number + 1, "spoil"))
            number += 2
        ids += [step.id for step in planned if step.kind in ("redeem", "online")]
        lives = [Life(str(shop.path()), [*first, *planned], at=at, boot=boot, ran_s=ran_s, broken=broken)]
        if index and chance.random() < 0.5:
            other = [make_step(chance, number + 1 + n, chance.choice(OFFLINE), ids) for n in range(6) if ids]
            number += len(other) + 1
            lives.append(Life(str(shop.path()), other, at=at, boot=boot, ran_s=ran_s, broken=broken))
        rounds.append(lives)
        at, ran_s = at + timedelta(hours=1), ran_s + 3600
    target = str(shop.work / "out" / "journal.tally")
    if last:
        rounds[-1][0].steps.append(Step(number + 1, last, target=target))
    rounds[-1][0].steps.append(Step(number + 2, "sync"))
    return rounds


def _heads(database: Path) -> dict[str, tuple[int, str]]:
    """By device: the newest event that the server has stored."""
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT device_id, max(seq), hash FROM events WHERE branch = 0 GROUP BY device_id")
        return {device: (seq, digest) for device, seq, digest in rows}
