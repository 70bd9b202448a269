"""Who connects to a control socket, and who listens there, may be anybody: each line has an answer, each answer is looked at."""

from __future__ import annotations

import asyncio
import json
import re
import select
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest

from aiovmm.cli import control
from aiovmm.errors import AiovmmError, HostError, PeerError, UsageError
from tests.limits import HANGS
from tests.reset_peer import reset_connection
from tests.test_awake import StoppedLoop, run_stopped


class Guest:
    """A VM of which nothing is as it should be."""

    def __init__(self, takes: float = 0.0) -> None:
        self.takes = takes

    async def resize(self, **_: object) -> None:
        await asyncio.sleep(self.takes)
        if not self.takes:
            raise ZeroDivisionError("a mistake of ours")


@asynccontextmanager
async def served(path: Path, takes: float = 0.0) -> AsyncIterator[Path]:
    vm: Any = Guest(takes)
    with control.listening(path) as listener:
        assert listener is not None
        serving = asyncio.create_task(control.serve(vm, listener, vm))
        yield path
        serving.cancel()
        await asyncio.wait([serving])


async def answer_to(path: Path, said: bytes) -> dict[str, Any]:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(said)
    async with asyncio.timeout(HANGS):
        answer: dict[str, Any] = json.loads(await reader.read())
    writer.close()
    return answer


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"{" * 100_000, "more than 16384 bytes"),  # a line that goes on
        (b'{"do": "resize"', "no whole request came within 0.2 s"),  # and one that does not
        (b'{"do": "resize", "cpus": 1, "timeout": ' + b"9" * 400 + b"}\n", "longer than any clock goes"),
        (b'{"do": "resize", "cpus": 1, "timeout": ' + b"9" * 5000 + b"}\n", "integer string conversion"),
        (b"[" * 16_000 + b"\n", "recursion"),
        (b"\xff\xfe\n", "decode"),
        (b"[]\n", "JSON object"),
    ],
    ids=["long", "half", "aeon", "digits", "deep", "no-text", "no-object"],
)
async def test_every_line_has_an_answer(
    tmp_path: Path, said: bytes, error: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_PATIENCE", 0.2 if said.endswith(b'"') else HANGS)
    async with served(tmp_path / "control") as path:
        answer = await answer_to(path, said)
    assert answer["code"] == 2
    assert error in answer["error"]
    assert [record.getMessage() for record in caplog.records] == []


def test_who_asks_a_monitor_that_was_stopped_meanwhile_has_the_rest_of_his_time(tmp_path: Path) -> None:
    async def asks(loop: StoppedLoop) -> None:
        async with served(tmp_path / "control") as path:
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b"[")
            await asyncio.sleep(0.05)  # it waits for the rest
            loop.away = 100.0
            for _ in range(20):  # of the loop's turns
                await asyncio.sleep(0)
            writer.write(b"]\n")
            assert "JSON object" in json.loads(await reader.read())["error"]
            writer.close()

    run_stopped(asks)


async def test_a_mistake_of_ours_is_told_to_who_asked_and_to_who_runs_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tmp_path / "control") as path:
        answer = await answer_to(path, b'{"do": "resize", "cpus": 1, "timeout": 1}\n')
    assert answer == {"error": "a fault of the guest's monitor: ZeroDivisionError('a mistake of ours')", "code": 1}
    assert "ZeroDivisionError" in caplog.text


async def test_callers_that_stay_are_so_many(tmp_path: Path) -> None:
    """They are descriptors of the guest's process, which needs some to go on."""
    async with served(tmp_path / "control") as path, asyncio.timeout(HANGS):
        stay = [await asyncio.open_unix_connection(path) for _ in range(64)]
        assert await answer_to(path, b"") == control._FULL
        stay.pop()[1].close()
        while (answer := await answer_to(path, b"[]\n")) == control._FULL:  # noqa: ASYNC110 - it is noticed in its turn
            await asyncio.sleep(0)
        assert "JSON object" in answer["error"]
        for _, writer in stay:
            writer.close()


async def test_who_leaves_while_his_request_is_worked_on_is_no_fault_of_the_monitor(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, left = asyncio.Event(), asyncio.Event()

    async def work(*_: object, **__: object) -> None:
        begun.set()
        await left.wait()

    monkeypatch.setattr(Guest, "resize", work)
    async with served(tmp_path / "control") as path, asyncio.timeout(HANGS):
        before = asyncio.all_tasks()
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(path))
            caller.send(b'{"do": "resize", "cpus": 1, "timeout": 9}\n')
            await begun.wait()
            while not select.select([caller], [], [], 0)[0]:  # noqa: ASYNC110 - what is said, and not read: a reset
                await asyncio.sleep(0)
        for _ in range(10):  # until the loop has seen it
            await asyncio.sleep(0)
        left.set()
        while asyncio.all_tasks() - before:  # noqa: ASYNC110 - nobody tells that he was answered
            await asyncio.sleep(0)
    assert caplog.text == ""


async def test_who_does_not_take_the_answer_has_no_place_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_PATIENCE", 0.2)
    monkeypatch.setattr(control, "_CALLERS", 1)
    monkeypatch.setattr(control, "_LONGEST_REASON", 1 << 20)
    monkeypatch.setattr(control, "_refused", lambda why: {"error": "x" * (1 << 20)})  # more than the kernel takes
    async with served(tmp_path / "control") as path, asyncio.timeout(HANGS):
        reader, writer = await asyncio.open_unix_connection(path, limit=1)
        writer.write(b"[]\n")
        await reader.read(1)
        while True:
            other, hand = await asyncio.open_unix_connection(path, limit=1)
            hand.write(b"[]\n")
            if (await other.readexactly(12)) == b'{"error": "x':
                break
            hand.close()
        hand.close()
        writer.close()


@pytest.mark.parametrize(
    "said",
    [
        b"no JSON\n",
        b"5\n",
        b"{}\n",
        b'{"ok": 5}\n',
        b'{"error": 5}\n',
        b'{"ok": {"id": ["disk0"]}}\n',
        b'{"ok": {"id": "\\u001b]52;c;cm0gLXJm\\u0007"}}\n',  # into the terminal's clipboard
        b"[" * 60_000 + b"\n",
        b'{"ok": {"id": "' + b"x" * (1 << 17) + b'"}}\n',
    ],
)
async def test_what_no_monitor_answers(tmp_path: Path, said: bytes) -> None:
    with pytest.raises(PeerError, match=re.escape("does not answer as a guest's monitor does")):
        await asked_of(tmp_path / "control", said)


async def test_what_a_monitor_answers(tmp_path: Path) -> None:
    assert await asked_of(tmp_path / "1", b'{"ok": {"id": "disk0", "place": ""}}\n') == {"id": "disk0", "place": ""}
    with pytest.raises(AiovmmError, match="its monitor has ended"):
        await asked_of(tmp_path / "2", b"")
    with pytest.raises(UsageError, match="no such thing"):
        await asked_of(tmp_path / "3", b'{"error": "no such thing", "code": 2}\n')


async def test_a_monitor_that_is_at_work_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_MUTE", 10.0)
    monkeypatch.setattr(control, "_BEAT", 0.05)
    async with served(tmp_path / "control", takes=0.5) as path:
        assert await control.ask(path, {"do": "resize", "cpus": 1, "timeout": 60}) == {}
        monkeypatch.setattr(control, "_MUTE", 0.2)
        monkeypatch.setattr(control, "_BEAT", HANGS)
        with pytest.raises(PeerError, match=r"said nothing for 0\.2 s"):
            await control.ask(path, {"do": "resize", "cpus": 1, "timeout": 60})


@pytest.mark.parametrize("said", [b"", b'{"ok": {"id": "disk0"', b"     "])
async def test_a_monitor_that_says_nothing_more(tmp_path: Path, said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_MUTE", 0.2)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "control"))
        listener.listen()
        listener.setblocking(False)
        asking = asyncio.ensure_future(control.ask(tmp_path / "control", {"do": "add"}, id=str, place=str))
        stopped, _ = await asyncio.get_running_loop().sock_accept(listener)
        with stopped:
            stopped.sendall(said)
            async with asyncio.timeout(HANGS):
                with pytest.raises(PeerError, match=r"said nothing for 0\.2 s: it is stopped"):
                    await asking


async def test_a_monitor_at_which_as_many_wait_as_may(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as stack:
        listener.bind(str(tmp_path / "control"))
        listener.listen(0)
        for _ in range(2):
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            waiting.connect_ex(str(tmp_path / "control"))
        with pytest.raises(HostError, match="others wait there already"):
            await control.ask(tmp_path / "control", {"do": "add"}, id=str, place=str)


@pytest.mark.parametrize("number", ["9" * 4300, "1e999", "NaN", "-1"], ids=lambda number: number[:5])
async def test_numbers_that_nobody_could_print(tmp_path: Path, number: str) -> None:
    """Four times the first has more digits than Python prints."""
    with pytest.raises(PeerError, match=re.escape("does not answer as a guest's monitor does")):
        await asked_of(tmp_path / "1", b'{"ok": {"n": %b}}\n' % number.encode(), n=type(json.loads(number)))


async def test_white_space_without_end_is_no_answer_and_takes_no_memory(tmp_path: Path) -> None:
    with pytest.raises(AiovmmError, match="its monitor has ended"):
        await asked_of(tmp_path / "control", b" " * (1 << 20))


async def test_a_monitor_that_resets_the_connection_before_it_is_asked_has_said_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with reset_connection() as streams:
        monkeypatch.setattr(control, "streams_to", AsyncMock(return_value=streams))
        with pytest.raises(AiovmmError, match="its monitor has ended"):
            await control.ask(tmp_path / "control", {"do": "add"}, id=str, place=str)


async def asked_of(path: Path, said: bytes, **has: type) -> dict[str, Any]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(said)
        writer.close()

    async with await asyncio.start_unix_server(answer, path):
        return await control.ask(path, {"do": "add"}, **(has or {"id": str, "place": str}))


@pytest.mark.parametrize(
    "met", [MemoryError(), RuntimeError("can't start new thread"), ImportError("x.so: failed to map segment")], ids=repr
)
async def test_what_the_monitor_had_too_little_of_is_told_as_such(met: Exception) -> None:
    class Small:
        async def snapshot(self, *_: object, **__: object) -> None:
            raise met

    vm: Any = Small()
    answer = await control._done(vm, vm, b'{"do": "snapshot", "path": "/s"}')
    assert answer["code"] == 1
    assert "doing what it was asked" in answer["error"]
    assert "raise the limits" in answer["error"]
