"""Pure: where a JSON object that comes in pieces ends, at a cost that grows with its length and no faster."""

from __future__ import annotations

import re
from typing import Final

_STEPS: Final = re.compile(r'[\\"{}\[\]]')


class Nesting:
    """How deep the end of a text is nested. It tells an object's end and does not prove that it is valid JSON."""

    __slots__ = ("_begun", "_depth", "_escaped", "_in_string")

    def __init__(self) -> None:
        self._begun = False
        self._depth = 0
        self._in_string = False
        self._escaped = False  # the next piece's first character

    @property
    def closed(self) -> bool:
        """Whether an object began and has ended."""
        return self._begun and self._depth <= 0

    def add(self, piece: str) -> None:
        """Takes the next piece, which is not empty."""
        escaped_at = 0 if self._escaped else -1
        for found in _STEPS.finditer(piece):
            at = found.start()
            if at == escaped_at:
                continue
            if found[0] == "\\":
                escaped_at = at + 1
            else:
                self._step(found[0])
        self._escaped = escaped_at == len(piece)

    def _step(self, mark: str) -> None:
        if mark == '"':
            self._in_string = not self._in_string
        elif not self._in_string:
            self._begun = self._begun or mark == "{"
            self._depth += 1 if mark in "{[" else -1
