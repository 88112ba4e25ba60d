"""`python -m tests.vectors.archive FOLDER`: the vectors as one archive, for whoever writes a client elsewhere.

Nothing in it tells when or where it was made: equal vectors give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from pathlib import Path

from tallystick_shared import __version__
from tallystick_shared.engine import ENGINE_VERSION

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("engine", "protocol")
FIRST_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest an archive can name: when it was made is not part of it


def write_archive(folder: Path) -> Path:
    """The path of the archive in `folder`, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"tallystick-vectors-{__version__}"
    path = folder / f"{name}.zip"
    readme = "Vectors to check a client in another language with: see README.md and RULES.md of each folder.\n"
    files = {"README.md": readme.encode(), "LICENSE": (ROOT / "LICENSE").read_bytes(), "VERSION.json": _versions()}
    for kind in KINDS:
        rules = (ROOT / "docs" / "reference" / f"{kind}.md").read_text(encoding="utf-8")
        rules = rules.replace(f"../../tests/vectors/{kind}/", "").replace("(engine.md)", "(../engine/RULES.md)")
        files[f"{kind}/RULES.md"] = rules.encode()
        for file in sorted((ROOT / "tests" / "vectors" / kind).iterdir()):
            if file.suffix in (".json", ".md"):
                files[f"{kind}/{file.name}"] = file.read_bytes()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for inner, content in files.items():
            archive.writestr(zipfile.ZipInfo(f"{name}/{inner}", FIRST_DATE), content, zipfile.ZIP_DEFLATED)
    return path


def _versions() -> bytes:
    return json.dumps({"tallystick": __version__, "engine": ENGINE_VERSION}, indent=1).encode() + b"\n"


if __name__ == "__main__":
    written = write_archive(Path(sys.argv[1]))
    print(f"{written}  sha256 {hashlib.sha256(written.read_bytes()).hexdigest()}")
