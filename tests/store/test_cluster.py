"""Redis Cluster's rule: a script touches one slot. Seen on a server in cluster mode, in its trace, in the source."""

from __future__ import annotations

import re
import shlex
import socket
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import pytest
from hiredis import ReplyError

from common.store import Argument, Script, Store, load_scripts
from tests.store.scenario import everything
from tests.support.redis_server import RedisServer
from tests.support.seeds import POOL, Rig

OTHER: Final = "other-pool"
SCRIPTS: Final = load_scripts()
KEY_LATER: Final = ("XGROUP", "XREADGROUP")


class NotingStore(Store):
    """Notes every script call before it makes it."""

    def call(self, script: str, prefix: str, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        self.__dict__.setdefault("noted", []).append((script, prefix, tuple(keys)))
        return super().call(script, prefix, keys, args)


@contextmanager
def trace(server: RedisServer) -> Generator[list[list[str]]]:
    """The commands that the server carries out meanwhile, with `lua` first for those that scripts call."""
    lines: list[list[str]] = []
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as monitor:
        monitor.sendall(b"MONITOR\r\n")
        stream = monitor.makefile("rb")
        assert stream.readline() == b"+OK\r\n"
        yield lines
        server.command("ECHO", "that was all")
        while True:
            text = stream.readline().decode(errors="replace")
            if "that was all" in text:
                return
            source, _, words = text.partition("] ")
            lines.append([source.rpartition(" ")[2].partition(":")[0], *shlex.split(words)])


@pytest.mark.either_server
async def test_every_script_runs_on_a_cluster_and_declares_keys_of_one_slot(cluster_server: RedisServer) -> None:
    store = NotingStore.from_url(cluster_server.url)
    try:
        r = Rig(cluster_server, store)
        await everything(r, POOL)
        await everything(r, OTHER)
    finally:
        await store.close()
    noted: list[tuple[str, str, tuple[str, ...]]] = store.__dict__["noted"]
    assert {script for script, _, _ in noted} == set(SCRIPTS)
    for script, prefix, keys in noted:
        assert re.fullmatch(r"hr:\{[^{}]+\}:", prefix)
        assert all(key.startswith(prefix) for key in keys), script


@pytest.mark.either_server
async def test_no_command_of_a_script_leaves_the_slot_of_its_prefix(cluster_server: RedisServer) -> None:
    store = Store.from_url(cluster_server.url)
    try:
        with trace(cluster_server) as lines:
            await everything(Rig(cluster_server, store), POOL)
    finally:
        await store.close()
    script_prefix = ""
    inside = 0
    for source, name, *words in lines:
        if name.upper() == "EVALSHA":
            script_prefix = words[2 + int(words[1])]
        elif source == "lua" and words:
            inside += 1
            # The first word is the key, but for these.
            places = [word for word in words if word.startswith("hr:")] if name.upper() in KEY_LATER else words
            assert places[0].startswith(script_prefix), (name, places[0], script_prefix)
    assert inside > 100


@pytest.mark.either_server
def test_a_script_that_left_its_slot_would_be_caught(cluster_server: RedisServer) -> None:
    source = "#!lua\nredis.call('GET', KEYS[1]) return redis.call('GET', ARGV[1])"
    cluster_server.command("EVAL", source, 1, "hr:{a}:x", "hr:{a}:y")
    with pytest.raises(ReplyError, match="slot"):
        cluster_server.command("EVAL", source, 1, "hr:{a}:x", "hr:{b}:y")


CALL = re.compile(r"redis\.p?call\(\s*'(\w+)'\s*(?:,\s*([^,()]+(?:\.\.[^,()]+)*))?")
KEYLESS: Final = {"TIME"}


def own_names(source: str) -> set[str]:
    """The local names of a script that hold its declared keys or a key derived from its prefix."""
    names: set[str] = set()
    for left, right in re.findall(r"^\s*local ([\w, ]+) = (.+)$", source, re.MULTILINE):
        for name, value in zip(left.split(", "), right.split(", "), strict=False):
            if value.startswith(("prefix .. '", "KEYS[")):
                names.add(name)
        if right.startswith("unpack(KEYS)"):
            names.update(left.split(", "))
    return names


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=lambda script: script.name)
def test_every_key_in_a_scripts_source_is_declared_or_derived_from_its_prefix(script: Script) -> None:
    assert "hr:" not in script.source
    assert script.source.count("'prefix'") == 0
    code = "\n".join(line for line in script.source.splitlines() if not line.startswith("--"))
    names = own_names(code) | parameters_of_local_functions(code)
    calls = CALL.findall(code)
    # Its key stands after the word STREAMS.
    calls += [("XREADGROUP", key) for key in re.findall(r"'STREAMS', (\w+)", code)]
    calls += [("XGROUP", key) for key in re.findall(r"'XGROUP', 'CREATE', (\w+)", code)]
    assert calls
    for command, key in calls:
        if command not in KEYLESS and key not in ("'GROUP'", "'CREATE'"):
            assert key.strip() in names or key.startswith(("prefix .. '", "KEYS[")), (command, key)


def parameters_of_local_functions(code: str) -> set[str]:
    """Names of parameters that every caller fills with a key derived from the prefix."""
    names: set[str] = set()
    for function, parameters in re.findall(r"local function (\w+)\(([\w, ]*)\)", code):
        calls = re.findall(rf"(?<!function ){function}\(([^)]*)\)", code)
        for index, name in enumerate(parameters.split(", ")):
            given = [call.split(", ") for call in calls if call]
            if given and all(len(words) > index and words[index].startswith("prefix .. '") for words in given):
                names.add(name)
    return names


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=lambda script: script.name)
def test_a_scripts_header_tells_its_keys_its_answer_and_what_it_derives(script: Script) -> None:
    first, *rest = script.source.splitlines()
    assert first in ("#!lua", "#!lua flags=allow-oom")
    header = "\n".join(line for line in rest if line.startswith("--"))
    assert "-- KEYS " in header
    assert "-- ARGV 1 " in header
    assert "-- Returns " in header
    code = script.source.replace(header, "")
    derived = set(re.findall(r"prefix \.\. '(\w+:)'", code))
    told = set(re.findall(r"`(\w+:)`", "\n".join(line for line in header.splitlines() if "erives" in line)))
    assert derived == told


def test_only_admission_needs_memory() -> None:
    assert {script.name for script in SCRIPTS.values() if script.source.startswith("#!lua\n")} == {"submit"}
