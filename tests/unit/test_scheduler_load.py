"""What model servers say of their load, as they say it, in numbers."""

from __future__ import annotations

import pytest

from common.health import Load
from scheduler import load

VLLM = b"""\
# HELP python_gc_objects_collected_total Objects collected during gc
# TYPE python_gc_objects_collected_total counter
python_gc_objects_collected_total{generation="0"} 11874.0
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="meta-llama/Llama-3.1-8B-Instruct"} 3.0
vllm:num_requests_running{engine="1",model_name="meta-llama/Llama-3.1-8B-Instruct"} 4.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="meta-llama/Llama-3.1-8B-Instruct"} 0.0
vllm:num_requests_waiting{engine="1",model_name="meta-llama/Llama-3.1-8B-Instruct"} 5.0
# HELP vllm:num_requests_waiting_by_reason Number of requests waiting by reason.
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 40.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="deferred"} 50.0
vllm:kv_cache_usage_perc{engine="0",model_name="meta-llama/Llama-3.1-8B-Instruct"} 0.125
"""

SLOTS = (
    b'[{"id":0,"n_ctx":2048,"speculative":false,"is_processing":true,"id_task":7,"next_token":[{"n_decoded":4}]},'
    b'{"id":1,"n_ctx":2048,"speculative":false,"is_processing":false},'
    b'{"id":2,"n_ctx":2048,"speculative":false,"is_processing":true,"id_task":9}]'
)

PS = (
    b'{"models":[{"name":"mistral:latest","model":"mistral:latest","size":5137025024,"digest":"2ae6f6dd7a3d",'
    b'"details":{"format":"gguf","family":"llama"},"expires_at":"2024-06-04T14:38:31.83753-07:00",'
    b'"size_vram":5137025024,"context_length":4096}]}'
)


def test_vllms_requests_are_summed_over_its_engines_by_the_exact_name() -> None:
    assert load.vllm(VLLM) == Load(running=7, waiting=5)


def test_a_gauge_that_is_absent_is_unknown_while_the_other_counts() -> None:
    without = b"\n".join(line for line in VLLM.splitlines() if not line.startswith(b"vllm:num_requests_waiting{"))
    assert b"num_requests_waiting_by_reason" in without
    assert load.vllm(without) == Load(running=7, waiting=None)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b"g 4", 4),
        (b"g{} 4.0", 4),
        (b'g{a="x y} z{"} 4.0', 4),
        (b"g 4.0 1395066363000", 4),
        (b"g 4.0  ", 4),
        (b"g 4e0\ng 1", 5),
        (b"g 4\r\ng 1\r\n", 5),
        (b"g 0", 0),
        (b"# g 4", None),
        (b"gg 4", None),
        (b"g_total 4", None),
        (b"g NaN", None),
        (b"g +Inf", None),
        (b"g -1", None),
        (b"g four", None),
        (b"g", None),
        (b"g{a= 4", None),
        (b"\xff\xfe", None),
        (b"", None),
        (b"<html>g 4</html>", None),
    ],
)
def test_a_gauge_is_read_as_prometheus_writes_it_or_not_at_all(line: bytes, value: int | None) -> None:
    assert load.gauge(line, "g") == value


def test_llamacpps_load_is_its_busy_slots_and_what_waits_is_unknown() -> None:
    assert load.llamacpp(SLOTS) == Load(running=2, waiting=None)
    assert load.llamacpp(SLOTS.replace(b"true", b"false")) == Load(running=0, waiting=None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        b"not json",
        b'[{"id":0}]',
        b'[{"is_processing":1}]',
        b"[1]",
        b'{"error":{"code":501,"message":"This server does not support slots endpoint.","type":"not_supported_error"}}',
    ],
)
def test_slots_that_say_nothing_of_processing_leave_the_load_unknown(body: bytes) -> None:
    assert load.llamacpp(body) == Load()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (PS, "1 model in memory"),
        (b'{"models":[]}', "0 models in memory"),
        (b'{"models":[{},{}]}', "2 models in memory"),
        (b"{}", ""),
        (b"[]", ""),
        (b"", ""),
        (b'{"models":5}', ""),
    ],
)
def test_ollamas_loaded_models_are_counted_where_it_lists_them(body: bytes, words: str) -> None:
    assert load.loaded_models(body) == words
