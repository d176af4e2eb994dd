"""What processes have cost, read from /proc: CPU seconds of whole process trees, and memory."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")
_PROC: Final = Path("/proc")
# After the command's closing bracket, /proc/<pid>/stat goes on with field 3.
_PARENT, _FIRST_TIME, _LAST_TIME = 1, 11, 15


def tree(pid: int) -> list[int]:
    """The process and all that descend from it, as far as they live."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[_PARENT]), []).append(int(entry.name))
    found = [pid]
    for known in found:
        found.extend(children.get(known, ()))
    return found


def cpu_s(pid: int) -> float:
    """User and system seconds of the process's tree: all threads, and the children that have ended."""
    return sum(_times_s(member) for member in tree(pid))


def _times_s(pid: int) -> float:
    # utime, stime, and both of the children that were waited for.
    fields = _stat(pid)
    return sum(map(int, fields[_FIRST_TIME:_LAST_TIME])) / _TICKS_A_SECOND if fields else 0.0


def _stat(pid: int) -> list[str]:
    with suppress(FileNotFoundError, ProcessLookupError):
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return []


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of a process's tree in KiB: resident, and proportional (a page shared by two counts half in each)."""

    rss_kib: int
    pss_kib: int


def memory(pid: int) -> Memory:
    """What the process's tree holds now."""
    rss_kib = pss_kib = 0
    for member in tree(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            for line in (_PROC / str(member) / "smaps_rollup").read_text().splitlines():
                name, _, rest = line.partition(":")
                if name == "Rss":
                    rss_kib += int(rest.split()[0])
                elif name == "Pss":
                    pss_kib += int(rest.split()[0])
    return Memory(rss_kib, pss_kib)


class Meter:
    """CPU seconds of named process trees since it was made, and of this process alone as `client`."""

    def __init__(self, parts: Mapping[str, int]) -> None:
        self._parts = dict(parts)
        self._before = self._read()
        self._machine_before = _machine_s()

    def _read(self) -> dict[str, float]:
        return {**{name: cpu_s(pid) for name, pid in self._parts.items()}, "client": time.process_time()}

    def spent_s(self) -> dict[str, float]:
        """Seconds by part."""
        return {name: now - self._before[name] for name, now in self._read().items()}

    def others_share(self) -> float:
        """The share of the machine's cores, 0 to 1, that went to what is not measured here: noise in latencies."""
        busy_s, all_s = (now - before for now, before in zip(_machine_s(), self._machine_before, strict=True))
        return max(0.0, busy_s - sum(self.spent_s().values())) / all_s if all_s else 0.0


def _machine_s() -> tuple[float, float]:
    # The first line: user, nice, system, idle, iowait, irq, softirq, steal, of all cores together.
    ticks = [int(word) for word in (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = ticks[3] + ticks[4]
    return (sum(ticks) - idle) / _TICKS_A_SECOND, sum(ticks) / _TICKS_A_SECOND


@dataclass(frozen=True, slots=True)
class Cores:
    """Where things run: the system under test on one core, everything else on another where there is one."""

    system: frozenset[int]
    harness: frozenset[int]
    every: frozenset[int]


def cores() -> Cores:
    """The first and the last core that this process may use."""
    allowed = sorted(os.sched_getaffinity(0))
    return Cores(frozenset(allowed[:1]), frozenset(allowed[-1:]), frozenset(allowed))


@contextmanager
def on(which: Iterable[int]) -> Generator[None]:
    """Whatever is started inside runs on these cores only, with all its threads; we come back to ours afterwards."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, which)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
