"""Where nobody keeps a journal no answer claims one, and jobs are the store's alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from common import keys
from common.contracts import State
from common.ledger.database import FILE_NAME
from tests.support.fleet import Fleet
from tests.support.fleet import until as until_it
from tests.support.office import JOBS, background
from tests.support.reader import Caller, numbered
from tests.support.stage import POOL

pytestmark = pytest.mark.timeout(90)


async def test_without_the_journal_jobs_are_the_stores_alone_and_no_database_is_made(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, journal="off")
    try:
        fleet.start()
        async with Caller([fleet.url(0)]) as caller:
            answer = await caller.http.post(fleet.url(0) + JOBS, json=background(numbered(2)))
            assert answer.headers["x-headrace-durability"] == "redis"
            assert (await caller.ended(answer.json()["id"]))["status"] == State.SUCCEEDED
            assert fleet.redis.command("KEYS", "*:ended") == []
        assert not (tmp_path / FILE_NAME).exists()
    finally:
        fleet.stop()


async def test_a_gateway_whose_file_no_scheduler_keeps_does_not_claim_the_journal(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    fleet.add("gateway-0", "gateway", data_dir=str(tmp_path / "its own"))
    try:
        fleet.start()
        until_it(lambda: fleet.redis.command("EXISTS", keys.ledger(POOL)), what="nobody keeps the journal")
        async with Caller([fleet.url(0)]) as caller:
            answer = await caller.http.post(fleet.url(0) + JOBS, json=background(numbered(2)))
            assert (answer.status_code, answer.headers["x-headrace-durability"]) == (202, "redis")
            assert (await caller.ended(answer.json()["id"]))["status"] == State.SUCCEEDED
        assert "journal.another_ledger" in fleet.members["gateway-0"].log()
    finally:
        fleet.stop()
