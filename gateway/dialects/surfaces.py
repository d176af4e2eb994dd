"""The dialects by the name that a job bears: how its answer is written, whole, as a stream, or as a refusal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import orjson

from common.contracts import Failure, Job
from gateway.dialects.embeddings import embeddings_object
from gateway.dialects.openai import ChunkShape, completion
from gateway.dialects.shape import Shape
from gateway.errors import Headers, openai_error


@dataclass(frozen=True, slots=True)
class Surface:
    """One dialect's way out.

    `endpoint`: the path by which its requests come. `whole(job, created_s, result)`: the body of an answer of one piece
    around the job's result as it is stored; `shape(job, created_s)`: of a stream. `refused`: (status, body, headers).
    """

    endpoint: str
    whole: Callable[[Job, int, bytes], bytes]
    shape: Callable[[Job, int], Shape]
    refused: Callable[[Failure], tuple[int, bytes, Headers]] = openai_error


def _chat(job: Job, created_s: int, result: bytes) -> bytes:
    return completion(job.id, created_s, job.model, orjson.loads(result))


def _chunks(job: Job, created_s: int) -> Shape:
    return ChunkShape(job.id, created_s, job.model, job.include_usage)


def _embeddings(job: Job, _created_s: int, result: bytes) -> bytes:
    return embeddings_object(job.model, job.body, result)


SURFACES: Final[dict[str, Surface]] = {}
"""By `Job.dialect`. Chat completions and embeddings are their endpoints' own."""

_OWN: Final = {
    surface.endpoint: surface
    for surface in (
        Surface("/v1/chat/completions", _chat, _chunks),
        Surface("/v1/embeddings", _embeddings, _chunks),
    )
}


def surface_of(job: Job) -> Surface:
    """The dialect that the job came in."""
    return SURFACES[job.dialect] if job.dialect else _OWN[job.endpoint]
