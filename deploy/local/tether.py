"""Ties a process to its parent's life and then becomes the wanted program; it is run by its path, not imported.

Whatever ends the parent, kill -9 too, the kernel then kills the program: nothing is left behind. (Linux only; elsewhere
the program runs untied.) Jobs survive that by their leases, as they survive any kill.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(words: list[str]) -> int:
    """Runs `words[1:]` tied to the process whose id is `words[0]`; comes back only if that one has gone."""
    parent, program = int(words[0]), words[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        return 1  # it died before the tie was made, so no signal would ever come
    os.execv(program[0], program)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
