"""Power cuts: the short version, its controls, and the model of a disk that all of it rests on."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.proof import power
from tests.proof.power_disk import SECTOR, Disk, Image
from tests.proof.power_record import Done, Replay, read
from tests.proof.rows import ROWS
from tests.proof.runner import controls, short

recorded = pytest.mark.skipif(bool(ROWS["power"].missing), reason=ROWS["power"].missing or "it runs")
CUTS = 300


@recorded
def test_nothing_acknowledged_is_lost_in_a_power_cut() -> None:
    """A thousand images of tills that were cut off: each is a till with all it had said, or none yet."""
    tally = short("power")
    assert tally.holds, tally.failures[:3]
    assert power.lacks(tally) == []


@recorded
def test_the_controls_lose_what_was_acknowledged() -> None:
    """A journal, a cache, files and folders that are not synced are found out."""
    found = controls("power")
    assert [name for name, tally in found.items() if tally.holds] == []
    assert [found[name].lost > 0 for name in found if "journal" in name] == [True]


def cuts(disk: Disk, *, ordered: bool) -> list[Image]:
    return [disk.cut(random.Random(seed), ordered=ordered) for seed in range(CUTS)]


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """A folder that is there, with nothing in it."""
    (tmp_path / "start" / "till").mkdir(parents=True)
    return Disk(tmp_path, tmp_path / "start")


def path(disk: Disk, name: str) -> str:
    return str(disk.root / "till" / name)


def sync(disk: Disk, name: str) -> None:
    disk.sync(disk.find(path(disk, name)), disk.count)


@pytest.mark.parametrize("ordered", [False, True])
def test_what_was_synced_is_there(disk: Disk, ordered: bool) -> None:
    """A file whose content and whose folder were synced comes through every cut, whatever is written after it."""
    disk.create(path(disk, "a"))
    disk.write(path(disk, "a"), 0, b"sure")
    sync(disk, "a")
    sync(disk, "")
    disk.write(path(disk, "a"), 4, b"x" * 3000)
    images = cuts(disk, ordered=ordered)
    assert {image.files["till/a"][:4] for image in images} == {b"sure"}
    assert len({image.files["till/a"] for image in images}) > 20


def test_only_the_sync_of_its_folder_keeps_a_name(disk: Disk) -> None:
    """Where the disk keeps no order: a file that was synced is gone with its name in some cuts, and whole in others."""
    disk.create(path(disk, "a"))
    disk.write(path(disk, "a"), 0, b"sure")
    sync(disk, "a")
    assert {image.files.get("till/a") for image in cuts(disk, ordered=False)} == {None, b"sure"}
    assert {image.files.get("till/a") for image in cuts(disk, ordered=True)} == {b"sure"}


@pytest.mark.parametrize(("ordered", "apart"), [(False, True), (True, False)])
def test_names_come_apart_only_without_an_order(disk: Disk, ordered: bool, apart: bool) -> None:
    """The second of two renames may be on the disk without the first, but not where the disk keeps their order."""
    for name in ("a", "b"):
        disk.create(path(disk, f"{name}.new"))
    sync(disk, "")
    for name in ("a", "b"):
        disk.rename(path(disk, f"{name}.new"), path(disk, name))
    left = {tuple(sorted(image.files)) for image in cuts(disk, ordered=ordered)}
    assert (("till/a.new", "till/b") in left) is apart
    assert {("till/a.new", "till/b.new"), ("till/a", "till/b.new"), ("till/a", "till/b")} <= left


def test_a_rename_without_a_sync_of_the_file_may_leave_it_empty(disk: Disk) -> None:
    """The name is on the disk, and what it names is empty, whole, torn, or has zeros or garbage."""
    disk.create(path(disk, "a.new"))
    disk.write(path(disk, "a.new"), 0, b"k" * 2000)
    disk.rename(path(disk, "a.new"), path(disk, "a"))
    sync(disk, "")
    images = cuts(disk, ordered=False)
    left = {image.files["till/a"] for image in images}
    assert {b"", b"k" * 2000, b"\0" * 2000} <= left
    assert {"torn", "zeros", "garbage", "writes dropped"} <= {kind for image in images for kind in image.damage}


def test_a_write_is_torn_between_sectors(disk: Disk) -> None:
    """A sector is old or new, but for those that are torn within and said to be; other sectors stay as they were."""
    disk.create(path(disk, "a"))
    disk.write(path(disk, "a"), 0, b"o" * 4096)
    sync(disk, "a")
    sync(disk, "")
    disk.write(path(disk, "a"), 100, b"n" * 3000)
    torn = [image for image in cuts(disk, ordered=False) if image.damage["torn"]]
    assert len(torn) > 5
    for image in torn:
        content = image.files["till/a"]
        assert (content[:100], content[3100:]) == (b"o" * 100, b"o" * 996)
        sectors = [content[max(100, start) : min(3100, start + SECTOR)] for start in range(0, 3100, SECTOR)]
        assert all(len(set(sector)) == 1 for sector in sectors)


def test_a_sync_covers_what_was_written_before_it_began(disk: Disk) -> None:
    """A write that ended while another thread's sync was under way may be lost."""
    replay = Replay(disk)
    name = path(disk, "a")
    folder = path(disk, "")
    replay.take(Done("create", 0, 0, name))
    replay.take(Done("sync", 1, 1, folder))
    replay.take(Done("write", 2, 2, name, 0, b"before"))
    replay.take(Done("write", 4, 4, name, 6, b"during"))
    replay.take(Done("sync", 3, 5, name))
    left = {image.files["till/a"][:6] for image in cuts(disk, ordered=False)}
    assert left == {b"before"}
    assert len({image.files["till/a"] for image in cuts(disk, ordered=False)}) > 1


def hexed(text: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in text.encode())


def test_the_log_is_read_in_the_order_of_things(disk: Disk) -> None:
    """Calls of two threads that overlap are put together, what failed or is not ours is left out, and what the model
    does not know is an error."""
    name, other = path(disk, "a"), path(disk, "b")
    lines = [
        f'7 openat(AT_FDCWD<{hexed("/")}>, "{hexed(name)}", O_RDWR|O_CREAT|O_CLOEXEC, 0600) = 3<{hexed(name)}>',
        f'7 openat(AT_FDCWD<{hexed("/")}>, "{hexed(other)}", O_RDONLY) = -1 ENOENT (No such file or directory)',
        f'7 pwrite64(3<{hexed(name)}>, "{hexed("one")}", 3, 10 <unfinished ...>',
        f"8 fdatasync(3<{hexed(name)}> <unfinished ...>",
        "7 <... pwrite64 resumed>) = 3",
        f'7 write(4<{hexed("/elsewhere")}>, "{hexed("x")}", 1) = 1',
        "8 <... fdatasync resumed>) = 0",
        f'7 write(5<{hexed("/told")}>, "{hexed("said")}", 4) = 4',
        f'7 rename("{hexed(name)}", "{hexed(other)}") = 0',
        "7 +++ exited with 0 +++",
    ]
    assert list(read(lines, str(disk.root), "/told")) == [
        Done("create", 0, 0, name),
        Done("write", 2, 4, name, 10, b"one"),
        Done("sync", 3, 6, name),
        Done("told", 7, 7, "/told", 0, b"said"),
        Done("rename", 8, 8, name, 0, b"", other),
    ]
    with pytest.raises(ValueError, match="linkat"):
        list(read([f'7 linkat(AT_FDCWD<{hexed("/")}>, "{hexed(name)}", 0) = 0'], str(disk.root), "/told"))
