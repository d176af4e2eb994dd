"""What `workers/engine.py` takes for granted about arq's insides; a newer arq that changes it fails here first."""

from __future__ import annotations

import inspect
import re
from importlib import metadata
from typing import Any

from arq.connections import ArqRedis
from arq.jobs import deserialize_job_raw
from arq.worker import Worker, func


async def _nothing(ctx: dict[Any, Any]) -> None:
    return None


def _source(method: str) -> str:
    return inspect.getsource(getattr(Worker, method))


def test_arq_is_the_version_whose_insides_are_known() -> None:
    assert metadata.version("arq").startswith("0.28.")


def test_run_job_opens_with_one_pipeline_of_get_incr_expire_and_zrem_in_this_order() -> None:
    prologue = _source("run_job").split("function_name, enqueue_time_ms", 1)[0]

    assert re.findall(r"pipe\.(\w+)\(", prologue) == ["get", "incr", "expire", "zrem", "execute", "execute"]
    assert "self.pool.pipeline(transaction=True)" in prologue
    assert "v, job_try, _, abort_job = await pipe.execute()" in prologue


def test_run_job_asks_redis_nothing_else_but_a_retry_count_that_we_never_set() -> None:
    source = _source("run_job")

    assert len(re.findall(r"self\.pool\.", source)) == 2
    assert "if enqueue_job_try and enqueue_job_try > job_try:" in source


def test_a_stored_job_is_read_as_function_arguments_keywords_try_and_enqueue_time() -> None:
    stored = {"f": "inference", "a": (1,), "k": {"b": 2}, "t": None, "et": 5}

    read = deserialize_job_raw(b"", deserializer=lambda _: stored)

    assert read == ("inference", (1,), {"b": 2}, None, 5)


def test_run_job_ends_in_finish_job_shielded_with_finish_as_its_second_argument() -> None:
    assert list(inspect.signature(Worker.finish_job).parameters)[:3] == ["self", "job_id", "finish"]
    epilogue = _source("run_job").rsplit("on_job_end", 1)[-1]
    assert "asyncio.shield(" in epilogue
    assert "self.finish_job(" in epilogue


def test_an_aborted_task_counts_as_finished_and_a_cancelled_one_as_to_be_run_again() -> None:
    source = _source("run_job")
    aborted = source.index("job_id in self.aborting_tasks and isinstance(e, asyncio.CancelledError)")
    cancelled = source.index("isinstance(e, (asyncio.CancelledError, RetryJob))")

    assert aborted < cancelled
    assert "finish = True" in source[aborted:cancelled]


def test_the_job_s_own_task_is_kept_by_id_for_cancelling() -> None:
    assert "self.job_tasks[job_id] = task = self.loop.create_task(function.coroutine(ctx" in _source("run_job")


def test_no_result_is_serialized_when_none_is_kept() -> None:
    assert func(_nothing, name="inference", keep_result=0).keep_result_s == 0
    assert "if result is not no_result and (keep_result_forever or result_timeout_s > 0):" in _source("run_job")


def test_the_loop_is_one_poll_iteration_after_another_and_main_is_ours_to_replace() -> None:
    assert "await self._poll_iteration()" in _source("main")
    assert "self.loop.create_task(self.main())" in _source("async_run")


def test_the_first_signal_stops_picking_waits_and_then_cancels_what_is_left() -> None:
    assert "self.allow_pick_jobs = False" in _source("handle_sig_wait_for_completion")
    waiting = _source("_wait_for_tasks_to_complete")
    assert waiting.index("wait_for(") < waiting.index("t.cancel()") < waiting.index("self.main_task.cancel()")
    assert "while len(self.tasks)" in _source("_sleep_until_tasks_complete")


def test_the_worker_s_client_makes_its_pipelines_by_a_method_that_can_be_replaced() -> None:
    assert list(inspect.signature(ArqRedis.pipeline).parameters)[:3] == ["self", "transaction", "shard_hint"]
