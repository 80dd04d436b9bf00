"""The list of defences, as ``defences.toml`` has it."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

LIST = Path(__file__).with_name("defences.toml")
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Defence:
    """A piece of code that protects somebody, what would stand there without it, and the test that notices."""

    id: str
    file: str
    code: str
    without: str
    test: str

    @property
    def test_file(self) -> str:
        """Return the file of the named test."""
        return self.test.partition("::")[0]

    @property
    def test_function(self) -> str:
        """Return the function of the named test, without parameters."""
        return self.test.partition("::")[2].partition("[")[0]

    def removed_from(self, text: str) -> str:
        """Return ``text`` without the defence.

        Raises:
            ValueError: it does not stand there exactly once.
        """
        if text.count(self.code) != 1:
            raise ValueError(f"{self.id}: the fragment stands {text.count(self.code)} times in {self.file}")
        return text.replace(self.code, self.without)


def read_defences() -> list[Defence]:
    """Return the list."""
    found = tomllib.loads(LIST.read_text(encoding="utf-8"))["defence"]
    return [Defence(**{name: value.strip("\n") for name, value in one.items()}) for one in found]
