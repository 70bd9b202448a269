"""What host programs see at the unix socket."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from aiovmm.devices.virtio.vsock import VsockDevice
from aiovmm.devices.virtio.vsock.hybrid import HybridSocket, _Handshake
from aiovmm.devices.virtio.vsock.packet import SHUTDOWN_BOTH, SHUTDOWN_SEND, Op
from aiovmm.errors import ConfigError, HostError
from aiovmm.virtqueue.harness import Harness
from tests.devices.virtio.vsock.guest import Guest, make_device
from tests.limits import HANGS
from tests.test_awake import StoppedLoop, run_stopped

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def running(path: Path, **options: object) -> AsyncIterator[tuple[VsockDevice, Guest]]:
    device = make_device(path=path, **options)
    async with Harness(device) as harness, Guest(harness) as guest:
        guest.listen(7)
        yield device, guest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vsock"


async def ask(path: Path, line: bytes) -> Streams:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(line)
    return reader, writer


async def expect_close(reader: asyncio.StreamReader) -> None:
    with suppress(
        ConnectionError
    ):  # what a unix socket says that was closed with unread input, or before it was written to
        assert await reader.read() == b""


def exists(path: Path) -> bool:
    return path.exists()


async def nothing_left(device: VsockDevice, guest: Guest) -> None:
    hybrid = device._hybrid
    assert hybrid is not None
    await guest.until(lambda: not (device._switch._ends or device.connections or hybrid._handshakes))


async def test_a_program_connects_to_the_guest(path: Path) -> None:
    async with running(path) as (device, guest):
        reader, writer = await ask(path, b"CONNECT 7\n")
        sock = await guest.accept(7)
        assert await reader.readline() == f"OK {sock.peer}\n".encode()
        writer.write(b"question")
        writer.write_eof()
        assert await sock.recv_all() == b"question"
        await sock.send(b"answer")
        await sock.close()
        assert await reader.read() == b"answer"
        writer.close()
        await nothing_left(device, guest)


async def test_what_follows_the_line_is_payload(path: Path) -> None:
    async with running(path) as (_, guest):
        reader, writer = await ask(path, b"CONNECT 7\nGET / \n\nCONNECT 8\n")
        sock = await guest.accept(7)
        writer.write_eof()
        assert await sock.recv_all() == b"GET / \n\nCONNECT 8\n"
        assert (await reader.readline()).startswith(b"OK ")
        writer.close()


async def test_a_line_may_come_in_pieces(path: Path) -> None:
    async with running(path) as (_, guest):
        reader, writer = await ask(path, b"CONN")
        await guest.until(lambda: True)
        await asyncio.sleep(0.01)
        writer.write(b"ECT 7")
        await asyncio.sleep(0.01)
        writer.write(b"\n")
        await guest.accept(7)
        assert (await reader.readline()).startswith(b"OK ")
        writer.close()


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"connect\n",
        b"CONNECT\n",
        b"CONNECT -1\n",
        b"CONNECT 4294967295\n",
        b"CONNECT 99999999999\n",
        b"CONNECT 7 8\n",
        b"CONNECT seven\n",
        b"x" * 32,
        b"CONNECT 7" + b" " * 40 + b"\n",
        b"\0" * 5 + b"\n",
    ],
)
async def test_a_bad_line_closes(path: Path, line: bytes) -> None:
    async with running(path) as (device, guest):
        reader, writer = await ask(path, line)
        await expect_close(reader)
        writer.close()
        await nothing_left(device, guest)
        assert not guest.log


async def test_a_refusal_closes(path: Path) -> None:
    async with running(path) as (device, guest):
        reader, writer = await ask(path, b"CONNECT 8\n")
        assert await reader.read() == b""
        writer.close()
        await nothing_left(device, guest)


async def test_a_client_that_says_nothing_is_not_waited_for(path: Path) -> None:
    async with running(path, connect_timeout=0.05) as (device, guest):
        for said in (b"", b"CONNECT"):
            reader, writer = await ask(path, said)
            await expect_close(reader)
            writer.close()
        await nothing_left(device, guest)


async def test_a_guest_that_does_not_answer_is_not_waited_for(path: Path) -> None:
    device = make_device(path=path, connect_timeout=0.05)
    async with Harness(device):  # it gives no rx buffers
        reader, writer = await ask(path, b"CONNECT 7\n")
        assert await reader.read() == b""
        writer.close()
        assert device.connections == 0


async def test_a_client_waits_for_the_driver(path: Path) -> None:
    device = make_device(path=path)
    async with Harness(device) as harness:
        await harness.reset()
        reader, writer = await ask(path, b"CONNECT 7\n")
        async with asyncio.timeout(HANGS):
            while not any(h._waiter for h in device._hybrid._handshakes):  # type: ignore[union-attr]  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        await harness.start()
        async with Guest(harness) as guest:
            guest.listen(7)
            await guest.accept(7)
            assert (await reader.readline()).startswith(b"OK ")
            writer.close()


async def test_a_client_does_not_wait_for_ever_for_the_driver(path: Path) -> None:
    device = make_device(path=path, connect_timeout=0.05)
    await device.open()
    reader, writer = await ask(path, b"CONNECT 7\n")
    assert await reader.read() == b""
    writer.close()
    await device.close()


@pytest.mark.parametrize("said", [b"", b"CONNECT", b"CONNECT 7\n", b"CONNECT 7\npayload", b"CONNECT 8\n"])
@pytest.mark.parametrize("half", [False, True], ids=["closed", "half-closed"])
async def test_a_client_that_vanishes(path: Path, said: bytes, half: bool) -> None:
    async with running(path) as (device, guest):
        _, writer = await ask(path, said)
        if half:
            writer.write_eof()
            await asyncio.sleep(0.01)
        writer.transport.abort() if not half else writer.close()

        async def close_all() -> None:
            while True:
                sock = await guest.accept(7)
                await guest.until(lambda s=sock: s.peer_shutdown & SHUTDOWN_SEND or s.reset)  # type: ignore[misc]
                await sock.close()

        closing = asyncio.create_task(close_all())
        await nothing_left(device, guest)
        closing.cancel()


async def test_a_client_that_vanishes_between_request_and_answer(path: Path) -> None:
    device = make_device(path=path)
    async with Harness(device) as harness, Guest(harness) as guest:
        held = asyncio.Event()
        answer = guest._packet

        async def hold(header: object, payload: bytes) -> None:
            await held.wait()
            await answer(header, payload)  # type: ignore[arg-type]

        guest._packet = hold  # type: ignore[method-assign]
        guest.listen(7)
        _, writer = await ask(path, b"CONNECT 7\n")
        await guest.until(lambda: guest.log)
        writer.transport.abort()
        await nothing_left(device, guest)
        held.set()
        sock = await guest.accept(7)
        await sock.wait("reset")
        await guest.until(lambda: len(guest.log) == 3)  # one for the client that left, one for the answer to it
        assert [h.op for h in guest.log] == [Op.REQUEST, Op.RST, Op.RST]


async def test_a_client_that_vanishes_when_connected_is_a_shutdown(path: Path) -> None:
    async with running(path) as (device, guest):
        reader, writer = await ask(path, b"CONNECT 7\n")
        sock = await guest.accept(7)
        await reader.readline()
        writer.transport.abort()
        await guest.until(lambda: sock.peer_shutdown == SHUTDOWN_BOTH)
        await sock.close()
        await nothing_left(device, guest)


async def test_the_guest_connects_to_a_program(path: Path) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read())
        writer.close()

    async with running(path) as (_, guest), await asyncio.start_unix_server(echo, f"{path}_80"):
        sock = await guest.connect(80)
        await sock.send(b"hello")
        await sock.shutdown(SHUTDOWN_SEND)
        assert await sock.recv_all() == b"hello"
        with pytest.raises(ConnectionRefusedError):
            await guest.connect(81)


async def test_the_program_that_listens_comes_before_the_unix_socket(path: Path) -> None:
    async with running(path) as (device, guest), await device.streams.listen(80) as server:
        await guest.connect(80)
        _, writer = await server.accept()
        writer.close()


def test_a_client_waits_no_less_for_a_guest_that_was_stopped_as_well(path: Path) -> None:
    async def waits(loop: StoppedLoop) -> None:
        device = make_device(path=path, connect_timeout=HANGS)
        async with Harness(device) as harness:
            await harness.reset()
            reader, writer = await ask(path, b"CONNECT 7\n")
            while not any(h._waiter for h in device._hybrid._handshakes):  # type: ignore[union-attr]  # noqa: ASYNC110
                await asyncio.sleep(0)
            loop.away = 100.0
            await asyncio.sleep(0.01)
            await harness.start()
            async with Guest(harness) as guest:
                guest.listen(7)
                assert (await reader.readline()).startswith(b"OK ")
                writer.close()

    run_stopped(waits)


async def test_a_program_whose_backlog_is_full_is_waited_for(path: Path) -> None:
    async with running(path) as (_, guest):
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as filler:
            listener.bind(f"{path}_80")
            listener.listen(0)
            filler.connect(f"{path}_80")
            connecting = asyncio.create_task(guest.connect(80))
            await guest.until(lambda: guest.sockets)
            await asyncio.sleep(0.03)
            assert not connecting.done()
            listener.accept()[0].close()
            await connecting
            client, _ = listener.accept()
            client.close()


async def test_a_program_whose_backlog_stays_full_is_given_up(path: Path) -> None:
    async with running(path, connect_timeout=0.05) as (device, guest):
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as filler:
            listener.bind(f"{path}_80")
            listener.listen(0)
            filler.connect(f"{path}_80")
            with pytest.raises(ConnectionRefusedError):
                await guest.connect(80)
            await nothing_left(device, guest)


async def test_clients_that_wait_for_a_guest_ask_it_one_by_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there may be: all at once they would have the loop for as long."""
    turns, request = [0], _Handshake._request

    def counted(handshake: _Handshake) -> None:
        turns[-1] += 1
        request(handshake)

    monkeypatch.setattr(_Handshake, "_request", counted)
    async with running(path) as (device, guest):
        await guest.harness.reset()
        clients = [await ask(path, b"CONNECT 7\n") for _ in range(50)]
        hybrid = device._hybrid
        assert hybrid is not None
        await guest.until(lambda: sum(h._waiter is not None for h in hybrid._handshakes) == 50)
        await guest.harness.start()
        while sum(turns) < 50:
            turns.append(0)
            await asyncio.sleep(0)
        assert max(turns) <= 2
        async with Guest(guest.harness) as again:
            again.listen(7)
            for reader, writer in clients:
                assert (await reader.readline()).startswith(b"OK ")
                writer.close()


async def test_many_that_wait_for_a_backlog_are_one_to_look_at(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as a guest may ask for stand behind the first, in order."""
    tries: list[int] = []
    again = HybridSocket._try

    def counted(hybrid: HybridSocket, sock: socket.socket, port: int) -> int:
        tries.append(sock.fileno())
        return again(hybrid, sock, port)

    async with running(path) as (device, guest):
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as filler:
            listener.bind(f"{path}_80")
            listener.listen(0)
            filler.connect(f"{path}_80")
            connecting = [asyncio.create_task(guest.connect(80)) for _ in range(40)]
            hybrid = device._hybrid
            assert hybrid is not None
            await guest.until(lambda: hybrid._waits == 40)
            monkeypatch.setattr(HybridSocket, "_try", counted)
            await guest.until(lambda: len(tries) == 5)
            assert len(set(tries)) == 1, "the others need not be asked for"
            listener.listen(100)
            await asyncio.gather(*connecting)
            assert hybrid._waits == 0
            assert not hybrid._full


async def test_a_device_that_closes_before_the_first_try_again_leaves_nothing(path: Path) -> None:
    async with running(path) as (device, _):
        switch = device._switch
        held, made = switch.share.held, []
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as filler:
            listener.bind(f"{path}_80")
            listener.listen(0)
            filler.connect(f"{path}_80")
            assert switch.share.take()  # as the switch does for who asks

            def accepted(sock: object, aborted: object = None) -> None:
                made.append(sock)
                switch.share.give()

            fds = set(os.listdir("/proc/self/fd"))
            hybrid = device._hybrid
            assert hybrid is not None
            hybrid._connect_host(80, accepted)
            assert hybrid._waits == 1
            await hybrid.close()  # its task has not run yet
        assert made == [None]
        assert switch.share.held == held
        await asyncio.sleep(0)
        assert set(os.listdir("/proc/self/fd")) <= fds


async def test_a_reset_closes_clients_and_keeps_the_listener(path: Path) -> None:
    async with running(path) as (_, guest):
        reader, writer = await ask(path, b"CONNECT 7\n")
        await guest.accept(7)
        await reader.readline()
        await guest.harness.reset()
        assert await reader.read() == b""
        writer.close()
        await guest.harness.start()
        async with Guest(guest.harness) as again:
            again.listen(7)
            reader, writer = await ask(path, b"CONNECT 7\n")
            await again.accept(7)
            assert (await reader.readline()).startswith(b"OK ")
            writer.close()


async def test_a_stale_socket_is_replaced_and_ours_is_removed(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(os.fspath(path))
    device = make_device(path=path)
    await device.open()
    assert os.stat(path).st_mode & 0o777 == 0o600
    other = make_device(path=path)
    with pytest.raises(HostError) as refused:
        await other.open()
    assert refused.value.errno == errno.EADDRINUSE
    await other.close()
    assert exists(path)
    await device.close()
    assert not exists(path)


@pytest.fixture
def precious(path: Path) -> Path:
    path.write_text("precious")
    return path


async def test_a_file_that_is_no_socket_is_left_alone(precious: Path) -> None:
    device = make_device(path=precious)
    with pytest.raises(ConfigError):
        await device.open()
    await device.close()
    assert exists(precious)


async def test_handshakes_are_bounded(path: Path) -> None:
    async with running(path, limit=4) as (device, guest):
        clients = [await ask(path, b"CONN") for _ in range(8)]
        await guest.until(lambda: len(device._hybrid._handshakes) == 4)  # type: ignore[union-attr]
        ended = [r for r, _ in clients[4:]]
        for reader in ended:
            await expect_close(reader)
        for _, writer in clients:
            writer.close()
        await nothing_left(device, guest)


async def test_a_path_without_room_for_every_port_is_refused() -> None:
    make_device(path=Path("/" + "x" * 95))
    with pytest.raises(ConfigError, match="96 bytes"):
        make_device(path=Path("/" + "x" * 96))


async def test_a_port_whose_socket_can_have_no_name_is_refused(path: Path) -> None:
    async with running(path) as (device, guest):
        assert device._hybrid is not None
        device._hybrid.path = path.with_name("x" * 100)
        with pytest.raises(ConnectionRefusedError):
            await guest.connect(0xFFFFFFFE)
        device._hybrid.path = path


async def test_a_program_that_has_said_all_and_gone_is_heard(path: Path) -> None:
    """It need not wait for the guest's answer: what it sent behind its line arrives whole, and then the end."""
    async with running(path) as (device, guest):
        for size in (5, 100_000):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                client.sendall(b"CONNECT 7\n" + bytes(size))
            sock = await guest.accept(7)
            assert await sock.recv_all() == bytes(size)
            await sock.close()
        await nothing_left(device, guest)
