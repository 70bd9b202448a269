"""`create_process`: streams, signals, terminals, in the shape of asyncio.subprocess."""

from __future__ import annotations

import asyncio
import signal

import pytest

from aiovmm import CommandNotFound, GuestOSError, StateError, UsageError
from aiovmm.agent import Agent
from aiovmm.agent.process import Input, Process, create
from tests.agent.conftest import Guest
from tests.limits import HANGS

PIPE, STDOUT, DEVNULL = asyncio.subprocess.PIPE, asyncio.subprocess.STDOUT, asyncio.subprocess.DEVNULL


async def begin(agent: Agent, *args: str, stdin: int = PIPE, stderr: int = PIPE, **options: object) -> Process:
    return await create(agent, args, (stdin, PIPE, stderr), **options)  # type: ignore[arg-type]


async def test_streams(agent: Agent) -> None:
    process = await begin(agent, "cat")
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"one\n")
    assert await process.stdout.readline() == b"one\n"
    assert process.returncode is None
    assert process.pid > 0
    process.stdin.write_eof()
    assert await process.stdout.read() == b""
    assert await process.wait() == process.returncode == 0


async def test_communicate_and_joined_streams(agent: Agent) -> None:
    process = await begin(agent, "sh", "-c", "cat; echo err >&2", stderr=STDOUT)
    assert await process.communicate(b"in") == (b"inerr\n", None)


async def test_input_that_nobody_takes_is_not_lost_without_a_word(agent: Agent) -> None:
    process = await create(agent, ["cat"], (None, -1, -1))
    with pytest.raises(StateError, match="takes no input"):
        await process.communicate(b"in")
    assert await process.communicate(b"") == (b"", b"")
    process = await create(agent, ["cat"], (-1, -1, -1))
    assert process.stdin is not None
    process.stdin.close()
    with pytest.raises(StateError, match="this input has been closed"):
        await process.communicate(b"in")
    assert await process.communicate() == (b"", b"")


async def test_communicate_with_one_that_reads_nothing(agent: Agent) -> None:
    process = await begin(agent, "sh", "-c", "exec <&-; echo done")
    assert await process.communicate(bytes(10 << 20)) == (b"done\n", b"")


async def test_input_that_nobody_reads_any_more_is_told(agent: Agent) -> None:
    process = await begin(agent, "sh", "-c", "exec <&-; sleep 60")
    assert process.stdin is not None
    with pytest.raises(BrokenPipeError):
        await asyncio.wait_for(write_for_ever(process.stdin), HANGS)
    process.close()


async def write_for_ever(into: Input) -> None:
    while True:
        into.write(bytes(1 << 16))
        await into.drain()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1])
async def test_signals(agent: Agent, number: signal.Signals) -> None:
    process = await begin(agent, "sleep", "60")
    process.send_signal(number)
    assert await process.wait() == -number
    with pytest.raises(ProcessLookupError):
        process.send_signal(number)


async def test_a_signal_reaches_the_group(agent: Agent) -> None:
    process = await begin(agent, "sh", "-c", "sleep 60 & sleep 60 & echo up; wait")
    assert process.stdout is not None
    assert await process.stdout.readline() == b"up\n"
    process.terminate()
    assert await process.wait() == -signal.SIGTERM
    assert await process.stdout.read() == b""  # the sleeps have it open, too


async def test_kill_reaches_the_session(agent: Agent) -> None:
    """A shell with job control gives each job a group of its own."""
    process = await begin(agent, "sh", "-c", "set -m; sleep 60 & sleep 60 & echo up; wait")
    assert process.stdout is not None
    assert await process.stdout.readline() == b"up\n"
    process.kill()
    assert await process.wait() == -signal.SIGKILL
    assert await process.stdout.read() == b""


async def test_a_terminal(agent: Agent) -> None:
    process = await begin(agent, "sh", "-c", "tty >/dev/null && stty size; read x; stty size; echo $x", pty=(100, 30))
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is None
    assert await process.stdout.readline() == b"30 100\r\n"
    process.resize(120, 40)
    process.stdin.write(b"hello\n")
    assert await process.stdout.read() == b"hello\r\n40 120\r\nhello\r\n"
    assert await process.wait() == 0
    with pytest.raises(UsageError):
        process.resize(0, 1)
    with pytest.raises(StateError):
        (await begin(agent, "true")).resize(80, 24)


async def test_the_end_of_input_on_a_terminal(agent: Agent) -> None:
    process = await begin(agent, "cat", pty=True)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"x\n")
    assert await process.stdout.readline() == b"x\r\n"
    process.stdin.write_eof()
    assert await process.wait() == 0


@pytest.mark.parametrize("size", [11776, 13824, 15360])
async def test_the_end_of_input_on_a_terminal_that_is_full(agent: Agent, size: int) -> None:
    """Which takes buffers of 256 bytes, until there are so many: then it has no room for ^D."""
    process = await begin(agent, "sh", "-c", "stty -echo; echo up; sleep 0.1; cat | wc -c", pty=True)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write((b"x" * 63 + b"\n") * (size // 64))
    process.stdin.write_eof()
    output = await asyncio.wait_for(process.stdout.read(), HANGS)
    assert output.split()[-1].endswith(b"%d" % size)
    assert await process.wait() == 0


async def test_a_terminal_has_the_keys(agent: Agent) -> None:
    process = await begin(agent, "sh", "-c", "echo up; exec sleep 60", pty=True)
    assert process.stdin is not None
    assert process.stdout is not None
    assert await process.stdout.readline() == b"up\r\n"
    process.stdin.write(b"\x03")
    assert await process.wait() == -signal.SIGINT


async def test_who_does_not_read_stalls_nobody_and_gets_all(agent: Agent, guest: Guest) -> None:
    """100 MiB of stderr: a window's worth comes, the process waits, others run."""
    size = 100 << 20
    process = await begin(agent, "sh", "-c", f"head -c {size} /dev/zero >&2; echo done")
    assert process.stdout is not None
    assert process.stderr is not None
    other = await begin(agent, "echo", "here")
    assert await other.communicate() == (b"here\n", b"")
    assert not process.stdout.at_eof()
    assert process.returncode is None
    total = 0
    while data := await process.stderr.read(1 << 20):
        total += len(data)
    assert total == size
    assert await process.stdout.read() == b"done\n"
    assert await process.wait() == 0


async def test_what_cannot_be_started(agent: Agent) -> None:
    with pytest.raises(CommandNotFound, match="no-such-program"):
        await begin(agent, "no-such-program")
    with pytest.raises(FileNotFoundError):
        await begin(agent, "/no/such/program")
    with pytest.raises(PermissionError):
        await begin(agent, "/etc/passwd")
    with pytest.raises(FileNotFoundError, match=r"changing to directory.*/nowhere"):
        await begin(agent, "true", cwd="/nowhere")
    with pytest.raises(FileNotFoundError) as info:
        await begin(agent, "true", cwd=b"/nowhere")
    assert info.value.filename == "/nowhere"
    with pytest.raises(GuestOSError, match="user 'nobody-at-all'"):
        await begin(agent, "true", user="nobody-at-all")


async def test_several_may_wait_for_it_and_end_it(agent: Agent) -> None:
    process = await begin(agent, "sleep", "60")
    waiting = [asyncio.create_task(process.wait()) for _ in range(5)]
    await asyncio.sleep(0)
    waiting[0].cancel()  # ends nothing
    process.kill()
    process.kill()
    assert await asyncio.wait_for(asyncio.gather(*waiting[1:]), HANGS) == [-signal.SIGKILL] * 4
    assert waiting[0].cancelled()
    assert await process.wait() == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        process.kill()


async def test_leaving_the_block_ends_it(agent: Agent, guest: Guest) -> None:
    before = guest.descriptors
    async with await begin(agent, "sh", "-c", "sleep 60 & sleep 60"):
        pass
    await guest.idle(before)


async def test_a_cancelled_start_leaves_nothing(agent: Agent, guest: Guest) -> None:
    before = guest.descriptors
    for delay in range(5):
        task = asyncio.create_task(begin(agent, "sleep", "60"))
        for _ in range(delay):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await agent.ping()
    await guest.idle(before)
