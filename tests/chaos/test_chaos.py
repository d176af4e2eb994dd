"""Under kills and freezes at random, every accepted job ends once, and every reader gets each event once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.chaos.plan import Plan
from tests.chaos.storm import Storm
from tests.support.runner import drawn_seed

RUN_LIMIT_S = 900


@pytest.mark.timeout(RUN_LIMIT_S)
async def test_no_accepted_job_is_lost_ends_twice_or_shows_a_reader_a_gap_or_a_double(tmp_path: Path) -> None:
    result = await Storm(Plan.drawn(drawn_seed()), tmp_path).run()
    sys.stdout.write("\n")
    result.tell()
    assert result.problems == []
