"""Makes text from the wire fit for a terminal.

Names and reasons come from other institutions' machines. A terminal obeys what
it is shown: escape sequences retitle windows or write to the clipboard, and
bidirectional marks make one name look like another.
"""

from __future__ import annotations

import unicodedata
from typing import Final

# Cc control, Cf format (bidi marks, zero width), Cs surrogates, Co private use,
# Cn unassigned, Zl and Zp line and paragraph separators.
_UNSAFE: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_LATIN_1: Final = 0x100
_BASIC: Final = 0x10000


def safe(text: str) -> str:
    """Return ``text`` on one line, with all that a terminal would obey written out."""
    return "".join(_escaped(char) if unicodedata.category(char) in _UNSAFE else char for char in text)


def _escaped(char: str) -> str:
    number = ord(char)
    if number < _LATIN_1:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < _BASIC else f"\\U{number:08x}"
