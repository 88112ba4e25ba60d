"""What an integrator downloads: every vector, the rules, and nothing that changes with the day it was made."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

from tallystick_shared.engine import ENGINE_VERSION
from tests.vectors.archive import ROOT, write_archive

VECTORS = ROOT / "tests" / "vectors" / "engine"


def test_the_archive_holds_every_vector_and_the_rules(tmp_path: Path) -> None:
    """Byte for byte as they are here, with the licence and the version of the engine they are for."""
    with zipfile.ZipFile(write_archive(tmp_path)) as archive:
        files = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    for path in VECTORS.glob("*.json"):
        assert files[f"engine/{path.name}"] == path.read_bytes()
    assert json.loads(files["VERSION.json"])["engine"] == ENGINE_VERSION
    assert "LICENSE" in files
    rules = files["engine/RULES.md"].decode()
    assert all(f"engine/{link}" in files for link in re.findall(r"\]\(([^)]+)\)", rules))


def test_equal_vectors_give_equal_bytes(tmp_path: Path) -> None:
    """Made twice, the archives are the same."""
    assert write_archive(tmp_path / "a").read_bytes() == write_archive(tmp_path / "b").read_bytes()
