"""What a fleet must not gather: open files, memory, connections and keys that nothing will ever remove."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from common import keys
from tests.support.fleet import Member, until
from tests.support.stage import Stage

LOOK_EVERY_S: Final = 5.0
FILES_MORE: Final = 12
SLOPE_LIMIT: Final = 0.01
SLOPE_MINUTES: Final = 10.0
LEAST_LOOKS: Final = 24


class Leaks:
    """Looks at processes and store before, during the calm end, and after a run."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._files: dict[str, int] = {}
        self._memory_kib: dict[str, list[tuple[float, int]]] = {}
        self._began_s = time.monotonic()
        self.figures: dict[str, str] = {}

    def begin(self) -> None:
        """Takes note of what a fresh fleet has."""
        self._files = {name: _files(member) for name, member in self._stage.fleet.members.items()}

    async def watch(self, calm: Callable[[], bool]) -> None:
        """Takes note of each member's memory as long as it is calm, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if calm():
                for name, member in self._stage.fleet.members.items():
                    now_s = time.monotonic() - self._began_s
                    self._memory_kib.setdefault(name, []).append((now_s, resident_kib(member)))

    def problems(self, *, emptied: bool, keep_s: int) -> list[str]:
        """What is there that should not be. `emptied`: all that ended is forgotten `keep_s` after, and waited for."""
        found = self._file_problems() + self._slope_problems()
        if emptied:
            with suppress(AssertionError):
                until(lambda: not self._jobs_left(), keep_s * 2 + 60, "jobs were not forgotten")
            found += [f"{name.decode()} was not forgotten" for name in self._jobs_left()[:10]]
        return found + self._key_problems()

    def _file_problems(self) -> list[str]:
        now = {name: _files(member) for name, member in self._stage.fleet.members.items()}
        most = max(now[name] - before for name, before in self._files.items())
        self.figures["files more than at the start, most"] = str(most)
        return [
            f"{name} has {now[name]} open files, {before} at the start"
            for name, before in self._files.items()
            if now[name] - before > FILES_MORE
        ]

    def _slope_problems(self) -> list[str]:
        settled = {
            name: looks[len(looks) // 3 :] for name, looks in self._memory_kib.items() if len(looks) >= LEAST_LOOKS
        }
        slopes = {name: steady_slope_part(looks, SLOPE_MINUTES * 60) for name, looks in settled.items()}
        if not slopes:
            return []
        self.figures["memory's growth in 10 calm minutes"] = f"{max(slopes.values()):.2%} at most (limit 1 %)"
        self.figures["memory, KiB, first and last look"] = "; ".join(
            f"{name} {looks[0][1]} {looks[-1][1]}" for name, looks in settled.items()
        )
        return [f"{name} grows by {part:.2%} in 10 min" for name, part in slopes.items() if part > SLOPE_LIMIT]

    def _jobs_left(self) -> list[bytes]:
        """Records and streams; not the marks of submissions taken back, which have 20 minutes of their own."""
        names: list[bytes] = self._stage.redis.command("KEYS", keys.EVERY_KEY)
        streams = [name for name in names if keys.kind_of(name.decode()) == "stream"]
        records = [name for name in names if keys.kind_of(name.decode()) == "job"]
        real = self._stage.redis.commands([("HEXISTS", name, "spec") for name in records], limit_s=20)
        return streams + [name for name, is_real in zip(records, real, strict=True) if is_real]

    def _key_problems(self) -> list[str]:
        """Keys without a TTL that are not on the list of those that may have none."""
        names: list[bytes] = self._stage.redis.command("KEYS", keys.EVERY_KEY)
        lives_ms = self._stage.redis.commands([("PTTL", name) for name in names], limit_s=20)
        eternal = [name.decode() for name, life_ms in zip(names, lives_ms, strict=True) if life_ms == -1]
        wrong = [name for name in eternal if keys.kind_of(name) not in keys.ALLOWED_WITHOUT_TTL]
        self.figures["keys left, without TTL, wrongly so"] = f"{len(names)}, {len(eternal)}, {len(wrong)}"
        return [f"{name} has no TTL" for name in wrong[:10]]


def steady_slope_part(looks: Sequence[tuple[float, int]], over_s: float) -> float:
    """The lesser `slope_part` of the two halves: what leaks grows in both of them.

    Python takes memory by whole MiB and seldom gives one back: one such step of a process of 80 is above the limit.
    """
    half = len(looks) // 2
    return min(slope_part(looks[:half], over_s), slope_part(looks[half:], over_s))


def slope_part(looks: Sequence[tuple[float, int]], over_s: float) -> float:
    """The part of its mean by which a value grows in so long, by the line of least squares through (time, value)."""
    count = len(looks)
    mean_at = sum(at for at, _ in looks) / count
    mean = sum(value for _, value in looks) / count
    spread = sum((at - mean_at) ** 2 for at, _ in looks)
    slope = sum((at - mean_at) * (value - mean) for at, value in looks) / spread if spread else 0.0
    return slope * over_s / mean if mean else 0.0


def resident_kib(member: Member) -> int:
    """The memory that a member's process holds; 0 where it does not run."""
    try:
        with open(f"/proc/{member.pid}/status", encoding="ascii") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    except (OSError, StopIteration):
        return 0


def _files(member: Member) -> int:
    return len(os.listdir(f"/proc/{member.pid}/fd"))
