"""The history of a run as it happens: one JSON object a line, what each caller, the witness and the weather saw."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import orjson

Line = dict[str, Any]


class Recorder:
    """Takes note; `lines` are what it has, and the file has the same."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[Line] = []
        self._file = path.open("wb")
        self._ops = 0

    def note(self, act: str, **fields: Any) -> None:
        """Adds a line: what happened, when (by this machine's steady clock and by its calendar), and more."""
        line = {"act": act, "s": round(time.monotonic(), 4), "ms": now_ms(), **fields}
        self.lines.append(line)
        self._file.write(orjson.dumps(line) + b"\n")

    def invoke(self, kind: str, **fields: Any) -> int:
        """The number of an operation that begins now."""
        self._ops += 1
        self.note("invoke", op=self._ops, kind=kind, **fields)
        return self._ops

    def close(self) -> None:
        """Ends the file."""
        self._file.close()


def now_ms() -> int:
    """The time in ms, which on one machine is also Redis's."""
    return time.time_ns() // 1_000_000


def read(path: Path) -> list[Line]:
    """The lines of a history that was written."""
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]
