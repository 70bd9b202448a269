"""Ports that are published: taken before anything is made, told, and the guest's from its agent's first word to its end."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import aiovmm
from aiovmm import BootTimeout, HostError
from aiovmm.sandboxes import Sandbox
from aiovmm.sandboxes.publish import held, pairs
from tests.agent.conftest import Guest, guest
from tests.agent.test_forward import ask, server
from tests.limits import HANGS
from tests.sandboxes.bare import bare
from tests.vm.conftest import emulated

__all__ = ["emulated", "guest", "server"]


@pytest.fixture
def busy() -> Iterator[int]:
    """A port where somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock.getsockname()[1]


def is_free(port: int) -> bool:
    """Whether nobody listens there."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


async def test_a_busy_port_is_told_before_anything_is_made(busy: int, tmp_path: Path) -> None:
    """The image is not there, which nobody comes to look at; and the port that could be had is let go of."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        free = sock.getsockname()[1]
    with pytest.raises(HostError, match=rf"publish another port, or 0 for any.*127\.0\.0\.1:{busy}") as info:
        async with aiovmm.sandbox(tmp_path / "nothing", publish={free: 80, busy: 81}):
            pass
    assert info.value.errno == errno.EADDRINUSE
    assert is_free(free)


def test_a_port_that_only_root_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(socket.socket):
        def bind(self, address: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "socket", Refusing)
    with pytest.raises(HostError, match=r"ip_unprivileged_port_start.*127\.0\.0\.1:80$"), held(pairs({80: 80})):
        pass


def test_a_port_that_is_held_is_nobody_elses() -> None:
    with held(pairs([(0, 80), (0, 80)])) as listeners:
        taken = [listener.getsockname()[1] for listener, _ in listeners]
        assert len(set(taken)) == 2
        with pytest.raises(HostError), held(pairs({taken[0]: 81})):
            pass
    assert all(is_free(port) for port in taken)


@pytest.mark.kvm
class TestInAGuest:
    @pytest.fixture
    def given(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, guest: Guest, emulated: bool) -> dict[str, Any]:
        return bare(monkeypatch, tmp_path, guest.path)

    async def test_which_port_was_taken_is_told_as_soon_as_it_boots(self, given: dict[str, Any], server: int) -> None:
        seen = []
        ports = [(0, server), (0, server)]
        async with aiovmm.sandbox(**given, publish=ports, on_start=lambda vm: seen.append({**vm.published})) as vm:
            assert seen == [vm.published]
            assert [*vm.published.values()] == [server, server]
            first, second = vm.published
            for port in (first, second):
                await ask(*await asyncio.open_connection("127.0.0.1", port), 300_000)
            await vm.unforward(first)
            assert is_free(first)
            await ask(*await asyncio.open_connection("127.0.0.1", second), 1000)
        assert is_free(second)

    async def test_who_connects_while_it_boots_is_served_when_it_is_ready(
        self, given: dict[str, Any], server: int
    ) -> None:
        early = []

        def connect(vm: Sandbox) -> None:
            [port] = vm.published
            early.append(socket.create_connection(("127.0.0.1", port)))
            early[0].sendall(b"early")

        async with aiovmm.sandbox(**given, publish={0: server}, on_start=connect):
            early[0].setblocking(False)
            async with asyncio.timeout(HANGS):
                await ask(*await asyncio.open_connection(sock=early[0]), 0, before=b"early")

    async def test_a_guest_that_never_is_ready_lets_go_of_its_ports(
        self, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        ports: list[int] = []
        monkeypatch.undo()
        given = bare(monkeypatch, tmp_path, tmp_path / "no agent")
        with pytest.raises(BootTimeout):
            async with aiovmm.sandbox(
                **given, publish={0: 80}, timeout=0.2, on_start=lambda vm: ports.extend(vm.published)
            ):
                pass
        assert is_free(ports[0])

    async def test_its_console_can_be_followed_from_the_beginning(self, given: dict[str, Any]) -> None:
        said = []

        def follow(vm: Sandbox) -> None:
            said.append(asyncio.ensure_future(vm.serial.reader().readuntil(b"hello")))

        async with aiovmm.sandbox(**given, on_start=follow):
            async with asyncio.timeout(HANGS):
                assert (await said[0]).endswith(b"hello")

    async def test_a_function_that_fails_ends_the_guest(self, given: dict[str, Any]) -> None:
        seen: list[Sandbox] = []

        def fail(vm: Sandbox) -> None:
            seen.append(vm)
            raise RuntimeError("mine")

        with pytest.raises(RuntimeError, match="mine"):
            async with aiovmm.sandbox(**given, on_start=fail):
                pass
        assert seen[0].status is not None
