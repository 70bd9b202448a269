"""`run`: a command from its start to its end."""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
import subprocess
import sys
import threading
from array import array
from pathlib import Path

import pytest

from aiovmm import AgentLost, CommandFailed, CommandTimeout, OutputTooLong, UsageError
from aiovmm.agent import Agent, agent_binary
from aiovmm.agent.files import Files
from aiovmm.agent.gathered import Gathered
from aiovmm.agent.place import UnixPlace
from aiovmm.agent.run import run
from tests.agent.conftest import Guest, gone, listens
from tests.limits import HANGS


async def test_status_and_output(agent: Agent) -> None:
    done = await run(agent, ["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"err\n")


async def test_a_signal_is_a_status_below_zero(agent: Agent) -> None:
    assert (await run(agent, ["sh", "-c", "kill -SEGV $$"])).returncode == -signal.SIGSEGV


async def test_input(agent: Agent) -> None:
    data = bytes(range(256)) * 5000
    assert (await run(agent, ["cat"], input=data)).stdout == data


async def test_input_that_is_not_counted_in_bytes(agent: Agent) -> None:
    words = array("I", range(5000))
    assert (await run(agent, ["cat"], input=memoryview(words))).stdout == words.tobytes()  # type: ignore[arg-type]


async def test_no_input_is_the_end_of_input(agent: Agent) -> None:
    assert (await run(agent, ["cat"])).stdout == b""


async def test_a_task_of_it(agent: Agent) -> None:
    """It is a coroutine, and output is what it is, not text."""
    done = await asyncio.create_task(run(agent, ["printf", r"\377\376\000"]))
    assert done.stdout == b"\xff\xfe\0"


async def test_environment_directory_and_user(agent: Agent) -> None:
    script = "echo $A; echo $PATH; echo $HOME; pwd; id -u; id -g; umask"
    account = pwd.getpwnam("nobody")
    done = await run(agent, ["sh", "-c", script], env={"A": "ä b", "PATH": "/usr/bin:/bin"}, cwd="/tmp", user="nobody")
    assert done.stdout.decode().split("\n") == [
        *("ä b", "/usr/bin:/bin", account.pw_dir, "/tmp", str(account.pw_uid), str(account.pw_gid), "0022", "")
    ]
    plain = await run(agent, ["env"])
    assert sorted(line.split(b"=")[0] for line in plain.stdout.splitlines()) == [
        *(b"HOME", b"LOGNAME", b"PATH", b"SHELL", b"USER")
    ]
    assert (await run(agent, ["pwd"])).stdout == b"/\n"


@pytest.mark.parametrize("user", ["65534:daemon", "nobody:1", 65534])
async def test_users_by_number_and_with_a_group(agent: Agent, user: str | int) -> None:
    group = b"1" if isinstance(user, str) else str(pwd.getpwuid(65534).pw_gid).encode()
    assert (await run(agent, ["sh", "-c", "id -u; id -g"], user=user)).stdout == b"65534\n" + group + b"\n"


@pytest.mark.parametrize("user", [2**32 - 1, f"nobody:{2**32 - 1}", 2**32, -1, "4294967295:daemon"])
async def test_a_number_that_is_nobodys_is_not_root(agent: Agent, user: str | int) -> None:
    """The largest one says to the kernel that all stays as it is."""
    with pytest.raises(FileNotFoundError, match="is not in the guest's /etc/passwd"):
        await run(agent, ["id"], user=user)


async def test_variables_are_bytes_like_all_else(agent: Agent) -> None:
    wanted: dict[str, str | bytes] = {"A": "b=c=", "B": b"\xff\xfe\n", "C": "", "NAME WITH BLANKS": "x"}
    done = await run(agent, ["env", "-0"], env=wanted)
    assert {b"A=b=c=", b"B=\xff\xfe\n", b"C=", b"NAME WITH BLANKS=x"} <= set(done.stdout.split(b"\0"))


async def test_one_that_closes_its_output_and_goes_on(agent: Agent) -> None:
    done = await run(agent, ["sh", "-c", "echo said; exec >&- 2>&-; sleep 0.3; exit 6"])
    assert (done.returncode, done.stdout, done.stderr) == (6, b"said\n", b"")


async def test_input_that_is_not_read(agent: Agent) -> None:
    """More than all buffers on the way hold, to one that ends, one that closes its input, and one whose time is over."""
    data = bytes(20 << 20)
    assert (await run(agent, ["sh", "-c", "echo done"], input=data)).stdout == b"done\n"
    assert (await run(agent, ["sh", "-c", "exec <&-; sleep 0.2; echo done"], input=data)).stdout == b"done\n"
    with pytest.raises(CommandTimeout) as info:
        await run(agent, ["sh", "-c", "echo so far; sleep 60"], input=data, timeout=0.5)
    assert info.value.stdout == b"so far\n"


async def test_limits(agent: Agent) -> None:
    done = await run(agent, ["sh", "-c", "ulimit -n; ulimit -Hn; ulimit -c"], limits={"nofile": (50, 60), "core": 0})
    assert done.stdout == b"50\n60\n0\n"


async def test_the_agents_own_descriptors_and_signals_are_not_inherited(agent: Agent) -> None:
    done = await run(
        agent, ["sh", "-c", "ls /proc/self/fd | wc -l; grep SigIgn /proc/self/status; grep SigBlk /proc/self/status"]
    )
    count, ignored, blocked = done.stdout.split(b"\n")[:3]
    assert int(count) <= 4
    assert ignored.split()[1] == blocked.split()[1] == b"0" * 16


async def test_names_that_are_no_text(agent: Agent, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff\xfe"
    await run(agent, ["touch", name], check=True)
    assert (await run(agent, ["ls", os.fsdecode(name)])).stdout == name + b"\n"


async def test_a_time_out_has_the_output_so_far_and_ends_the_group(agent: Agent, guest: Guest) -> None:
    before = guest.descriptors
    with pytest.raises(CommandTimeout, match=r"within 0\.5 s") as info:
        await run(agent, ["sh", "-c", "echo so far; echo and >&2; sleep 61 & sleep 61"], timeout=0.5)
    assert (info.value.stdout, info.value.stderr) == (b"so far\n", b"and\n")
    assert isinstance(info.value, TimeoutError)
    await guest.idle(before)
    await gone(b"sleep 61")


async def test_cancelled_at_each_stage_it_leaves_nothing(agent: Agent, guest: Guest) -> None:
    before = guest.descriptors
    for turns in range(8):
        task = asyncio.create_task(run(agent, ["sh", "-c", "sleep 62 & sleep 62"], input=b"x" * 100000))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    running = asyncio.create_task(run(agent, ["sh", "-c", "sleep 62 & echo up; sleep 62"]))
    await guest.busy()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await agent.ping()
    await guest.idle(before)
    await gone(b"sleep 62")


async def test_a_daemon_that_has_its_output_open_is_not_waited_for(agent: Agent) -> None:
    script = "echo before; setsid sleep 63 & echo $!; exit 4"
    async with asyncio.timeout(HANGS):
        done = await run(agent, ["sh", "-c", script])
    assert done.returncode == 4
    before, pid = done.stdout.split()
    assert before == b"before"
    os.kill(int(pid), signal.SIGKILL)  # it lives: nobody asked for its end


async def test_output_before_a_quick_end_is_complete(agent: Agent) -> None:
    for _ in range(20):
        assert len((await run(agent, ["head", "-c", "200000", "/dev/zero"])).stdout) == 200000


async def test_check(agent: Agent) -> None:
    with pytest.raises(CommandFailed, match=r"'sh -c .*' ended with status 7; stderr ends: b'why") as info:
        await run(agent, ["sh", "-c", "echo what; echo why >&2; exit 7"], check=True)
    assert (info.value.returncode, info.value.stdout, info.value.stderr) == (7, b"what\n", b"why\n")


async def test_output_is_bounded(agent: Agent, guest: Guest) -> None:
    before = guest.descriptors
    link = await agent.link()
    with pytest.raises(OutputTooLong, match="more than 100000 bytes") as info:
        await run(agent, ["cat", "/dev/zero"], output_limit=100000)
    assert len(info.value.stdout) == 100000
    await guest.idle(before)
    await agent.ping()
    assert await agent.link() is link  # what was under way has harmed nobody
    assert not link.channels


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ("uname -a", {}),
        ([], {}),
        (["a\0b"], {}),
        ([5], {}),
        (["true"], {"env": {"A=B": "x"}}),
        (["true"], {"limits": {"files": 1}}),
        (["true"], {"limits": {"nofile": -2}}),
        (["true"], {"limits": {"nofile": (1, 2, 3)}}),
        (["true"], {"input": "text"}),
        (Path("/bin/true"), {}),
        ((word for word in ["true"]), {}),
        (["true"], {"timeout": float("nan")}),
        (["x" * 300000], {}),
    ],
)
async def test_what_cannot_be(agent: Agent, args: object, options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        await run(agent, args, **options)  # type: ignore[arg-type]
    await agent.ping()


async def test_64_mib_of_output(agent: Agent) -> None:
    done = await run(agent, ["head", "-c", str(64 << 20), "/dev/zero"])
    assert done.stdout == bytes(64 << 20)


async def test_a_thousand_commands_fifty_at_once(agent: Agent, guest: Guest) -> None:
    before = guest.descriptors
    gate = asyncio.Semaphore(50)

    async def one(number: int) -> bytes:
        async with gate:
            return (await run(agent, ["echo", str(number)])).stdout

    outputs = await asyncio.gather(*(one(number) for number in range(1000)))
    assert outputs == [b"%d\n" % number for number in range(1000)]
    await guest.idle(before)
    link = await agent.link()
    assert not link.channels


async def test_the_agent_dies_in_mid_command(agent: Agent, guest: Guest) -> None:
    task = asyncio.create_task(run(agent, ["sleep", "60"]))
    await guest.busy()
    guest.process.kill()
    with pytest.raises(AgentLost, match=r"'sleep 60'.*as when the guest itself has ended") as info:
        await task
    assert info.value.status is None


async def test_what_has_only_just_begun_is_hung_up_as_well(tmp_path: Path) -> None:
    """Before it is a program it has the agent's signals, of which the agent may ignore this one: it comes later then."""
    path = tmp_path / "socket"
    ignores = (
        "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = subprocess.Popen([sys.executable, "-c", ignores, agent_binary(), "--unix", path])  # noqa: ASYNC220 - no wait
    guest = Guest(process, path)
    try:
        async with asyncio.timeout(HANGS):
            while not listens(path):  # noqa: ASYNC110 - another process's doing
                await asyncio.sleep(0.01)
        before = guest.descriptors
        agent = Agent(UnixPlace(path), patience=10)
        for _ in range(300):
            await agent.ready(10)
            task = asyncio.create_task(run(agent, ["sleep", "64"]))
            await asyncio.sleep(0)  # it has asked
            (await agent.link()).close()
            with pytest.raises(AgentLost):
                await task
        agent.close()
        await guest.idle(before)
    finally:
        process.kill()
        process.wait()


async def test_a_connection_that_ends_hangs_up(agent: Agent, guest: Guest) -> None:
    before = guest.descriptors
    task = asyncio.create_task(run(agent, ["sh", "-c", "sleep 64 & sleep 64"]))
    await guest.busy()
    (await agent.link()).close()
    with pytest.raises(AgentLost):
        await task
    await agent.ready(10)  # another connection
    await guest.idle(before)


async def test_what_is_long_is_put_together_elsewhere_than_on_the_loop(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it ends: a guest chooses how much it is, and the loop is others', too."""
    (tmp_path / "long").write_bytes(bytes(3 << 20))
    joined: list[int] = []
    join = Gathered.__bytes__

    def told(self: Gathered) -> bytes:
        if self.size >= 1 << 20:
            joined.append(threading.get_ident())
        return join(self)

    monkeypatch.setattr(Gathered, "__bytes__", told)
    command = ["sh", "-c", f"cat {tmp_path / 'long'}; cat {tmp_path / 'long'} >&2; sleep 60"]
    with pytest.raises(OutputTooLong) as much:
        await run(agent, command, output_limit=2 << 20)
    assert max(len(much.value.stdout), len(much.value.stderr)) == 2 << 20
    with pytest.raises(CommandTimeout):
        await run(agent, command, timeout=2.0)
    assert await Files(agent).read(tmp_path / "long") == bytes(3 << 20)
    assert len(joined) >= 4
    assert threading.get_ident() not in joined
