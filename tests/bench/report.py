"""Tables for people, JSON lines for the README: each scenario's figures with its method beside."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Value = float | int | str | None


@dataclass(slots=True)
class Table:
    """One scenario's figures: a row a system or setting. `reach` is what the stack has to come to."""

    name: str
    title: str
    method: str
    reach: str = ""
    rows: list[dict[str, Value]] = field(default_factory=list[dict[str, Value]])
    failures: list[str] = field(default_factory=list[str])

    def add(self, row: Mapping[str, Value]) -> None:
        """Adds a row; its names become columns."""
        self.rows.append(dict(row))

    def text(self) -> str:
        """The table as text."""
        fullest_first = sorted(self.rows, key=len, reverse=True)
        columns = list(dict.fromkeys(name for row in fullest_first for name in row))
        lines = [columns, *([shown(row.get(name)) for name in columns] for row in self.rows)]
        widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
        body = ["  ".join(_cell(text, widths[at], at) for at, text in enumerate(line)) for line in lines]
        reach = [f"to reach: {self.reach}"] if self.reach else []
        failures = [f"FAILED: {text}" for text in self.failures]
        return "\n".join([f"== {self.name}: {self.title}", f"method: {self.method}", *reach, *body, *failures, ""])


def _cell(text: str, width: int, column: int) -> str:
    return text.ljust(width) if column == 0 else text.rjust(width)


def shown(value: Value) -> str:
    """A value with about three significant digits."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else value


def machine() -> dict[str, Value]:
    """What the figures were taken on."""
    model = next((line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name")), "unknown")
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory_gib, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _cpu_lines() -> list[str]:
    return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()


def write_json(path: Path, tables: Sequence[Table], *, short: bool) -> None:
    """Appends a line a row: scenario, machine, method, figures."""
    with path.open("a", encoding="utf-8") as file:
        for table in tables:
            for row in table.rows:
                line = {"scenario": table.name, "short": short, "row": row, "method": table.method, "on": machine()}
                file.write(json.dumps(line) + "\n")
