"""The public models as rows of the configuration: targets, other names, prices, limits, fallbacks, virtual models."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

MODEL_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}")
MAX_SCORE: Final = 100

Capability = Literal["tools", "json_schema", "vision", "audio", "video", "files", "reasoning"]


class Row(BaseModel):
    """A row of the YAML file: closed and frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Target(Row):
    """One place where a public model can be had: a backend, and the model's name there.

    Targets are tried in order; neighbours that have a `weight` share the load by it. `context_tokens`: where it is
    another here than the model's.
    """

    backend: str
    model: str
    weight: PositiveFloat | None = None
    context_tokens: PositiveInt | None = None


class Price(Row):
    """US dollars per million tokens. `cached_input`: of a prompt's tokens that the upstream had in its cache."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cached_input: float | None = Field(default=None, ge=0)


class Fallback(Row):
    """The model that is asked instead, by what kept the targets from answering; none: the failure is the answer.

    A refusal by a content filter, or of the request itself, is final: another model would only be a way around it.
    """

    context_length_exceeded: str | None = None
    rate_limit: str | None = None
    unavailable: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The models that are named."""
        return tuple(name for name in (self.context_length_exceeded, *self.while_away) if name)

    @property
    def while_away(self) -> tuple[str, ...]:
        """Those asked where the model's own backends take no call."""
        return tuple(name for name in (self.rate_limit, self.unavailable) if name)


class Choose(Row):
    """What a virtual model chooses among, from the weakest to the strongest: the cheapest that a request allows.

    `up_to`: the highest score of a request that each but the last may have; left out, 0 to 100 is divided evenly.
    """

    among: tuple[str, ...] = Field(min_length=2, max_length=20)
    by: Literal["cost"] = "cost"
    up_to: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.among)) != len(self.among):
            raise ValueError("among: one stands there twice")
        rises = all(low < high for low, high in zip(self.up_to, self.up_to[1:], strict=False))
        inside = all(0 <= score < MAX_SCORE for score in self.up_to)
        if self.up_to and (len(self.up_to) != len(self.among) - 1 or not rises or not inside):
            text = f"up_to: {len(self.among) - 1} rising numbers from 0 to {MAX_SCORE - 1} are expected"
            raise ValueError(text)
        return self

    def floor(self, score: int) -> int:
        """The place in `among` of the weakest model for a request of this score."""
        steps = len(self.among)
        limits = self.up_to or tuple(MAX_SCORE * (place + 1) // steps for place in range(steps - 1))
        return sum(score > limit for limit in limits)


class Model(Row):
    """A public model name: its targets, tried in order; or what it chooses among, where it is a virtual one.

    `aliases`: other names for it. `capabilities`: what it can do beside text; left out, nobody checks.
    `hedge_after_ms`: where no token came for so long, the next target is asked too, and the first to answer wins.
    """

    targets: tuple[Target, ...] = Field(default=(), min_length=1)
    choose: Choose | None = None
    aliases: tuple[str, ...] = ()
    price: Price | None = None
    max_tokens: PositiveInt | None = None
    context_tokens: PositiveInt | None = None
    capabilities: tuple[Capability, ...] | None = None
    fallback: Fallback = Fallback()
    hedge_after_ms: PositiveInt | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if bool(self.targets) == (self.choose is not None):
            raise ValueError("either targets or choose is expected")
        if self.choose is not None and self.model_fields_set - {"choose", "aliases"}:
            raise ValueError("beside choose only aliases may stand: the rest is its members' own")
        return self

    def context_at(self, target: Target) -> int | None:
        """The context of one target, in tokens; None where nobody said."""
        return target.context_tokens or self.context_tokens

    @property
    def longest_context(self) -> int | None:
        """The longest context that one of its targets has; None where that of any is unknown."""
        found = [self.context_at(target) for target in self.targets]
        known = [tokens for tokens in found if tokens is not None]
        return max(known) if known and len(known) == len(found) else None


def names_of(models: Mapping[str, Model]) -> dict[str, str]:
    """Every name that a model can be asked for by, aliases too, to that of its row.

    Raises ValueError where a name is not usable or stands for two models.
    """
    names: dict[str, str] = {}
    for name in models:
        _check_name(name)
        names[name] = name
    for name, model in models.items():
        for alias in model.aliases:
            _check_name(alias)
            if alias in names:
                raise ValueError(f"models.{name}: the alias {alias!r} stands for {names[alias]!r} already")
            names[alias] = name
    return names


def check_references(models: Mapping[str, Model]) -> None:
    """Raises ValueError where a fallback or a virtual model names what is no model with targets of its own."""
    for name, model in models.items():
        among = model.choose.among if model.choose else ()
        _check_all(models, f"models.{name}.choose", among)
        _check_all(models, f"models.{name}.fallback", model.fallback.names)
        if name in model.fallback.names:
            raise ValueError(f"models.{name}.fallback: that is the model itself")


def _check_all(models: Mapping[str, Model], where: str, named: Iterable[str]) -> None:
    for other in named:
        if other not in models:
            raise ValueError(f"{where}: there is no model named {other!r}")
        if models[other].choose is not None:
            raise ValueError(f"{where}: {other!r} is a virtual model; name one with targets")


def _check_name(name: str) -> None:
    if not MODEL_NAME.fullmatch(name):
        raise ValueError(f"models: {name!r} is no usable name (letters, digits, '._:/@+-', at most 128)")
