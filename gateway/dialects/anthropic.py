"""Anthropic's Messages API on its way out: whole messages, the events of a stream, and lists of models. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final

import orjson

from common.contracts import Failure, Job, JsonObject, Outcome, Position
from common.errors import BadRequest
from common.queue import Place
from common.thoughts import BLOCKS, PROOF, TEXT, Thought, entry_of, in_order, thoughts_of, told_count
from gateway.dialects.anthropic_blocks import Blocks, event, tool_id
from gateway.dialects.anthropic_request import DISABLED
from gateway.dialects.arguments import arguments_of, call_of
from gateway.dialects.bounded import is_list
from gateway.dialects.shape import EVENT_STREAM
from gateway.errors import anthropic_error_object

DEFAULT_PAGE: Final = 20
MOST_ON_A_PAGE: Final = 1_000

_STOP_REASONS: Final = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_PING: Final = event("ping", {"type": "ping"})


def message_id(job_id: str) -> str:
    """Anthropic's id for a job's answer: the same for every reader and every attempt."""
    return f"msg_{job_id[-32:]}"


# --- whole ------------------------------------------------------------------------------------------------------------


def message(job: Job, _created_s: int, result: bytes) -> bytes:
    """The body of an answer that is not streamed."""
    stored: JsonObject = orjson.loads(result)
    choice: JsonObject = stored["choices"][0]
    said: JsonObject = choice["message"]
    reason, sequence = _stop(choice.get("finish_reason"), choice, job.asked, said)
    head = _head(job, stop_reason=reason, stop_sequence=sequence, usage=usage_object(stored["usage"]))
    return orjson.dumps({**head, "content": _content(said, job)})


def _head(job: Job, **rest: Any) -> JsonObject:
    head: JsonObject = {
        "id": message_id(job.id),
        "type": "message",
        "role": "assistant",
        "model": job.model,
        "content": [],
    }
    return {**head, **rest}


def _content(said: JsonObject, job: Job) -> list[JsonObject]:
    """The answer's blocks, as they were said."""
    content: str = said.get("content") or ""
    calls: list[JsonObject] = said.get("tool_calls") or []
    thoughts = [thought for one in thoughts_of(said) if (thought := _shown(one, job.asked.get("thinking")))]
    refusal: list[JsonObject] = [{"type": "text", "text": said["refusal"]}] if said.get("refusal") else []
    blocks: list[JsonObject] = []
    for piece in in_order(thoughts, len(content), len(calls)):
        if isinstance(piece, Thought):
            blocks.append(piece.block())
        elif isinstance(piece, slice):
            blocks.append({"type": "text", "text": content[piece]})
        else:
            # Before any call, as texts are.
            blocks += [*refusal, _called(calls[piece], piece, job)]
            refusal = []
    return [*blocks, *refusal]


def _called(call: JsonObject, number: int, job: Job) -> JsonObject:
    name, text = call_of(call)
    named = {"id": call.get("id") or tool_id(job.id, number), "name": name}
    return {"type": "tool_use", **named, "input": arguments_of(text)}


def _shown(thought: Thought, asked: str | None) -> Thought | None:
    """The thought as far as it was asked for: `omitted` leaves its signature alone. None where nothing is left.

    So it is where nothing was said of thinking, too: some of Anthropic's models think always, and want it back.
    """
    shown = replace(thought, text="") if asked in (None, "omitted") else thought
    return shown if asked != DISABLED and (shown.text or shown.proof) else None


def _stop(reason: str | None, choice: JsonObject, asked: JsonObject, said: JsonObject) -> tuple[str, str | None]:
    """Anthropic's reason for the end, and the stop sequence where the model's server told which."""
    if reason in (None, "stop"):
        # A forced call ends with `stop` too.
        if said.get("tool_calls"):
            return "tool_use", None
        if said.get("refusal"):
            return "refusal", None
        sequence = choice.get("stop_reason")
        if isinstance(sequence, str) and sequence in asked.get("stop_sequences", ()):
            return "stop_sequence", sequence
    return _STOP_REASONS.get(reason or "stop", "end_turn"), None


def usage_object(usage: JsonObject) -> JsonObject:
    """Anthropic's usage from OpenAI's: what came from a cache or went into one is no part of `input_tokens`."""
    of_prompt: JsonObject = usage.get("prompt_tokens_details") or {}
    of_answer: JsonObject = usage.get("completion_tokens_details") or {}
    read, written = told_count(of_prompt.get("cached_tokens")), told_count(of_prompt.get("cache_write_tokens"))
    counts: JsonObject = {
        "input_tokens": max(0, usage["prompt_tokens"] - read - written),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
        "output_tokens": usage["completion_tokens"],
    }
    if thought := told_count(of_answer.get("reasoning_tokens")):
        counts["output_tokens_details"] = {"thinking_tokens": thought}
    return counts


# --- streams ----------------------------------------------------------------------------------------------------------


class MessageShape:
    """The events of one stream. The SDK drops frames without `event:`, and knows no second beginning."""

    media_type: ClassVar[str] = EVENT_STREAM
    said_in_order: ClassVar[bool] = False

    def __init__(self, job: Job) -> None:
        self._job = job
        self._blocks = Blocks(job.id)
        self._thinking: str | None = job.asked.get("thinking")
        self._listed = self._told = 0
        self._said: JsonObject = {}
        self._last: JsonObject = {}
        self._void = False

    def opening(self) -> bytes:
        """The message's beginning; its usage is an estimate until the end tells better."""
        usage = usage_object({"prompt_tokens": self._job.prompt_tokens, "completion_tokens": 1})
        begun = _head(self._job, stop_reason=None, stop_sequence=None, usage=usage)
        return event("message_start", {"type": "message_start", "message": begun})

    def keep_alive(self) -> bytes:
        """A ping."""
        return b"" if self._void else _PING

    def waiting(self, place: Place) -> bytes:
        """The job's place in the queue, as a comment."""
        wait = b"" if place.wait_ms is None else b" estimated_wait_ms=%d" % place.wait_ms
        return b": queue position=%d%b\n" % (place.position or 0, wait)

    def events(self, last: Position, events: Sequence[bytes]) -> bytes:
        """The deltas of each, in blocks."""
        if self._void:
            return b""
        said: list[bytes] = []
        for one in events:
            said += [self._choice(choice) for choice in orjson.loads(one)["choices"] if choice["index"] == 0]
        return b"".join(said)

    def end(self, last: Position, outcome: Outcome, *, resumed: bool) -> bytes:
        """The last block's end, why it ended, usage, and the last word."""
        if self._void:
            return b""
        reason = self._last.get("finish_reason") or outcome.finish_reason
        stop_reason, sequence = _stop(reason, self._last, self._job.asked, self._said)
        usage = outcome.usage.to_openai() if outcome.usage else {"prompt_tokens": 0, "completion_tokens": 0}
        delta = {"stop_reason": stop_reason, "stop_sequence": sequence}
        told = {"type": "message_delta", "delta": delta, "usage": usage_object(usage)}
        stop = event("message_stop", {"type": "message_stop"})
        return self._blocks.finish() + event("message_delta", told) + stop

    def failed(self, position: Position | None, failure: Failure) -> bytes:
        """The one event that tells of a failure; nothing follows it."""
        return b"" if self._void else b"event: error\ndata: " + anthropic_error_object(failure) + b"\n\n"

    def anew(self, begins: Position) -> bytes:
        """An error: what comes would be taken for more of what came before, so nothing follows."""
        failure = Failure("upstream_interrupted", "The answer broke off and was begun anew: ask for it again.")
        told = self.failed(begins, failure)
        self._void = True
        return told

    def _choice(self, choice: JsonObject) -> bytes:
        delta: JsonObject = choice["delta"]
        if choice.get("finish_reason"):
            self._last = choice
        if len(delta) == 1 and (text := delta.get("content")):
            return self._blocks.text(text)  # nearly every token is just that
        return self._delta(delta)

    def _delta(self, delta: JsonObject) -> bytes:
        if delta.get(BLOCKS) and any(delta.get(name) for name in ("content", "tool_calls", TEXT)):
            return b"".join([self._delta(one) for one in _deltas_of(delta)])
        blocks = self._blocks
        said = self._thoughts(delta)
        for name in ("content", "refusal"):
            if text := delta.get(name):
                self._said[name] = True
                said.append(blocks.text(text))
        for number, call in enumerate(delta.get("tool_calls") or ()):
            self._said["tool_calls"] = True
            said.append(blocks.call(call.get("index", number), call))
        return b"".join(said)

    def _thoughts(self, delta: JsonObject) -> list[bytes]:
        """A piece of thinking, a signature that ends a block, and blocks that have ended: those told before as well."""
        said: list[bytes] = []
        if text := delta.get(TEXT):
            said.append(self._thought(Thought(text, "")))
        if type(proof := delta.get(PROOF)) is str and proof:
            self._told += 1
            said.append(self._thought(Thought("", proof)))
        for entry in entries if is_list(entries := delta.get(BLOCKS)) else ():
            self._listed += 1
            if self._listed > self._told and (thought := entry_of(entry)):
                self._told += 1
                said.append(self._thought(replace(thought, text="")))
        return said

    def _thought(self, thought: Thought) -> bytes:
        shown = _shown(thought, self._thinking)
        if shown is None:
            return b""
        return self._blocks.redacted(shown.proof) if shown.redacted else self._blocks.thinking(shown.text, shown.proof)


def _deltas_of(said: JsonObject) -> Iterator[JsonObject]:
    """A whole message's deltas, as it could have been streamed."""
    content: str = said.get("content") or ""
    calls: list[JsonObject] = said.get("tool_calls") or []
    for piece in in_order(thoughts_of(said), len(content), len(calls)):
        if isinstance(piece, Thought):
            yield {TEXT: piece.text}
            yield {BLOCKS: [piece.entry(told=True)]}
        elif isinstance(piece, slice):
            yield {"content": content[piece]}
        else:
            yield {"tool_calls": [{"index": piece, **calls[piece]}]}
    if said.get("refusal"):
        yield {"refusal": said["refusal"]}


# --- models -----------------------------------------------------------------------------------------------------------


def model_info(name: str, max_tokens: int | None = None, context_tokens: int | None = None) -> JsonObject:
    """A model as Anthropic shows it; None where nobody said how long its answers or its context may be."""
    # An epoch value says that nobody knows when it was made.
    told = {"type": "model", "id": name, "display_name": name, "created_at": "1970-01-01T00:00:00Z"}
    return {**told, "lifecycle": "active", "max_input_tokens": context_tokens, "max_tokens": max_tokens}


def model_page(names: Sequence[str], asked: dict[str, str]) -> tuple[list[str], bool]:
    """The names on the page that `limit`, `after_id` and `before_id` ask for, and whether more follow that way.

    Raises BadRequest.
    """
    most = _limit(asked.get("limit", str(DEFAULT_PAGE)))
    after, before = asked.get("after_id"), asked.get("before_id")
    if after and before:
        raise BadRequest("after_id: not together with before_id.", param="after_id")
    if before:
        left = names[: _place(names, before, "before_id")]
        return list(left[-most:]), len(left) > most
    left = names[_place(names, after, "after_id") + 1 :] if after else names
    return list(left[:most]), len(left) > most


def _place(names: Sequence[str], name: str, param: str) -> int:
    if name not in names:
        raise BadRequest(f"{param}: there is no such model.", param=param)
    return names.index(name)


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 8 and 1 <= int(text) <= MOST_ON_A_PAGE):
        raise BadRequest(f"limit: a number from 1 to {MOST_ON_A_PAGE} is expected.", param="limit")
    return int(text)


def models_object(models: list[JsonObject], *, has_more: bool) -> bytes:
    """A page of models, as Anthropic lists them."""
    first, last = (models[0]["id"], models[-1]["id"]) if models else (None, None)
    return orjson.dumps({"data": models, "has_more": has_more, "first_id": first, "last_id": last})
