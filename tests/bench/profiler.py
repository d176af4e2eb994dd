"""Where a process spends its time during a load: py-spy's samples, and a text of the top functions."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.bench.cpu import on

_TOP: Final = 45


@contextmanager
def recorded(pid: int, to: Path, cores: Iterable[int], *, rate_hz: int = 200) -> Generator[None]:
    """Samples the process from these cores while the body runs; `to` gets the top functions, `to`.collapsed all."""
    raw = to.with_name(f"{to.name}.collapsed")
    words = ["record", "--pid", str(pid), "--rate", str(rate_hz), "--format", "raw", "--output", str(raw)]
    program = str(Path(sys.executable).with_name("py-spy"))
    with on(cores):
        spy = subprocess.Popen([program, *words, "--nonblocking"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        # Interrupted, it writes what it has.
        spy.send_signal(signal.SIGINT)
        spy.wait(60)
    to.write_text(top_functions(raw.read_text(encoding="utf-8")), encoding="utf-8")


def top_functions(collapsed: str) -> str:
    """Functions by their own samples and by those of all they call, as text."""
    own: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    for line in collapsed.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [_without_line(frame) for frame in stack.split(";")]
        own[frames[-1]] += int(count)
        for frame in set(frames):
            whole[frame] += int(count)
    return f"{_list('own time', own, own.total())}\n{_list('with all that it calls', whole, own.total())}"


def _without_line(frame: str) -> str:
    name, _, line = frame.rpartition(":")
    return f"{name})" if line.rstrip(")").isdigit() else frame


def _list(title: str, samples: Counter[str], total: int) -> str:
    lines = [f"{count / total:6.1%}  {name}" for name, count in samples.most_common(_TOP)]
    return "\n".join([f"{title} ({total} samples)", *lines, ""])
