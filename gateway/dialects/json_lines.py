"""Pure: JSON that is one line, also to readers who split lines wherever Unicode ends one."""

from __future__ import annotations


def in_one_line(told: bytes) -> bytes:
    """The JSON without what else Unicode calls an end of a line: Ollama's and OpenAI's clients split there, too."""
    if told.isascii():
        return told
    return (
        told.replace(b"\xc2\x85", b"\\u0085").replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
    )
