"""The house: what is installed where, and what the files of the repository may hold."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("shared", "client", "server")
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The three wheels, built from the sources."""
    out = tmp_path_factory.mktemp("dist")
    for package in PACKAGES:
        build = [sys.executable, "-m", "build", "--quiet", "--no-isolation", "--wheel", "--outdir", str(out), package]
        done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return {package: next(out.glob(f"tallystick_{package}-*.whl")) for package in PACKAGES}


@pytest.mark.parametrize("package", PACKAGES)
def test_each_wheel_carries_its_package_and_its_types(wheels: dict[str, Path], package: str) -> None:
    """A wheel holds its own package with `py.typed`, and nothing of the other two."""
    names = zipfile.ZipFile(wheels[package]).namelist()
    assert f"tallystick_{package}/py.typed" in names
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name.split("/")[0]}
    assert tops == {f"tallystick_{package}"}


def test_the_client_alone_brings_no_server(wheels: dict[str, Path], tmp_path: Path) -> None:
    """The client's wheel in an empty environment works, and neither server nor terminal packages came with it."""
    uv, empty = str(BIN / "uv"), tmp_path / "empty"
    python = str(empty / "bin" / "python")
    install = [uv, "pip", "install", "--quiet", "--python", python, "--constraint", "-", str(wheels["shared"])]
    pins = re.sub(r" *\\\n *--hash=\S+", "", (ROOT / "requirements.lock").read_text())
    for command, given in (
        ([uv, "venv", "--quiet", "--python", sys.executable, str(empty)], None),
        ([*install, str(wheels["client"])], pins),
    ):
        done = subprocess.run(command, input=given, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    seen = subprocess.run([uv, "pip", "freeze", "--python", python], capture_output=True, text=True, check=True).stdout
    installed = {re.split("[ =]", line)[0].lower() for line in seen.splitlines()}
    assert "tallystick-client" in installed
    assert not installed & {"tallystick-server", "litestar", "sqlalchemy", "alembic", "typer", "rich", "textual"}
    used = subprocess.run(
        [python, "-c", "import tallystick_client as c; print(c.Till, c.AsyncTill)"], capture_output=True, text=True
    )
    assert used.returncode == 0, used.stderr
    # the command exists and says in one line what it needs
    said = subprocess.run([str(empty / "bin" / "tallystick"), "status"], capture_output=True, text=True)
    assert said.returncode == 2
    assert "tallystick-client[cli]" in said.stderr
    assert "Traceback" not in said.stderr


def test_the_three_have_one_version_and_pin_each_other_exactly() -> None:
    """Versions of the three distributions are one, pinned exactly."""
    projects = {p: tomllib.loads((ROOT / p / "pyproject.toml").read_text())["project"] for p in PACKAGES}
    (version,) = {project["version"] for project in projects.values()}
    for package in ("client", "server"):
        assert f"tallystick-shared=={version}" in projects[package]["dependencies"]
    for package in PACKAGES:
        assert f'__version__ = "{version}"' in (ROOT / package / f"tallystick_{package}" / "__init__.py").read_text()


def test_shared_depends_on_four_packages_only() -> None:
    """The pure core depends on msgspec, tzdata, joserfc and cryptography only."""
    project = tomllib.loads((ROOT / "shared" / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=\[ ]", line)[0] for line in project["dependencies"]}
    assert names == {"msgspec", "tzdata", "joserfc", "cryptography"}


def test_the_lock_has_hashes_and_no_addresses() -> None:
    """Every requirement in the lock has a hash, and no committed file names a registry's address."""
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    requirements = [block for block in re.split(r"\n(?=[a-z])", lock) if "==" in block]
    assert len(requirements) > 30
    assert [block for block in requirements if "--hash=sha256:" not in block] == []


def test_make_help_tells_of_every_target() -> None:
    """`make help` lists every target that a person may call."""
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {name for name in targets if f"make {name} " not in shown} == set()
