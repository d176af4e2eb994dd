"""gRPC's standard services, which need no key: the health of each service here, and reflection by both its versions."""

from __future__ import annotations

from typing import Any, Final, cast

import grpc
from google.protobuf import text_format
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from gateway.rpc.headrace.v1 import inference_pb2 as pb

# The later version says the same in the same words under another name.
_ALPHA, _V1 = "v1alpha", "v1"
REFLECTION: Final = reflection.SERVICE_NAME
REFLECTION_V1: Final = REFLECTION.replace(_ALPHA, _V1)
STANDARD: Final = (health.SERVICE_NAME, REFLECTION_V1, REFLECTION)
_FILES: Final = (pb, health_pb2, reflection_pb2, error_details_pb2, status_pb2)

Context = grpc.aio.ServicerContext[Any, Any]


class Health(health.aio.HealthServicer):
    """The health of these services and of the whole (""), with the call that lists them."""

    def __init__(self, services: tuple[str, ...]) -> None:
        super().__init__()
        self._names = ("", *services)

    async def tell(self, *, ready: bool) -> None:
        """Says of all of them whether they serve."""
        known = health_pb2.HealthCheckResponse
        for name in self._names:
            await self.set(name, known.SERVING if ready else known.NOT_SERVING)

    async def List(self, request: Message, context: Context) -> Message:
        """Each service's health."""
        # Newer than the type stubs of these packages.
        check, listed = cast("Any", self).Check, cast("Any", health_pb2).HealthListResponse
        asks = {name: health_pb2.HealthCheckRequest(service=name) for name in self._names}
        return listed(statuses={name: await check(ask, context) for name, ask in asks.items()})


def add_health(server: grpc.aio.Server, services: tuple[str, ...]) -> Health:
    """The health service, now the server's."""
    found = Health(services)
    health_pb2_grpc.add_HealthServicer_to_server(found, server)
    return found


def add_reflection(server: grpc.aio.Server, services: tuple[str, ...]) -> None:
    """Has the server describe these services, itself among them."""
    servicer = reflecting(services)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)  # pyright: ignore[reportUnknownMemberType]
    method = grpc.stream_stream_rpc_method_handler(
        cast("Any", servicer).ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    handlers = grpc.method_handlers_generic_handler(REFLECTION_V1, {"ServerReflectionInfo": method})
    server.add_generic_rpc_handlers((handlers,))


def reflecting(services: tuple[str, ...]) -> reflection.aio.ReflectionServicer:
    """What answers for the description of these services."""
    return reflection.aio.ReflectionServicer(services, pool=cast("DescriptorPool", _WithMethods(described())))


class _WithMethods:
    """A pool that finds the file of a method, too, which the pool's own search for symbols passes over."""

    def __init__(self, pool: DescriptorPool) -> None:
        self._pool = pool

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:
        """The file that declares this. Raises KeyError."""
        # Untyped in the stubs of this package.
        pool = cast("Any", self._pool)
        try:
            return pool.FindFileContainingSymbol(symbol)
        except KeyError:
            return pool.FindMethodByName(symbol).containing_service.file


def described() -> DescriptorPool:
    """All that a caller may ask for: the services' files, what these need, and the details of errors."""
    pool = DescriptorPool()
    taken: set[str] = set()
    for module in _FILES:
        _add(pool, module.DESCRIPTOR, taken)
    pool.AddSerializedFile(_later_reflection().SerializeToString())
    return pool


def _add(pool: DescriptorPool, file: FileDescriptor, taken: set[str]) -> None:
    if file.name in taken:
        return
    taken.add(file.name)
    for needed in file.dependencies:
        _add(pool, needed, taken)
    pool.AddSerializedFile(file.serialized_pb)


def _later_reflection() -> FileDescriptorProto:
    """The description of reflection's later version, of which no package brings one."""
    alpha = FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(alpha)
    text = text_format.MessageToString(alpha)
    return text_format.Parse(
        text.replace(f"reflection.{_ALPHA}", f"reflection.{_V1}").replace(f"/{_ALPHA}/", f"/{_V1}/"),
        FileDescriptorProto(),
    )
