"""The rows of models: their names, what they choose among, what they fall back to, and what is refused at start."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from common.catalogue import Model, Target
from common.config import Settings

BACKENDS = [{"name": "a", "kind": "echo", "pool": ["x", "y"]}, {"name": "b", "kind": "echo", "pool": "y"}]
A, B = {"targets": [{"backend": "a", "model": "m"}]}, {"targets": [{"backend": "b", "model": "m"}]}


def settings(**models: Any) -> Settings:
    return Settings(backends=BACKENDS, models=models)  # pyright: ignore[reportArgumentType]


def test_a_model_is_known_by_its_name_and_by_its_aliases() -> None:
    found = settings(one={**A, "aliases": ["uno", "org/uno:1"]}, two=A, auto={"choose": {"among": ["one", "two"]}})
    assert found.model_names == {"one": "one", "two": "two", "auto": "auto", "uno": "one", "org/uno:1": "one"}


def test_a_virtual_model_has_no_pool_and_its_members_may_lie_in_different_ones() -> None:
    found = settings(one=A, two=B, auto={"choose": {"among": ["one", "two"]}, "aliases": ["best"]})
    assert found.pool_by_model == {"one": "x", "two": "y"}
    assert found.models_of("x") == ("one",)


AUTO: dict[str, Any] = {"among": ["one", "two"]}


@pytest.mark.parametrize(
    ("models", "told"),
    [
        ({"one": {}}, "either targets or choose"),
        ({"one": A, "two": A, "auto": {"choose": AUTO, **A}}, "either targets or choose"),
        ({"one": A, "two": A, "auto": {"choose": AUTO, "max_tokens": 5}}, "only aliases"),
        ({"one": A, "two": A, "auto": {"choose": {**AUTO, "by": "speed"}}}, "by"),
        ({"one": A, "auto": {"choose": {"among": ["one"]}}}, "among"),
        ({"one": A, "auto": {"choose": {"among": ["one", "one"]}}}, "twice"),
        ({"one": A, "auto": {"choose": AUTO}}, "no model named 'two'"),
        ({"one": A, "two": A, "auto": {"choose": AUTO}, "more": {"choose": {"among": ["auto", "one"]}}}, "virtual"),
        ({"one": A, "two": A, "auto": {"choose": {**AUTO, "up_to": [1, 2]}}}, "up_to: 1 rising"),
        ({"one": A, "two": A, "auto": {"choose": {**AUTO, "up_to": [100]}}}, "up_to"),
        (
            {"one": A, "two": A, "three": A, "auto": {"choose": {"among": ["one", "two", "three"], "up_to": [5, 5]}}},
            "up_to: 2 rising",
        ),
        ({"one": {**A, "aliases": ["two"]}, "two": A}, "alias 'two'"),
        ({"one": {**A, "aliases": ["one"]}}, "alias 'one'"),
        ({"one": {**A, "aliases": ["uno"]}, "two": {**A, "aliases": ["uno"]}}, "stands for 'one' already"),
        ({"one": {**A, "aliases": ["two words"]}}, "no usable name"),
        ({"one": {**A, "capabilities": ["flying"]}}, "capabilities"),
        ({"one": {**A, "fallback": {"unavailable": "two"}}}, "no model named 'two'"),
        ({"one": {**A, "fallback": {"unavailable": "one"}}}, "the model itself"),
        ({"one": A, "two": A, "auto": {"choose": AUTO}, "x": {**A, "fallback": {"unavailable": "auto"}}}, "virtual"),
        ({"one": {**A, "fallback": {"content_filter": "two"}}, "two": A}, "content_filter"),
        ({"one": {**A, "fallback": {"rate_limit": "two"}}, "two": B}, "the pool of 'one' has not all targets of 'two'"),
    ],
)
def test_a_row_that_can_not_work_is_refused_at_start(models: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError) as refused:
        settings(**models)
    assert told in str(refused.value)


def test_a_longer_model_may_lie_in_another_pool() -> None:
    row = settings(one={**A, "fallback": {"context_length_exceeded": "two"}}, two=B).models["one"]
    assert (row.fallback.names, row.fallback.while_away) == (("two",), ())


@pytest.mark.parametrize(
    ("contexts", "own", "longest"),
    [
        ((None,), None, None),
        ((None,), 5, 5),
        ((9, None), 5, 9),
        ((3,), 5, 3),
        ((9, None), None, None),
        ((9, 7), None, 9),
    ],
)
def test_a_models_context_is_its_longest_targets_where_all_are_known(
    contexts: tuple[int | None, ...], own: int | None, longest: int | None
) -> None:
    targets = tuple(Target(backend="a", model="m", context_tokens=one) for one in contexts)
    assert Model(targets=targets, context_tokens=own).longest_context == longest
