"""Prices: the file's before the library's, nobody's where neither knows, and never nothing for what is unknown."""

from __future__ import annotations

from typing import Any

import pytest

from common.config import Settings
from common.contracts import Outcome, State, Usage
from gateway.prices import Prices

BACKENDS = [
    {"name": "hosted", "kind": "openai", "base_url": "https://api.openai.com/v1"},
    {"name": "nobody", "kind": "openai", "base_url": "https://models.example.test/v1"},
    {"name": "own", "kind": "vllm", "base_url": "https://api.openai.com/v1"},
    {"name": "fake", "kind": "echo"},
]
IN_2025_MS = 1_760_000_000_000


def prices(**models: Any) -> Prices:
    return Prices(Settings(backends=BACKENDS, models=models))  # pyright: ignore[reportArgumentType]


def at(backend: str, model: str = "gpt-4o-mini", **more: Any) -> dict[str, Any]:
    return {"targets": [{"backend": backend, "model": model}], **more}


def ended(backend: str, prompt: int = 1_000_000, answer: int = 1_000_000, **more: Any) -> Outcome:
    usage = Usage(prompt, answer, more.pop("details", {}))
    return Outcome(State.SUCCEEDED, usage=usage, backend=backend, **more)


def test_a_hosted_model_costs_what_the_library_says() -> None:
    assert prices(m=at("hosted")).cost_usd("m", ended("hosted"), IN_2025_MS) == pytest.approx(0.15 + 0.6)


def test_tokens_that_the_upstream_had_cached_cost_less() -> None:
    cached = ended("hosted", details={"prompt_tokens_details": {"cached_tokens": 500_000}})
    assert prices(m=at("hosted")).cost_usd("m", cached, IN_2025_MS) == pytest.approx(0.075 + 0.0375 + 0.6)


@pytest.mark.parametrize(
    "details", [{"prompt_tokens_details": None}, {"prompt_tokens_details": {"cached_tokens": None}}]
)
def test_details_that_say_nothing_change_nothing(details: dict[str, Any]) -> None:
    assert prices(m=at("hosted")).cost_usd("m", ended("hosted", details=details), IN_2025_MS) == pytest.approx(0.75)


def test_more_cached_tokens_than_there_were_are_not_believed() -> None:
    wild = ended("hosted", details={"prompt_tokens_details": {"cached_tokens": 10**9}})
    assert prices(m=at("hosted")).cost_usd("m", wild, IN_2025_MS) == pytest.approx(0.075 + 0.6)


def test_the_files_price_goes_before_the_librarys() -> None:
    mine = prices(m=at("hosted", price={"input": 1, "output": 2}), free=at("hosted", price={"input": 0, "output": 0}))
    assert mine.cost_usd("m", ended("hosted"), IN_2025_MS) == 3
    assert mine.cost_usd("free", ended("hosted"), IN_2025_MS) == 0


def test_the_file_may_price_cached_tokens_too() -> None:
    mine = prices(m=at("own", price={"input": 1, "output": 2, "cached_input": 0.5}))
    cached = ended("own", details={"prompt_tokens_details": {"cached_tokens": 500_000}})
    assert mine.cost_usd("m", cached, IN_2025_MS) == pytest.approx(0.5 + 0.25 + 2)


@pytest.mark.parametrize(
    ("backend", "model"),
    [("own", "gpt-4o-mini"), ("fake", "gpt-4o-mini"), ("nobody", "gpt-4o-mini"), ("hosted", "no-such-model")],
)
def test_what_nobody_knows_the_price_of_has_none(backend: str, model: str) -> None:
    found = prices(m=at(backend, model))
    assert found.cost_usd("m", ended(backend), IN_2025_MS) is None
    assert found.of_model["m"] is None


def test_a_rate_that_the_library_lacks_is_unknown_and_not_nothing() -> None:
    found = prices(m=at("hosted", "text-embedding-3-small"))
    assert found.cost_usd("m", ended("hosted", answer=0), IN_2025_MS) == pytest.approx(0.02)
    assert found.cost_usd("m", ended("hosted"), IN_2025_MS) is None
    assert found.of_model["m"] is None


def test_the_backend_that_answered_and_the_model_that_did_count() -> None:
    both = {"targets": [{"backend": "own", "model": "x"}, {"backend": "hosted", "model": "gpt-4o-mini"}]}
    found = prices(m=both, other=at("own", price={"input": 1, "output": 1}))
    assert found.of_model["m"] is None
    assert found.cost_usd("m", ended("hosted"), IN_2025_MS) == pytest.approx(0.75)
    assert found.cost_usd("m", ended("own"), IN_2025_MS) is None
    assert found.cost_usd("m", ended("own", model="other"), IN_2025_MS) == 2


def test_of_models_at_one_backend_the_one_that_answered_counts() -> None:
    mini, full = ({"backend": "hosted", "model": name} for name in ("gpt-4o-mini", "gpt-4o"))
    for targets in ([mini, full], [full, mini]):
        found = prices(m={"targets": targets})
        assert found.cost_usd("m", ended("hosted", upstream_model="gpt-4o-mini"), IN_2025_MS) == pytest.approx(0.75)
        assert found.cost_usd("m", ended("hosted", upstream_model="gpt-4o"), IN_2025_MS) == pytest.approx(12.5)
        assert found.cost_usd("m", ended("hosted", upstream_model="gone"), IN_2025_MS) is None


def test_a_record_that_does_not_tell_the_upstream_model_counts_as_the_backends_first() -> None:
    both = {"targets": [{"backend": "hosted", "model": name} for name in ("gpt-4o-mini", "gpt-4o")]}
    assert prices(m=both).cost_usd("m", ended("hosted"), IN_2025_MS) == pytest.approx(0.75)


def test_without_usage_or_without_the_model_there_is_no_cost() -> None:
    found = prices(m=at("hosted"))
    assert found.cost_usd("m", None, IN_2025_MS) is None
    assert found.cost_usd("m", Outcome(State.FAILED, backend="hosted"), IN_2025_MS) is None
    assert found.cost_usd("gone", ended("hosted"), IN_2025_MS) is None


def test_a_models_usual_price_is_its_first_targets() -> None:
    usual = prices(m=at("hosted")).of_model["m"]
    assert usual is not None
    assert (usual.input, usual.output) == (pytest.approx(0.15), pytest.approx(0.6))
