"""Items that a request only names: which responses they are of, and the request that holds them."""

from __future__ import annotations

from typing import Any

import pytest

from common.contracts import JsonObject
from common.errors import BadRequest, TooLarge
from gateway.dialects.responses_reference import (
    MOST_READ_BODIES,
    MOST_REFERENCED,
    Allowance,
    referenced,
    with_items,
)
from gateway.dialects.responses_schema import check_response
from gateway.dialects.responses_turns import Known, turns_of

ONE, OTHER = "1" * 32, "2" * 32
USER: JsonObject = {"role": "user", "content": "hello"}
SAID: Known = Known({"id": f"msg_{ONE}_1", "type": "message", "role": "assistant", "content": "well"})


def naming(*ids: Any) -> JsonObject:
    return {"model": "m", "input": [USER, *({"type": "item_reference", "id": one} for one in ids)]}


def test_each_response_is_named_once_in_the_order_of_its_items() -> None:
    body = naming(f"rs_{ONE}_0", f"msg_{ONE}_1", f"fc_{OTHER}_0")
    check_response(body)
    assert referenced(body) == {ONE: [f"rs_{ONE}_0", f"msg_{ONE}_1"], OTHER: [f"fc_{OTHER}_0"]}
    assert referenced({"model": "m", "input": "hello"}) == referenced({"model": "m", "input": [USER]}) == {}


def test_items_stand_where_they_were_named_and_the_request_itself_stays() -> None:
    body = naming(SAID["id"])
    found = with_items(body, {SAID["id"]: SAID})
    assert found == {"model": "m", "input": [USER, SAID]}
    assert turns_of(found["input"]).messages[1] == {"role": "assistant", "content": "well"}
    assert body == naming(SAID["id"])


@pytest.mark.parametrize(
    "item_id", ["", "msg_1", f"resp_{ONE}", f"msg_{ONE}", f"msg_{ONE}_x", f"msg_{ONE}_1\n", f"MSG_{ONE}_1"]
)
def test_an_id_that_is_none_of_ours_is_refused_by_its_place(item_id: str) -> None:
    with pytest.raises(BadRequest) as caught:
        referenced(naming(f"rs_{ONE}_0", item_id))
    assert caught.value.failure.param == "input[2].id"


def test_a_reference_needs_no_type_and_may_name_what_was_put_in() -> None:
    ids = [f"msg_{ONE}_in0", f"fc_{ONE}_in1", f"fco_{ONE}_in2"]
    for kind in ({}, {"type": None}):
        body: JsonObject = {"model": "m", "input": [{"id": one, **kind} for one in ids]}
        check_response(body)
        assert referenced(body) == {ONE: ids}


def test_what_is_not_found_named_twice_or_too_many_is_refused() -> None:
    with pytest.raises(BadRequest, match="not found") as caught:
        with_items(naming(SAID["id"]), {})
    assert caught.value.failure.param == "input[1].id"
    with pytest.raises(BadRequest, match="already"):
        referenced(naming(SAID["id"], SAID["id"]))
    ids = [f"msg_{number:032x}_0" for number in range(MOST_REFERENCED + 1)]
    assert len(referenced(naming(*ids[1:]))) == MOST_REFERENCED
    with pytest.raises(BadRequest, match=str(MOST_REFERENCED)):
        referenced(naming(*ids))


def test_what_is_named_may_be_a_body_and_what_is_read_for_it_several() -> None:
    left = Allowance.of(10)
    left.take(10, 10 * MOST_READ_BODIES)
    for more in ((1, 0), (0, 1)):
        with pytest.raises(TooLarge) as caught:
            Allowance(left.named_bytes, left.read_bytes).take(*more)
        assert caught.value.failure.param == "input"


def test_where_nothing_is_looked_up_a_reference_is_refused_and_not_left_out() -> None:
    with pytest.raises(BadRequest, match="item_reference"):
        turns_of(naming(SAID["id"])["input"])
