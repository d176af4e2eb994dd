"""Keeping processes alive and ending them in order: small shell commands stand for the real ones."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from common.clock import SystemClock
from deploy.local.child import ROOT, Command, describe_exit, shorten, tail
from deploy.local.supervisor import FIRST_PAUSE_S, LONGEST_PAUSE_S, Supervisor, pause_s
from deploy.local.trouble import Trouble
from tests.support.runner import until


class NoWaiting(SystemClock):
    """The machine's clock, on which sleeping takes no time."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


def shell(name: str, script: str, log: Path, *, stage: int = 0, grace_s: float = 5) -> Command:
    return Command(name, ("/bin/sh", "-c", script), log / f"{name}.log", stage, grace_s, {"PATH": os.environ["PATH"]})


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


async def test_a_child_that_dies_is_started_again_and_told_of(tmp_path: Path) -> None:
    said: list[str] = []
    supervisor = Supervisor(said.append, NoWaiting())
    await supervisor.start([shell("one", "exec sleep 100", tmp_path)])
    first = supervisor.running["one"].pid
    os.kill(first, signal.SIGKILL)

    async def replaced() -> bool:
        return supervisor.running["one"].pid != first

    await until(replaced)
    assert is_alive(supervisor.running["one"].pid)
    assert "one ended with signal SIGKILL; starting it again" in said[0]
    await supervisor.stop()


async def test_a_child_that_may_leave_is_not_started_again_when_it_ends_well(tmp_path: Path) -> None:
    said: list[str] = []
    supervisor = Supervisor(said.append, NoWaiting())
    once = tmp_path / "once"
    # It fails the first time, and then ends as one does that was told to go.
    script = f"test -e '{once}' && exit 0; touch '{once}'; exit 1"
    await supervisor.start([replace(shell("worker-1", script, tmp_path), may_leave=True)])

    async def left() -> bool:
        return any("has left" in line for line in said)

    await until(left)
    assert [line.partition(";")[0] for line in said] == [
        "worker-1 ended with exit code 1",
        "worker-1 was drained and has left",
    ]
    await supervisor.stop()


async def test_a_child_that_cannot_live_is_given_up_with_its_last_words(tmp_path: Path) -> None:
    supervisor = Supervisor(lambda _: None, NoWaiting())
    await supervisor.start([shell("bad", "echo the disk is full >&2; exit 3", tmp_path)])
    trouble = await supervisor.give_up()
    await supervisor.stop()
    assert isinstance(trouble, Trouble)
    assert "bad can't be kept running" in str(trouble)
    assert str(trouble).endswith("the disk is full")
    assert tail(tmp_path / "bad.log", 100).count("the disk is full") == 5


async def test_children_end_from_the_highest_stage_to_the_lowest(tmp_path: Path) -> None:
    order = tmp_path / "order"
    script = "trap 'echo %s >>{order}; exit 0' TERM; echo up; while :; do sleep 0.02; done"
    names = ["valkey", "worker-1", "gateway"]
    commands = [
        shell(name, script.replace("%s", name).replace("{order}", f"'{order}'"), tmp_path, stage=stage)
        for stage, name in enumerate(names)
    ]
    supervisor = Supervisor(lambda _: None)
    await supervisor.start(commands)

    async def all_up() -> bool:
        return all(tail(command.log, 1) == "up" for command in commands)

    await until(all_up)
    await supervisor.stop()
    assert order.read_text().split() == names[::-1]


async def test_a_child_that_ignores_the_request_is_killed_after_its_grace(tmp_path: Path) -> None:
    said: list[str] = []
    command = shell("deaf", "trap '' TERM; echo up; while :; do sleep 0.02; done", tmp_path, grace_s=0.1)
    supervisor = Supervisor(said.append)
    await supervisor.start([command])

    async def is_up() -> bool:
        return tail(command.log, 1) == "up"

    await until(is_up)
    pid = supervisor.running["deaf"].pid
    await supervisor.stop()
    assert not is_alive(pid)
    assert said == ["deaf ended with signal SIGKILL"]


@pytest.mark.lengthy
async def test_hurry_cuts_a_long_grace_short(tmp_path: Path) -> None:
    command = shell("slow", "trap '' TERM; echo up; while :; do sleep 0.02; done", tmp_path, grace_s=1000)
    supervisor = Supervisor(lambda _: None)
    await supervisor.start([command])

    async def is_up() -> bool:
        return tail(command.log, 1) == "up"

    await until(is_up)
    stopping = asyncio.ensure_future(supervisor.stop())
    supervisor.hurry.set()
    await asyncio.wait_for(stopping, 8)


async def test_nothing_is_left_when_the_parent_itself_is_killed(tmp_path: Path) -> None:
    program = (
        "import asyncio, pathlib, sys\n"
        "from deploy.local.child import Command\n"
        "from deploy.local.supervisor import Supervisor\n"
        "async def main():\n"
        "    supervisor = Supervisor(print)\n"
        "    log = pathlib.Path(sys.argv[1]) / 'log'\n"
        "    await supervisor.start([Command('one', ('/bin/sleep', '100'), log, 0, 5)])\n"
        "    print(supervisor.running['one'].pid, flush=True)\n"
        "    await supervisor.give_up()\n"
        "asyncio.run(main())\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert is_alive(pid)
    parent.kill()
    parent.wait(5)
    parent.stdout.close()

    async def gone() -> bool:
        return not is_alive(pid)

    await until(gone)


def test_pauses_double_up_to_a_bound() -> None:
    pauses = [pause_s(count) for count in range(1, 10)]
    assert pauses[0] == FIRST_PAUSE_S
    assert pauses[1] == 2 * FIRST_PAUSE_S
    assert pauses[-1] == LONGEST_PAUSE_S


@pytest.mark.parametrize(("code", "words"), [(0, "exit code 0"), (3, "exit code 3"), (-9, "signal SIGKILL")])
def test_an_exit_code_is_put_in_words(code: int, words: str) -> None:
    assert describe_exit(code) == words


def test_a_log_that_grew_too_large_is_moved_aside_and_its_writer_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "one.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"old\n" * 100)
        shorten(log, 100)
        writer.write(b"new\n")
    assert log.read_bytes() == b"new\n"
    assert (tmp_path / "one.log.1").read_bytes() == b"old\n" * 100
