"""The agent's program: what it is, and what it makes of a host, or a connection, that does not behave."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiovmm import architecture
from aiovmm.agent import Agent, agent_binary, wire
from aiovmm.agent.build import SOURCES
from aiovmm.agent.files import Files
from aiovmm.agent.place import UnixPlace
from aiovmm.agent.request import Request
from aiovmm.agent.run import run
from aiovmm.agent.wire import Kind, frame, greeting
from aiovmm.boot.elf import is_static
from aiovmm.errors import ImageError

SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.mark.parametrize("arch", architecture.ALL, ids=lambda arch: arch.name)
def test_it_is_small_and_static(arch: architecture.Architecture) -> None:
    try:
        path = agent_binary(arch)
    except ImageError:
        if arch is architecture.host() or shutil.which(f"{arch.name}-linux-gnu-gcc"):
            raise
        pytest.skip(f"no {arch.name}-linux-gnu-gcc")
    assert path.stat().st_size < 200 << 10
    assert is_static(path.read_bytes(), arch)
    assert os.access(path, os.X_OK)


def connected(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    while client.connect_ex(str(path)):
        pass
    return client


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sources, made to check themselves."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    path = tmp_path_factory.mktemp("sanitized") / "agent"
    flags = ["-std=gnu11", "-O1", "-g", "-DHOSTED", "-Wall", "-Wextra", "-Werror", *SANITIZE]
    subprocess.run(["gcc", *flags, "-o", path, *SOURCES.glob("*.c")], check=True, timeout=120)
    return path


class Checked:
    """One that runs, and has not complained when it is ended."""

    def __init__(self, program: Path, folder: Path, *prefix: str) -> None:
        self.path = folder / "socket"
        environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
        self.process = subprocess.Popen(
            [*prefix, program, "--unix", self.path], stderr=subprocess.PIPE, env=environment, start_new_session=True
        )

    def end(self) -> None:
        assert self.process.poll() is None, self.process.communicate()[1].decode(errors="replace")
        self.process.kill()
        assert self.process.communicate()[1] == b""


@pytest.fixture(scope="module")
def checked(sanitized: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checked]:
    agent = Checked(sanitized, tmp_path_factory.mktemp("checked"))
    yield agent
    agent.end()


def pieces(kinds: list[int]) -> st.SearchStrategy[list[tuple[int, int, int, bytes]]]:
    start = Request(args=["true"], env={"A": "b"}, limits={"core": 0}).payload()
    applet = Request(args=["unpack", "/dev/null/x"], applet=True).payload()
    payload = st.one_of(
        st.binary(max_size=60),
        st.sampled_from([start, applet, start[:-3], b"\xff" * 40, struct.pack("<II", 9, 2), struct.pack("<II", 64, 0)]),
        st.builds(
            lambda at, byte: start[:at] + bytes([byte]) + start[at + 1 :], st.integers(0, 40), st.integers(0, 255)
        ),
    )
    return st.lists(st.tuples(st.integers(0, 3), st.sampled_from(kinds), st.integers(0, 3), payload), max_size=25)


# Not POWER: it is meant.
KINDS = [kind for kind in range(24) if kind not in (Kind.POWER, Kind.CLOCK, Kind.CONNECT, Kind.LISTEN)]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces(KINDS), st.booleans())
def test_it_outlives_any_host(checked: Checked, said: list[tuple[int, int, int, bytes]], greets: bool) -> None:
    with connected(checked.path) as client:
        assert client.recv(100)[12:20] == wire.MAGIC
        data = b"".join(frame(channel, kind, payload, stream) for channel, kind, stream, payload in said)  # type: ignore[arg-type]
        with suppress(OSError):  # it has closed
            client.sendall((greeting() if greets else b"") + data)
    assert checked.process.poll() is None


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=3000))
def test_it_outlives_any_bytes(checked: Checked, data: bytes) -> None:
    with connected(checked.path) as client, suppress(OSError):
        client.sendall(data)
    assert checked.process.poll() is None


async def work(path: Path, tmp_path: Path) -> None:
    agent = Agent(UnixPlace(path), patience=20)
    assert (await run(agent, ["sh", "-c", "cat; echo err >&2; exit 3"], input=bytes(1 << 20))).returncode == 3
    files = Files(agent)
    (tmp_path / "tree/a").mkdir(parents=True)
    (tmp_path / "tree/a/file").write_bytes(bytes(300000))
    (tmp_path / "tree/link").symlink_to("a/file")
    await files.copy_in(tmp_path / "tree", tmp_path / "guest")
    await files.copy_out(tmp_path / "guest", tmp_path / "back")
    assert (tmp_path / "back/a/file").read_bytes() == bytes(300000)
    assert [entry.name for entry in await files.list(tmp_path / "guest")] == ["a", "link"]
    await files.remove(tmp_path / "guest", recursive=True)
    await files.mkdir(tmp_path / "x/y", parents=True)
    assert (await run(agent, ["id", "-u"], user="nobody")).stdout == b"65534\n"
    agent.close()


async def test_nothing_is_wrong_with_its_memory(checked: Checked, tmp_path: Path) -> None:
    await work(checked.path, tmp_path)


@pytest.mark.parametrize("count", [4088, 4089, 5000, 8000])
def test_more_variables_than_it_has_room_for(checked: Checked, count: int) -> None:
    """Its own defaults come behind them. Our host asks for no more than 4000 words, another one may."""
    request = bytearray(Request(args=["true"]).payload())
    struct.pack_into("<H", request, 22, count)
    with connected(checked.path) as client:
        client.sendall(greeting() + frame(1, Kind.START, bytes(request) + b"A=b\0" * count))
        answers = client.makefile("rb")
        while True:
            size, _channel, kind = struct.unpack("<IIB3x", answers.read(12))
            data = answers.read(size)
            if kind in (Kind.FAILED, Kind.EXIT):
                break
    assert (kind, int.from_bytes(data[:4], "little")) == (
        (Kind.EXIT, 0) if count == 4088 else (Kind.FAILED, errno.E2BIG)
    )


@pytest.mark.skipif(platform.machine() != "x86_64", reason="emulates arm64 on x86-64")
async def test_it_works_on_arm64(tmp_path: Path) -> None:
    """Its own part: the programs that it runs are this machine's."""
    emulator = shutil.which("qemu-aarch64")
    if emulator is None or not shutil.which("aarch64-linux-gnu-gcc"):
        pytest.skip("needs qemu-user and aarch64-linux-gnu-gcc")
    agent = Checked(agent_binary(architecture.AARCH64), tmp_path, emulator)
    (tmp_path / "work").mkdir()
    await work(agent.path, tmp_path / "work")
    agent.end()


def test_a_second_host_and_more(checked: Checked) -> None:
    """As many as it has room for; one more is closed at once."""
    clients = [connected(checked.path) for _ in range(64)]
    for client in clients:
        assert client.recv(100)[12:20] == wire.MAGIC
    with connected(checked.path) as late:
        assert late.recv(100) == b""
    for client in clients:
        client.close()
