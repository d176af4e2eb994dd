"""Python's garbage collector set for a process that lives long: what start-up made is never looked at again."""

from __future__ import annotations

import gc
from typing import Final

YOUNG: Final = 2_000
"""Garbage in cycles waits for so many new objects: half a megabyte. With ten times as many a worker with little to do
grows for hours before it shrinks again."""


def settle() -> None:
    """Call once when all is imported and opened. Nothing is leaked by it; cycles are looked for less often.

    With the usual threshold of 700 a collection runs every few requests, and walks the whole of the imported code.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, 50, 100)
