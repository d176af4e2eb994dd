"""One fleet for all faults, made whole before each test and looked over after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fleet import Fleet
from tests.support.redis_server import EVERY_WRITE_KEPT
from tests.support.stage import LEASE_S, Stage


@pytest.fixture(scope="session")
def _stage_of_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    place = tmp_path_factory.mktemp("faults")
    fleet = Fleet(
        place,
        gateways=2,
        workers=2,
        valkey=EVERY_WRITE_KEPT,
        lease_s=LEASE_S,
        disconnect_grace_s=1,
        drain_s=3,
        keepalive_s=1,
    )
    try:
        yield Stage(fleet.start())
    finally:
        fleet.stop()


@pytest.fixture
def stage(_stage_of_all: Stage) -> Iterator[Stage]:
    """The fleet with every member at work and nothing left of earlier tests; afterwards nothing may be left of this."""
    _stage_of_all.mend(cancel=True)
    yield _stage_of_all
    _stage_of_all.mend()
    _stage_of_all.check()
