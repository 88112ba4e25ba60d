"""`tallystick evaluate --explain`: what a person reads, at any width, whatever users wrote."""

from __future__ import annotations

import io
import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from tallystick_client import evaluating, screen
from tallystick_shared.engine import best, compile_voucher
from tallystick_shared.errors import one_line
from tallystick_shared.model import parse_request
from tests.client.test_cli import run
from tests.client.test_evaluate import BASKET, COLOURED, LINE, Doc, line, voucher


def holds(text: str, whole: str) -> bool:
    """Whether all of it is there in order, be it in several rows with other columns between them."""
    letters = iter(text)
    return all(letter in letters for letter in "".join(whole.split()))


PAGE = """\
line  product                    price    off  after
1     kettle                1 x  39.00  -3.90  35.10
2     green tea             3 x   2.50  -0.75   6.75
3     mug                   2 x   1.25  -2.50   0.00

Applied, in this order
  THIRD                                        -2.50
    buy 2, get 1 free, 2 times
    line 3 -2.50
  TEN                                          -4.65
    10 % of 46.50
    line 1 -3.90   line 2 -0.75
  POST                                         -4.90
    100 % of shipping 4.90
  CARD                                        -10.00
    paid from a balance of 10.00

Refused
  BIG  its conditions are not met (CONDITION_NOT_MET)
    what helps: spend 51.00 more

subtotal                                       49.00
discount                                       -7.15
shipping                                        4.90
shipping discount                              -4.90
gift card                                     -10.00
                                           ---------
to pay                                     EUR 31.85
"""


def shown(document: Doc, width: int = 80, call: evaluating.Call = "evaluate") -> str:
    """As it is piped: no colours."""
    out = io.StringIO()
    evaluating.explained(Console(file=out, width=width), json.dumps(document).encode(), call)
    return out.getvalue()


def test_a_person_reads_prices_vouchers_refusals_and_what_to_pay() -> None:
    """The whole page, amounts at the right edge."""
    assert [row.rstrip() for row in shown(BASKET).splitlines()] == PAGE.splitlines()


@pytest.mark.parametrize("width", [20, 36, 60, 80, 200])
def test_it_fits_the_terminal(width: int) -> None:
    """No row is wider than the terminal, and no code, product or message is cut off."""
    product, code = "a-very-long-product-id-" * 8, "CODE" * 20
    document = {
        **BASKET,
        "order": {**BASKET["order"], "lines": [line(1, product, 3, 123_456_789), line(2, "茶碗" * 30, 1, 5)]},
    }
    document["vouchers"] = [
        voucher(code, {"type": "percentage", "percent": 10}),
        voucher("NO" * 40, BASKET["vouchers"][4]["discount"], when=BASKET["vouchers"][4]["when"] | {"value": 10**11}),
    ]
    text = shown(document, width)
    assert max(map(cell_len, text.splitlines())) <= width
    for whole in (product, code, "茶碗" * 30, "NO" * 40, "1234567.89", "3333333.30", "996296296.28"):
        assert holds(text, whole), whole


@pytest.mark.parametrize(("currency", "price"), [("JPY", "-12"), ("KWD", "-0.012")])
def test_amounts_have_the_decimals_of_their_currency(currency: str, price: str) -> None:
    """None for yen, three for dinars."""
    ten = {"code": "TEN", "discount": {"type": "percentage", "percent": 10}}
    document = {
        **BASKET,
        "vouchers": [ten],
        "order": {"id": "o", "currency": currency, "lines": [line(1, "p", 1, 123)]},
    }
    assert price in shown(document).split()


def test_forty_lines_are_shared_in_rows() -> None:
    """Shares stand beside each other, and all of them are there."""
    lines = [line(number, f"p{number}", 1, 1000 + number) for number in range(40)]
    text = shown({**BASKET, "vouchers": BASKET["vouchers"][:1], "order": {**BASKET["order"], "lines": lines}})
    assert sum(row.count("line ") for row in text.splitlines()[42:]) == 40
    assert len(text.splitlines()) < 75


@pytest.mark.parametrize(
    "hostile", ["[red]x[/red]", "\x1b[31m", "\x1b]0;title\x07", "a\rb\tc\nd", "\u202eabc", "\x9b1m", "[/]", ":smile:"]
)
def test_what_users_write_reaches_no_terminal_as_a_command(hostile: str) -> None:
    """Markup is shown as it stands, controls spelled out: in products, ids, codes, and conditions."""
    order_ = {**BASKET["order"], "lines": [line(f"1{hostile}", hostile, 1, 999)]}
    refused = {"field": "order.store_id", "op": "eq", "value": hostile}
    vouchers = [
        voucher(f"A{hostile}B", {"type": "percentage", "percent": 10}),
        voucher(f"C{hostile}D", {"type": "shipping"}, when=refused),
    ]
    document = {**BASKET, "order": order_, "vouchers": vouchers}
    out = io.StringIO()
    for call in ("evaluate", "best", "qualify"):
        console = Console(file=out, width=80, force_terminal=True, color_system=None)
        evaluating.explained(console, json.dumps(document).encode(), call)
    text = out.getvalue()
    spelled = one_line(hostile)
    assert spelled in text
    assert f"A{spelled}B" in text
    assert f"C{spelled}D" in text
    assert set(filter(lambda one: not one.isprintable(), text)) <= {"\n"}


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60), st.integers(24, 120))
def test_any_product_is_shown_whole(product: str, width: int) -> None:
    """Whatever it is called, at any width: nothing but printable characters, none of its letters lost."""
    document = {**BASKET, "vouchers": [], "order": {**BASKET["order"], "lines": [line(1, product, 1, 999)]}}
    text = shown(document, width)
    assert all(one.isprintable() or one in "\n\u200c\u200d" or one.isspace() for one in text)
    assert set(text).isdisjoint(map(chr, [*range(10), *range(11, 32), 127, *range(128, 160)]))
    assert holds(text, one_line(product))


def test_explained_ndjson_goes_on_after_a_bad_line() -> None:
    """Each answer under a line, errors among them, exit 2."""
    done = run("evaluate", "--explain", "-", given=f"{LINE}\n{COLOURED}\n{LINE}\n")
    assert (done.returncode, done.stdout.count("EUR 12.15"), done.stdout.count("─" * 20)) == (2, 2, 8)
    said = " ".join(done.stdout.split())
    assert "error: colour: is not a field here; there are order, vouchers, at, codes, usage (INVALID_FIELD)" in said


def test_a_person_reads_which_codes_are_best() -> None:
    """Which set was chosen, what it saves, and whether the search was exact."""
    text = shown(BASKET, call="best")
    assert text.startswith(
        "Best: THIRD + TEN + POST + CARD, saves 12.05 EUR\nEvery combination was tried: none saves more.\n\nline "
    )
    none = shown({**BASKET, "codes": ["BIG"]}, call="best")
    assert none.startswith("Best: no code, none of them saves anything\n")
    request = parse_request(BASKET)
    found = best(request.order, [compile_voucher(one) for one in request.vouchers], at=request.at)
    out = io.StringIO()
    screen.show_best(Console(file=out, width=80), request.order, msgspec.structs.replace(found, exact=False))
    assert "Too many codes apply to try every combination: another one may save more." in out.getvalue()


def test_a_person_reads_which_codes_apply() -> None:
    """How much each takes alone; of the others why not and what would help."""
    rows = [row.rstrip() for row in shown(BASKET, call="qualify").splitlines()]
    assert [" ".join(row.split()) for row in rows] == [
        "Apply, each alone", "CARD -10.00", "POST -4.90", "TEN -4.90", "THIRD -2.50", "",
        "Do not apply", "BIG its conditions are not met (CONDITION_NOT_MET)", "what helps: spend 51.00 more",
    ]  # fmt: skip
    assert shown({**BASKET, "vouchers": []}, call="qualify") == "no vouchers\n"


def test_piped_it_has_no_colours() -> None:
    """What a pipe gets is plain text, in 80 columns, exit 0."""
    done = run("evaluate", "--explain", "-", given=LINE)
    assert (done.returncode, "\x1b" in done.stdout) == (0, False)
    assert "no such code" in done.stdout


def test_a_terminal_without_its_letters_is_no_error() -> None:
    """In ASCII a product is spelled out."""
    document = {**BASKET, "order": {**BASKET["order"], "lines": [line(1, "茶", 1, 999)]}}
    done = run("evaluate", "--explain", "-", given=json.dumps(document), PYTHONIOENCODING="ascii")
    assert (done.returncode, "\\u8336" in done.stdout) == (0, True)
