"""Clients for Node in front of any model, a real one too."""

from __future__ import annotations

import pytest

from tests.support.fleet import Fleet
from tests.support.node import NEEDS_NODE, passes

pytestmark = NEEDS_NODE
# A real model, on a machine that has other things to do.
LIMIT_S = 240


@pytest.mark.timeout(LIMIT_S + 60)
def test_each_client_with_any_model(served: Fleet, any_model: str) -> None:
    passes("any_model", served, limit_s=LIMIT_S, HEADRACE_TEST_MODEL=any_model)
