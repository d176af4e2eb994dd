"""The name in a request to the model that takes it: aliases, virtual models, a longer context; or a refusal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from common.catalogue import Choose
from common.config import Settings
from common.contracts import JsonObject
from common.errors import BadRequest, ModelNotFound
from common.needs import Needs, lacks, needs_of
from gateway.choice import Choice, Member, Quality, choose, score, told, wanted
from gateway.dialects.native import Asked
from gateway.dialects.openai import DEFAULT_ANSWER_TOKENS, ChatRequest
from gateway.fitting import TOO_LONG, fits, unfit
from gateway.prices import Prices


@dataclass(frozen=True, slots=True)
class Picked:
    """The model that takes a request; `choice` is empty where it is the one that was named."""

    model: str
    choice: JsonObject = field(default_factory=dict[str, Any])


class Models:
    """The models of one configuration, as requests name them."""

    def __init__(self, settings: Settings, prices: Prices) -> None:
        self._rows = settings.models
        self._names = settings.model_names
        self._prices = prices

    def pick(self, asked: Asked, quality: Quality = "standard") -> Picked:
        """The model for this request. Raises ModelNotFound; BadRequest where none that it may go to can serve it."""
        name = self._names.get(asked.model)
        if name is None:
            text = f"The model {asked.model[:128]!r} does not exist or you do not have access to it."
            raise ModelNotFound(text, param="model")
        if (among := self._rows[name].choose) is not None:
            choice = self._chosen(name, among, asked, quality)
        else:
            choice = self._able(name, asked) if isinstance(asked, ChatRequest) else Choice(name, "")
        if choice.model == asked.model:
            return Picked(choice.model)
        return Picked(choice.model, {"asked": asked.model, "reason": choice.reason or f"an alias of {choice.model}"})

    def _able(self, name: str, asked: ChatRequest) -> Choice:
        """The model itself; where its context is surely too short, the one that is named for that."""
        reason, tried = "", {name}
        while (refused := unfit(name, self._rows[name], asked.body, asked.prompt_tokens)) is not None:
            other = self._rows[name].fallback.context_length_exceeded
            if refused.failure.code != TOO_LONG or other is None or other in tried:
                raise refused
            reason = f"too long for {name}, whose context is {self._rows[name].longest_context} tokens"
            tried.add(other)
            name = other
        return Choice(name, reason)

    def _chosen(self, name: str, among: Choose, asked: Asked, quality: Quality) -> Choice:
        if not isinstance(asked, ChatRequest):
            text = f"model: embeddings of different models can't be compared, so {name!r} makes none; name one of them."
            raise BadRequest(text, param="model")
        needs = needs_of(asked.body)
        points = score(asked.body, asked.prompt_tokens, needs)
        floor = among.floor(wanted(points, quality))
        answer_tokens = asked.answers * min(asked.answer_limit or DEFAULT_ANSWER_TOKENS, DEFAULT_ANSWER_TOKENS)
        # What may just fit by the estimate is tried only where nothing longer is to be had.
        for able in (self._likely(asked, needs), self._possible(asked)):
            members = [Member(one, able(one), self._prices.of_model[one]) for one in among.among]
            if (choice := choose(members, floor, asked.prompt_tokens, answer_tokens)) is not None:
                return Choice(choice.model, f"{told(points, quality)}: {choice.reason}")
        raise self._refusal(among, asked)

    def _likely(self, asked: ChatRequest, needs: Needs) -> Callable[[str], bool]:
        def able(name: str) -> bool:
            row, limit = self._rows[name], asked.answer_limit
            short = row.max_tokens is not None and limit is not None and limit > row.max_tokens
            return (
                not short and not lacks(row, needs) and fits(row, asked.prompt_tokens, limit or DEFAULT_ANSWER_TOKENS)
            )

        return able

    def _possible(self, asked: ChatRequest) -> Callable[[str], bool]:
        return lambda name: unfit(name, self._rows[name], asked.body, asked.prompt_tokens) is None

    def _refusal(self, among: Choose, asked: ChatRequest) -> BadRequest:
        """Why the strongest that comes nearest can't: one that lacks only room before one that lacks an ability."""
        refused = [unfit(name, self._rows[name], asked.body, asked.prompt_tokens) for name in among.among]
        found = [error for error in reversed(refused) if error is not None]
        return max(found, key=lambda error: error.failure.code == TOO_LONG)
