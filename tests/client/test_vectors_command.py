"""`tallystick vectors engine`: the real command agrees, and every way to be wrong gets one clear sentence."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tallystick_client.comparing import first_difference
from tests.client.test_cli import COMMAND, run

Doc = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "tests" / "vectors" / "engine"
COUNT = 40


def vector(number: int) -> Doc:
    """Ten percent of so many euros, as engine.md says it; the first ones are bad requests."""
    bad = number < 2
    line = {"id": "1", "product_id": "p", "quantity": 1, "unit_price_minor": 1000 * number}
    order = {"id": "o", "currency": "EUR", "lines": [line]}
    voucher = {"code": "TEN", "discount": {"type": "percentage", "percent": 0 if bad else 10}}
    request = {"order": order, "vouchers": [voucher], "at": "2026-06-01T12:00:00Z"}
    off = 100 * number
    shares = [{"id": "1", "discount_minor": off}]
    answer: Doc = {
        "currency": "EUR", "subtotal_minor": 1000 * number, "discount_minor": off, "shipping_minor": 0,
        "shipping_discount_minor": 0, "paid_by_gift_card_minor": 0, "total_minor": 900 * number, "lines": shares,
        "applied": [{"code": "TEN", "discount_minor": off, "lines": shares, "why": f"10 % of {10 * number}.00"}],
        "refused": [],
    }  # fmt: skip
    if bad:
        answer = {"error": "wrong", "code": "INVALID_FIELD", "path": "vouchers[0].discount.percent"}
    return {"id": f"v{number}", "shows": f"number {number}", "source": "engine.md", "input": request, "output": answer}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Two files of vectors, one of another call."""
    half = COUNT // 2
    for name, numbers in (("a", range(half)), ("b", range(half, COUNT))):
        vectors = [vector(number) for number in numbers]
        (tmp_path / f"{name}.json").write_text(json.dumps({"call": "evaluate", "vectors": vectors}, indent=2))
    other = {**vector(3), "output": {"codes": []}}
    (tmp_path / "c.json").write_text(json.dumps({"call": "best", "vectors": [other]}))
    return tmp_path


def check(directory: Path, program: str, *options: str) -> tuple[int, list[str]]:
    """Exit code and lines, of a check of a Python program."""
    command = [sys.executable, "-c", program] if program else [COMMAND, "evaluate", "-"]
    done = run("vectors", "engine", "--from", str(directory), *options, "--", *command)
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


# programs that answer right from the vectors themselves, but for what each test makes them do
RIGHT = """
import json, sys
from pathlib import Path
answers = {}
for path in Path(%r).glob("[ab].json"):
    for vector in json.loads(path.read_text())["vectors"]:
        answers[json.dumps(vector["input"])] = vector["output"]
def answer(line):
    return json.dumps(answers[json.dumps(json.loads(line))], separators=(",", ":"))
for number, line in enumerate(sys.stdin):
    text = answer(line)
"""


def test_the_command_itself_agrees(directory: Path) -> None:
    """All agree, exit 0; one of them too."""
    assert check(directory, "") == (0, [f"{COUNT} vectors: {COUNT} agree, 0 differ"])
    assert check(directory, "", "--only", "v7") == (0, ["1 vector: 1 agree, 0 differ"])
    assert check(directory, "", "--only", "v7", "--only", "v30") == (0, ["2 vectors: 2 agree, 0 differ"])
    assert check(directory / "b.json", "") == (0, ["20 vectors: 20 agree, 0 differ"])


def test_an_error_in_place_of_an_answer_is_shown(directory: Path) -> None:
    """What the program said of it, not which key of a result is not there."""
    program = RIGHT % str(directory) + '    print(\'{"error": "no bogo yet"}\' if number == 9 else text)\n'
    code, lines = check(directory, program)
    assert code == 1
    assert '  it answered with an error: {"error":"no bogo yet"}' in lines


@pytest.mark.parametrize("call", ["evaluate", "best", "qualify"])
def test_the_published_vectors_agree(call: str) -> None:
    """The engine gives the answers of tests/vectors/engine, byte for byte."""
    arguments = [] if call == "evaluate" else [f"--{call}"]
    check_ = ["vectors", "engine", "--from", str(PUBLISHED), "--call", call, "--texts"]
    done = run(*check_, "--", COMMAND, "evaluate", *arguments, "-")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.endswith(" agree, 0 differ\n")


def test_a_wrong_amount_is_shown_where_it_is(directory: Path) -> None:
    """Id, what it shows, its source, the path, and the two values."""
    wrong = RIGHT % str(directory) + "    print(text.replace('\"total_minor\":6300', '\"total_minor\":6301'))"
    assert check(directory, wrong) == (
        1,
        [
            "v7: number 7 (engine.md)",
            "  at       $.total_minor",
            "  expected 6300",
            "  actual   6301",
            f"{COUNT} vectors: {COUNT - 1} agree, 1 differ",
        ],
    )
    code, lines = check(directory, wrong, "--json")
    answers = [json.loads(line) for line in lines]
    assert (code, len(answers), sum(answer["agrees"] for answer in answers)) == (1, COUNT, COUNT - 1)
    assert answers[7] == {"id": "v7", "agrees": False, "path": "$.total_minor", "expected": "6300", "actual": "6301"}


@pytest.mark.parametrize(
    ("was", "becomes", "agrees"),
    [
        ('"why":"10 % of 70.00"', '"why":"ten percent"', True),
        ('"discount_minor":700', '"discount_minor":700.0', False),
        ('"refused":[]', '"refused":{}', False),
        ('"refused":[]', '"refused":[],"more":1', False),
        (',"refused":[]', "", False),
        ('"currency":"EUR","subtotal_minor":7000', '"subtotal_minor":7000, "currency":"EUR"', True),
    ],
)
def test_values_are_compared_with_their_types(directory: Path, was: str, becomes: str, agrees: bool) -> None:
    """Texts for people, spaces and the order of keys may differ; types and fields may not. --texts takes every byte."""
    program = RIGHT % str(directory) + f"    print(text.replace({was!r}, {becomes!r}))"
    assert (check(directory, program, "--only", "v7")[0] == 0) == agrees
    assert check(directory, program, "--only", "v7", "--texts")[0] == 1


@pytest.mark.parametrize(
    ("expected", "actual", "path"),
    [
        (1, True, "$"),
        (0, None, "$"),
        ({"a": [1, {"b c": 2}]}, {"a": [1, {"b c": 3}]}, '$.a[1]["b c"]'),
        ([1], [1, 2], "$[1]"),
        ([1, 2], [1], "$[1]"),
        ({"error": "x", "code": "A"}, {"error": "y", "code": "B"}, "$.code"),
        ({"code": "A"}, {"error": "y"}, "$.code"),
    ],
)
def test_the_first_difference_has_a_path(expected: Any, actual: Any, path: str) -> None:
    """As people write JSON paths."""
    found = first_difference(expected, actual, "$", frozenset({"error"}))
    assert found is not None
    assert found.path == path


ENDED = "ended with exit code"
SLEEP = "import time; time.sleep(60)"


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (
            "    print(text, flush=True)\n    if number == 9: raise ValueError('no more')",
            f"{ENDED} 1 after 10 of 40 answers",
        ),
        ("    print(text, flush=True)\n    if number == 9: raise ValueError('oh')", 'it said last: "ValueError: oh"'),
        (
            "    print(text, flush=True)\n    if number == 9: import os; os.kill(os.getpid(), 11)",
            "was ended by signal 11",
        ),
        ("    if number != 39: print(text)", f"{ENDED} 0 after 39 of 40 answers"),
        ("    break", f"{ENDED} 0 after 0 of 40 answers"),
        ("    print(text)\nprint(text)", "printed more lines than the 40 it was asked for"),
        ("    print('oh no' if number == 9 else text)", "the answer is no JSON: oh no"),
        ("    print('[' * 100000 if number == 9 else text)", "the answer is no JSON: [[["),
        (f"    if number == 9: {SLEEP}\n    print(text, flush=True)", "gave no answer to v9 within 2 seconds"),
        (f"    print(text, flush=True)\n{SLEEP}", "did not end within 2 seconds of the end of its input"),
    ],
)
def test_a_broken_program_gets_one_sentence(directory: Path, program: str, said: str) -> None:
    """It crashes, is killed, skips, says too much, prints something else, hangs: exit 1, and never a traceback."""
    started = time.monotonic()
    code, lines = check(directory, RIGHT % str(directory) + program, "--timeout", "2")
    assert (code, sum(said in row for row in lines)) == (1, 1), lines
    assert lines[-1].startswith(f"{COUNT} vectors: ")
    assert len(lines) <= 3
    assert time.monotonic() - started < 20


def test_programs_are_told_why_there_is_no_answer(directory: Path) -> None:
    """`--json` has a line for every vector, whatever the command does."""
    for program, said in (("    break", f"{ENDED} 0"), ("    print(text)\nprint(text)", "more lines than the 40")):
        told = [json.loads(row) for row in check(directory, RIGHT % str(directory) + program, "--json")[1]]
        assert [one["id"] for one in told if "id" in one] == [f"v{number}" for number in range(COUNT)]
        assert said in told[-1]["error"]


def test_big_inputs_and_answers_do_not_lock_up(tmp_path: Path) -> None:
    """A program that answers as it reads, in far more than a pipe holds."""
    vectors = [
        {"id": f"v{one}", "shows": "", "input": {"x": "y" * 200_000}, "output": ["z" * 200_000]} for one in range(50)
    ]
    (tmp_path / "a.json").write_text(json.dumps({"call": "evaluate", "vectors": vectors}))
    program = "import sys\nfor line in sys.stdin: print('[\"' + 'z' * 200000 + '\"]')"
    assert check(tmp_path, program)[0] == 0
    assert (
        check(
            tmp_path, "import sys\nlines = list(sys.stdin)\n" + "for one in lines: print('[\"' + 'z' * 200000 + '\"]')"
        )[0]
        == 0
    )


def test_numbers_reach_the_command_as_they_are_written(tmp_path: Path) -> None:
    """No decimal is rounded on the way, and no key that is there twice is lost."""
    raw = '{"a": 12.50, "a": 1e2,\n "b": 12345678901234567890.10}'
    text = f'{{"call": "evaluate", "vectors": [{{"id": "v", "shows": "", "input": {raw}, "output": "x"}}]}}'
    (tmp_path / "a.json").write_text(text)
    program = "import json, sys\nprint(json.dumps('x' if sys.stdin.readline() == %r else 'no'))"
    assert check(tmp_path, program % (raw.replace("\n", " ") + "\n"))[0] == 0


@pytest.mark.parametrize(
    ("files", "options", "command", "code"),
    [
        (None, [], "cat", "NO_DIRECTORY"),
        ({}, [], "cat", "NO_VECTORS"),
        ({"a.json": "{"}, [], "cat", "INVALID_FIELD"),
        ({"a.json": '{"call": "evaluate", "vectors": [{"id": 1}]}'}, [], "cat", "INVALID_FIELD"),
        ({"a.json": '{"call": "evaluate", "vectors": []}'}, [], "cat", "NO_VECTORS"),
        ({"a.json": "GOOD"}, ["--call", "best"], "cat", "NO_VECTORS"),
        ({"a.json": "GOOD"}, ["--only", "nothing"], "cat", "NO_VECTORS"),
        ({"a.json": "GOOD", "b.json": "GOOD"}, [], "cat", "INVALID_FIELD"),
        ({"a.json": "GOOD"}, ["--call", "guess"], "cat", "MISUSE"),
        ({"a.json": "GOOD"}, ["--timeout", "0"], "cat", "MISUSE"),
        ({"a.json": "GOOD"}, [], "/no/such/command", "NO_COMMAND"),
        ({"a.json": "GOOD"}, [], ".", "NO_COMMAND"),
        ({"a.json": "GOOD"}, [], None, "MISUSE"),
    ],
)
def test_misuse_is_one_sentence(
    tmp_path: Path, files: dict[str, str] | None, options: list[str], command: str | None, code: str
) -> None:
    """No directory, no vectors, no command: exit 2 and what is wrong."""
    good = json.dumps({"call": "evaluate", "vectors": [vector(5)]})
    for name, text in (files or {}).items():
        (tmp_path / name).write_text(good if text == "GOOD" else text)
    directory = tmp_path / "none" if files is None else tmp_path
    done = run("vectors", "engine", "--from", str(directory), *options, *(["--", command] if command else []))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(f" ({code})\n")


def test_what_hangs_is_ended_with_all_that_it_started(directory: Path, tmp_path: Path) -> None:
    """A shell's child does not live on."""
    pid = tmp_path / "pid"
    start = "import subprocess\nsleeping = subprocess.Popen(['sleep', '300'])"
    program = f"{start}\nprint(sleeping.pid, file=open({str(pid)!r}, 'w'))"
    check(directory, f"{program}\nsleeping.wait()", "--timeout", "3")
    state = Path(f"/proc/{pid.read_text().strip()}/stat")
    for _ in range(100):
        if not state.exists() or " Z " in state.read_text():  # in a container nobody may collect the dead
            return
        time.sleep(0.05)
    pytest.fail("it still runs")
