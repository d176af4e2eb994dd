"""Whether a caller's connection still stands: gRPC ends a call that was cancelled and one that was lost alike."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Final
from urllib.parse import unquote

TABLES: Final = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))
WORD_BYTES: Final = 4
_ESTABLISHED: Final = b"01"


class Connections:
    """The connections to one port, as the kernel lists them. Where it has no list, as outside Linux, none is known."""

    def __init__(self, tables: Sequence[Path] = TABLES) -> None:
        self.port = 0
        self._tables = tables
        self._reading = asyncio.Lock()
        self._next: asyncio.Task[frozenset[bytes]] | None = None

    async def stands(self, peer: str) -> bool:
        """Whether the connection of this peer, by gRPC's name for it, is known to stand."""
        name = name_of(peer)
        return name is not None and name in await self._standing()

    async def _standing(self) -> frozenset[bytes]:
        """The peers of now: one look for all who ask before it begins, as many calls may end at once."""
        if self._next is None:
            self._next = asyncio.create_task(self._look(), name="rpc connections")
        return await asyncio.shield(self._next)

    async def _look(self) -> frozenset[bytes]:
        async with self._reading:
            self._next = None
            return await asyncio.to_thread(_peers, self._tables, self.port)


def name_of(peer: str) -> bytes | None:
    """The kernel's name for gRPC's `ipv4:127.0.0.1:80` or `ipv6:%5B::1%5D:80`; None for what is no such address."""
    _, _, address = peer.partition(":")
    host, _, port = unquote(address).rpartition(":")
    try:
        ip, number = ip_address(host.strip("[]").partition("%")[0]), int(port)
    except ValueError:
        return None
    plain = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
    return b"%s:%04X" % (_words((plain or ip).packed), number)


def _peers(tables: Sequence[Path], port: int) -> frozenset[bytes]:
    local = b":%04X" % port
    return frozenset(peer for own, peer, state in _rows(tables) if state == _ESTABLISHED and own.endswith(local))


def _rows(tables: Sequence[Path]) -> Iterator[tuple[bytes, bytes, bytes]]:
    """(own end, peer, state) of each socket. One that takes both kinds of address names IPv4's in IPv6's way."""
    for table in tables:
        try:
            lines = table.read_bytes().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, own, peer, state, _ = line.split(None, 4)
            yield own, peer.removeprefix(_MAPPED), state


def _words(packed: bytes) -> bytes:
    """An address in the kernel's hexadecimals: words of four bytes, each in this machine's order."""
    words = [packed[start : start + WORD_BYTES] for start in range(0, len(packed), WORD_BYTES)]
    return b"".join(b"%08X" % int.from_bytes(word, sys.byteorder) for word in words)


_MAPPED: Final = _words(bytes(10) + b"\xff\xff")
