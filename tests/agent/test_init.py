"""The agent as the first process: of a process namespace with a root of its own, which to it is a guest like any other.

There reboot(2) ends the namespace (pid_namespaces(7)), and "/" is a tmpfs, so that what it does at the end reaches nobody else.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiovmm import AgentLost
from aiovmm.agent import Agent, agent_binary
from aiovmm.agent.place import UnixPlace
from aiovmm.agent.process import create
from aiovmm.agent.run import run
from tests.limits import HANGS

BUSYBOX = shutil.which("busybox")
pytestmark = [
    pytest.mark.skipif(BUSYBOX is None, reason="no busybox (package busybox-static)"),
    pytest.mark.skipif(os.geteuid() != 0, reason="process and mount namespaces need root"),
]
SCRIPT = """
mount -t tmpfs root "$1" && mkdir -p "$1/bin" "$1/sbin" && cp "$2" "$1/bin/busybox" && cp "$3" "$1/sbin/agent" &&
for name in sh cat ls ps kill sleep setsid echo grep mount ip; do ln -s busybox "$1/bin/$name"; done &&
exec chroot "$1" /sbin/agent --unix /socket
"""


@pytest.fixture
def first(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`unshare`, whose child is process 1."""
    (tmp_path / "root").mkdir()
    arguments = [str(tmp_path / "root"), str(BUSYBOX), str(agent_binary())]
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--net", "sh", "-c", SCRIPT, "sh", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


async def found(process: subprocess.Popen[bytes]) -> Agent:
    """Its socket is seen through its root."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    async with asyncio.timeout(HANGS):
        while True:
            for pid in children.read_text().split():  # noqa: ASYNC240
                path = Path(f"/proc/{pid}/root/socket")
                if os.path.exists(path) and os.path.realpath(f"/proc/{pid}/exe").endswith("/agent"):  # noqa: ASYNC240
                    return Agent(UnixPlace(path), patience=20)
            await asyncio.sleep(0.02)


async def test_it_mounts_what_programs_need(first: subprocess.Popen[bytes]) -> None:
    agent = await found(first)
    assert (await agent.ready(20)).is_init
    mounts = (await run(agent, ["cat", "/proc/mounts"])).stdout.decode()
    for place in ("/dev", "/proc", "/sys", "/dev/pts", "/dev/shm", "/run"):
        assert f" {place} " in mounts
    assert b"UP" in (await run(agent, ["ip", "link", "show", "lo"])).stdout
    process = await create(agent, ["sh", "-c", "exec echo $0", "on a terminal"], (-1, -1, -1), pty=True)
    assert process.stdout is not None
    assert await process.stdout.read() == b"on a terminal\r\n"
    agent.close()


@pytest.mark.parametrize("end", ["", "\\n"])
async def test_the_last_line_of_passwd_may_lack_its_end(first: subprocess.Popen[bytes], end: str) -> None:
    agent = await found(first)
    script = f"mkdir -p /etc; printf 'root:x:0:0::/:\\napp:x:7:8::/home:/bin/sh{end}' >/etc/passwd"
    script += f"; printf 'app:x:8:\\nmore:x:9:app{end}' >/etc/group"
    await run(agent, ["sh", "-c", script], check=True)
    done = await run(agent, ["sh", "-c", "echo $HOME; grep -E '^(Uid|Groups)' /proc/self/status"], user="app")
    assert done.stdout.split() == [b"/home", b"Uid:", *[b"7"] * 4, b"Groups:", b"9"]
    with pytest.raises(FileNotFoundError, match="nobody"):
        await run(agent, ["true"], user="nobody")
    agent.close()


async def test_it_reaps_orphans(first: subprocess.Popen[bytes]) -> None:
    agent = await found(first)
    for _ in range(5):
        await run(agent, ["sh", "-c", "setsid sleep 0.1 & exit"])
    dead = "while ps -o comm | grep -q '^sleep'; do sleep 0.05; done; ! ps -o stat | grep Z"
    assert (await run(agent, ["sh", "-c", dead], timeout=HANGS)).returncode == 0
    agent.close()


async def test_an_agent_that_is_killed_is_begun_again(first: subprocess.Popen[bytes]) -> None:
    agent = await found(first)
    with pytest.raises(AgentLost) as info:
        await run(agent, ["sh", "-c", "kill -9 $PPID; sleep 60"], timeout=HANGS)
    assert info.value.status is None
    assert (await run(agent, ["echo", "again"], timeout=HANGS)).stdout == b"again\n"
    agent.close()


@pytest.mark.parametrize("how", ["poweroff", "reboot"])
async def test_it_ends_everything_and_the_guest(first: subprocess.Popen[bytes], how: str) -> None:
    agent = await found(first)
    script = "trap 'echo heard; exit' TERM; echo up; while :; do sleep 0.05; done"
    process = await create(agent, ["sh", "-c", script], (-1, -1, -1))
    await create(
        agent, ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"], (-1, -1, -1)
    )  # it is killed in the end
    assert process.stdout is not None
    assert await process.stdout.readline() == b"up\n"
    await agent.shutdown(how)
    async with asyncio.timeout(HANGS):
        while first.poll() is None:  # noqa: ASYNC110 - another process's doing
            await asyncio.sleep(0.02)
    agent.close()


async def test_a_way_to_end_that_there_is_not(first: subprocess.Popen[bytes]) -> None:
    agent = await found(first)
    with pytest.raises(ValueError, match="poweroff, reboot, halt"):
        await agent.shutdown("explode")
    assert (await run(agent, ["echo", "here"])).stdout == b"here\n"
    agent.close()
