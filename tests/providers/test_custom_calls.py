"""Calls of custom tools as servers of OpenAI's dialect stream them."""

from __future__ import annotations

from typing import Any

import pytest

from common.errors import UpstreamProtocolError
from workers.providers.openai_calls import Calls, mended


def test_each_custom_call_has_its_id_type_and_name_once() -> None:
    calls = Calls()
    begun = calls.told([{"index": 0, "id": "a", "custom": {"name": "c", "input": ""}}])
    assert begun == [{"index": 0, "id": "a", "type": "custom", "custom": {"name": "c", "input": ""}}]
    again = {"index": 0, "id": "a", "type": "custom", "custom": {"name": "c", "input": "x"}}
    assert calls.told([again]) == [{"index": 0, "custom": {"input": "x"}}]
    (second,) = calls.told([{"index": 1, "id": "b", "type": "custom", "custom": {"name": "c", "input": "y"}}])
    assert (second["index"], second["id"]) == (1, "b")


@pytest.mark.parametrize("custom", ["x", [1], {"name": 1}, {"name": "c", "input": {}}])
def test_a_custom_call_of_other_types_is_the_servers_fault(custom: Any) -> None:
    with pytest.raises(UpstreamProtocolError):
        mended({"index": 0, "id": "a", "custom": custom})
    assert mended({"index": 0, "custom": None, "function": {"arguments": "{}"}})
