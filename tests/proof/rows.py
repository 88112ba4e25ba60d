"""The rows of the proof: what is tried, how often, and the module that tries it.

Each module has `prove(seed, case, work) -> Tally`, one case (a second or so of work, the same for ever for the same
code and numbers, in the empty folder `work`; no `units` where there are no more), `lacks(tally)`, what a whole run
should have met and did not, in sentences, and `CONTROLS`, by name: the same on a product that is broken on purpose,
`(seed, work) -> Tally`, which must not hold.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, cast

from tests.proof.tally import Tally


class Module(Protocol):
    CONTROLS: Mapping[str, Callable[[int, Path], Tally]]

    def prove(self, seed: int, case: int, work: Path) -> Tally: ...
    def lacks(self, tally: Tally) -> list[str]: ...


class Row(NamedTuple):
    """`full` and `short` in `unit`. `harness`: how the names of the files begin that a result depends on beside the
    product. `needs`: a command that must be there. `tests`: folders it depends on too."""

    name: str
    title: str
    what: str
    unit: str
    full: int
    short: int
    harness: tuple[str, ...]
    needs: str = ""
    tests: tuple[str, ...] = ()

    def load(self) -> Module:
        return cast(Module, importlib.import_module(f"tests.proof.{self.name}"))

    @property
    def missing(self) -> str:
        """Why it cannot run on this machine; empty where it can."""
        if not self.needs:
            return ""
        if shutil.which(self.needs) is None:
            return f"make prove-{self.name} needs {self.needs}, which is not installed (apt-get install {self.needs})"
        tried = subprocess.run([self.needs, "-o", "/dev/null", "true"], capture_output=True)
        return f"{self.needs} is not allowed to work on this machine" if tried.returncode else ""


ROWS = {
    row.name: row
    for row in (
        Row("crashes", "crash points", "a till's process killed at every n-th write, sync, rename and unlink",
            "kills", 10_000, 150, ("crashes", "till_day", "straced"), "strace"),
        Row("power", "power cuts", "unsynced writes dropped, reordered or torn; the journal is opened on what is left",
            "images", 50_000, 1_000, ("power", "till_day", "straced"), "strace"),
        Row("disk", "disk errors", "EIO, ENOSPC, EROFS or EDQUOT at every system call that touches the disk",
            "errors", 2_000, 100, ("disk", "till_day", "straced"), "strace"),
        Row("fleet", "fleet simulation", "real clients and the real server under a seeded scheduler: faults, healing,"
            " convergence", "device-days", 100_000, 2_000, ("fleet",)),
        Row("states", "state machine", "hypothesis rules against a model of client and server",
            "steps", 500_000, 20_000, ("states", "fleet_chance")),
        Row("api", "API", "schemathesis, positive, negative and stateful, with and without credentials",
            "requests", 50_000, 2_000, ("api",)),
        Row("bundles", "bundles", "bit flips and structural mutations of roots, manifests, blobs and sync bodies",
            "mutations", 1_000_000, 50_000, ("bundles", "fleet_server", "fleet_chance")),
        Row("wire", "the wire", "answers lost after commit, resets, half-closed, slow and repeated, through a proxy",
            "faults", 5_000, 200, ("wire",)),
        Row("mutants", "mutation", "mutants of engine, trust, journal and ledger, and whether a test kills them",
            "mutants", 3_000, 60, ("mutants",), tests=("tests/shared", "tests/client", "tests/server")),
    )
}  # fmt: skip
