"""Chat beside more batch work than there are slots: some are kept for it, as the configuration says."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.support.fleet import Fleet, until
from tests.support.say import CHAT, chat, record, submit, when

pytestmark = pytest.mark.timeout(60)

SLOTS, KEPT = 8, 2
CONFIG = """
backends: [{name: echo, kind: echo}]
models: {echo: {targets: [{backend: echo, model: echo}]}}
"""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One worker."""
    one = Fleet(
        tmp_path_factory.mktemp("keeping"), config=CONFIG, worker_concurrency=SLOTS, interactive_reserve=KEPT / SLOTS
    )
    try:
        yield one.start()
    finally:
        one.stop()


def held(client: httpx.Client) -> int:
    """How many jobs the worker holds."""
    (worker,) = client.get("/workers").json()
    return len(worker["jobs"])


def test_chat_is_answered_while_a_batch_backlog_waits_for_slots(fleet: Fleet) -> None:
    with fleet.client() as client:
        assert client.post(CHAT, json=chat(tokens=1)).status_code == 200
        long, short = chat(numbered=True, tokens=1, hang_at=0), chat(tokens=1)
        ids = [submit(client, long, priority="batch") for _ in range(SLOTS - KEPT)]
        ids += [submit(client, short, priority="batch") for _ in range(KEPT + 2)]
        until(lambda: held(client) == SLOTS - KEPT, what="the slots for batch work were not taken")
        for _ in range(3):
            assert client.post(CHAT, json=chat(tokens=1)).status_code == 200
        states = [record(client, job_id)["status"] for job_id in ids]
        assert states == ["running"] * (SLOTS - KEPT) + ["queued"] * (KEPT + 2)
        for job_id in ids[: SLOTS - KEPT]:
            client.post(f"/v1/jobs/{job_id}/cancel")
        ended = [when(client, job_id, limit_s=30)["status"] for job_id in ids]
        assert ended == ["cancelled"] * (SLOTS - KEPT) + ["succeeded"] * (KEPT + 2)
