"""The how-to for people who write vouchers: every example is executed, and prints what the page shows.

In the page an example is one or more ```json blocks, documents one after the other, and the ```text block after them,
which is what `tallystick evaluate --explain` prints at 80 columns: all of it, or after ```text codes only what it says
of the codes, or after ```text best and ```text qualify the answer with that option. A document with `lines` is the
order; the first one on the page is the order of every example that gives none. One with `code` is a voucher; any other
holds more fields of the request (`codes`, `at`, `usage`), of which the first `at` is everybody's too.

After a change of the engine's texts, `python -m tests.contract.test_docs --write` writes the outputs anew, to be read
before they are committed.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from rich.console import Console

from tallystick_client import cli, screen
from tallystick_client.entry import say
from tallystick_client.errors import TallystickError
from tallystick_shared.checks import LIST_FIELDS, NUMBER_FIELDS, TEXT_FIELDS
from tallystick_shared.engine import Reason

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "how-to" / "write-vouchers.md"
BLOCK = re.compile(r"^```(\w+)( \w+)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OPTIONS = {"": [], " codes": [], " best": ["--best"], " qualify": ["--qualify"]}

Doc = dict[str, Any]


class Example(NamedTuple):
    """A request, what is shown of its answer, and where that stands in the page."""

    request: Doc
    kind: str
    shown: str
    span: tuple[int, int]
    line: int


def documents(text: str) -> Iterator[Doc]:
    decoder, at = json.JSONDecoder(parse_float=Decimal), 0
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        document, at = decoder.raw_decode(text, at)
        yield document


def examples(page: str) -> list[Example]:
    """Every example of the page; raises where a block is not part of one."""
    found: list[Example] = []
    common: Doc = {}
    request: Doc | None = None
    for block in BLOCK.finditer(page):
        language, kind, body = block[1], block[2] or "", block[3]
        line = page[: block.start()].count("\n") + 1
        if language == "json":
            request = request or {"vouchers": []}
            for document in documents(body):
                if "lines" in document:
                    request["order"] = document
                    common.setdefault("order", document)
                elif "code" in document:
                    request["vouchers"].append(document)
                else:
                    request.update(document)
                    common |= {"at": document["at"]} if "at" in document and "at" not in common else {}
        elif language == "text":
            if request is None:
                raise ValueError(f"line {line}: an output without an example")
            found.append(Example(common | request, kind, body, block.span(3), line))
            request = None
    if request is not None:
        raise ValueError("the last example has no output")
    return found


def answer(example: Example) -> str:
    """What the command prints, errors included, without spaces at the ends of lines."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        file.write(msgspec.json.Encoder(decimal_format="number").encode(example.request))
        file.flush()
        output = io.StringIO()
        with contextlib.redirect_stderr(output), pytest.MonkeyPatch.context() as patched:
            patched.setattr(cli, "console", Console(file=output, width=80, color_system=None, emoji=False))
            try:
                cli.run(["evaluate", "--explain", *OPTIONS[example.kind], file.name])
            except TallystickError as error:
                say(str(error), error.code)
    text = "".join(f"{row.rstrip()}\n" for row in output.getvalue().splitlines())
    if example.kind == " codes" and not text.startswith("tallystick: "):
        sections = [part.strip("\n") for part in text.split("\n\n")]
        text = "\n\n".join(part for part in sections if part.startswith(("Applied", "Refused"))) + "\n"
    return text


EXAMPLES = examples(PAGE.read_text()) if PAGE.exists() else []


@pytest.mark.parametrize("example", EXAMPLES, ids=[f"line {one.line}" for one in EXAMPLES])
def test_the_page_shows_what_is_printed(example: Example) -> None:
    """Every example prints exactly what stands under it."""
    assert answer(example) == example.shown


def test_every_block_is_part_of_an_example() -> None:
    """No output without an example, and no example without an output."""
    assert len(EXAMPLES) > 30
    assert all(example.request["vouchers"] for example in EXAMPLES)
    with pytest.raises(ValueError, match="no output"):
        examples('```json\n{"code": "A"}\n```\n')
    with pytest.raises(ValueError, match="without an example"):
        examples("```text\nA\n```\n")
    fences = [row for row in PAGE.read_text().splitlines() if row.startswith("```")]
    assert {row for row in fences if row[3:]} <= {"```json", "```console", *(f"```text{kind}" for kind in OPTIONS)}


def test_the_page_tells_of_everything_a_voucher_can_say() -> None:
    """Each type of discount, field and operator of a condition is in an executed example, each reason on the page."""
    said = json.dumps([example.request["vouchers"] for example in EXAMPLES], default=str)
    types = "percentage fixed fixed_price bundle_price bogo tiered conditional shipping gift_card"
    ops = "eq ne gt gte lt lte in not_in contains contains_any contains_all exists"
    fields = NUMBER_FIELDS | TEXT_FIELDS | LIST_FIELDS
    assert [name for name in types.split() if f'"type": "{name}"' not in said] == []
    assert [name for name in ops.split() if f'"op": "{name}"' not in said] == []
    assert [name for name in fields if f'"field": "{name}"' not in said] == []
    keys = "cap_minor items per max_applications basis otherwise valid_from valid_until hours total per_customer"
    keys += " budget_minor mode priority group max_total_percent exclude_product_ids exclude_category_ids all any not"
    keys += " product_ids category_ids attributes status currency campaign_id metadata"
    assert [name for name in keys.split() if f'"{name}": ' not in said] == []
    page = PAGE.read_text()
    assert [reason for reason in Reason if f"`{reason}`" not in page] == []
    assert [words for words in screen.REASONS.values() if words not in page] == []


def write() -> None:
    """Writes the outputs of the page anew."""
    page = PAGE.read_text()
    for example in reversed(examples(page)):
        start, end = example.span
        page = page[:start] + answer(example) + page[end:]
    PAGE.write_text(page)


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("say: python -m tests.contract.test_docs --write")
    write()
