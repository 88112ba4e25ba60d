"""Keys through the real commands: a server that never stops, a till that follows, keys that are on sticks."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.loopback import server_command
from tallystick_server.operations import initialise
from tallystick_server.settings import Settings
from tests.contract.conftest import Shop

ORDER = {
    "id": "o",
    "currency": "USD",
    "lines": [{"id": "1", "product_id": "p", "quantity": 1, "unit_price_minor": 900}],
}


def show(shop: Shop) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(shop.operator("keys", "show", "--json").stdout)
    return shown


def test_a_till_follows_every_change_while_the_server_runs(shop: Shop) -> None:
    """New keys for bundles and answers, then a new set of root keys signed in two places: the till syncs after each."""
    voucher = {"code": "TEN", "discount": {"type": "percentage", "percent": 10}}
    assert shop.operator("import", shop.write("v.ndjson", voucher)).returncode == 0
    shop.enrol("till-1")
    stick = (shop.data / "keys" / "root.jwk").rename(shop.work / "root.jwk")

    done = shop.operator("keys", "rotate", "--bundle", "--receipt", "--sign-with", str(stick))
    assert done.returncode == 0, done.stderr
    assert "Root 2 is in use" in done.stderr
    synced = shop.till("till-1", "sync")
    assert synced.returncode == 0, synced.stderr

    made = shop.operator("keys", "init", str(shop.work / "set"), "--keys", "2", "--threshold", "2")
    assert made.returncode == 0, made.stderr
    private = made.stdout.split()
    one = shop.work / "one"
    one.mkdir()
    (one / "public.json").write_bytes((shop.work / "set" / "public.json").read_bytes())
    waits = shop.operator("keys", "rotate", "--root", str(one), "--bundle", "--sign-with", str(stick))
    assert (waits.returncode, waits.stdout.strip()) == (0, str(shop.data / "keys" / "root-3.partial.json"))
    assert "0 of the 2 signatures that root 3 asks for" in waits.stderr
    assert shop.till("till-1", "sync").returncode == 0
    assert (show(shop)["root_version"], show(shop)["waiting"]["version"]) == (2, 3)

    copy = shop.work / "copy.json"
    copy.write_bytes((shop.data / "keys" / "root-3.partial.json").read_bytes())
    looked = shop.operator("keys", "sign", str(copy))
    assert looked.stdout.count("root key") == 4
    signing = [word for path in private for word in ("--sign-with", path)]
    assert "all its signatures" in shop.operator("keys", "sign", str(copy), *signing).stderr
    assert shop.operator("keys", "rotate", "--continue", "--signed", str(copy)).returncode == 0
    assert show(shop)["root_version"] == 3

    assert shop.operator("import", shop.write("w.ndjson", {**voucher, "code": "NEW"})).returncode == 0
    synced = shop.till("till-1", "sync")
    assert synced.returncode == 0, synced.stderr
    shop.enrol("till-2")
    for till in ("till-1", "till-2"):
        redeemed = shop.till(till, "redeem", shop.write("order.json", ORDER), "--code", "NEW")
        assert redeemed.returncode == 0, redeemed.stderr


def test_misuse_is_one_sentence(shop: Shop) -> None:
    """Options that do not go together, and a stranger's key: exit 2, the reason, and nothing else."""
    stranger = shop.operator("keys", "init", str(shop.work / "set"), "--keys", "1", "--threshold", "1").stdout.strip()
    cases = {
        ("rotate", "--continue", "--bundle"): "--continue takes",
        ("rotate", "--signed", "x"): "--continue only",
        ("rotate", "--continue"): "no root waits",
        ("rotate", "--sign-with", stranger): "neither of root 1 nor of root 2",
        ("init", str(shop.work / "set")): "there already",
        ("init", str(shop.work / "other"), "--threshold", "4"): "must be 1 to 3",
        ("sign", str(shop.work / "none")): "cannot be read",
        ("rotate", "--root", str(shop.work)): "no set of root keys",
    }
    for arguments, words in cases.items():
        done = shop.operator("keys", *arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
    assert show(shop)["root_version"] == 1


def test_an_expired_root_is_told_everywhere_and_renewed(tmp_path: Path) -> None:
    """`status`, `keys show` and the log of `serve` say it, no token is made, and the next root ends it."""
    shop = Shop(tmp_path)
    asyncio.run(initialise(Settings(data=shop.data), now=datetime(2020, 1, 1, tzinfo=UTC)))
    words = "root 1 expired on 2023-01-03"
    assert words in shop.operator("status").stdout
    assert words in shop.operator("keys", "show").stdout
    refused = shop.operator("token", "--store", "s")
    assert refused.returncode == 2
    assert f"{words}: renew it with tallystick-server keys rotate (ROOT_EXPIRED)" in refused.stderr
    command = [*server_command(), "--data", str(shop.data), "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("listening on")
        process.send_signal(signal.SIGTERM)
        assert [json.loads(line)["level"] for line in process.stderr if words in line] == ["warning"]
    key = str(shop.data / "keys" / "root.jwk")
    assert shop.operator("keys", "rotate", "--sign-with", key).returncode == 0
    assert "expired on" not in shop.operator("status").stdout
    assert shop.operator("token", "--store", "s").returncode == 0
