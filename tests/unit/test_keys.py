"""Names of keys: one slot for a pool, one for a tenant, and each kind told from its name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import keys

BUILDERS: dict[str, Callable[..., str]] = {
    name: function
    for name, function in inspect.getmembers(keys, inspect.isfunction)
    if name not in {"pool_prefix", "backend_prefix", "lane_name", "kind_of"}
}


def built(function: Callable[..., str], owner: str = "p", part: str = "x") -> str:
    """The key that this function builds for a pool or tenant."""
    return function(*[owner, *[part] * (len(inspect.signature(function).parameters) - 1)])


@pytest.mark.parametrize("name", BUILDERS)
def test_a_key_begins_with_its_owners_prefix_and_has_one_hash_tag(name: str) -> None:
    key = built(BUILDERS[name])
    owner = next(iter(inspect.signature(BUILDERS[name]).parameters))
    prefix, tag = {
        "pool": (keys.pool_prefix("p"), "p"),
        "tenant": ("hr:{t:p}:", "t:p"),
        "backend": (keys.backend_prefix("p"), "b:p"),
    }[owner]
    assert key.startswith(prefix)
    assert re.findall(r"\{([^{}]*)\}", key) == [tag]


def test_no_two_kinds_of_key_share_a_name() -> None:
    built_keys = [built(function) for function in BUILDERS.values()]
    assert len(set(built_keys)) == len(built_keys)
    # The bell of a pool and that of one of its workers are of one kind.
    kinds = {(key[:6], keys.kind_of(key)) for key in built_keys}
    assert len(kinds) == len(built_keys) - 1


def test_a_pool_can_never_be_taken_for_a_tenant_or_a_backend() -> None:
    tenants = built(keys.tenant_idempotency, "x")
    assert tenants.startswith("hr:{t:x}:")
    assert len({keys.pool_prefix("x"), tenants.partition("}")[0] + "}:", keys.backend_prefix("x")}) == 3
    assert keys.pool_prefix("t").partition("}")[0] != tenants.partition("x}")[0]


@pytest.mark.parametrize("name", BUILDERS)
def test_the_kind_of_a_key_is_read_from_its_name_whatever_ids_it_holds(name: str) -> None:
    kind = keys.kind_of(built(BUILDERS[name]))
    assert re.fullmatch(r"[a-z]+", kind)
    assert keys.kind_of(built(BUILDERS[name], "pool-2", "a:b}c")) == kind


def test_only_kinds_that_exist_may_stand_without_a_ttl() -> None:
    kinds = {keys.kind_of(built(function)) for function in BUILDERS.values()}
    assert keys.ALLOWED_WITHOUT_TTL <= kinds
    assert keys.ALLOWED_WITHOUT_TTL.isdisjoint({"job", "stream", "inbox", "control", "worker", "jobs", "health"})


@given(st.integers(0, 2), st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}", fullmatch=True))
def test_a_lanes_name_gives_back_class_and_model(priority: int, model: str) -> None:
    name = keys.lane_name(priority, model)
    assert (int(name[0]), name[2:]) == (priority, model)
