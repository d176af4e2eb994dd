"""The values that cross the house survive being stored, and what is none of ours is told apart."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.contracts import (
    ENDED,
    FailedTarget,
    Failure,
    Job,
    OnDisconnect,
    OnInterrupt,
    Outcome,
    Position,
    Priority,
    State,
    Usage,
    is_pool_name,
    new_job_id,
    pool_of,
)

texts = st.text(st.characters(codec="utf-8"), max_size=20)
# What JSON keeps as it is: orjson takes integers of 64 bits and no lone surrogates.
scalars = (
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
)
objects = st.dictionaries(texts, values, max_size=4)
counts = st.integers(0, 2**53)

jobs = st.builds(
    Job,
    id=texts,
    pool=texts,
    tenant=texts,
    endpoint=texts,
    model=texts,
    body=objects,
    priority=st.sampled_from(Priority),
    stream=st.booleans(),
    batch_key=texts,
    deadline_in_ms=counts,
    delay_ms=counts,
    max_attempts=counts,
    cost_tokens=counts,
    on_disconnect=st.sampled_from(OnDisconnect),
    on_interrupt=st.sampled_from(OnInterrupt),
    metadata=objects,
    request_id=texts,
)
outcomes = st.builds(
    Outcome,
    status=st.sampled_from(State),
    finish_reason=st.none() | texts,
    usage=st.none() | st.builds(Usage, counts, counts, objects),
    failure=st.none()
    | st.builds(Failure, texts, texts, st.none() | texts, st.none() | st.floats(0, 1e6), st.none() | texts),
    timings_ms=st.dictionaries(texts, counts, max_size=3),
    backend=texts,
    model=texts,
    upstream_model=texts,
    failed_targets=st.lists(st.builds(FailedTarget, texts, texts, texts), max_size=3),
)


@given(jobs)
def test_a_job_comes_back_from_its_bytes_as_it_was(job: Job) -> None:
    back = Job.decode(job.encode())
    assert back == job
    assert (type(back.priority), type(back.on_disconnect), type(back.on_interrupt)) == (
        Priority,
        OnDisconnect,
        OnInterrupt,
    )


@given(outcomes)
def test_an_outcome_comes_back_from_its_bytes_as_it_was(outcome: Outcome) -> None:
    back = Outcome.decode(outcome.encode())
    assert back == outcome
    assert type(back.status) is State


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"null", b"[]", b"7", b"{}", b'{"priority":0}', b"\xff", b"cos\nsystem\n(S'true'\ntR."]
)
def test_bytes_that_are_no_job_are_refused_and_never_run(raw: bytes) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        Job.decode(raw)


@pytest.mark.parametrize("field, value", [("priority", 3), ("on_disconnect", "explode"), ("on_interrupt", None)])
def test_a_job_with_a_foreign_value_is_refused(field: str, value: Any) -> None:
    good = Job("i", "p", "t", "e", "m", {}).encode()
    raw = re.sub(
        b"}$", f',"{field}":{"null" if value is None else repr(value).replace(chr(39), chr(34))}}}'.encode(), good
    )
    with pytest.raises((ValueError, TypeError)):
        Job.decode(raw)


def test_values_cannot_be_changed() -> None:
    for value, name in (
        (Job("i", "p", "t", "e", "m", {}), "id"),
        (Position(1, 2), "seq"),
        (Outcome(State.FAILED), "status"),
    ):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, "other")


def test_usage_adds_up_in_openais_words_and_keeps_the_details() -> None:
    usage = Usage(3, 4, {"prompt_tokens_details": {"cached_tokens": 2}})
    assert usage.to_openai() == {
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


def test_an_ended_state_is_one_that_nothing_follows() -> None:
    assert {state for state in State if state.ended} == ENDED
    assert {State.DELAYED, State.QUEUED, State.RUNNING}.isdisjoint(ENDED)


def test_a_smaller_class_number_goes_first_and_has_a_name_for_people() -> None:
    assert sorted(Priority, reverse=True)[-1] is Priority.INTERACTIVE
    assert [priority.label for priority in Priority] == ["interactive", "standard", "batch"]


# --- positions --------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**16 - 1), st.integers(0, 10**10 - 1))
def test_a_position_comes_back_from_its_text(fence: int, seq: int) -> None:
    assert Position.parse(str(Position(fence, seq))) == Position(fence, seq)


@pytest.mark.parametrize(
    "text",
    [
        "", "-", "1", "1-", "-1", "--1", "1--1", "1-2-3", "a-1", "1-b", "+1-1", "1-+1", " 1-1", "1-1 ", "1-1\n",
        "1\n-1", "1.0-1", "1e3-1", "0x1-1",
        "1_0-1", "٣-1", "1-٣", "１-1", "²-1", "1-1\0", "1–1", "$", "*", "+", "(1-1",
        "1" * 17 + "-1", "1-" + "1" * 11, "1" * 100_000, "1-" * 50_000,
    ],
)  # fmt: skip
def test_what_is_no_position_is_refused_without_repeating_it_at_length(text: str) -> None:
    with pytest.raises(ValueError, match="not a stream position") as refused:
        Position.parse(text)
    assert len(str(refused.value)) < 300


@given(st.text(max_size=30))
def test_any_text_is_a_position_or_refused(text: str) -> None:
    try:
        position = Position.parse(text)
    except ValueError:
        return
    assert re.fullmatch(r"[0-9]{1,16}-[0-9]{1,10}", text)
    assert (position.fence, position.seq) == tuple(int(part) for part in text.split("-"))


def test_positions_are_ordered_by_fence_and_then_by_number() -> None:
    places = [Position(2, 1), Position(1, 10), Position(1, 9), Position(10, 0)]
    assert sorted(places) == [Position(1, 9), Position(1, 10), Position(2, 1), Position(10, 0)]


# --- job ids ----------------------------------------------------------------------------------------------------------


@given(st.from_regex(r"[a-z0-9-]{1,40}", fullmatch=True))
def test_a_fresh_id_names_its_pool_and_is_like_no_other(pool: str) -> None:
    first, second = new_job_id(pool), new_job_id(pool)
    assert first != second
    assert pool_of(first) == pool


HEX = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    "text",
    [
        "", "job", "job_", "job__", f"job__{HEX}", f"job_{HEX}", f"jobs_p_{HEX}", f"JOB_p_{HEX}", f"job_p_{HEX[:-1]}",
        f"job_p_{HEX}0", f"job_p_{HEX.upper()}", f"job_p_{HEX[:-1]}g", f"job_P_{HEX}", f"job_a b_{HEX}",
        f"job_a_b_{HEX}", f"job_ä_{HEX}",
        f"job_{'p' * 41}_{HEX}", f"job_p_{HEX}\n", f" job_p_{HEX}", f"job_p_{HEX[:-1]}\0",
        f"job_}}_{HEX}", f"job_*_{HEX}",
        f"job_t:x_{HEX}", f"job_p_{'٣' * 32}", f"job_p_{'１' * 32}", f"job_p_{'²' * 32}",
        "job_" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_id_of_ours_names_no_pool(text: str) -> None:
    assert pool_of(text) is None


@given(st.text(max_size=60))
def test_any_text_names_a_usable_pool_or_none(text: str) -> None:
    for candidate in (text, f"job_{text}_{HEX}"):
        pool = pool_of(candidate)
        assert pool is None or (is_pool_name(pool) and candidate == f"job_{pool}_{candidate[-32:]}")


@pytest.mark.parametrize("name, usable", [
    ("a", True), ("gpu-1", True), ("-", True), ("a" * 40, True),
    ("", False), ("a" * 41, False), ("A", False), ("a_b", False), ("a.b", False), ("a{b}", False),
    ("é", False), ("١", False),
])  # fmt: skip
def test_a_pools_name_is_safe_in_keys_and_ids(name: str, usable: bool) -> None:
    assert is_pool_name(name) is usable


def test_fields_of_a_newer_version_are_left_out_so_that_a_rolling_upgrade_loses_no_job() -> None:
    job = Job("i", "p", "t", "e", "m", {})
    assert Job.decode(job.encode()[:-1] + b',"from_the_future":1}') == job
    outcome = Outcome(State.FAILED, usage=Usage(1, 2), failure=Failure("c", "m"))
    raw = outcome.encode().replace(b'"code":"c"', b'"code":"c","new":1').replace(b'"details"', b'"new":2,"details"')
    assert Outcome.decode(raw) == outcome


def test_a_failure_of_an_older_version_tells_no_code_of_the_servers() -> None:
    outcome = Outcome(State.FAILED, failure=Failure("upstream_refused", "m", "p"))
    fields = orjson.loads(outcome.encode())
    del fields["failure"]["upstream_code"]
    assert Outcome.decode(orjson.dumps(fields)) == outcome


def test_an_outcome_of_an_older_version_tells_nothing_of_targets() -> None:
    outcome = Outcome(State.SUCCEEDED, backend="b")
    fields = orjson.loads(outcome.encode())
    del fields["upstream_model"], fields["failed_targets"]
    assert Outcome.decode(orjson.dumps(fields)) == outcome
