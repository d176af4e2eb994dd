"""Judging answers: whether an answer's body is whole. A lost, doubled or misplaced token makes it wrong."""

from __future__ import annotations

from typing import Any, Protocol

import orjson


class Check(Protocol):
    """Reads an answer's body as it comes."""

    started: bool

    def feed(self, data: bytes) -> None:
        """Takes the next bytes."""
        ...

    def verdict(self) -> str | None:
        """What is wrong with the whole answer, None where it is right."""
        ...


class WholeAnswer:
    """A chat completion in one piece."""

    def __init__(self, text: str) -> None:
        self.started = False
        self._text = text
        self._body = b""

    def __str__(self) -> str:
        return f"{len(self._body)} bytes had come"

    def feed(self, data: bytes) -> None:
        """Takes the next bytes."""
        self.started = True
        self._body += data

    def verdict(self) -> str | None:
        """What is wrong with the whole answer, None where it is right."""
        try:
            content = orjson.loads(self._body)["choices"][0]["message"]["content"]
        except (orjson.JSONDecodeError, LookupError, TypeError):
            return f"no chat completion: {self._body[:200]!r}"
        return None if content == self._text else f"wrong text: {content[:80]!r}"


class StreamedAnswer:
    """A chat completion as server-sent events; `started` once its first token has come."""

    def __init__(self, text: str) -> None:
        self.started = False
        self._text = text
        self._rest = b""
        self._got: list[str] = []
        self._finish: str | None = None
        self._done = False
        self._wrong: str | None = None

    def __str__(self) -> str:
        return f"{len(self._got)} tokens had come"

    def feed(self, data: bytes) -> None:
        """Takes the next bytes."""
        if b"\r" in data:
            data = data.replace(b"\r", b"")
        frames = (self._rest + data).split(b"\n\n")
        self._rest = frames.pop()
        for frame in frames:
            for line in frame.split(b"\n"):
                if line.startswith(b"data:"):
                    self._event(line[5:].strip())

    def _event(self, data: bytes) -> None:
        if self._done:
            self._wrong = f"more after [DONE]: {data[:80]!r}"
        elif data == b"[DONE]":
            self._done = True
        else:
            self._chunk(orjson.loads(data))

    def _chunk(self, chunk: dict[str, Any]) -> None:
        if "error" in chunk:
            self._wrong = f"error event: {chunk['error']}"
            return
        for choice in chunk["choices"]:
            content = choice["delta"].get("content")
            if content:
                self.started = True
                self._got.append(content)
            self._finish = choice.get("finish_reason") or self._finish

    def verdict(self) -> str | None:
        """What is wrong with the whole answer, None where it is right."""
        if self._wrong or not self._done:
            return self._wrong or f"ended without [DONE] after {len(self._got)} tokens"
        got = "".join(self._got)
        if got != self._text:
            return f"wrong text of {len(got)} characters for {len(self._text)}: …{got[-60:]!r}"
        return None if self._finish == "stop" else f"finish_reason {self._finish!r}"
