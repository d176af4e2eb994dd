"""What ends a command early: a sentence for people, and the exit code that scripts see."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """The exit codes of every command."""

    OK = 0
    FAILED = 1  # the work was done and came out badly: a failed job, a check, a process that keeps dying
    USAGE = 2  # wrong words or settings; click uses the same number
    UNAVAILABLE = 3  # something needed is missing, taken or out of reach: gateway, port, data directory, package
    INTERRUPTED = 130  # SIGINT, as shells count it


class Trouble(Exception):
    """A command can't go on; the message says what to do about it."""

    def __init__(self, message: str, code: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.code = code
