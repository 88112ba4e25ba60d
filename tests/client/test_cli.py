"""`tallystick`, as a process: exit codes, one line on standard error, and machine output byte for byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tallystick_client import Till
from tests.client.conftest import ONCE, TEN, Shop, order
from tests.client.fake_clock import FakeClock
from tests.client.fake_server import FakeServer

COMMAND = str(Path(sys.executable).parent / "tallystick")


@pytest.fixture
def clock() -> FakeClock:
    """The command has the machine's clock, so the server has the same time."""
    return FakeClock(datetime.now(UTC))


def run(*arguments: str, given: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [COMMAND, *arguments], input=given, capture_output=True, text=True, timeout=60, env=os.environ | environment
    )
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 1, done.stderr
    if done.stderr:
        assert done.stderr.startswith("tallystick: ")
        assert done.stderr.endswith(")\n")
    return done


class Command:
    """The command for one till."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(self, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
        return run("--dir", str(self.directory), *arguments, given=given)

    def json(self, *arguments: str, given: str = "") -> Any:
        return json.loads(self(*arguments, "--json", given=given).stdout)


@pytest.fixture
def till(shop: Shop) -> Command:
    """With a lease of one unit of ONCE."""
    shop.server.publish(TEN, ONCE)
    with Till.enroll(shop.work / "till", shop.server.url, shop.server.token(), name="front", clock=shop.clock) as till:
        shop.server.grant(shop.server.device, "ONCE", units=1)
        till.sync()
    return Command(shop.work / "till")


# ---- a till


def test_a_till_is_enrolled_and_synced_by_the_command(shop: Shop) -> None:
    """With nothing but the server's address and a token."""
    shop.server.publish(TEN)
    command = Command(shop.work / "till")
    enrolled = command("enroll", shop.server.url, shop.server.token(), "--name", "front")
    assert (enrolled.returncode, enrolled.stdout) == (0, "enrolled as front of store 309; next: tallystick sync\n")
    assert command("sync").returncode == 0
    assert command.json("status")["bundle_version"] == 1


def test_a_day_at_the_till(till: Command, shop: Shop) -> None:
    """Preview, redeem, refusal, void and sync: what programs read, and the exit codes."""
    asked = json.dumps({"order": order(), "codes": ["once"]})
    preview = till("preview", "-", "--json", given=asked)
    redeemed = till.json("redeem", "-", given=asked)
    assert (preview.returncode, redeemed["redeemed"], redeemed["online"]) == (0, True, False)
    assert json.dumps(redeemed["result"]) == json.dumps(json.loads(preview.stdout))
    again = till("redeem", "-", "--json", given=asked)
    assert again.returncode == 1
    assert json.loads(again.stdout)["result"]["refused"][0]["reason"] == "NO_ALLOWANCE"
    own = "0190b6a0-0000-7000-8000-000000000001"
    part = till.json("void", redeemed["id"], "--return", "1=1", "--id", own)
    assert (part["id"], part["refund_minor"]) == (own, 350)
    assert till.json("void", redeemed["id"], "--return", "1=1", "--id", own, "--reason", "again") == part
    other = till("void", redeemed["id"], "--return", "1=2", "--id", own)
    assert (other.returncode, "(IDENTIFIER_REUSED)" in other.stderr) == (2, True)
    assert till.json("void", redeemed["id"], "--reason", "caf\udce9")["refund_minor"] == 700
    status = till.json("status")
    assert (status["waiting"], status["waiting_redemptions"], status["state"]) == (3, 1, "active")
    report = till.json("sync")
    assert (report["acknowledged"], report["leases_closed"]) == (4, 1)
    assert len(shop.server.device.events) == 4


def test_what_a_cashier_reads(till: Command, tmp_path: Path) -> None:
    """Money with its decimals and currency, why a code was refused, and what to pay."""
    path = tmp_path / "order.json"
    path.write_text(json.dumps(order()))
    shown = till("redeem", str(path), "--code", "TEN", "-c", "NOPE").stdout
    for text in ("3 x", "4.50", "-1.35", "to pay", "EUR 12.15", "no such code", "REDEEMED on this till", "10 %"):
        assert text in shown, text
    refused = till("redeem", str(path), "--code", "NOPE")
    assert (refused.returncode, "NOTHING REDEEMED" in refused.stdout) == (1, True)
    status = till("status").stdout
    for text in ("front, store 309", "active, fresh", "1 events", "Once"):
        assert text in status, text
    receipt = till.json("redeem", str(path), "--code", "TEN")
    assert "VOIDED  give back 12.15 EUR" in till("void", receipt["id"]).stdout
    assert "acknowledged" in till("sync").stdout


def test_online_asks_the_server(till: Command, shop: Shop) -> None:
    """`--online` takes the server's word where there is a line."""
    receipt = till.json("redeem", "-", "--online", given=json.dumps({"order": order(), "codes": ["TEN"]}))
    assert (receipt["online"], receipt["id"]) == (True, next(iter(shop.server.redemptions)))


def test_a_stream_answers_line_by_line(till: Command) -> None:
    """One receipt a line, in order; a bad line has its error in its place; the worst is the exit code."""
    name = "0190b6a0-0000-7000-8000-000000000001"
    lines = [
        {"id": name, "order": order(1), "codes": ["TEN"]},
        {"order": order(2), "codes": ["NOPE"]},
        {"id": name, "order": order(1), "codes": ["TEN"]},
    ]
    given = "".join(json.dumps(line) + "\n" for line in lines)
    done = till("redeem", "--stream", "-", given=given)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["redeemed"] for answer in answers] == [True, False, True]
    assert answers[0] == answers[2]
    assert done.returncode == 1
    done = till("redeem", "--stream", "-", given='{"order": 7, "codes": ["TEN"]}\n\n' + given)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert (list(answers[0]), answers[0]["code"], len(answers), done.returncode) == (
        ["error", "code"],
        "INVALID_FIELD",
        4,
        2,
    )
    assert till.json("status")["waiting"] == 1


def test_a_receipt_is_printed_only_once_it_is_on_the_disk(till: Command, shop: Shop) -> None:
    """The answer to a line comes before the next line is sent, and is in the journal by then."""
    command = [COMMAND, "--dir", str(till.directory), "redeem", "--stream"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number in range(3):
            process.stdin.write(json.dumps({"order": order(number), "codes": ["TEN"]}).encode() + b"\n")
            process.stdin.flush()
            receipt = json.loads(process.stdout.readline())
            with Till.open(till.directory, clock=shop.clock) as other:
                assert other._keeper.journal.verify() == number + 1
            assert receipt["redeemed"]
        process.stdin.close()
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "given", "code", "says"),
    [
        (["frob"], "", 2, "MISUSE"),
        (["status", "--clock", "tomorrow"], "", 2, "No such option"),
        (["redeem", "/nowhere"], "", 2, "NO_FILE"),
        (["redeem", "-", "-c", "TEN"], "{", 2, "INVALID_FIELD"),
        (["redeem", "-", "-c", "TEN"], "[]", 2, "INVALID_FIELD"),
        (["redeem", "-"], json.dumps(order()), 2, "at least one code"),
        (["preview", "-", "-c", "TEN"], json.dumps({**order(), "currency": "ZZZ"}), 2, "currency"),
        (["preview", "-", "-c", "NOPE"], json.dumps(order()), 1, ""),
        (["void", "x"], "", 2, "redemption_id: must be a UUID"),
        (["void", "0190b6a0-0000-7000-8000-000000000001", "--id", "x"], "", 2, "id: must be a UUID"),
        (["void", "0190b6a0-0000-7000-8000-000000000001"], "", 2, "UNKNOWN_REDEMPTION"),
        (["void", "0190b6a0-0000-7000-8000-000000000001", "--return", "1"], "", 2, "LINE=UNITS"),
        (["enroll", "http://127.0.0.1:9", "tally1.x.y.z"], "", 2, "enrolment token"),
    ],
)
def test_misuse_is_one_sentence(till: Command, arguments: list[str], given: str, code: int, says: str) -> None:
    """Exit 2 (or 1 for a refusal), and what was wrong with it."""
    done = till(*arguments, given=given)
    assert done.returncode == code, done.stderr
    assert says in done.stderr


def test_line_and_trust_have_their_own_exit_codes(till: Command, server: FakeServer) -> None:
    """3 where there is no line, 4 where the server is not believed."""
    server.script = [lambda _path, _answer: (200, {}, b"<html>")]
    assert till("sync").returncode == 4
    server.script = [lambda _path, _answer: None]
    done = till("sync")
    assert (done.returncode, "NO_CONNECTION" in done.stderr) == (3, True)


def test_the_directory_comes_from_the_environment(till: Command) -> None:
    """TALLYSTICK_DIR, or --dir, which wins; and without a till a sentence."""
    assert json.loads(run("status", "--json", TALLYSTICK_DIR=str(till.directory)).stdout)["name"] == "front"
    done = run("status", TALLYSTICK_DIR="/nowhere/at/all")
    assert (done.returncode, "NOT_A_TILL" in done.stderr) == (2, True)


def test_what_should_not_happen_is_a_sentence_too(till: Command) -> None:
    """A directory in place of a file, an order that is not text: never a traceback."""
    assert till("redeem", str(till.directory), "-c", "TEN").returncode == 2
    done = subprocess.run(
        [COMMAND, "--dir", str(till.directory), "redeem", "-", "-c", "TEN"], input=b"\xff\xfe\x00", capture_output=True
    )
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


def test_nobody_reading_is_no_error(till: Command) -> None:
    """`tallystick ... | head -1` ends quietly."""
    lines = "".join(json.dumps({"order": order(number), "codes": ["TEN"]}) + "\n" for number in range(50))
    shell = f"'{COMMAND}' --dir '{till.directory}' redeem --stream - | head -1"
    done = subprocess.run(["sh", "-c", shell], input=lines, capture_output=True, text=True, timeout=60)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_without_typer_and_rich_it_says_what_to_install(tmp_path: Path) -> None:
    """The core of the client does not need them, and the command says so in one line."""
    program = (
        "import sys; sys.modules['typer'] = None; sys.modules['rich'] = None\n"
        "from tallystick_client.entry import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "tallystick: the command line needs two more packages: pip install 'tallystick-client[cli]' (NO_CLI)\n"
    )


def test_a_server_cannot_write_to_the_terminal(till: Command, shop: Shop) -> None:
    """What a product is called is shown as it is spelled: no markup, no escape sequence."""
    given = {**order(), "lines": [{**order()["lines"][0], "product_id": "[red]x[/]\x1b[31m"}]}
    shown = till("preview", "-", "-c", "TEN", given=json.dumps(given)).stdout
    assert "[red]x[/]\\x1b[31m" in shown
    assert "\x1b" not in shown


def test_a_line_too_long_is_an_error_in_its_place(till: Command) -> None:
    """`redeem --stream` answers it with TOO_LARGE and goes on."""
    good = json.dumps({"order": order(), "codes": ["TEN"]})
    done = till("redeem", "--stream", "-", given=f"{' ' * 70_000_000}7\n{good}\n")
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert (done.returncode, first["code"], second["redeemed"]) == (2, "TOO_LARGE", True)
