"""Counts tokens by a vocabulary, in a thread of its own: the event loop of whoever asks goes on meanwhile."""

from __future__ import annotations

import asyncio
from base64 import b64decode
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from hashlib import sha256
from lzma import LZMAError, decompress
from pathlib import Path
from typing import Final

import structlog
from tiktoken import Encoding

from common.contracts import JsonObject
from common.tokens.texts import likely_tokens, size_bytes, texts_of_prompt

log = structlog.get_logger(__name__)

# OpenAI's o200k_base: made for many languages as the vocabularies of today's open models are, so the nearest to most.
# Its digest is the one that tiktoken itself expects of it, its pattern is tiktoken's too.
VOCABULARY: Final = Path(__file__).with_name("o200k_base.tiktoken.xz")
VOCABULARY_SHA256: Final = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
_ENDINGS: Final = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_PATTERN: Final = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + _ENDINGS,
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + _ENDINGS,
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
# Between two slices other threads have their turn, and no text without a space is too long for the pattern.
SLICE_CHARACTERS: Final = 32_768
LONGEST_COUNT_S: Final = 5.0

Count = Callable[[Sequence[str]], int]


class TokenCounter:
    """Counts one request after the other; whom that would keep too long gets a guess from the length instead.

    The vocabulary is read at the first count, which once holds up everything for 0.2 s and takes 74 MiB
    that a process which never counts does not have.
    """

    def __init__(self, *, limit_s: float = LONGEST_COUNT_S, count: Count | None = None) -> None:
        self._limit_s = limit_s
        self._count = count or count_tokens
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokens")

    async def count(self, texts: Sequence[str]) -> int:
        """The tokens of all texts together, each counted by itself."""
        counting = asyncio.get_running_loop().run_in_executor(self._thread, self._count, texts)
        try:
            return await asyncio.wait_for(counting, self._limit_s)
        except TimeoutError:
            log.debug("tokens.not_counted", limit_s=self._limit_s)
        except (OSError, ValueError, LZMAError) as error:
            log.error("tokens.no_vocabulary", error=str(error))
        return sum(likely_tokens(size_bytes(text)) for text in texts)

    async def count_prompt(self, body: JsonObject) -> int:
        """The tokens that a model reads of a chat completion that was checked."""
        texts, others = texts_of_prompt(body)
        return others + await self.count(texts)

    def close(self) -> None:
        """Ends the thread; what was not begun is dropped."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def count_tokens(texts: Sequence[str]) -> int:
    """The tokens of all texts together. Markup of the vocabulary's own is text like any other."""
    encode = vocabulary().encode_ordinary
    return sum(
        len(encode(text[at : at + SLICE_CHARACTERS])) for text in texts for at in range(0, len(text), SLICE_CHARACTERS)
    )


@cache
def vocabulary() -> Encoding:
    """The vocabulary that lies here, read once."""
    return read_vocabulary(VOCABULARY)


def read_vocabulary(path: Path) -> Encoding:
    """The vocabulary in a file. Raises ValueError where it is not the one it should be, OSError where there is none.

    Its format is tiktoken's, packed: a line for each token, with its bytes in base64 and its rank.
    """
    raw = decompress(path.read_bytes())
    if sha256(raw).hexdigest() != VOCABULARY_SHA256:
        raise ValueError(f"{path.name} is damaged: install Headrace anew.")
    ranks = {b64decode(token): int(rank) for token, rank in (line.split() for line in raw.splitlines())}
    return Encoding(path.name, pat_str=_PATTERN, mergeable_ranks=ranks, special_tokens={})
