"""Which of a port's connections stand, by the kernel's list."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from gateway.rpc import connections
from gateway.rpc.connections import Connections, name_of

pytestmark = pytest.mark.skipif(not connections.TABLES[0].exists(), reason="no such list but in Linux")

HEAD = b"sl local_address rem_address st tx_queue:rx_queue\n"


def peer_name(end: socket.socket) -> str:
    """What gRPC calls this end of a connection."""
    host, port = end.getsockname()[:2]
    return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"


@pytest.mark.parametrize(
    ("listens_at", "comes_to"), [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::ffff:127.0.0.1", "127.0.0.1")]
)
async def test_a_connection_stands_until_either_end_closes_it(listens_at: str, comes_to: str) -> None:
    with ExitStack() as stack:
        kind = socket.AF_INET6 if ":" in listens_at else socket.AF_INET
        listener = stack.enter_context(socket.socket(kind))
        listener.bind((listens_at, 0))
        listener.listen()
        port = listener.getsockname()[1]
        client = stack.enter_context(socket.create_connection((comes_to, port)))
        server = stack.enter_context(listener.accept()[0])
        known = Connections()
        known.port = port
        peer = peer_name(client)
        assert await known.stands(peer)
        other = Connections()
        other.port = port + 1
        assert not await other.stands(peer)
        client.close()
        assert server.recv(1) == b""
        assert not await known.stands(peer)


@pytest.mark.parametrize(
    ("peer", "little_endian"),
    [
        ("ipv4:127.0.0.1:80", b"0100007F:0050"),
        ("ipv6:%5B::1%5D:80", b"00000000000000000000000001000000:0050"),
        ("ipv6:%5Bfe80::1%25eth0%5D:80", b"000080FE000000000000000001000000:0050"),
        ("ipv6:%5B::ffff:127.0.0.1%5D:80", b"0100007F:0050"),
    ],
)
@pytest.mark.skipif(sys.byteorder != "little", reason="the words' order is this machine's")
def test_a_peer_is_named_as_the_kernel_names_it(peer: str, little_endian: bytes) -> None:
    assert name_of(peer) == little_endian


@pytest.mark.parametrize("peer", ["", "unix:/tmp/socket", "ipv4:127.0.0.1", "ipv4:somewhere:80", "ipv4:127.0.0.1:x"])
async def test_what_is_no_address_is_no_connection_that_stands(peer: str) -> None:
    assert not await Connections().stands(peer)


async def test_without_a_list_no_connection_is_known_to_stand() -> None:
    assert not await Connections([Path("/no/such/list")]).stands("ipv4:127.0.0.1:80")


async def test_who_asks_during_a_look_has_the_next_one(tmp_path: Path) -> None:
    table = tmp_path / "table"
    os.mkfifo(table)
    known = Connections([table])
    peer = "ipv4:127.0.0.1:80"
    first = asyncio.create_task(known.stands(peer))
    with await asyncio.to_thread(table.open, "wb") as looked_at:
        later = [asyncio.create_task(known.stands(peer)) for _ in range(3)]
        await asyncio.sleep(0)
        looked_at.write(HEAD)
    assert not await first
    with await asyncio.to_thread(table.open, "wb") as looked_at:
        looked_at.write(HEAD + b"0: 0100007F:0000 0100007F:0050 01 00000000:00000000\n")
    assert await asyncio.gather(*later) == [True] * 3
