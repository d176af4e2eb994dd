"""An earlier run's figures beside this one's: rows are matched by what they are called, figures by their column."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.bench.report import Table, Value, shown

Row = Mapping[str, Value]

NAMES: Final = frozenset({"system", "engine", "workers", "backlog", "depth", "prompts", "load", "keys", "who", "class"})
"""Columns that say which row it is, not what was measured."""

_GONE: Final = "gone"


def read(path: Path) -> dict[str, list[Row]]:
    """The rows of each scenario in a file that `--json` wrote; of a scenario that was run twice the later run's.

    Raises ValueError where the file is something else.
    """
    rows: dict[str, dict[str, Row]] = {}
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line: dict[str, Any] = json.loads(text)
            kept = rows.setdefault(f"{line['scenario']}{' --short' if line['short'] else ''}", {})
            kept[called(line["row"])] = line["row"]
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}, line {number}: not what --json writes ({error})") from None
    return {name: list(kept.values()) for name, kept in rows.items()}


def called(row: Row) -> str:
    """What a row is called: its names, without a system's version and without what a name says it comes to."""
    words = [
        str(value).partition(" " if name == "system" else " = ")[0] for name, value in row.items() if name in NAMES
    ]
    return " · ".join(words)


def beside(table: Table, earlier: Mapping[str, Sequence[Row]], *, short: bool) -> Table | None:
    """Now beside before, a line for each row that both have; None where the earlier run lacks this scenario."""
    known = earlier.get(f"{table.name}{' --short' if short else ''}")
    if known is None:
        return None
    by_name = {called(row): row for row in known}
    compared = Table(table.name, "beside the earlier run", "before → now (change), for each figure that both have")
    for row in table.rows:
        before = by_name.pop(called(row), None)
        compared.add({"row": called(row), **(_both(before, row) if before else {"": "new"})})
    for name in by_name:
        compared.add({"row": name, "": _GONE})
    return compared


def _both(before: Row, now: Row) -> dict[str, Value]:
    figures: Iterable[str] = (name for name in now if name not in NAMES and name in before)
    return {name: _pair(before[name], now[name]) for name in figures}


def _pair(before: Value, now: Value) -> str:
    text = f"{shown(before)} → {shown(now)}"
    if isinstance(before, int | float) and isinstance(now, int | float) and before:
        return f"{text} ({100 * (now - before) / before:+.0f} %)"
    return text
