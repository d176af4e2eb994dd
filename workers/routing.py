"""Pure: a model's targets and what is known of their backends in, the order to try them in and later tries out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from common.catalogue import Fallback, Model, Target
from common.errors import (
    AnswerTooLong,
    ContextTooLong,
    UpstreamBusy,
    UpstreamError,
    UpstreamModelMissing,
    UpstreamUnsupported,
)
from common.lengths import likely_fits, surely_too_long

_GOLDEN: Final = 0.6180339887498949
"""Its multiples, modulo 1, fall evenly into [0, 1) however many of them are drawn."""
_BASE_MS: Final = 500
_CEILING_MS: Final = 20_000
_MOST_ASKED_MS: Final = 60_000
_UNPAID_FROM_MS: Final = 10_000
_UNPAID_SPREAD_MS: Final = 50_000
_AFTER_PROBE_MS: Final = 250


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of a backend now.

    `refused`: its breaker is open and no probe is due yet. `free`: calls it could take beside those it has.
    """

    healthy: bool = True
    refused: bool = False
    free: int = 1

    @property
    def usable(self) -> bool:
        return self.healthy and not self.refused


UNKNOWN: Final = Standing()
"""A backend of which nothing is known counts as well."""


def by_room(
    model: Model, targets: Sequence[Target], prompt_tokens: int, answer_limit: int | None
) -> tuple[list[Target], list[Target]]:
    """The targets in which prompt and answer are likely to fit, and those in which they still may.

    Where they surely fit in none, none is left out: the upstream counts better, and its refusal says what may be done.
    """
    roomy: list[Target] = []
    tight: list[Target] = []
    for target in targets:
        context = model.context_at(target)
        if likely_fits(context, prompt_tokens, answer_limit or 1):
            roomy.append(target)
        elif not surely_too_long(context, prompt_tokens, answer_limit):
            tight.append(target)
    return (roomy, tight) if roomy or tight else (list(targets), [])


def in_order(
    targets: Sequence[Target], standings: Mapping[str, Standing], *, turn: int, warm: str = ""
) -> list[Target]:
    """The targets as they should be tried; none is left out, for health is a hint and the last one must be tried.

    As they stand in the configuration, but neighbours that have weights share the load: each is first as often as its
    weight times its free slots says, or lets `warm` go first (the backend that served the same prefix last) where that
    has the same weight and a free slot. The unhealthy come later, and those whose breaker is open last.
    """
    ordered: list[Target] = []
    for group in _neighbours(targets):
        ordered += group if len(group) == 1 else _shared(group, standings, turn, warm)
    return sorted(ordered, key=lambda target: _rank(standings.get(target.backend, UNKNOWN)))


def _rank(standing: Standing) -> int:
    return 2 if standing.refused else 0 if standing.healthy else 1


def _neighbours(targets: Sequence[Target]) -> list[list[Target]]:
    """Runs of neighbours that share the load: those with weights. Whoever has none stands alone."""
    groups: list[list[Target]] = []
    for target in targets:
        if groups and target.weight is not None and groups[-1][0].weight is not None:
            groups[-1].append(target)
        else:
            groups.append([target])
    return groups


def _shared(group: list[Target], standings: Mapping[str, Standing], turn: int, warm: str) -> list[Target]:
    weights = [target.weight or 0 for target in group]
    free = [_free(standings.get(target.backend, UNKNOWN)) for target in group]
    # Where none has a free slot they wait for one in the same proportion.
    parts = [weight * slots for weight, slots in zip(weights, free, strict=True)] if any(free) else weights
    first = _drawn(parts, turn)
    # A prefix that all share would else go to one alone, whatever the weights.
    same = [i for i, target in enumerate(group) if target.backend == warm and free[i] > 0]
    first = next((i for i in same if weights[i] == weights[first]), first)
    rest = sorted((i for i in range(len(group)) if i != first), key=lambda i: -parts[i])
    return [group[i] for i in (first, *rest)]


def _free(standing: Standing) -> int:
    return max(0, standing.free) if standing.usable else 0


def _drawn(parts: Sequence[float], turn: int) -> int:
    """The index that this turn falls to: each as often as its part of the whole says."""
    point = (turn * _GOLDEN % 1.0) * sum(parts)
    for index, part in enumerate(parts):
        point -= part
        if point < 0:
            return index
    return max(range(len(parts)), key=lambda index: parts[index])


# --- after a failure -------------------------------------------------------------------------------------------------


def worth_trying(
    error: UpstreamError, failed: Target, rest: Sequence[Target], model: Model, *, kind_of: Callable[[Target], str]
) -> list[Target]:
    """The model's targets that may do better than the one that failed so.

    After a refused length those that are known to have more room; where servers of a kind cannot do what was asked
    those of other kinds; where a server lacks the model all; after any other refusal of the request, a content
    filter's too, none; else all. A rate limit comes here once no other key of the backend was left to try.
    """
    if isinstance(error, ContextTooLong):
        here = model.context_at(failed)
        return [target for target in rest if here is not None and (model.context_at(target) or 0) > here]
    if isinstance(error, UpstreamUnsupported):
        return [target for target in rest if kind_of(target) != kind_of(failed)]
    return list(rest) if error.retryable or isinstance(error, UpstreamModelMissing) else []


def instead(error: UpstreamError, fallback: Fallback) -> str | None:
    """The model to ask where this was the last word of a model's own targets; None where the failure is the answer."""
    if isinstance(error, ContextTooLong):
        return fallback.context_length_exceeded
    if isinstance(error, AnswerTooLong) or not error.retryable:
        return None
    return fallback.rate_limit if isinstance(error, UpstreamBusy) else fallback.unavailable


# --- later tries -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Again:
    """The job runs again after a delay; `counts`: this attempt is one of those it may fail."""

    delay_ms: int
    counts: bool


@dataclass(frozen=True, slots=True)
class Missed:
    """How an attempt came to nothing.

    `called`: an upstream was asked at all, and not every one of them closed off. `may_recur`: a later try could go
    better. `soonest_ms`: when the first of those closed off may be asked again.
    """

    called: bool
    may_recur: bool
    retry_after_s: float | None = None
    soonest_ms: int = 0


@dataclass(frozen=True, slots=True)
class Prospects:
    """What speaks for another attempt: failures before this one, time left, whether a caller waits, the budget."""

    failures: int
    left_ms: int
    waited_for: bool
    affordable: bool


def next_try(missed: Missed, prospects: Prospects, *, jitter: float) -> Again | None:
    """When the job should run again, or None where it ends with its failure. `jitter` is a random number from 0 to 1.

    Where no upstream could be asked, it comes back when the first may be, and no failure counts. Where no more retries
    can be afforded, a caller who waits hears of the failure at once, and other work rests for long.
    """
    if not missed.may_recur:
        return None
    if not missed.called:
        again = Again(missed.soonest_ms + int(jitter * _AFTER_PROBE_MS) + 1, counts=False)
    elif prospects.affordable:
        again = Again(backoff_ms(prospects.failures, jitter=jitter, retry_after_s=missed.retry_after_s), counts=True)
    elif prospects.waited_for:
        return None
    else:
        again = Again(_UNPAID_FROM_MS + int(jitter * _UNPAID_SPREAD_MS), counts=True)
    return again if again.delay_ms < prospects.left_ms else None


def backoff_ms(failures: int, *, jitter: float, retry_after_s: float | None = None) -> int:
    """How long to wait before an attempt after `failures` others: full jitter below 0.5 s · 2ⁿ, at most 20 s.

    A wait that the upstream asked for is kept, up to a minute, and the jitter comes on top of it, lest all who were
    refused at one moment return at one moment.
    """
    spread_ms = int(jitter * min(_BASE_MS * 2 ** min(failures, 16), _CEILING_MS))
    asked_ms = int(min(retry_after_s or 0, _MOST_ASKED_MS / 1000) * 1000)
    return max(asked_ms + min(spread_ms, asked_ms), spread_ms, 1)
