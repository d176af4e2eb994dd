"""vLLM: OpenAI's dialect with more request fields; its reasoning and its errors in mid-stream are read by the base."""

from __future__ import annotations

from typing import ClassVar

from workers.providers.openai import OpenAIProvider, to_open_embedding_wire, to_open_wire


class VllmProvider(OpenAIProvider):
    """A vLLM server."""

    kind: ClassVar[str] = "vllm"
    to_wire = staticmethod(to_open_wire)
    to_embedding_wire = staticmethod(to_open_embedding_wire)
