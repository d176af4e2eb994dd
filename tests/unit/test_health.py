"""A backend's load as far as it is known."""

from __future__ import annotations

import pytest

from common.health import Health


@pytest.mark.parametrize(
    ("running", "waiting", "load"), [(None, None, None), (0, None, 0), (None, 3, 3), (2, 3, 5), (0, 0, 0)]
)
def test_load_is_what_is_said_and_unknown_is_not_nought(
    running: int | None, waiting: int | None, load: int | None
) -> None:
    health = Health(True, checked_ms=0, latency_ms=1, failures=0, running=running, waiting=waiting)
    assert health.load == load
