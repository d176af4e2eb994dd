"""The dialects' names, as jobs bear them in `Job.dialect`. It imports nothing of ours, so anything may import it."""

from __future__ import annotations

from typing import Final

ANTHROPIC: Final = "anthropic"
COMPLETIONS: Final = "completions"
PROMPT: Final = "prompt"
RESPONSES: Final = "responses"
OLLAMA_CHAT: Final = "ollama-chat"
OLLAMA_GENERATE: Final = "ollama-generate"
OLLAMA_EMBED: Final = "ollama-embed"
OLLAMA_EMBEDDINGS: Final = "ollama-embeddings"
