"""Codes are compared folded and reported as first given. Source: engine.md, "Codes"."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick_shared.codes import fold, trimmed
from tallystick_shared.errors import InvalidInput
from tallystick_shared.unicode14 import is_assigned

ASSIGNED = st.characters(exclude_categories=["Cs", "Cn"]).filter(is_assigned)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (" save20 ", "SAVE20"),
        ("\u2003save20\u00a0\u3000", "SAVE20"),
        ("straße", "STRASSE"),
        ("e\u0301te\u0301", "ÉTÉ"),
        ("\u017f\u0323", "ṣ"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("\ufb03", "FFI"),
    ],
)
def test_equal_codes_fold_alike(one: str, other: str) -> None:
    """Spellings that differ in white space at the ends, composition or case are one code."""
    assert fold(one) == fold(other)


@pytest.mark.parametrize("code", ["\x1fA", "A\x1c", "A B", "\u200bA", "\ufeffA"])
def test_only_unicode_white_space_is_trimmed(code: str) -> None:
    """Separators that Python strips, inner spaces and invisible characters are not white space of Unicode."""
    assert trimmed(code) == code


def test_the_spelling_is_kept() -> None:
    """What is stored and reported is trimmed and otherwise as typed."""
    assert trimmed("  Été20\n") == "Été20"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("", "must be a code of 1 to 128 characters, not empty"),
        (" \t\u3000", "must be a code of 1 to 128 characters, not empty"),
        ("x" * 129, "must be a code of 1 to 128 characters, not one of 129 characters"),
        ("A\u0378", "must hold only characters that Unicode 14 assigns, not U+0378"),
        ("A\ud800", "must hold only characters that Unicode 14 assigns, not U+D800"),
        ("\uffff", "must hold only characters that Unicode 14 assigns, not U+FFFF"),
        ("\U0001e4d0", "must hold only characters that Unicode 14 assigns, not U+1E4D0"),  # assigned since 15.0
    ],
)
def test_what_cannot_be_a_code_is_refused(code: str, says: str) -> None:
    """Empty, too long and unassigned are errors in both functions, each in one clear line."""
    for function in (fold, trimmed):
        with pytest.raises(InvalidInput) as caught:
            function(code)
        assert str(caught.value) == says


def test_a_huge_code_is_not_echoed() -> None:
    """A code of 10,000 characters is a short error."""
    with pytest.raises(InvalidInput) as caught:
        fold("é" * 10_000)
    assert len(str(caught.value)) < 100


def test_a_code_of_128_characters_fits() -> None:
    """The limit itself is allowed, counted after trimming and before folding makes it longer."""
    assert fold(" " + "ß" * 128 + " ") == "ss" * 128


def test_folding_every_character_twice_changes_nothing() -> None:
    """Folding is idempotent for each character of Unicode 14, alone and before a combining mark."""
    for point in range(1, sys.maxunicode + 1):
        character = chr(point)
        if 0xD800 <= point <= 0xDFFF or not is_assigned(character) or not character.casefold().strip():
            continue
        if character.isspace():
            continue
        once = fold(character)
        assert fold(once) == once
        if not character.isascii() and character != character.casefold():
            marked = fold(character + "\u0323\u0301")
            assert fold(marked) == marked


@given(st.text(ASSIGNED, min_size=1, max_size=20).filter(lambda text: text.strip() != ""))
def test_folding_twice_changes_nothing(code: str) -> None:
    """Folding is idempotent, and blind to canonical composition."""
    try:
        once = fold(code)
    except InvalidInput:
        return
    assert fold(once[:128]) == once[:128] or len(once) > 128
    assert fold(unicodedata.normalize("NFD", trimmed(code))[:128]) == once or len(code) * 4 > 128


@pytest.mark.skipif(unicodedata.unidata_version != "14.0.0", reason="only Python 3.11 has Unicode 14.0 to compare with")
def test_the_table_is_that_of_unicode_14() -> None:
    """The table agrees with Python 3.11's own database on every code point."""
    wrong = [
        point
        for point in range(sys.maxunicode + 1)
        if is_assigned(chr(point)) == (unicodedata.category(chr(point)) == "Cn")
    ]
    assert wrong == []


def test_the_table_counts_what_unicode_14_counts() -> None:
    """On every Python: Unicode 14.0 has 144,697 characters; with private use, surrogates and controls, 284,278."""
    assert sum(is_assigned(chr(point)) for point in range(sys.maxunicode + 1)) == 144_697 + 137_468 + 2_048 + 65


def test_a_code_cannot_hold_what_no_database_can() -> None:
    """U+0000 inside a code is refused: PostgreSQL could not store it."""
    with pytest.raises(InvalidInput, match="U\\+0000"):
        fold("A\0B")
