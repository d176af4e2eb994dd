"""Pure: an inference engine's continuous batching and prefix cache, step by step; README states the model.

Nothing here sleeps or speaks: `step` says what one forward pass does and how long it takes.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final

BLOCK_TOKENS: Final = 16


@dataclass(frozen=True, slots=True)
class Constants:
    """What an engine is made of. The times are those of an 8B model on a data-centre card; README derives them."""

    step_ms: float = 15.0
    prefill_ms_a_token: float = 0.1
    decode_ms_a_sequence: float = 0.2
    most_running: int = 8
    most_tokens_a_step: int = 2048
    blocks: int = 1024


@dataclass(slots=True, eq=False)
class Generation:
    """A request inside the engine: what of its prompt is computed, and which blocks it holds."""

    hashes: Sequence[bytes]
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    computed: int = 0
    made: int = 0
    held: list[bytes] = field(default_factory=list[bytes])
    private: int = 0
    gone: bool = False

    @property
    def prefilled(self) -> bool:
        """Whether the whole prompt is computed."""
        return self.computed >= self.prompt_tokens

    @property
    def ended(self) -> bool:
        """Whether the answer is whole."""
        return self.made >= self.output_tokens


def block_hashes(words: Sequence[str]) -> list[bytes]:
    """A hash for each full block of a prompt, each over all that stands before it too."""
    hashes: list[bytes] = []
    parent = b""
    for start in range(0, len(words) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        text = " ".join(words[start : start + BLOCK_TOKENS]).encode()
        parent = blake2b(text, key=parent, digest_size=16).digest()
        hashes.append(parent)
    return hashes


class PrefixCache:
    """Blocks of key-value memory: held by running sequences, or kept for their hash until the space is needed."""

    def __init__(self, blocks: int) -> None:
        self._blank = blocks
        self._holders: dict[bytes, int] = {}
        self._kept: OrderedDict[bytes, None] = OrderedDict()

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return self._blank + len(self._kept)

    def cached(self, hashes: Iterable[bytes]) -> int:
        """How many of the leading blocks are here."""
        count = 0
        for digest in hashes:
            if digest not in self._holders and digest not in self._kept:
                break
            count += 1
        return count

    def reserve(self, shared: Sequence[bytes], others: int) -> bool:
        """Whether these cached blocks and so many blank ones are the caller's now; all or nothing."""
        idle = sum(digest in self._kept for digest in shared)
        if self.free - idle < others:
            return False
        for digest in shared:
            self._kept.pop(digest, None)
            self._holders[digest] = self._holders.get(digest, 0) + 1
        while self._blank < others:
            self._kept.popitem(last=False)  # the least recently used
            self._blank += 1
        self._blank -= others
        return True

    def register(self, digest: bytes) -> bool:
        """Whether a block that its holder has just filled is known by its hash now; not where another already is."""
        if digest in self._holders or digest in self._kept:
            return False
        self._holders[digest] = 1
        return True

    def forget(self) -> None:
        """Empties what nobody holds."""
        self._blank += len(self._kept)
        self._kept.clear()

    def release(self, held: Sequence[bytes], private: int) -> None:
        """Gives blocks back. A prompt's last ones are forgotten first."""
        self._blank += private
        for digest in reversed(held):
            self._holders[digest] -= 1
            if not self._holders[digest]:
                del self._holders[digest]
                self._kept[digest] = None


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass: how long it takes, and whose next token it makes."""

    lasts_s: float
    makes: list[Generation]


class Engine:
    """The scheduler of one engine: who runs, who waits, and what the next step does."""

    def __init__(self, constants: Constants) -> None:
        self.constants = constants
        self.cache = PrefixCache(constants.blocks)
        self.running: list[Generation] = []
        self.waiting: deque[Generation] = deque()
        self.queried_tokens = 0
        self.hit_tokens = 0

    def add(self, words: Sequence[str], output_tokens: int) -> Generation:
        """A request joins the queue. Raises ValueError where it could never fit."""
        sequence = Generation(block_hashes(words), len(words), output_tokens)
        if _blocks(len(words) + output_tokens) > self.constants.blocks:
            raise ValueError("the prompt and its answer are larger than the cache")
        self.waiting.append(sequence)
        return sequence

    def step(self) -> Step | None:
        """What the engine does next; None where there is nothing to do."""
        self._let_go()
        decoding = [one for one in self.running if one.prefilled]
        budget = self.constants.most_tokens_a_step - len(decoding)
        filled: list[Generation] = []
        spent = 0
        for sequence in self._prefilling():
            chunk = min(budget - spent, sequence.prompt_tokens - sequence.computed)
            self._compute(sequence, chunk)
            spent += chunk
            if sequence.prefilled:
                filled.append(sequence)
            if spent >= budget:
                break
        if not self.running:
            return None
        return Step(self._lasts_s(spent, len(decoding)), decoding + filled)

    def _lasts_s(self, prefilled: int, decoding: int) -> float:
        fixed = self.constants
        spent_ms = fixed.step_ms + prefilled * fixed.prefill_ms_a_token + decoding * fixed.decode_ms_a_sequence
        return spent_ms / 1000

    def _prefilling(self) -> Iterable[Generation]:
        """Those whose prompts are to be computed: first the begun, then the waiting, as far as there is room."""
        yield from [one for one in self.running if not one.prefilled]
        while self.waiting and len(self.running) < self.constants.most_running:
            if not self._admit(self.waiting[0]):
                return
            sequence = self.waiting.popleft()
            self.running.append(sequence)
            yield sequence

    def _admit(self, sequence: Generation) -> bool:
        # Of a prompt that is all there the last token is computed again: its logits are what the first token needs.
        usable = sequence.hashes[: (sequence.prompt_tokens - 1) // BLOCK_TOKENS]
        shared = list(usable[: self.cache.cached(usable)])
        others = _blocks(sequence.prompt_tokens + sequence.output_tokens) - len(shared)
        if not self.cache.reserve(shared, others):
            return False
        sequence.held, sequence.private = shared, others
        sequence.cached_tokens = sequence.computed = len(shared) * BLOCK_TOKENS
        self.queried_tokens += sequence.prompt_tokens
        self.hit_tokens += sequence.cached_tokens
        return True

    def _compute(self, sequence: Generation, tokens: int) -> None:
        before = sequence.computed // BLOCK_TOKENS
        sequence.computed += tokens
        for digest in sequence.hashes[before : sequence.computed // BLOCK_TOKENS]:
            if self.cache.register(digest):
                sequence.held.append(digest)
                sequence.private -= 1

    def made(self, step: Step) -> list[Generation]:
        """The step is over: those to whom it gave a token."""
        given = [sequence for sequence in step.makes if not sequence.gone]
        for sequence in given:
            sequence.made += 1
        return given

    def _let_go(self) -> None:
        for sequence in [one for one in self.running if one.ended or one.gone]:
            self.running.remove(sequence)
            self.cache.release(sequence.held, sequence.private)
        if any(sequence.gone for sequence in self.waiting):
            self.waiting = deque(sequence for sequence in self.waiting if not sequence.gone)

    def forget(self) -> None:
        """Empties the cache of what nobody holds, as a restart would."""
        self.cache.forget()


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)
