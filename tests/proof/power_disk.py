"""A model of a disk that loses its power: what processes wrote, what of it is sure, and what may be left of the rest.

A write is seen at once by every process, and is sure only once an `fsync` or `fdatasync` of its file, begun after it,
has returned. An entry of a folder (a file made, renamed, removed) is sure only once its folder was synced; with
`ordered`, as of ext4, entries reach the disk in the order in which they were made, and go with the sync of the file
they name. Of what is not sure anything may be left: each write whole, not at all or torn between sectors of 512 bytes,
in any order; where a file has grown, zeros or what was there before. A sector that was not written stays as it was.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from pathlib import Path
from typing import NamedTuple

SECTOR = 512
SHM_BYTES = 32768
STYLES = {"none": 4, "all": 2, "prefix": 5, "late": 3, "mixed": 6}
"""Which unsynced writes are left, and how often: none, all, the first, the last, or each by lot."""


class Write(NamedTuple):
    """`data` None: the file was cut, or grown, to `offset` bytes."""

    number: int
    offset: int
    data: bytes | None


class Move(NamedTuple):
    """Entries of one folder that change together; None: removed. `kind`: create, mkdir, rename or unlink."""

    number: int
    kind: str
    changes: dict[str, Node | None]


class Node:
    """A file (`synced`, and the `writes` since) or a folder: `entries` as processes see them, `kept` are sure, and the
    `moves` lie between."""

    def __init__(self, *, folder: bool, content: bytes = b"") -> None:
        self.folder = folder
        self.synced = bytearray(content)
        self.writes: list[Write] = []
        self.size = len(content)
        self.entries: dict[str, Node] = {}
        self.kept: dict[str, Node] = {}
        self.moves: list[Move] = []
        self.named = 0
        """The last move that gave it a name."""


class Image(NamedTuple):
    """What is on the disk after the cut, by path below the root; `damage`: what became of what was not sure."""

    folders: list[str]
    files: dict[str, bytes]
    damage: Counter[str]

    def write(self, root: Path) -> None:
        """Makes `root`."""
        root.mkdir()
        for name in self.folders:
            (root / name).mkdir(mode=0o700)
        for name, content in self.files.items():
            (root / name).write_bytes(content)


class Disk:
    """Everything below `root`; what is in `start` at first is sure."""

    def __init__(self, root: Path, start: Path) -> None:
        self.root = root
        self.top = _load(start)
        self.count = 0
        self.committed = 0
        """Of an ordered disk: the moves up to this one are sure."""

    def find(self, path: str) -> Node:
        node = self.top
        for part in Path(path).relative_to(self.root).parts:
            node = node.entries[part]
        return node

    def exists(self, path: str) -> bool:
        try:
            self.find(path)
        except KeyError:
            return False
        return True

    def create(self, path: str, *, folder: bool = False) -> None:
        node = Node(folder=folder)
        self._move(path, "mkdir" if folder else "create", {Path(path).name: node})

    def unlink(self, path: str) -> None:
        self._move(path, "unlink", {Path(path).name: None})

    def rename(self, path: str, other: str) -> None:
        if Path(path).parent != Path(other).parent:
            raise ValueError(f"{path} is moved to another folder, which this model does not know")
        self._move(path, "rename", {Path(path).name: None, Path(other).name: self.find(path)})

    def write(self, path: str, offset: int, data: bytes) -> None:
        node = self.find(path)
        node.writes.append(Write(self._next(), offset, data))
        node.size = max(node.size, offset + len(data))

    def resize(self, path: str, size: int) -> None:
        node = self.find(path)
        node.writes.append(Write(self._next(), size, None))
        node.size = size

    def sync(self, node: Node, begun: int) -> None:
        """A sync that began when `count` was `begun` has returned."""
        if node.folder:
            done = [move for move in node.moves if move.number <= begun]
            for move in done:
                _apply(node.kept, move)
                self.committed = max(self.committed, move.number)
            node.moves = node.moves[len(done) :]
            return
        self.committed = max(self.committed, min(node.named, begun))
        rest = [write for write in node.writes if write.number > begun]
        for write in node.writes[: len(node.writes) - len(rest)]:
            _put(node.synced, write, write.data or b"", b"\0")
        node.writes = rest

    def unsure(self) -> int:
        """How many changes of names are not sure."""
        return _unsure(self.top)

    def cut(self, chance: random.Random, *, ordered: bool) -> Image:
        """What may be left if the power goes now."""
        return _Cut(self, chance, ordered).image()

    def _next(self) -> int:
        self.count += 1
        return self.count

    def _move(self, path: str, kind: str, changes: dict[str, Node | None]) -> None:
        folder = self.find(str(Path(path).parent))
        move = Move(self._next(), kind, changes)
        folder.moves.append(move)
        _apply(folder.entries, move)
        for node in changes.values():
            if node is not None:
                node.named = move.number


class _Cut:
    def __init__(self, disk: Disk, chance: random.Random, ordered: bool) -> None:
        self.disk, self.chance, self.ordered = disk, chance, ordered
        self.style = chance.choices(list(STYLES), list(STYLES.values()))[0]
        self.likely = chance.choice([0.1, 0.5, 0.9])
        self.filler = chance.choice(["zeros", "garbage"])
        # of the last writes there are, as older ones are mostly sure
        self.limit = disk.count - min(disk.count, int(chance.expovariate(1 / 6)))
        self.moved = chance.randint(disk.committed, disk.count)
        self.folders: list[str] = []
        self.files: dict[str, bytes] = {}
        self.damage: Counter[str] = Counter()

    def image(self) -> Image:
        self.damage["ordered" if self.ordered else "strict"] += 1
        self._walk(self.disk.top, "")
        return Image(self.folders, self.files, self.damage)

    def _walk(self, folder: Node, path: str) -> None:
        for name, node in self._entries(folder).items():
            below = f"{path}{name}"
            if node.folder:
                self.folders.append(below)
                self._walk(node, f"{below}/")
            elif name.endswith("-shm"):
                self._shm(below)
            else:
                self.files[below] = self._content(node)

    def _shm(self, path: str) -> None:
        """SQLite's index of the log is written through memory, and made anew by the first process that comes."""
        if self.chance.random() < 0.5:
            self.files[path] = self.chance.randbytes(SHM_BYTES)

    def _entries(self, folder: Node) -> dict[str, Node]:
        """Of moves that share a name the later goes only with the earlier."""
        wanted = {move.number for move in folder.moves if self._is_left(move)}
        names: set[str] = set()
        for move in reversed(folder.moves):
            if move.number in wanted or names & move.changes.keys():
                wanted.add(move.number)
                names |= move.changes.keys()
        left = dict(folder.kept)
        for move in folder.moves:
            if move.number in wanted:
                _apply(left, move)
            else:
                self.damage[f"{move.kind} lost"] += 1
                self.damage["entries reordered"] += max(wanted, default=0) > move.number
        return left

    def _is_left(self, move: Move) -> bool:
        return move.number <= self.moved if self.ordered else self._kept(move.number)

    def _kept(self, number: int) -> bool:
        match self.style:
            case "prefix":
                return number <= self.limit
            case "late":
                return number > self.limit
            case "mixed":
                return self.chance.random() < self.likely
        return self.style == "all"

    def _content(self, node: Node) -> bytes:
        content, dropped, fill = bytearray(node.synced), False, b""
        if self.filler == "garbage":
            fill = self.chance.randbytes(max(0, node.size - len(node.synced)))
        for write in node.writes:
            if self._kept(write.number):
                self.damage["writes reordered"] += dropped
                _put(content, write, write.data or b"", fill)
            elif write.data and self._is_torn(write):
                dropped = True
                self._tear(content, write, fill)
            else:
                dropped = True
                self.damage["writes dropped" if write.data is not None else "cuts dropped"] += 1
        if len(content) < node.size and self.chance.random() < 0.4:
            self.damage[self.filler] += 1
            end = self.chance.choice([node.size, self.chance.randint(len(content), node.size)])
            _put(content, Write(0, end, None), b"", fill)
        return bytes(content)

    def _is_torn(self, write: Write) -> bool:
        """The first that is not left, or one by lot."""
        if self.style == "prefix":
            return write.number == self.limit + 1
        return self.style != "none" and self.chance.random() < 0.3

    def _tear(self, content: bytearray, write: Write, fill: bytes) -> None:
        assert write.data is not None
        end = write.offset + len(write.data)
        if self.chance.random() < 0.15:
            self.damage["torn within a sector"] += 1
            _put(content, write, write.data[: self.chance.randrange(len(write.data))], fill)
            return
        self.damage["torn"] += 1
        edges = [write.offset, *range((write.offset // SECTOR + 1) * SECTOR, end, SECTOR), end]
        sectors = list(itertools.pairwise(edges))
        by = self.chance.choice(["first", "last", "lot"])
        middle = self.chance.randrange(len(sectors) + 1)
        for index, (start, stop) in enumerate(sectors):
            if {"first": index < middle, "last": index >= middle, "lot": self.chance.random() < 0.5}[by]:
                part = write.data[start - write.offset : stop - write.offset]
                _put(content, Write(0, start, part), part, fill)


def _load(path: Path) -> Node:
    if not path.is_dir():
        return Node(folder=False, content=path.read_bytes())
    node = Node(folder=True)
    node.entries = {one.name: _load(one) for one in path.iterdir()}
    node.kept = dict(node.entries)
    return node


def _unsure(folder: Node) -> int:
    return len(folder.moves) + sum(_unsure(node) for node in folder.entries.values() if node.folder)


def _apply(entries: dict[str, Node], move: Move) -> None:
    for name, node in move.changes.items():
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


def _put(content: bytearray, write: Write, data: bytes, fill: bytes) -> None:
    """`data` at the place of `write`; a gap before it is filled with the end of `fill`, and with zeros."""
    if write.data is None:
        del content[write.offset :]
    gap = write.offset - len(content)
    if gap > 0:
        content += (fill[-gap:] if len(fill) >= gap else b"").ljust(gap, b"\0")
    if data:
        content[write.offset : write.offset + len(data)] = data
