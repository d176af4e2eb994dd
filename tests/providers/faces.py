"""Every dialect as its callers meet it: how it asks for each thing, and what its bytes say, read back."""

from __future__ import annotations

from typing import Final

from tests.providers.faces_grpc import GRPC_CHAT, INFER
from tests.providers.faces_openai import CHAT, COMPLETIONS, JOBS, OPENAI_ASKS, PROMPT, RESPONSES
from tests.providers.faces_other import MESSAGES, OLLAMA_CHAT, OLLAMA_GENERATE

FACES: Final = (
    *(CHAT, JOBS, GRPC_CHAT, RESPONSES, MESSAGES, OLLAMA_CHAT, OLLAMA_GENERATE, COMPLETIONS, PROMPT, INFER),
)
FEATURES: Final = tuple(OPENAI_ASKS)
