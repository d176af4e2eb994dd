"""The README's tables say what the code does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from common.config import Settings
from tests.house.source import ROOT

OF_THE_COMMANDS = {"HEADRACE_CONFIG", "HEADRACE_URL", "HEADRACE_API_KEY"}
ONLY_IN_THE_FILE = {"backends", "models", "tenants"}


def rows() -> dict[str, str]:
    """The configuration table's rows by the names in their first column."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if re.match(r"\|\s*`HEADRACE_", line)]
    return {name: line for line in lines for name in re.findall(r"`(HEADRACE_\w+)`", line.split("|")[1])}


def fields() -> dict[str, Any]:
    """Every setting that the environment can set, with its default."""
    return {
        f"HEADRACE_{name.upper()}": field.default
        for name, field in Settings.model_fields.items()
        if name not in ONLY_IN_THE_FILE
    }


def test_the_table_of_settings_names_each_that_exists_and_no_other() -> None:
    named = set(rows())
    assert named - OF_THE_COMMANDS - set(fields()) == set()
    assert set(fields()) - named == set()


def test_the_table_of_settings_tells_each_default_as_it_is() -> None:
    found, wrong = rows(), dict[str, str]()
    for name, default in fields().items():
        if name in found and not name.endswith("_BYTES") and isinstance(default, int | float | str | Path):
            told = found[name].replace(",", "").replace("_", "")
            wanted = f"{default:g}" if isinstance(default, float) else str(default)
            if not re.search(rf"(?<![\w.]){re.escape(wanted.replace('_', ''))}(?![\w.])", told):
                wrong[name] = wanted
    assert wrong == {}
