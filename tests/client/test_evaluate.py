"""`tallystick evaluate`, as a process: documents, NDJSON, bad input, and what a person reads."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick_client import evaluating
from tallystick_client.errors import CallerError, TallystickError
from tallystick_client.evaluating import LineReader, answer_all
from tests.client.conftest import TEN, order
from tests.client.test_cli import COMMAND, run

Doc = dict[str, Any]
REQUEST: Doc = {
    "order": order(),
    "vouchers": [{**TEN, "currency": "EUR"}],
    "codes": ["ten", "NOPE"],
    "at": "2026-11-23T12:00:00Z",
}
LINE = json.dumps(REQUEST)
COLOURED = json.dumps({**REQUEST, "colour": 1})


def voucher(code: str, discount: Doc, **fields: Any) -> Doc:
    return {"code": code, "currency": "EUR", "discount": discount, "stacking": {"mode": "stackable"}, **fields}


def line(id_: object, product: str, quantity: int, price: int) -> Doc:
    return {"id": str(id_), "product_id": product, "quantity": quantity, "unit_price_minor": price}


BASKET: Doc = {
    "order": {
        "id": "o",
        "currency": "EUR",
        "shipping_minor": 490,
        "lines": [line(1, "kettle", 1, 3900), line(2, "green tea", 3, 250), line(3, "mug", 2, 125)],
    },
    "vouchers": [
        voucher("TEN", {"type": "percentage", "percent": 10}),
        voucher("THIRD", {"type": "bogo", "buy": {"quantity": 2}, "get": {"quantity": 1}}),
        voucher("POST", {"type": "shipping"}),
        voucher("CARD", {"type": "gift_card", "balance_minor": 1000}),
        voucher(
            "BIG",
            {"type": "percentage", "percent": 20},
            when={"field": "order.subtotal_minor", "op": "gte", "value": 10000},
        ),
    ],
    "at": "2026-06-01T12:00:00Z",
}


def ask(lines: str, *arguments: str) -> tuple[int, list[Doc]]:
    done = run("evaluate", "-", *arguments, given=lines)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


# ---- documents and NDJSON


@pytest.mark.parametrize("indent", [None, 2])
def test_a_document_is_answered(indent: int | None) -> None:
    """engine.md, last section: keys in order, no spaces, exit 0 although a code was refused."""
    done = run("evaluate", "-", given=json.dumps(REQUEST, indent=indent))
    assert done.returncode == 0
    assert done.stdout.startswith('{"currency":"EUR","subtotal_minor":1350,"discount_minor":135,')
    assert [refused["reason"] for refused in json.loads(done.stdout)["refused"]] == ["UNKNOWN_CODE"]


@pytest.mark.parametrize("reverse", [False, True])
def test_a_bad_line_has_its_error_in_its_place(reverse: bool) -> None:
    """The rest go on, exit 2; `path` only where one field is at fault."""
    lines = [LINE, "{not json", COLOURED]
    code, answers = ask("\n".join(reversed(lines) if reverse else lines) + "\n")
    good = answers.pop(2 if reverse else 0)
    assert (code, good["discount_minor"]) == (2, 135)
    answers.sort(key=len)
    assert [list(answer) for answer in answers] == [["error", "code"], ["error", "code", "path"]]
    assert (answers[1]["code"], answers[1]["path"]) == ("INVALID_FIELD", "colour")


def test_blank_lines_are_no_lines() -> None:
    """Nor are carriage returns, nor the mark that some editors put at the start of a file."""
    code, answers = ask(f"\ufeff\n{LINE}\r\n  \n\n{LINE}")
    assert (code, len(answers)) == (0, 2)
    assert ask(f"\ufeff{LINE}")[0] == 0


@pytest.mark.parametrize("first", ["{not json", '{"order": {', "hello", "[1, 2]", '{"order": 7}', '{"order": 7,}'])
def test_a_bad_first_line_does_not_make_it_a_document(first: str) -> None:
    """Where whole requests follow, it was a bad line."""
    code, answers = ask(f"{first}\n{LINE}\n{LINE}\n")
    assert (code, [next(iter(answer)) for answer in answers]) == (2, ["error", "currency", "currency"])


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    ("changed", "path"),
    [
        ({"at": "noon"}, "at"),
        ({"order": {**order(), "currency": "euro"}}, "order.currency"),
        ({"vouchers": [{**TEN, "discount": {"type": "percentage", "percent": 0}}]}, "vouchers[0].discount.percent"),
        ({"codes": [""]}, "codes[0]"),
    ],
)
def test_a_bad_document_names_its_field(changed: Doc, path: str, indent: int | None) -> None:
    """One clear line with the path of the field, exit 2, nothing on standard output, on one line or on several."""
    done = run("evaluate", "-", given=json.dumps({**REQUEST, **changed}, indent=indent))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"tallystick: {path}: ")


@pytest.mark.parametrize(
    "given", ["", "\n\n", "{", "[]", "7", "{'order': {\n'id': 1}\n}", json.dumps(REQUEST, indent=1)[:-1]]
)
def test_what_is_no_document_is_one_sentence(given: str) -> None:
    """Nothing, half a document, another kind of JSON, no JSON at all."""
    done = run("evaluate", "-", given=given)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("(INVALID_FIELD)\n")


@pytest.mark.parametrize("first", [LINE, '{"order": 7}', '{"order": 7,}', "garbage", "[]", "order: 7"])
def test_each_line_is_answered_before_the_next_is_sent(first: str) -> None:
    """A program may wait for each answer, be the first line good or bad."""
    with subprocess.Popen([COMMAND, "evaluate", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in (first, LINE, COLOURED, LINE):
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()
            assert ("error" in json.loads(process.stdout.readline())) == (line != LINE)
        process.stdin.close()
    assert process.returncode == 2


def test_two_documents_over_several_lines_are_one_sentence() -> None:
    """Not an error for each line of the first."""
    done = run("evaluate", "-", given=f"{json.dumps(REQUEST, indent=1)}\n{LINE}\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "must be one document, or NDJSON" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_one_sentence() -> None:
    """What cannot be written is said, and nothing else is."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [COMMAND, "evaluate", "-"],
            input=LINE.encode(),
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            timeout=60,
        )
    assert done.returncode == 2
    assert done.stderr.decode().startswith("tallystick: standard output cannot be written: ")
    assert done.stderr.count(b"\n") == 1


def test_nobody_reading_ends_it_quietly() -> None:
    """`tallystick evaluate - | head -1` says nothing else."""
    shell = f"'{COMMAND}' evaluate - | head -1"
    done = subprocess.run(["sh", "-c", shell], input=f"{LINE}\n" * 3000, capture_output=True, text=True, timeout=60)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


@pytest.mark.parametrize("arguments", [["/nowhere"], ["."], ["-", "--best", "--qualify"], ["--explain", "/nowhere"]])
def test_misuse_is_one_sentence(arguments: list[str]) -> None:
    """Exit 2, nothing on standard output."""
    done = run("evaluate", *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_help_shows_a_document_that_works() -> None:
    """What `--help` gives as an example is answered as it stands there."""
    shown = run("evaluate", "--help").stdout
    document = shown[shown.index('{"order"') : shown.index('Z"}') + 3]
    assert json.loads(run("evaluate", "-", given=document).stdout)["discount_minor"] == 390


# ---- the other calls


def test_the_best_codes_are_found() -> None:
    """--best: codes, saving, whether it was exact, and the result of exactly these codes."""
    code, (found,) = ask(json.dumps(BASKET), "--best")
    assert (code, list(found)) == (0, ["codes", "saved_minor", "exact", "result"])
    assert (found["codes"], found["saved_minor"], found["exact"]) == (["THIRD", "TEN", "POST", "CARD"], 1205, True)
    assert [applied["code"] for applied in found["result"]["applied"]] == found["codes"]
    assert found["result"]["refused"] == []


def test_each_code_is_told_apart_by_qualify() -> None:
    """--qualify: what each takes alone, or why not and what would help."""
    code, (found,) = ask(json.dumps(BASKET), "--qualify")
    assert (code, list(found)) == (0, ["vouchers"])
    refused, *others = found["vouchers"]
    assert [refused["code"], refused["reason"]] == ["BIG", "CONDITION_NOT_MET"]
    assert refused["detail"]["message"] == "spend 51.00 more"
    assert [list(one.values()) for one in others] == [["CARD", 1000], ["POST", 490], ["TEN", 490], ["THIRD", 250]]


@pytest.mark.parametrize("call", ["--best", "--qualify"])
def test_the_other_calls_take_ndjson_too(call: str) -> None:
    """A bad line has its error in its place there as well."""
    code, answers = ask(f"{LINE}\n{COLOURED}\n{LINE}\n", call)
    assert (code, ["error" in answer for answer in answers]) == (2, [False, True, False])
    done = run("evaluate", "-", call, given=COLOURED)
    assert (done.returncode, done.stdout) == (2, "")


# ---- reading


def reader_of(tmp_path: Path, data: bytes, bytes_max: int = 10) -> LineReader:
    path = tmp_path / "input"
    path.write_bytes(data)
    return LineReader(os.open(path, os.O_RDONLY), bytes_max)


@pytest.mark.parametrize("long", [b"x" * 11, b"x" * 200_000])
def test_a_line_too_long_has_its_error_in_its_place(tmp_path: Path, long: bytes) -> None:
    """The lines before and after it are answered."""
    answered: list[bytes] = []

    def fail(error: TallystickError) -> None:
        answered.append(error.code.encode())

    reader = reader_of(tmp_path, b'{"a":1}\n' + long + b"\n{}\n" + long)
    assert answer_all(reader, answered.append, fail) == 2
    assert answered == [b'{"a":1}', b"TOO_LARGE", b"{}", b"TOO_LARGE"]
    answered.clear()
    assert answer_all(reader_of(tmp_path, long + b"\n{}\n"), answered.append, fail) == 2
    assert answered == [b"TOO_LARGE", b"{}"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([b"\n", b" ", b"a", b"bcdef"])).map(b"".join), st.integers(1, 20), st.integers(1, 30))
def test_any_bytes_are_read_by_their_lines(data: bytes, bytes_max: int, chunk: int) -> None:
    """However they arrive: each line that is not blank once, in order, cut where it is too long."""
    with tempfile.TemporaryFile() as file, pytest.MonkeyPatch.context() as patched:
        file.write(data)
        file.seek(0)
        patched.setattr(evaluating, "_CHUNK_BYTES", chunk)
        reader = LineReader(file.fileno(), bytes_max)
        found = list(iter(reader.read, None))
    cut = [line[: bytes_max + 1] for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    assert found == [line for line in cut if line.strip() or len(line) > bytes_max]


@pytest.mark.parametrize("data", [b"x" * 11, b"x" * 200_000, b"{\n" * 6])
def test_a_document_too_long_is_one_error(tmp_path: Path, data: bytes) -> None:
    """Whether it is one line or several."""
    with pytest.raises(CallerError, match="more than 10 bytes"):
        answer_all(reader_of(tmp_path, data), lambda _: None, lambda _: None)


def test_a_line_too_long_is_not_held_in_memory() -> None:
    """Ten megabytes go by in a few hundred kilobytes."""
    out, into = os.pipe()

    def write() -> None:
        with os.fdopen(into, "wb") as file:
            for _ in range(160):
                file.write(b"x" * 65536)
            file.write(b"\nend\n")

    writer = threading.Thread(target=write)
    reader = LineReader(out, 1000)
    tracemalloc.start()
    writer.start()
    assert [len(reader.read() or b""), reader.read(), reader.read()] == [1001, b"end", None]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    writer.join()
    os.close(out)
    assert peak < 1_000_000
