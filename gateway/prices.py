"""What an answer cost, and what a request is likely to: the file's prices, else the price library's, else nobody's."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, cast

from genai_prices import Usage as PricedUsage
from genai_prices import calc_price

from common.catalogue import Model, Price, Target
from common.config import Settings
from common.contracts import JsonObject, Outcome, Usage

# What runs on machines of one's own has no price but the operator's; of the scripted fake nobody asks one.
OWN_KINDS: Final = frozenset({"vllm", "ollama", "llamacpp", "echo"})
PER: Final = 1_000_000
# So small that it is below every tier: models whose price rises with the prompt's length are chosen by their first one.
_SAMPLE_TOKENS: Final = 1_000


class Prices:
    """The prices of one configuration. The library's are those that came with it: nothing is fetched.

    A price that nobody knows is None, and never 0.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.of_model = {name: self._usual(model) for name, model in settings.models.items()}

    def cost_usd(self, model: str, outcome: Outcome | None, created_ms: int) -> float | None:
        """What a job's answer cost, where its usage and the price at the time it was asked for are known."""
        if outcome is None or outcome.usage is None:
            return None
        row = self._settings.models.get(outcome.model or model)
        if row is None:
            return None
        if row.price is not None:
            return round(_own_cost(row.price, outcome.usage), 9)
        target = _answering(row, outcome)
        cost = None if target is None else self._listed(target, _priced(outcome.usage), created_ms)
        return None if cost is None else round(cost, 9)

    def _usual(self, model: Model) -> Price | None:
        """A model's price before anything is asked of it: its own, else that of its first target."""
        if model.price is not None or not model.targets:
            return model.price
        prompt = self._listed(model.targets[0], PricedUsage(input_tokens=_SAMPLE_TOKENS))
        answer = self._listed(model.targets[0], PricedUsage(output_tokens=_SAMPLE_TOKENS))
        if prompt is None or answer is None:
            return None
        return Price(input=prompt / _SAMPLE_TOKENS * PER, output=answer / _SAMPLE_TOKENS * PER)

    def _listed(self, target: Target, usage: PricedUsage, at_ms: int | None = None) -> float | None:
        """What the library says, in US dollars; None for a backend of one's own and for what it doesn't know."""
        backend = self._settings.backend_by_name[target.backend]
        if backend.kind in OWN_KINDS:
            return None
        at = None if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC)
        try:
            found = calc_price(usage, target.model, provider_api_url=backend.url, genai_request_timestamp=at)
        except (LookupError, ValueError):
            return None
        # What the library has no rate for it counts as nothing.
        rated = found.model_price
        asked = ((usage.input_tokens, rated.input_mtok), (usage.output_tokens, rated.output_mtok))
        unknown = any(tokens and rate is None for tokens, rate in asked)
        return None if unknown else float(found.total_price)


def _answering(row: Model, outcome: Outcome) -> Target | None:
    """The target that answered. Records of older versions tell its backend alone, and mean its first model there."""
    for target in row.targets:
        if target.backend == outcome.backend and outcome.upstream_model in ("", target.model):
            return target
    return None


def _own_cost(price: Price, usage: Usage) -> float:
    cached = min(_detail(usage, "prompt_tokens_details", "cached_tokens"), usage.prompt_tokens)
    if price.cached_input is None:
        cached = 0
    prompt = (usage.prompt_tokens - cached) * price.input + cached * (price.cached_input or 0)
    return (prompt + usage.completion_tokens * price.output) / PER


def _priced(usage: Usage) -> PricedUsage:
    told: dict[str, int] = {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens}
    for name, kept in (("cached_tokens", "cache_read_tokens"), ("cache_write_tokens", "cache_write_tokens")):
        if count := min(_detail(usage, "prompt_tokens_details", name), usage.prompt_tokens):
            told[kept] = count
    return PricedUsage(**told)


def _detail(usage: Usage, group: str, name: str) -> int:
    """A count that an upstream told beside the others; 0 where there is none, or none that is a number."""
    found: Any = usage.details.get(group)
    count = cast(JsonObject, found).get(name) if isinstance(found, dict) else None
    return count if type(count) is int and count > 0 else 0
