"""Blocks of thinking as a chat message carries them: text, proof, and their places among text and calls. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from common.contracts import JsonObject

TEXT: Final = "reasoning_content"
PROOF: Final = "reasoning_signature"
BLOCKS: Final = "reasoning_blocks"
THINKING: Final = "thinking"
REDACTED: Final = "redacted_thinking"
_PROOFS: Final = {THINKING: "signature", REDACTED: "data"}


@dataclass(frozen=True, slots=True)
class Thought:
    """A block of thinking. `proof`: its signature, or all of it where it is redacted; without one nobody takes it back.

    It stands after so many characters of the message's text and so many of its calls.
    """

    text: str
    proof: str
    redacted: bool = False
    characters: int = 0
    calls: int = 0

    @property
    def is_first(self) -> bool:
        """Whether nothing was said before it."""
        return self.characters == 0 and self.calls == 0

    def block(self) -> JsonObject:
        """It as Anthropic writes it."""
        if self.redacted:
            return {"type": REDACTED, "data": self.proof}
        return {"type": THINKING, "thinking": self.text, "signature": self.proof}

    def entry(self, *, told: bool) -> JsonObject:
        """It as one of a message's BLOCKS. `told`: its text is the next part of the message's TEXT."""
        if told or self.redacted:
            return told_entry(len(self.text), self.proof, (self.characters, self.calls), redacted=self.redacted)
        place = {} if self.is_first else {"after": [self.characters, self.calls]}
        return {"type": THINKING, "thinking": self.text, "signature": self.proof, **place}


def told_entry(length: int, proof: str, after: tuple[int, int], *, redacted: bool = False) -> JsonObject:
    """One of a message's BLOCKS, for a block of so many characters of the message's TEXT. `after`: where it stands."""
    place = {"after": [*after]} if any(after) else {}
    if redacted:
        return {"type": REDACTED, "data": proof, **place}
    return {"type": THINKING, "characters": length, "signature": proof, **place}


def carried(thoughts: Sequence[Thought], *, told: bool) -> JsonObject:
    """The fields of a message that hold these. `told`: their text is told to servers that have no blocks, too."""
    text = "".join(thought.text for thought in thoughts)
    fields: JsonObject = {TEXT: text} if told and text else {}
    if not any(thought.proof for thought in thoughts):
        return fields
    if told and len(thoughts) == 1 and thoughts[0].is_first and not thoughts[0].redacted:
        return {TEXT: text, PROOF: thoughts[0].proof}
    return {**fields, BLOCKS: [thought.entry(told=told) for thought in thoughts]}


def thoughts_of(message: JsonObject) -> list[Thought]:
    """The thoughts in a message, in their order; what no block claims comes last, and unsigned."""
    text = _text(message.get(TEXT))
    entries = _entries(message.get(BLOCKS))
    if not entries:
        proof = _text(message.get(PROOF))
        return [Thought(text, proof)] if text or proof else []
    found: list[Thought] = []
    taken = 0
    for entry in entries:
        length = told_count(entry.get("characters"))
        found.append(_thought(entry, text[taken : taken + length]))
        taken += length
    if taken > len(text):  # somebody changed the text, which no signature fits now
        found, taken = [thought for thought in found if thought.redacted or not thought.text], 0
    if rest := text[taken:]:
        last = found[-1] if found else Thought("", "")
        found.append(Thought(rest, "", characters=last.characters, calls=last.calls))
    return found


def entry_of(entry: Any) -> Thought | None:
    """The thought in one of a stream's entries, whose text came before it; None where it is none."""
    known = _entries([entry])
    return _thought(known[0], "") if known else None


def in_order(thoughts: Sequence[Thought], characters: int, calls: int) -> Iterator[Thought | slice | int]:
    """A message's pieces as they were said: thoughts, stretches of its text, and its calls by their numbers."""
    here = called = 0
    for thought in thoughts:
        until, before = min(thought.characters, characters), min(thought.calls, calls)
        if until > here:
            yield slice(here, until)
            here = until
        yield from range(called, before)
        called = max(called, before)
        yield thought
    if characters > here:
        yield slice(here, characters)
    yield from range(called, calls)


def _thought(entry: JsonObject, said: str) -> Thought:
    kind: str = entry["type"]
    after = entry.get("after")
    numbers: list[Any] = after if isinstance(after, list) else []  # pyright: ignore[reportUnknownVariableType]
    characters, calls = (told_count(one) for one in (*numbers, 0, 0)[:2])
    text = _text(entry.get("thinking")) or said
    return Thought(text, _text(entry.get(_PROOFS[kind])), kind == REDACTED, characters, calls)


def _entries(value: Any) -> list[JsonObject]:
    given: list[Any] = value if isinstance(value, list) else []  # pyright: ignore[reportUnknownVariableType]
    return [one for one in given if isinstance(one, dict) and one.get("type") in (THINKING, REDACTED)]  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def told_count(value: Any) -> int:
    """A number of something as others tell it; 0 where that is none, or more than every reader of JSON can count."""
    return value if type(value) is int and 0 < value < 2**53 else 0
