"""Usage of which an upstream told only a part, as where its stream is cut: the rest is estimated, and says so."""

from __future__ import annotations

from typing import Any

import pytest

from common.contracts import JsonObject
from common.errors import UpstreamError
from tests.providers.stages import Played, Scene, play, replying, sse
from tests.support.upstream import Reply
from workers.answer import Answer
from workers.providers import cohere, gemini, llamacpp, ollama, openai

ESTIMATE = 11
"""The gateway's, of the prompt."""


async def _cut(played: Played, **body: Any) -> Answer:
    answer = Answer(prompt_tokens=ESTIMATE)
    with pytest.raises(UpstreamError):
        async for chunk in played.provider.stream(played.call(**body)):
            answer.add(chunk)
    return answer


# Which counts are the upstream's own where its stream is cut after two tokens of eight characters.
@pytest.mark.parametrize(
    ("kind", "counts"),
    [
        ("openai", (ESTIMATE, 4)),
        ("vllm", (ESTIMATE, 4)),
        ("llamacpp", (ESTIMATE, 4)),
        ("ollama", (ESTIMATE, 4)),
        ("anthropic", (5, 4)),
        ("gemini", (5, 1)),
        ("cohere", (ESTIMATE, 4)),
    ],
)
@pytest.mark.parametrize("scene", [{"break_at": 2}, {"stop_short": True}, {"fail_at": 2}])
async def test_of_a_stream_that_is_cut_what_was_counted_is_kept(
    kind: str, counts: tuple[int, int], scene: JsonObject
) -> None:
    tokens = ("seventh.", "eighth..") if "stop_short" in scene else ("seventh.", "eighth..", "never...")
    async with play(kind, Scene(tokens=tokens, **scene)) as played:
        usage = (await _cut(played)).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.details) == (*counts, {"estimated": True})


async def test_the_usage_that_anthropic_tells_first_counts_no_answer() -> None:
    """Its 1 is there before anything was said; some servers of its kind never tell more."""
    begin = {"type": "message_start", "message": {"usage": {"input_tokens": 5, "output_tokens": 1}}}
    text = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "four or five"}}
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}
    reply = Reply([sse(event) for event in (begin, text, end, {"type": "message_stop"})])
    answer = Answer()
    async with replying("anthropic", lambda _: reply) as played:
        async for chunk in played.provider.stream(played.call()):
            answer.add(chunk)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 3)
    assert answer.usage.details == {"estimated": True}


@pytest.mark.parametrize(
    ("counted", "known"),
    [
        (openai.to_counts({"completion_tokens": 4}), {"completion_tokens": 4}),
        (openai.to_counts({"prompt_tokens": 5, "completion_tokens": None}), {"prompt_tokens": 5}),
        (cohere.to_counts({"tokens": {"input_tokens": 5}}), {"prompt_tokens": 5}),
        (cohere.to_counts({"tokens": {"output_tokens": 4.0}}), {"completion_tokens": 4}),
        (gemini.to_counts({"candidatesTokenCount": 4}), {"completion_tokens": 4}),
        (gemini.to_counts({"promptTokenCount": 5}), {"prompt_tokens": 5}),
        (openai.to_counts(None), None),
    ],
)
def test_one_half_is_known_without_the_other(counted: Any, known: JsonObject | None) -> None:
    assert counted.so_far() == known


def test_what_was_in_ollamas_cache_is_not_counted_as_nothing() -> None:
    chunk = ollama.from_wire({"message": {"content": "a"}, "done": True, "eval_count": 4})
    assert chunk is not None and chunk.usage is None
    assert chunk.counted == {"completion_tokens": 4}


def test_llama_cpps_timings_may_tell_one_half() -> None:
    ended = {"index": 0, "delta": {}, "finish_reason": "stop"}
    chunk = llamacpp.from_wire({"choices": [ended], "timings": {"predicted_n": 4}})
    assert chunk is not None and (chunk.usage, chunk.counted) == (None, {"completion_tokens": 4})


async def test_embeddings_have_no_answer_to_count() -> None:
    vectors = {"data": [{"index": 0, "embedding": [1.0]}], "usage": {"prompt_tokens": 3, "total_tokens": 3}}
    async with play("openai", Scene()) as played:
        call = played.call(input="a")
    usage = openai.from_embeddings(vectors, call).usage
    assert usage is not None and (usage.prompt_tokens, usage.completion_tokens, usage.details) == (3, 0, {})
