"""Reflection over gRPC: what a caller may ask to have described, and what there is not."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, cast

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from gateway.rpc.server import SERVICES
from gateway.rpc.standard import reflecting


async def described(symbol: str) -> ServerReflectionResponse:
    """What the server says of this symbol."""

    async def requests() -> AsyncGenerator[ServerReflectionRequest]:
        yield ServerReflectionRequest(file_containing_symbol=symbol)

    answers = cast("Any", reflecting(SERVICES)).ServerReflectionInfo(requests(), None)
    [answer] = [one async for one in answers]
    return answer


@pytest.mark.parametrize(
    ("symbol", "file"),
    [
        ("headrace.v1.InferenceService", "headrace/v1/inference.proto"),
        ("headrace.v1.InferenceService.Infer", "headrace/v1/inference.proto"),
        ("headrace.v1.ChatRequest.model", "headrace/v1/inference.proto"),
        ("grpc.health.v1.Health.Check", "grpc_health/v1/health.proto"),
    ],
)
async def test_services_their_methods_and_fields_are_found(symbol: str, file: str) -> None:
    files = (await described(symbol)).file_descriptor_response.file_descriptor_proto
    assert file in {FileDescriptorProto.FromString(one).name for one in files}


@pytest.mark.parametrize("symbol", ["headrace.v1.Nope", "headrace.v1.InferenceService.Nope", ""])
async def test_what_there_is_not_is_not_found(symbol: str) -> None:
    assert (await described(symbol)).error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
