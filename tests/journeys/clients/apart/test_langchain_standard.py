"""LangChain's own standard tests for chat models and embeddings, against our three surfaces.

The model behind them is obedient: what is tested is all between LangChain and it. LangChain skips what a model is not
said to have: pictures, sounds and PDFs (its tests fetch theirs from the internet; `test_langchain.py` sends a picture),
recorded cassettes, Anthropic's blocks in messages for others than Anthropic, JSON mode for Anthropic.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Final

import pytest

langchain_anthropic: Any = pytest.importorskip("langchain_anthropic")
langchain_ollama: Any = pytest.importorskip("langchain_ollama")
langchain_openai: Any = pytest.importorskip("langchain_openai")
standard: Any = pytest.importorskip("langchain_tests.integration_tests")
ChatModelTests: Any = standard.ChatModelIntegrationTests
EmbeddingsTests: Any = standard.EmbeddingsIntegrationTests

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.filterwarnings("ignore:Received a Pydantic BaseModel V1 schema:UserWarning"),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),  # OpenAI's SDK, on what it parsed
]
MODEL: Final = "obedient"


class _Standard(ChatModelTests):
    """What is the same for each surface: the place is known once the fleet is."""

    at: SimpleNamespace

    @pytest.fixture(autouse=True)
    def _placed(self, at: SimpleNamespace) -> None:
        self.at = at

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "echo"


class TestChatCompletions(_Standard):
    @property
    def chat_model_class(self) -> Any:
        return langchain_openai.ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": MODEL, "base_url": self.at.v1, "api_key": self.at.key, "stream_usage": True}


class TestResponses(_Standard):
    @property
    def chat_model_class(self) -> Any:
        return langchain_openai.ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": MODEL, "base_url": self.at.v1, "api_key": self.at.key, "use_responses_api": True}


class TestMessages(_Standard):
    @property
    def chat_model_class(self) -> Any:
        return langchain_anthropic.ChatAnthropic

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": MODEL, "base_url": self.at.root, "api_key": self.at.key}

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return False  # that API has none


class TestOllamaChat(_Standard):
    @property
    def chat_model_class(self) -> Any:
        return langchain_ollama.ChatOllama

    @property
    def chat_model_params(self) -> dict[str, Any]:
        headers = {"authorization": f"Bearer {self.at.key}"}
        return {"model": MODEL, "base_url": self.at.root, "client_kwargs": {"headers": headers}}


class _StandardEmbeddings(EmbeddingsTests):
    at: SimpleNamespace

    @pytest.fixture(autouse=True)
    def _placed(self, at: SimpleNamespace) -> None:
        self.at = at


class TestEmbeddings(_StandardEmbeddings):
    @property
    def embeddings_class(self) -> Any:
        return langchain_openai.OpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        known = {"check_embedding_ctx_length": False}  # else it counts tokens with a table from the internet
        return {"model": "echo", "base_url": self.at.v1, "api_key": self.at.key, **known}


class TestOllamaEmbeddings(_StandardEmbeddings):
    @property
    def embeddings_class(self) -> Any:
        return langchain_ollama.OllamaEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        headers = {"authorization": f"Bearer {self.at.key}"}
        return {"model": "echo", "base_url": self.at.root, "client_kwargs": {"headers": headers}}
