"""What an integrator downloads: every vector, the rules, and nothing that changes with the day it was made."""

from __future__ import annotations

import json
import posixpath
import re
import zipfile
from pathlib import Path

from tallystick_shared.engine import ENGINE_VERSION
from tests.vectors.archive import KINDS, ROOT, write_archive

VECTORS = ROOT / "tests" / "vectors"


def test_the_archive_holds_every_vector_and_the_rules(tmp_path: Path) -> None:
    """Byte for byte as they are here, with the licence and the version of the engine they are for."""
    with zipfile.ZipFile(write_archive(tmp_path)) as archive:
        files = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    assert set(KINDS) == {path.name for path in VECTORS.iterdir() if any(path.glob("*.json"))}
    for path in VECTORS.glob("*/*.json"):
        assert files[f"{path.parent.name}/{path.name}"] == path.read_bytes()
    assert json.loads(files["VERSION.json"])["engine"] == ENGINE_VERSION
    assert "LICENSE" in files
    for kind in KINDS:
        for link in re.findall(r"\]\(([^)#]+)\)", files[f"{kind}/RULES.md"].decode()):
            assert posixpath.normpath(f"{kind}/{link}") in files, link


def test_equal_vectors_give_equal_bytes(tmp_path: Path) -> None:
    """Made twice, the archives are the same."""
    assert write_archive(tmp_path / "a").read_bytes() == write_archive(tmp_path / "b").read_bytes()
