"""Runs a day under strace, and reads the log: what was done to the disk, and said, in one order over all processes."""

from __future__ import annotations

import bisect
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from tests.proof.power_day import Request, Spec
from tests.proof.power_disk import Disk
from tests.proof.till_day import Said

TRACED = (
    "openat", "open", "creat", "write", "pwrite64", "writev", "pwritev", "pwritev2", "ftruncate", "truncate",
    "fallocate", "fsync", "fdatasync", "sync_file_range", "rename", "renameat", "renameat2", "link", "linkat",
    "symlink", "symlinkat", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir", "copy_file_range", "sendfile",
)  # fmt: skip
OURS = ("till", "out")
_CALL = re.compile(r"^(\d+) +(?:<\.\.\. (\w+) resumed>|(\w+)\()(.*)$")
_ANSWER = re.compile(r"^(.*)\) += (-?\d+)(?:<(.*?)>(?:\(deleted\))?)?[^=]*$")
_TEXT = re.compile(r'"((?:\\x..)*)"')
_DESCRIPTOR = re.compile(r"^(\d+)<((?:\\x..)*)>")


class Done(NamedTuple):
    """One call that touched the till's files, or said something. `begun`, `ended`: its places in the log.

    kind: create, mkdir, open, write (`number` the offset, -1 where the last one ended), resize (`number` bytes),
    rename (to `other`), unlink, sync, told (`data` a line).
    """

    kind: str
    begun: int
    ended: int
    path: str
    number: int = 0
    data: bytes = b""
    other: str = ""


def record(spec: Spec, work: Path, between: Callable[[int], None]) -> list[Done]:
    """Does the day of `spec`, whose tills live below `work`; `between` is called before each round but the first."""
    (work / "spec.json").write_bytes(msgspec.json.encode(spec))
    log = work / "strace.log"
    command = [
        "strace", "--follow-forks", "--seccomp-bpf", "--decode-fds=path", "--strings-in-hex=all", "--quiet=all",
        "--string-limit=8388608", f"--trace={','.join(TRACED)}", "--signal=none", f"--output={log}",
        sys.executable, "-m", "tests.proof.power_day", str(work / "spec.json"),
    ]  # fmt: skip
    root = Path(__file__).resolve().parents[2]
    with (work / "errors").open("wb") as errors:
        process = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            for number, _ in enumerate(process.stdout, 1):
                between(number)
                process.stdin.write(b"\n")
                process.stdin.flush()
    if process.returncode:
        raise RuntimeError(f"the day ended with {process.returncode}: {(work / 'errors').read_text()[-2000:]}")
    with log.open() as lines:
        return list(read(lines, str(work), spec.told))


def read(lines: Iterable[str], root: str, told: str) -> Iterator[Done]:
    """Of the lines of strace what touches a folder of `OURS` in `root`, or is written to `told`; raises `ValueError`
    for what the model of a disk cannot tell."""
    begun: dict[str, tuple[int, str]] = {}
    for index, line in enumerate(lines):
        found = _CALL.match(line)
        if found is None:
            continue
        pid, resumed, name, rest = found.groups()
        if name is not None and rest.endswith("<unfinished ...>"):
            begun[pid] = index, rest.removesuffix("<unfinished ...>").rstrip()
            continue
        start = index
        if resumed is not None:
            start, before = begun.pop(pid)
            name, rest = resumed, before + rest
        answer = _ANSWER.match(rest)
        if answer is None or int(answer[2]) < 0:
            continue
        done = _read_call(name, (start, index), answer, root, told)
        if done is not None:
            yield done


def _read_call(name: str, lasted: tuple[int, int], answer: re.Match[str], root: str, told: str) -> Done | None:
    arguments, result = answer[1], int(answer[2])
    on = _DESCRIPTOR.match(arguments)
    texts = _TEXT.findall(arguments)
    path = _text(on[2]) if on is not None else _text(texts[0]) if texts else ""
    if path == told and name == "write":
        return Done("told", *lasted, path, data=_bytes(texts[0])[:result])
    if on is not None and arguments[on.end() :].startswith("(deleted)"):
        return None
    if path == root and name in ("fsync", "fdatasync"):
        return Done("sync", *lasted, path)
    if not path.startswith(f"{root}/") or path[len(root) + 1 :].split("/")[0] not in OURS:
        return None
    match name:
        case "openat" | "open":
            kind = "create" if "O_CREAT" in arguments else "open"
            if "O_TRUNC" in arguments:
                raise ValueError(f"{path} is opened and cut")
            return Done(kind, *lasted, path)
        case "write":
            return Done("write", *lasted, path, -1, _bytes(texts[0])[:result])
        case "pwrite64":
            offset = int(arguments.rsplit(",", 1)[1])
            return Done("write", *lasted, path, offset, _bytes(texts[0])[:result])
        case "ftruncate":
            return Done("resize", *lasted, path, int(arguments.rsplit(",", 1)[1]))
        case "fsync" | "fdatasync":
            return Done("sync", *lasted, path)
        case "rename":
            return Done("rename", *lasted, path, other=_text(texts[1]))
        case "mkdir" | "unlink" | "rmdir":
            return Done("unlink" if name == "rmdir" else name, *lasted, path)
    raise ValueError(f"{name} of {path} is nothing that the model of a disk knows")


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _text(text: str) -> str:
    return _bytes(text).decode()


class Replay:
    """What is done goes to the disk step by step, and what was said is heard."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.said: list[Said] = []
        self.requests: dict[int, bool] = {}
        """By number; whether the server had done it."""
        self._ends: dict[str, int] = {}
        self._log: list[tuple[int, int]] = []
        """Where calls ended, and how much the disk had taken then."""

    def take(self, done: Done) -> None:
        match done.kind:
            case "told":
                self._hear(done.data)
            case "open" | "create":
                self._ends[done.path] = 0
                if not self.disk.exists(done.path):
                    self.disk.create(done.path)
            case "mkdir":
                self.disk.create(done.path, folder=True)
            case "write":
                offset = self._ends.get(done.path, 0) if done.number < 0 else done.number
                self._ends[done.path] = offset + len(done.data)
                self.disk.write(done.path, offset, done.data)
            case "resize":
                self.disk.resize(done.path, done.number)
            case "rename":
                self.disk.rename(done.path, done.other)
            case "unlink":
                self.disk.unlink(done.path)
            case "sync":
                place = bisect.bisect_left(self._log, (done.begun, 0))
                self.disk.sync(self.disk.find(done.path), self._log[place - 1][1] if place else 0)
        self._log.append((done.ended, self.disk.count))

    def _hear(self, line: bytes) -> None:
        if b'"type":"request"' in line:
            heard = msgspec.json.decode(line, type=Request)
            self.requests[heard.request] = heard.done
        else:
            self.said.append(msgspec.json.decode(line, type=Said))
