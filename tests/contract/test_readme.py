"""The README's code runs as it stands there."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.contract.conftest import Shop

README = Path(__file__).resolve().parents[2] / "README.md"


def test_both_examples_run(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The till's ten lines print the price and the receipt; the app's ten lines sell with the server and without it."""
    voucher = {"code": "WELCOME10", "discount": {"type": "percentage", "percent": 20}}
    assert shop.operator("import", shop.write("v.ndjson", voucher)).returncode == 0
    shop.enrol("till-1")
    monkeypatch.chdir(shop.work)
    till, app = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)

    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(till.replace('"EUR"', '"USD"'), names)  # noqa: S102 - it is our own README
    assert printed.getvalue() == "3120\nTrue 780 ()\n"

    exec(app, names)  # noqa: S102
    assert asyncio.run(names["checkout"](names["order"], ["welcome10"])) == 3120
    shop.server.stop()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert asyncio.run(names["checkout"](names["order"], ["welcome10"])) == 3120
    assert printed.getvalue().startswith("sold offline, sent later: ")
