"""A copy of our packages for a fleet to run from: steady while the originals change, or with a fault planted in it."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.fleet import ROOT

SOURCE: Final = Path(os.environ.get("HEADRACE_TEST_TREE") or ROOT)
"""Where the code lies that chaos runs; HEADRACE_TEST_TREE names another checkout."""
PACKAGES: Final = ("common", "deploy", "gateway", "scheduler", "workers")


@dataclass(frozen=True, slots=True)
class Change:
    """A text of one file, and what stands there instead."""

    path: str
    old: str
    new: str


def copied(place: Path, *changes: Change, source: Path = SOURCE) -> Path:
    """The folder of a copy with these changes. Raises AssertionError where a text does not stand there exactly once."""
    tree = place / "tree"
    for package in PACKAGES:
        shutil.copytree(source / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    for change in changes:
        file = tree / change.path
        text = file.read_text(encoding="utf-8")
        count = text.count(change.old)
        assert count == 1, f"{change.path} holds {count} times, not once:\n{change.old}"
        file.write_text(text.replace(change.old, change.new), encoding="utf-8")
    return tree
