"""The dialects by the name that a job bears: how its answer is written, whole, as a stream, or as a refusal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import orjson

from common.contracts import Failure, Job, Outcome
from gateway.dialects import completions, ollama_answers
from gateway.dialects.anthropic import MessageShape, message
from gateway.dialects.embeddings import embeddings_object
from gateway.dialects.names import (
    ANTHROPIC,
    COMPLETIONS,
    OLLAMA_CHAT,
    OLLAMA_EMBED,
    OLLAMA_EMBEDDINGS,
    OLLAMA_GENERATE,
    PROMPT,
    RESPONSES,
)
from gateway.dialects.openai import ChunkShape, completion
from gateway.dialects.responses_input import ENDPOINT as RESPONSES_ENDPOINT
from gateway.dialects.responses_input import told as responses_told
from gateway.dialects.responses_output import whole_response
from gateway.dialects.responses_stream import ResponseShape
from gateway.dialects.shape import Shape
from gateway.errors import JSON, PROBLEM_JSON, Headers, anthropic_error, ollama_error, openai_error, problem

NowMs = Callable[[], int]


@dataclass(frozen=True, slots=True)
class Surface:
    """One dialect's way out.

    `endpoint`: the path by which its requests come. `whole(job, created_s, result)`: the body of an answer of one piece
    around the job's result as it is stored; `shape(job, created_s)`: of a stream. `refused`: (status, body, headers);
    `refused_as`: that body's type.
    `timed(body, outcome, created_ms)`: the whole answer with what only the outcome knows, where the dialect tells of
    that. `live(job, now_ms)`: the shape of a stream whose every piece tells its own time.
    """

    endpoint: str
    whole: Callable[[Job, int, bytes], bytes]
    shape: Callable[[Job, int], Shape]
    refused: Callable[[Failure], tuple[int, bytes, Headers]] = openai_error
    timed: Callable[[bytes, Outcome, int], bytes] | None = None
    live: Callable[[Job, NowMs], Shape] | None = None
    refused_as: str = JSON


def _chat(job: Job, created_s: int, result: bytes) -> bytes:
    return completion(job.id, created_s, job.model, orjson.loads(result))


def _chunks(job: Job, created_s: int) -> Shape:
    return ChunkShape(job.id, created_s, job.model, job.include_usage)


def _problem(failure: Failure) -> tuple[int, bytes, Headers]:
    return problem(failure, "/prompt")


def _embeddings(job: Job, _created_s: int, result: bytes) -> bytes:
    return embeddings_object(job.model, job.body, result)


def _ollama(endpoint: str, voice: ollama_answers.Voice) -> Surface:
    return Surface(
        endpoint,
        lambda job, _, result: ollama_answers.whole(job, result, voice),
        lambda job, created_s: ollama_answers.LineShape(job, lambda: created_s * 1000, voice),
        ollama_error,
        ollama_answers.timed,
        lambda job, now_ms: ollama_answers.LineShape(job, now_ms, voice),
    )


def _lines(job: Job, created_s: int) -> Shape:
    return ollama_answers.LineShape(job, lambda: created_s * 1000, ollama_answers.as_message)


SURFACES: Final[dict[str, Surface]] = {
    COMPLETIONS: Surface(
        completions.ENDPOINT,
        completions.text_completion,
        completions.TextShape,
        lambda failure: openai_error(completions.told(failure)),
    ),
    OLLAMA_CHAT: _ollama("/api/chat", ollama_answers.as_message),
    OLLAMA_GENERATE: _ollama("/api/generate", ollama_answers.as_response),
    OLLAMA_EMBED: Surface(
        "/api/embed", ollama_answers.embed_answer, _lines, ollama_error, ollama_answers.timed_embeddings
    ),
    OLLAMA_EMBEDDINGS: Surface("/api/embeddings", ollama_answers.embeddings_answer, _lines, ollama_error),
    ANTHROPIC: Surface("/v1/messages", message, lambda job, _: MessageShape(job), anthropic_error),
    PROMPT: Surface("/prompt", _chat, _chunks, _problem, refused_as=PROBLEM_JSON),
    RESPONSES: Surface(
        RESPONSES_ENDPOINT, whole_response, ResponseShape, lambda failure: openai_error(responses_told(failure))
    ),
}
"""By `Job.dialect`. Chat completions and embeddings are their endpoints' own."""

_OWN: Final = {
    surface.endpoint: surface
    for surface in (
        Surface("/v1/chat/completions", _chat, _chunks),
        Surface("/v1/embeddings", _embeddings, _chunks),
    )
}


def answered_by(job: Job, outcome: Outcome | None) -> Job:
    """The job as its answer is written: under the name of the model that answered, where that was another."""
    return replace(job, model=outcome.model) if outcome is not None and outcome.model else job


def shape_of(job: Job, created_ms: int, now_ms: NowMs) -> Shape:
    """The stream of a job that was accepted then, as it comes by this clock."""
    surface = surface_of(job)
    return surface.live(job, now_ms) if surface.live else surface.shape(job, created_ms // 1000)


def surface_of(job: Job) -> Surface:
    """The dialect that the job came in."""
    return SURFACES[job.dialect] if job.dialect else _OWN[job.endpoint]
