"""What an embedder may give by mistake: it is refused by name, and what was there before goes on as if nothing had been asked."""

from __future__ import annotations

import asyncio
import os
import signal
from array import array
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from aiovmm import UsageError
from aiovmm.agent import Agent
from aiovmm.machine.commands import Commands
from tests.agent.conftest import Guest
from tests.limits import HANGS

PORT = 8080


class Vm(Commands):
    """Whose guest is this machine."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent


Call = Callable[[Any], Awaitable[object]]

REFUSED: dict[str, Call] = {
    "a text as a command": lambda vm: vm.run("uname -a"),
    "no command": lambda vm: vm.run(None),
    "a number as a word": lambda vm: vm.run(["sleep", 1]),
    "text as input": lambda vm: vm.run(["cat"], input="x"),
    "a list of variables": lambda vm: vm.run(["env"], env=["A=1"]),
    "pairs of variables": lambda vm: vm.run(["env"], env=[("A", "1")]),
    "no variables, as a list": lambda vm: vm.run(["env"], env=[]),
    "a variable that is a number": lambda vm: vm.run(["env"], env={"A": 1}),
    "a directory that is false": lambda vm: vm.run(["pwd"], cwd=0),
    "a user that is true": lambda vm: vm.run(["id"], user=True),
    "a user in bytes": lambda vm: vm.run(["id"], user=b"nobody"),
    "a user and a group as a pair": lambda vm: vm.run(["id"], user=(1, 2)),
    "a list of limits": lambda vm: vm.run(["true"], limits=["nofile"]),
    "a limit that is true": lambda vm: vm.run(["true"], limits={"nofile": True}),
    "output in words": lambda vm: vm.run(["true"], output_limit="1M"),
    "output below zero": lambda vm: vm.run(["true"], output_limit=-1),
    "output without an end": lambda vm: vm.run(["true"], output_limit=None),
    "a list to create_process": lambda vm: vm.create_process(["true"]),
    "variables of create_process": lambda vm: vm.create_process("env", env=["A=1"]),
    "nothing written": lambda vm: vm.files.write("/nowhere", None),
    "a number written": lambda vm: vm.files.write("/nowhere", 5),
    "a list written": lambda vm: vm.files.write("/nowhere", [1, 2]),
    "text that has no bytes": lambda vm: vm.files.write("/nowhere", "\udc80"),
    "a mode that is true": lambda vm: vm.files.write("/nowhere", b"", mode=True),
    "no limit of reading": lambda vm: vm.files.read("/etc/passwd", limit=None),
    "a limit of reading in words": lambda vm: vm.files.read("/etc/passwd", limit="1M"),
    "a number as a path": lambda vm: vm.files.read(5),
    "a number copied in": lambda vm: vm.files.copy_in(5, "/nowhere"),
    "an unset path copied in": lambda vm: vm.files.copy_in("", "/nowhere"),
    "nothing copied out": lambda vm: vm.files.copy_out("/etc/passwd", None),
    "an unset path copied out": lambda vm: vm.files.copy_out("/etc/passwd", ""),
    "a port as text": lambda vm: vm.forward(str(PORT)),
    "a port as bytes": lambda vm: vm.forward(str(PORT).encode()),
    "no port": lambda vm: vm.forward(None),
    "half a port": lambda vm: vm.forward(80.5),
    "a port that is true": lambda vm: vm.forward(True),
    "any port of the guest": lambda vm: vm.forward(0),
    "too high a port": lambda vm: vm.forward(70000),
    "no port of the host": lambda vm: vm.forward(PORT, None),
    "half a port of the host": lambda vm: vm.forward(PORT, 1.5),
    "a port of the host as text": lambda vm: vm.forward(PORT, "8080"),
    "an unset socket of the host": lambda vm: vm.forward(PORT, ""),
    "back to no port": lambda vm: vm.forward(PORT, back=True),
    "back to none": lambda vm: vm.forward(PORT, None, back=True),
    "what no forward is called": lambda vm: vm.unforward([1]),
    "a time in words": lambda vm: vm.agent.set_time("now"),
    "a time before all": lambda vm: vm.agent.set_time(-5),
    "no number of a time": lambda vm: vm.agent.set_time(float("nan")),
    "a time after all": lambda vm: vm.agent.set_time(1e30),
    "entropy as text": lambda vm: vm.agent.add_entropy("x"),
    "no entropy": lambda vm: vm.agent.add_entropy(b""),
    "more entropy than is taken": lambda vm: vm.agent.add_entropy(bytes(1 << 20)),
    "an end that there is not": lambda vm: vm.agent.shutdown("off"),
    "an end that is no text": lambda vm: vm.agent.shutdown(cast("str", [])),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_what_is_none_is_refused_and_the_guest_is_there_as_before(what: str, agent: Agent, guest: Guest) -> None:
    vm = Vm(agent)
    descriptors = guest.descriptors
    async with asyncio.timeout(HANGS):
        with pytest.raises(UsageError):
            await REFUSED[what](vm)
        await vm.agent.ping()  # answers are of the questions that they belong to
        assert (await vm.run(["cat"], input=b"there")).stdout == b"there"
        await guest.idle(descriptors)


WRITTEN = ["text", None, 5, [1], ["text"]]


@pytest.mark.parametrize("data", WRITTEN, ids=repr)
async def test_input_that_is_none_leaves_the_rest_as_it_was(data: Any, agent: Agent) -> None:
    """Nothing of it is counted: what is written before and after it comes whole and in order."""
    process = await Vm(agent).create_process("cat")
    assert process.stdin is not None
    async with asyncio.timeout(HANGS):
        process.stdin.write(b"a")
        with pytest.raises(UsageError):
            process.stdin.write(data)
        with pytest.raises(UsageError):
            process.stdin.writelines([b"lost", data])
        process.stdin.write(bytearray(b"b"))
        process.stdin.write(memoryview(array("H", [0x6363])))
        assert await process.communicate(b"d" * 9000) == (b"abcc" + b"d" * 9000, b"")


async def test_communicate_with_text_has_not_begun(agent: Agent) -> None:
    process = await Vm(agent).create_process("cat")
    async with asyncio.timeout(HANGS):
        with pytest.raises(UsageError):
            await process.communicate("text")  # type: ignore[arg-type]
        assert await process.communicate(b"bytes") == (b"bytes", b"")


@pytest.mark.parametrize("number", ["TERM", 65, -1, 1.5, None, True], ids=repr)
async def test_what_is_no_signal(number: Any, agent: Agent) -> None:
    process = await Vm(agent).create_process("cat")
    with pytest.raises(UsageError):
        process.send_signal(number)
    assert process.returncode is None
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == -signal.SIGTERM


@pytest.mark.parametrize("size", [(0, 1), ("a", 1), (1.5, 2), (1, 70000), (True, 1)], ids=repr)
async def test_what_is_no_size_of_a_terminal(size: tuple[Any, Any], agent: Agent) -> None:
    process = await Vm(agent).create_process("sh", "-c", "read line; stty size", pty=(100, 30))
    assert process.stdin is not None
    assert process.stdout is not None
    with pytest.raises(UsageError):
        process.resize(*size)
    process.resize(120, 40)
    process.stdin.write(b"\n")
    async with asyncio.timeout(HANGS):
        assert b"40 120" in await process.stdout.read()


def sockets(directory: Path) -> list[str]:
    return [str(path) for path in directory.iterdir() if path.is_socket()]


async def test_a_socket_of_the_host_by_bytes_or_a_path(agent: Agent, tmp_path: Path) -> None:
    """They are text as soon as they are known to be paths, and are ended by what `forward` gave."""
    vm: Any = Vm(agent)
    for host in (bytes(tmp_path / "a"), tmp_path / "b", str(tmp_path / "c")):
        place = await vm.forward(PORT, host)
        assert os.fspath(place) in sockets(tmp_path)
        await vm.unforward(place)
        assert sockets(tmp_path) == []
