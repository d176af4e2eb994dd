"""Token counts off the wire: the usage where it was told in full, else the half of it that was. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from common.contracts import Chunk, JsonObject, Usage


@dataclass(frozen=True, slots=True)
class Counts:
    """What an upstream told of the tokens read and made, each None where it did not; `details` as `Usage` has them."""

    prompt: int | None = None
    made: int | None = None
    details: JsonObject = field(default_factory=dict[str, Any])

    @property
    def usage(self) -> Usage | None:
        """The usage, where both are known. No prompt has 0 tokens: who says so has not counted."""
        if not self.prompt or self.made is None:
            return None
        return Usage(self.prompt, self.made, self.details)

    def so_far(self) -> JsonObject | None:
        """What is known while there may come more, as `Chunk.counted` has it; None where nothing is."""
        counts = (("prompt_tokens", self.prompt), ("completion_tokens", self.made))
        # Servers that count as they go begin with a 0, which tells nothing of what was said since.
        known: JsonObject = {name: tokens for name, tokens in counts if tokens}
        return {**known, **self.details} if known else None


NOTHING_TOLD: Final = Counts()


def told_in(choices: Sequence[JsonObject], counts: Counts, extra: JsonObject | None = None) -> Chunk:
    """The chunk with these choices and the usage, or the half of it that was told."""
    usage = counts.usage
    return Chunk(list(choices), usage, extra, None if usage else counts.so_far())


def count(value: Any) -> int | None:
    """A number of tokens: whole and not negative; some servers write it as 5.0. None for anything else."""
    if type(value) not in (int, float) or not 0 <= value < 2**53 or value != int(value):
        return None
    return int(value)
