"""What was asked for on the command line, as the scenarios read it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.bench.stack import Setup


@dataclass(frozen=True, slots=True)
class Profile:
    """Which part to profile, and where the text goes."""

    part: str
    to: Path


@dataclass(frozen=True, slots=True)
class Options:
    """Which systems, on what, how long."""

    setup: Setup
    systems: tuple[str, ...]
    short: bool = False
    profile: Profile | None = None
