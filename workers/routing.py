"""Pure: a model's targets and what is known of their backends in, the order to try them in out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from common.config import Target


def in_order(
    targets: Sequence[Target], *, healthy: Mapping[str, bool], free: Mapping[str, int], turn: int
) -> list[Target]:
    """The targets as they should be tried.

    As they stand in the configuration, but neighbours of the same weight take turns, those with a free slot first.
    The unhealthy come last, and are not left out: health is a hint, and the last one standing must be tried.
    An unknown backend counts as healthy.
    """
    ordered: list[Target] = []
    for group in _neighbours(targets):
        start = turn % len(group)
        turned = group[start:] + group[:start]
        ordered += sorted(turned, key=lambda target: free.get(target.backend, 1) <= 0)
    return sorted(ordered, key=lambda target: not healthy.get(target.backend, True))


def _neighbours(targets: Sequence[Target]) -> list[list[Target]]:
    """Runs of neighbours that share the load: those with the same weight given."""
    groups: list[list[Target]] = []
    for target in targets:
        if groups and target.weight is not None and groups[-1][0].weight == target.weight:
            groups[-1].append(target)
        else:
            groups.append([target])
    return groups


def backoff_ms(failures: int, *, jitter: float, retry_after_s: float | None = None) -> int:
    """How long to wait before an attempt after `failures` others: full jitter below 0.5 s · 2ⁿ, at most 20 s.

    `jitter` is a random number from 0 to 1. A wait that the upstream asked for is kept, up to a minute.
    """
    ceiling_ms = min(500 * 2**failures, 20_000)
    asked_ms = int(min(retry_after_s or 0, 60) * 1000)
    return max(asked_ms, int(jitter * ceiling_ms), 1)
