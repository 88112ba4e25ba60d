"""Equal inputs give equal bytes on any machine. Source: engine.md, first lines."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.shared import cases

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("everywhere.py")
VECTORS = ROOT / "tests" / "vectors" / "engine"
SEEDS = range(7_000_000, 7_001_500)
OTHERS = range(12, 20)


@pytest.fixture(scope="module")
def requests() -> bytes:
    """Generated requests, every vector's input, and some bad ones, one a line."""
    documents = [cases.document(seed) for seed in SEEDS]
    for path in sorted(VECTORS.glob("*.json")):
        documents += [vector["input"] for vector in json.loads(path.read_bytes())["vectors"]]
    lines = [json.dumps(document) for document in documents]
    return "\n".join([*lines, '{"order": 1}', '{"at": "\\u202e"}', "[", ""]).encode()


def answer(python: Path | str, requests: bytes, *flags: str, **environment: str) -> str:
    whole = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LC_", "LANG", "TZ"))}
    done = subprocess.run(
        [python, *flags, PROGRAM],
        input=requests,
        env={**whole, "PYTHONPATH": str(ROOT / "shared"), **environment},
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return done.stdout.decode()


@pytest.fixture(scope="module")
def here(requests: bytes) -> str:
    return answer(sys.executable, requests, PYTHONHASHSEED="0")


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONHASHSEED": "1"},
        {"PYTHONHASHSEED": "4294967295", "TZ": "Asia/Kathmandu", "LC_ALL": "C"},
        {"PYTHONHASHSEED": "random", "TZ": "America/St_Johns", "LC_ALL": "tr_TR.UTF-8", "PYTHONUTF8": "0"},
    ],
)
def test_processes_and_hash_seeds_agree(here: str, requests: bytes, environment: dict[str, str]) -> None:
    """Another process, hash seed, time zone and locale give the same bytes, with and without assertions."""
    assert answer(sys.executable, requests, "-O", **environment) == here


def other_pythons() -> dict[str, Path]:
    """The newest of each minor version above this one that is installed and runs, by version."""
    found: dict[str, Path] = {}
    places = [shutil.which(f"python3.{minor}") for minor in OTHERS]
    places += [str(path) for path in Path.home().glob(".pyenv/versions/3.*/bin/python3")]
    for place in filter(None, places):
        asked = [place, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        name = done.stdout.strip()
        if done.returncode == 0 and name.startswith("3.") and int(name[2:]) in OTHERS:
            found[name] = Path(place)
    found.pop(f"{sys.version_info[0]}.{sys.version_info[1]}", None)
    return found


def test_every_python_agrees(here: str, requests: bytes, tmp_path: Path) -> None:
    """Python 3.12 and newer, as far as this machine has them, give the bytes that this one gives."""
    uv = Path(sys.executable).with_name("uv")
    pythons = other_pythons()
    if not pythons or not uv.exists():
        pytest.skip("no Python 3.12 or newer beside this one on this machine, or no uv to make environments for it")
    needs = [f"{name}=={version(name)}" for name in ("msgspec", "tzdata")]
    for name, python in sorted(pythons.items()):
        place = tmp_path / name
        commands: list[list[str | Path]] = [
            [uv, "venv", "--quiet", "--python", python, place],
            [uv, "pip", "install", "--quiet", "--no-deps", "--python", place / "bin" / "python", *needs],
        ]
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"no environment for Python {name}: {done.stderr.strip()[-200:]}")
        assert answer(place / "bin" / "python", requests, PYTHONHASHSEED="5") == here, f"Python {name} differs"
