"""A large batch whose worker and gateway are killed in the middle: every line is answered, and answered once."""

from __future__ import annotations

import json
from pathlib import Path

import openai
import pytest

from common import keys
from tests.support.fleet import KEY, Fleet, until
from tests.support.seeds import POOL

pytestmark = [pytest.mark.timeout(120), pytest.mark.lengthy]

LINES = 5_000


def _line(number: int) -> str:
    body = {"model": "echo", "messages": [{"role": "user", "content": f"line {number}"}]}
    return json.dumps({"custom_id": f"c{number}", "method": "POST", "url": "/v1/chat/completions", "body": body})


def test_a_batch_of_five_thousand_lines_outlives_a_worker_and_a_gateway(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, gateways=2, workers=2)
    try:
        fleet.start()
        with openai.OpenAI(api_key=KEY, base_url=fleet.url(0) + "/v1", timeout=30) as sdk:
            data = "\n".join(map(_line, range(LINES))).encode()
            file = sdk.files.create(file=("in.jsonl", data), purpose="batch")
            batch = sdk.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            ).id
        # Either gateway may have taken it.
        owner = until(lambda: next((n for n in (0, 1) if batch in fleet.members[f"gateway-{n}"].log()), -1) + 1) - 1
        with openai.OpenAI(api_key=KEY, base_url=fleet.url(1 - owner) + "/v1", timeout=30) as sdk:

            def completed() -> int:
                counts = sdk.batches.retrieve(batch).request_counts
                return counts.completed if counts else 0

            until(lambda: completed() > 500)
            fleet.kill("worker-0")
            until(lambda: completed() > 2_000)
            assert completed() < LINES
            fleet.kill(f"gateway-{owner}")
            until(lambda: sdk.batches.retrieve(batch).status == "completed", 90)
            found = sdk.batches.retrieve(batch)
            rows = [json.loads(one) for one in sdk.files.content(found.output_file_id or "").read().splitlines()]
        assert found.error_file_id is None
        assert sorted(row["custom_id"] for row in rows) == sorted(f"c{number}" for number in range(LINES))
        for row in rows:
            said = row["response"]["body"]["choices"][0]["message"]["content"]
            assert said == f"line {row['custom_id'][1:]}"
        # Each line was one job, whoever submitted it, and each job ended once.
        counts = dict(zip(*[iter(fleet.redis.command("HGETALL", keys.stats(POOL)))] * 2, strict=True))
        assert int(counts[b"submitted"]) == int(counts[b"succeeded"]) == LINES
    finally:
        fleet.stop()
