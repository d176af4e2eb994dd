"""The providers' README says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from tests.providers.fields import table
from workers.providers.echo import Script
from workers.providers.registry import KINDS

README = (Path(__file__).parents[2] / "workers" / "providers" / "README.md").read_text(encoding="utf-8")


def _first_column(heading: str) -> list[str]:
    """The names in the first column of the table whose first heading this is."""
    table = README.split(f"| {heading} |", 1)[1].split("\n\n", 1)[0]
    return [name for line in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split("|")[1])]


def test_every_kind_is_listed() -> None:
    assert sorted(_first_column("kind")) == sorted(KINDS)


def test_what_becomes_of_each_field_is_told_as_it_is() -> None:
    assert table() in README


def test_every_word_of_an_echo_script_is_listed() -> None:
    assert sorted(_first_column("word")) == sorted(Script.model_fields)
