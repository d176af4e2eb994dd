"""Clients for Node: OpenAI's, Anthropic's and Ollama's own, Vercel's AI SDK, eventsource; they talk in `node/*.mjs`."""

from __future__ import annotations

from tests.support.fleet import Fleet
from tests.support.node import NEEDS_NODE, passes

pytestmark = NEEDS_NODE


def test_openai_chats_tools_embeddings_models_and_completions(fleet: Fleet) -> None:
    passes("openai_chat", fleet)


def test_openai_responses_whole_streamed_resumed_and_cancelled(fleet: Fleet) -> None:
    passes("openai_responses", fleet)


def test_openai_files_and_batches(fleet: Fleet) -> None:
    passes("openai_batches", fleet)


def test_openai_errors_retries_and_aborts(fleet: Fleet) -> None:
    passes("openai_errors", fleet)


def test_vercel_text_tools_objects_and_embeddings_over_each_provider(fleet: Fleet) -> None:
    passes("vercel", fleet)


def test_anthropic_messages_tools_and_errors(fleet: Fleet) -> None:
    passes("anthropic", fleet)


def test_ollama_chats_tools_and_errors(fleet: Fleet) -> None:
    passes("ollama", fleet)


def test_eventsource_follows_a_job_over_connections_that_break(fleet: Fleet) -> None:
    passes("eventsource", fleet)
