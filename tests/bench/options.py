"""What was asked for on the command line, as the scenarios read it."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.profiler import recorded
from tests.bench.stack import SYSTEMS, Setup


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

    @property
    def http_systems(self) -> tuple[str, ...]:
        """Those of the systems that speak HTTP."""
        return tuple(name for name in self.systems if name in SYSTEMS)

    @contextmanager
    def watched(self, parts: Mapping[str, int]) -> Generator[None]:
        """Profiles the part that was asked for, if it is among these, while the body runs."""
        profile = self.profile
        pid = next((pid for name, pid in parts.items() if profile and name.startswith(profile.part)), None)
        if profile is None or pid is None:
            yield
        else:
            with recorded(pid, profile.to, self.setup.cores.harness):
                yield
