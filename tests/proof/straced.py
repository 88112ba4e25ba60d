"""Processes under strace 6.1: killed or failed at the n-th of their system calls, or recorded with all they write.

strace counts calls by process and by kind, and `when=` is fixed when it starts, which costs a second with an
interpreter. So a `Zygote`, warm and under one strace, forks a child for each case; the child first makes as many calls
in vain as leave n until `WHEN`, then does its work. `--seccomp-bpf` is not used: with it strace 6.1 delivers no signal.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import msgspec

from tests.proof.till_day import Life, Said, Switch, live

WHEN, WHEN_READING = 160, 8000
"""The number of the call that is struck: more than a thread of a till makes of a kind that was not chosen, or nearly.
Starting an interpreter takes thousands of the calls in `BY_PYTHON`."""
BY_PYTHON = ("openat", "read")
WRITES = ("write", "pwrite64", "pwritev", "ftruncate", "fallocate")
SYNCS = ("fsync", "fdatasync", "sync_file_range")
NAMES = ("rename", "renameat", "renameat2", "unlink", "unlinkat", "link", "linkat", "mkdir", "mkdirat", "rmdir")
MODES = ("chmod", "fchmod", "fchmodat")
OPENS = ("openat", "open", "creat")
READS = ("pread64", "read")
CHANGES = (*WRITES, *SYNCS, *NAMES, *MODES)
"""The calls that change what is on the disk; `openat` may too, where it makes a file."""
RECORDED = (*CHANGES, *OPENS, "close", "dup", "dup2", "dup3", "lseek", "mmap", "flock")
"""What a replay needs to know."""
_NONE = 9_999
"""A descriptor that is not open."""
VAIN: dict[str, Callable[[], object]] = {
    "write": lambda: os.write(_NONE, b""), "pwrite64": lambda: os.pwrite(_NONE, b"", 0),
    "ftruncate": lambda: os.ftruncate(_NONE, 0), "fallocate": lambda: os.posix_fallocate(_NONE, 0, 1),
    "fsync": lambda: os.fsync(_NONE), "fdatasync": lambda: os.fdatasync(_NONE), "rename": lambda: os.rename("", ""),
    "unlink": lambda: os.unlink(""), "mkdir": lambda: os.mkdir(""), "chmod": lambda: os.chmod("", 0),
    "openat": lambda: os.open("", 0), "pread64": lambda: os.pread(_NONE, 0, 0), "read": lambda: os.read(_NONE, 0),
    "flock": lambda: _flock(_NONE), "rmdir": lambda: os.rmdir(""), "fchmod": lambda: os.fchmod(_NONE, 0),
}  # fmt: skip
"""By name, one such call that does nothing. Only these can be struck."""
_LINE = re.compile(r"^(?P<call>\w+)\((?P<rest>.*)$")
_PATH = re.compile(r'<(?P<descriptor>/[^>]*)>|"(?P<name>/[^"]*)"')


def _flock(descriptor: int) -> None:
    import fcntl

    fcntl.flock(descriptor, fcntl.LOCK_SH)


class Call(NamedTuple):
    """One line of a log. `path`: the last file that it names; `struck`: not carried out, by strace's doing."""

    name: str
    path: str
    struck: bool


class Lived(NamedTuple):
    """How a child ended. `signal`: what it died of, 0 if it left by itself; `status`: its exit code then."""

    said: list[Said]
    signal: int
    status: int
    calls: list[Call]


class Zygote:
    """One warm interpreter under strace. `strike`: `signal=KILL`, `error=EIO` and such; `on`: the calls it is for, and
    `when` the number of the one that is struck: where that must not happen to others, more than there are.

    `onwards`: the n-th and all after it. `quiet`: what a child says goes by `sendto`, so that no `write` of it fails.
    """

    def __init__(
        self,
        logs: Path,
        strike: str,
        on: Sequence[str],
        *,
        onwards: bool = False,
        quiet: bool = False,
        when: int = WHEN,
    ) -> None:
        logs.mkdir(parents=True)
        self._logs, self._quiet = logs, quiet
        self._when = {name: WHEN_READING if name in BY_PYTHON else when for name in on}
        ours, theirs = socket.socketpair()
        command = [
            "strace", "--follow-forks", "--output-separately", "--decode-fds=path", "--string-limit=256",
            "--quiet=attach", f"--trace={','.join(on)}",
            *(f"--inject={name}:{strike}:when={self._when[name]}{'+' if onwards else ''}" for name in on),
            f"--output={logs / 'log'}", sys.executable, "-m", "tests.proof.straced", str(theirs.fileno()),
        ]  # fmt: skip
        root = Path(__file__).resolve().parents[2]
        self._process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], cwd=root, stdin=subprocess.DEVNULL,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
        theirs.close()
        self._socket, self._lines = ours, ours.makefile("r")
        if not self._lines.readline():
            raise RuntimeError(f"nothing lives under strace, see {logs}")
        self._own = {one.name for one in logs.glob("log.*")}

    def live(self, life: Life, at: Mapping[str, int]) -> Lived:
        """Lives in a forked child; of each kind of call in `at` the n-th is struck, from 1, in the steps apart."""
        vain = {name: self._when[name] - number for name, number in at.items()}
        order = {"life": msgspec.to_builtins(life), "vain": vain, "quiet": self._quiet}
        self._socket.sendall(json.dumps(order).encode() + b"\n")
        said: list[Said] = []
        for line in self._lines:
            heard = json.loads(line)
            if "died" in heard:
                died = heard["died"]
                ended, code = (died & 0x7F, 0) if os.WIFSIGNALED(died) else (0, os.waitstatus_to_exitcode(died))
                return Lived(said, ended, code, self._calls())
            said.append(msgspec.convert(heard, Said))
        raise RuntimeError(f"the zygote died, see {self._logs}")

    def _calls(self) -> list[Call]:
        """What the child did, one thread after the other, without the calls in vain."""
        logs = [one for one in self._logs.glob("log.*") if one.name not in self._own]
        text = ""
        for path in sorted(logs, key=lambda one: int(one.suffix[1:])):
            text += _when_whole(path)
            path.unlink()
        return read_log(text)

    def close(self) -> None:
        """Ends it: it leaves when nobody is there any more."""
        self._lines.close()
        self._socket.close()
        self._process.wait(20)


def _when_whole(path: Path) -> str:
    """strace hears of a death before anybody else does, but may write of it a moment later."""
    for _ in range(1000):
        text = path.read_text(errors="replace")
        if text.rstrip().endswith("+++"):
            return text
        time.sleep(0.002)
    raise RuntimeError(f"strace has not finished {path}")


def read_log(text: str) -> list[Call]:
    """The calls of one process that named a file, in their order."""
    calls = []
    for line in text.splitlines():
        found = _LINE.match(line)
        if found is None:
            continue
        struck = "(INJECTED)" in line or line.endswith("?")
        paths = [one["descriptor"] or one["name"] for one in _PATH.finditer(found["rest"])]
        if paths or struck:
            calls.append(Call(found["call"], paths[-1] if paths else "", struck))
    return calls


def recorded(command: Sequence[str], log: Path, **given: Any) -> subprocess.Popen[bytes]:
    """Starts a command under strace; `log.PID` of each of its threads has all that it wrote, in full and in hex."""
    traced = [
        "strace", "--follow-forks", "--output-separately", "--seccomp-bpf", "--decode-fds=path",
        "--absolute-timestamps=us", "--strings-in-hex=all", "--string-limit=1048576", "--quiet=all",
        f"--trace={','.join(RECORDED)}", f"--output={log}", *command,
    ]  # fmt: skip
    return subprocess.Popen(traced, **given)


# ---- the zygote's own side ----------------------------------------------------------------------------------------


def serve(connection: socket.socket) -> None:
    """Forks a child for each order that comes; says how it ended."""
    connection.sendall(b"{}\n")
    with connection.makefile("r") as orders:
        for order in orders:
            pid = os.fork()
            if pid == 0:
                _be(connection, order)
            _, status = os.waitpid(pid, 0)
            connection.sendall(json.dumps({"died": status, "pid": pid}).encode() + b"\n")


def _be(connection: socket.socket, order: str) -> None:
    """A child's life; it does not return."""
    status = 70
    try:
        given = json.loads(order)
        life = msgspec.convert(given["life"], Life)
        if given["quiet"]:
            say: Callable[[Said], None] = lambda said: connection.sendall(msgspec.json.encode(said) + b"\n")  # noqa: E731
        else:
            say = lambda said: _write(connection.fileno(), msgspec.json.encode(said) + b"\n")  # noqa: E731
        live(life, say, lambda: in_vain(given["vain"]))
        status = 0
    finally:
        os._exit(status)


def in_vain(counts: Mapping[str, int]) -> None:
    for name, count in counts.items():
        for _ in range(count):
            with contextlib.suppress(OSError):
                VAIN[name]()


def _write(descriptor: int, line: bytes) -> None:
    os.write(descriptor, line)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(httpx2.HTTPError), httpx2.Client(transport=Switch(verify=False)) as client:
        client.get("http://127.0.0.1:9")  # nobody is there; but all that it imports on the way is warm for the children
    serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
