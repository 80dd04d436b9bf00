import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.cli.text import safe


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("FI\u202eIF", "FI\\u202eIF"),
        ("a\u200bb", "a\\u200bb"),
        ("two\nlines", "two\\x0alines"),
        ("\x9b31m", "\\x9b31m"),
        ("\u2028", "\\u2028"),
        ("\U000e0041", "\\U000e0041"),
        ("café, 15:28365618:A:G", "café, 15:28365618:A:G"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text: str, shown: str) -> None:
    assert safe(text) == shown


@given(st.text())
def test_no_text_whatever_reaches_the_terminal_with_a_control_or_format_character(text: str) -> None:
    shown = safe(text)
    assert all(unicodedata.category(char)[0] != "C" for char in shown)
    assert len(shown.splitlines()) <= 1
