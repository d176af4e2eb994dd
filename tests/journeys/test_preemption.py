"""Chat while every slot is taken by long batch work: with the policy on, batch streams give way and begin anew."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from common import keys
from tests.support.fleet import Fleet, until
from tests.support.say import CHAT, Frame, chat, follow, frames, submit, text_of, when

pytestmark = pytest.mark.timeout(90)

SLOTS = 2
TOKENS = 60
WHOLE = "".join(f" {number}" for number in range(TOKENS))


@pytest.fixture(scope="module", params=["worker", "backend"])
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One worker; what is scarce are its own slots, or those of the backend."""
    scarce = request.param == "backend"
    config = f"""
backends: [{{name: echo, kind: echo, concurrency: {SLOTS if scarce else 64}}}]
models: {{echo: {{targets: [{{backend: echo, model: echo}}]}}}}
"""
    one = Fleet(
        tmp_path_factory.mktemp("preempting"),
        config=config,
        worker_concurrency=16 if scarce else SLOTS,
        preemptible="batch",
        preempt_after_ms=50,
    )
    try:
        yield one.start()
    finally:
        one.stop()


def long_batch_jobs(client: httpx.Client, count: int) -> list[str]:
    """Ids of batch jobs of which as many run as there are slots."""
    ids = [submit(client, chat(numbered=True, tokens=TOKENS, token_ms=40), priority="batch") for _ in range(count)]
    until(lambda: len(running(client)) == SLOTS, what="the slots were not taken")
    return ids


def running(client: httpx.Client) -> list[str]:
    """The jobs that the worker holds."""
    (worker,) = client.get("/workers").json()
    return worker["jobs"]


def preempted(fleet: Fleet) -> int:
    """How often a job gave way since the fleet began."""
    return int(fleet.redis.command("HGET", keys.stats("default"), "preempted") or 0)


def test_chat_does_not_wait_for_batch_work_to_end(fleet: Fleet) -> None:
    before = preempted(fleet)
    with fleet.client() as client:
        ids = long_batch_jobs(client, SLOTS)
        began_s = time.monotonic()
        with client.stream("POST", CHAT, json=chat(stream=True, numbered=True, tokens=3)) as answer:
            raw = b""
            first_s = 0.0
            for piece in answer.iter_raw():
                raw += piece
                first_s = first_s or time.monotonic() - began_s
            states = [client.get(f"/v1/jobs/{job_id}").json()["status"] for job_id in ids]
        assert text_of(frames(raw)) == " 0 1 2"
        sys.stdout.write(f"first token after {first_s * 1000:.0f} ms, all {SLOTS} slots taken by 2.4 s of batch work\n")
        # It was answered while neither of them had ended.
        assert "succeeded" not in states
        ended = [when(client, job_id, limit_s=30) for job_id in ids]
    assert [job["status"] for job in ended] == ["succeeded"] * SLOTS
    assert [job["result"]["choices"][0]["message"]["content"] for job in ended] == [WHOLE] * SLOTS
    assert sum(job["attempt"] for job in ended) == SLOTS + preempted(fleet) - before
    assert preempted(fleet) == before + 1
    # Giving way is no failure.
    assert [job["attempts"] for job in ended] == [[]] * SLOTS


def test_who_reads_a_stream_that_gives_way_is_told_and_gets_it_whole(fleet: Fleet) -> None:
    read: dict[str, list[Frame]] = {}

    def reader(job_id: str) -> None:
        with fleet.client() as own:
            read[job_id] = frames(follow(own, job_id)[1])

    with fleet.client() as client:
        ids = long_batch_jobs(client, SLOTS)
        threads = [threading.Thread(target=reader, args=(job_id,)) for job_id in ids]
        for thread in threads:
            thread.start()
        until(lambda: all(_tokens(fleet, job_id) > 3 for job_id in ids), what="no tokens came")
        assert client.post(CHAT, json=chat(numbered=True, tokens=2)).status_code == 200
        for thread in threads:
            thread.join(60)
        began_anew = [job_id for job_id in ids if any(frame.name == "reset" for frame in read[job_id])]
        assert len(began_anew) == 1
        for job_id in ids:
            names = [frame.name for frame in read[job_id]]
            after = len(names) - names[::-1].index("reset") if "reset" in names else 0
            assert text_of(read[job_id][after:]) == WHOLE
            assert read[job_id][-1].data == "[DONE]"


def _tokens(fleet: Fleet, job_id: str) -> int:
    return int(fleet.redis.command("XLEN", keys.stream("default", job_id)))
