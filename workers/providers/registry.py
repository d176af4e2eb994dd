"""The one table from a backend's kind to the class that talks to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import httpx

from common.clock import Clock, SystemClock
from workers.providers.anthropic import AnthropicProvider
from workers.providers.base import Provider
from workers.providers.cohere import CohereProvider
from workers.providers.echo import EchoProvider
from workers.providers.gemini import GeminiProvider
from workers.providers.llamacpp import LlamaCppProvider
from workers.providers.ollama import OllamaProvider
from workers.providers.openai import OpenAIProvider
from workers.providers.vllm import VllmProvider

_OVER_HTTP: Final[dict[str, Callable[[httpx.AsyncClient], Provider]]] = {
    # A server that differs from another only in its address and key needs no row: `base_url` and `api_keys` say that.
    OpenAIProvider.kind: OpenAIProvider,
    VllmProvider.kind: VllmProvider,
    LlamaCppProvider.kind: LlamaCppProvider,
    OllamaProvider.kind: OllamaProvider,
    AnthropicProvider.kind: AnthropicProvider,
    GeminiProvider.kind: GeminiProvider,
    CohereProvider.kind: CohereProvider,
}
KINDS: Final = (*_OVER_HTTP, EchoProvider.kind)


def make(kind: str, client: httpx.AsyncClient, *, clock: Clock | None = None) -> Provider:
    """The provider for a kind of backend; one instance serves any number of calls and backends."""
    if kind == EchoProvider.kind:
        return EchoProvider(clock or SystemClock())
    return _OVER_HTTP[kind](client)
