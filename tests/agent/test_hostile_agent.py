"""An agent that does not behave: a guest can put anything in its place. It takes nothing of the host but its connection."""

from __future__ import annotations

import asyncio
import collections
import itertools
import os
import struct
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiovmm import AgentError, AgentLost, AiovmmError, BootTimeout
from aiovmm.agent import Agent, wire
from aiovmm.agent.channel import Channel, Sink
from aiovmm.agent.files import _ENTRIES_MAX, Files, _sorted, _stats
from aiovmm.agent.gathered import Gathered
from aiovmm.agent.host_tree import TreeWriter
from aiovmm.agent.link import Link
from aiovmm.agent.place import UnixPlace
from aiovmm.agent.process import Pieces, create
from aiovmm.agent.run import _Kept, run
from aiovmm.agent.tree import END, UP, Content, TreeReader, content, content_end, record, stays_inside
from aiovmm.agent.wire import Frame, Kind, Stream, frame
from aiovmm.errors import PeerError, UsageError
from aiovmm.runtime.descriptors import PROCESS
from tests.limits import HANGS
from tests.open_files import descriptors
from tests.reset_peer import reset_connection

HELLO = frame(0, Kind.HELLO, struct.pack("<8sHHIIIQII", wire.MAGIC, 1, 0, 1024, 65536, 262144, 0, 0, 0))
STARTED = frame(0, Kind.STARTED, struct.pack("<I", 5))


@asynccontextmanager
async def says(path: Path, *said: bytes, hangs: bool = False) -> AsyncIterator[Agent]:
    """An agent that says this when it is connected to: the greeting comes first, the rest when something was asked."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.CancelledError):
            if not said:
                writer.close()
                return
            writer.write(said[0])
            await reader.read(22)
            await reader.read(1 << 16)
            for part in said[1:]:
                writer.write(part)
                await writer.drain()
            while hangs and await reader.read(1 << 16):
                pass
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    agent = Agent(UnixPlace(path), patience=5)
    try:
        yield agent
    finally:
        agent.close()
        server.close()


@pytest.mark.parametrize(
    "said",
    [
        frame(0, Kind.DATA, b"x", 1),  # before it has started anything
        STARTED + frame(0, Kind.DATA, b"x", 0),
        STARTED + frame(0, Kind.DATA, b"x", 7),
        STARTED + frame(0, Kind.DATA, b"", 2),  # of which there would be no end
        STARTED + frame(0, 99, b""),  # type: ignore[arg-type]
        STARTED + frame(0, Kind.EXIT, b"123"),
        STARTED + frame(0, Kind.CREDIT, b""),
        STARTED + frame(0, Kind.EOF, b"", 1) + frame(0, Kind.DATA, b"x", 1),
        frame(0, Kind.FAILED, b"12"),
        b"\xff" * 1000,
    ],
)
async def test_what_no_agent_says_ends_the_connection(tmp_path: Path, said: bytes) -> None:
    async with says(tmp_path / "a", HELLO, said, hangs=True) as agent:
        with pytest.raises(AgentLost):
            await begin_and_wait(agent)
        link = await agent.link()  # another one
        assert not link.lost


async def begin_and_wait(agent: Agent) -> None:
    process = await create(agent, ["true"], (-1, -3, -1))
    await process.wait()


async def test_output_without_credit_is_not_kept(tmp_path: Path) -> None:
    """Nobody reads: what it may send is bounded by the window, and what the reader keeps by that, too."""
    flood = frame(0, Kind.DATA, bytes(wire.DATA_MAX), 1) * 100
    async with says(tmp_path / "a", HELLO, STARTED + flood, hangs=True) as agent:
        process = await create(agent, ["true"], (-1, -1, -1))
        with pytest.raises(AgentLost):
            await process.wait()
        assert process.stdout is not None
        assert len(await process.stdout.read()) <= 2 * 256 << 10


@pytest.mark.parametrize(
    "make", [lambda c: _Kept(1 << 20, asyncio.Event()), lambda c: Pieces(c, Stream.STDOUT, 1 << 20)]
)
def test_output_in_small_pieces_is_kept_in_few(make: Callable[[Channel], Sink]) -> None:
    """An object of the host's for two bytes of the guest's would make 16 GiB of a limit of 256 MiB."""
    channel = Channel(0, lambda data: None, input_window=1000, window=1 << 20)
    channel.sinks[Stream.STDOUT] = make(channel)
    tracemalloc.start()
    try:
        for n in range(1 << 17):
            channel.received(Frame(0, Kind.DATA, Stream.STDOUT, (n & 0xFFFF).to_bytes(2, "little")))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 2 * (1 << 18)


@given(st.lists(st.integers(0, 9000)), st.integers(0, 5))
def test_what_is_gathered_is_what_came(sizes: list[int], taken_at: int) -> None:
    gathered, came, taken = Gathered(), b"", b""
    for n, size in enumerate(sizes):
        piece = bytes([n % 251]) * size
        gathered.add(piece)
        came += piece
        assert gathered.size == len(came) - len(taken)
        if n == taken_at:
            taken = b"".join(gathered.take())
            assert not gathered.size
    assert taken + bytes(gathered) == came


@pytest.mark.parametrize("credit", [(1 << 32) - 1, 1])
async def test_credit_for_input_that_it_has_not_taken(tmp_path: Path, credit: int) -> None:
    """What is sent to whom does not read is the host's memory."""
    more = frame(0, Kind.CREDIT, struct.pack("<I", credit))
    async with says(tmp_path / "a", HELLO, STARTED + more, hangs=True) as agent:
        with pytest.raises(AgentLost):
            await run(agent, ["cat"], timeout=HANGS)


async def test_answers_to_whom_does_not_read_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks for more and more, each of which is answered: it is not read any more when it has left much of that."""
    monkeypatch.setattr("aiovmm.agent.link._UNREAD", 1 << 17)
    accepted = b"".join(frame(0, Kind.ACCEPTED, struct.pack("<I", (1 << 31) | n)) for n in range(1000, 9000))
    done: list[bool] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            writer.write(HELLO)
            await reader.readexactly(22)
            await reader.read(100)  # it listens
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(STARTED)
            for _ in range((8 << 20) // len(accepted)):
                writer.write(accepted)
                await writer.drain()
            done.append(True)

    server = await asyncio.start_unix_server(serve, tmp_path / "a")
    agent = Agent(UnixPlace(tmp_path / "a"), patience=5)
    host = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    await agent.forwards.to_host(80, host.sockets[0].getsockname()[1], "127.0.0.1")
    transport = (await agent.link())._transport
    assert transport is not None
    async with asyncio.timeout(60):
        while transport.is_reading():
            assert not done
            await asyncio.sleep(0.01)
    assert transport.get_write_buffer_size() < 1 << 20
    for closing in (agent, server, host):
        closing.close()


@pytest.mark.parametrize("greeting", [b"", b"HTTP/1.1 200 OK\r\n" * 10, frame(0, Kind.DATA, b"")])
async def test_another_program_at_the_port(tmp_path: Path, greeting: bytes) -> None:
    async with says(tmp_path / "a", greeting, hangs=True) as agent:
        with pytest.raises((BootTimeout, PeerError)):
            await agent.ready(0.5)


async def test_one_that_ends_at_once_is_tried_again(tmp_path: Path) -> None:
    async with says(tmp_path / "a") as agent:
        with pytest.raises(BootTimeout) as info:
            await agent.ready(0.5)
        assert info.value.stage in ("agent", "greeting"), "by whether the time was over between two tries or in one"


@pytest.mark.parametrize("kind", [Kind.CREDIT, Kind.DONE, Kind.EXIT])
async def test_a_flood_of_frames_leaves_the_loop_to_others(
    tmp_path: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a megabyte of them is 40,000, or 100 ms: few are served in a turn of the loop, and all in the end."""
    count, turn, served = 40_000, [0], collections.Counter[int]()
    received = Link._received

    def noted(link: Link, frame: Frame) -> None:
        served[turn[0]] += 1
        received(link, frame)

    monkeypatch.setattr(Link, "_received", noted)
    async with says(tmp_path / "a", HELLO, STARTED + frame(0, kind, bytes(4)) * count) as agent, asyncio.timeout(HANGS):
        await agent.ready()
        process = asyncio.ensure_future(create(agent, ["true"], (-1, -1, -1)))
        while served.total() < count + 2:
            await asyncio.sleep(0)
            turn[0] += 1
        await process
    assert max(served.values()) <= 128


async def test_one_that_leaves_when_it_is_renewed_is_not_asked_without_pause(tmp_path: Path) -> None:
    """Of a fork's or a restored guest, which is told the time before all else: it had 1,700 connections made a second."""
    tries = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tries.append(writer)
        writer.write(HELLO)
        with suppress(asyncio.CancelledError):
            await reader.read(100)
        writer.close()

    server = await asyncio.start_unix_server(serve, tmp_path / "a")
    agent = Agent(UnixPlace(tmp_path / "a"), renews=True)
    with pytest.raises(BootTimeout):
        await agent.ready(0.6)
    server.close()
    assert 1 < len(tries) <= 0.6 / 0.015 + 1


async def test_questions_that_are_not_answered(tmp_path: Path) -> None:
    async with says(tmp_path / "a", HELLO) as agent:
        with pytest.raises(AgentLost):
            await agent.ping()


@pytest.mark.parametrize("answer", [b"", b"123", b"12345", b"\xff" * 4, struct.pack("<I", 4096)])
async def test_an_answer_that_is_no_errno(tmp_path: Path, answer: bytes) -> None:
    """Whoever asked is told, and whoever asked after him."""
    async with says(tmp_path / "a", HELLO, frame(0, Kind.DONE, answer), hangs=True) as agent, asyncio.timeout(HANGS):
        asked = [asyncio.ensure_future(agent.ping()) for _ in range(2)]
        for answered in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(answered, AgentLost)


async def test_a_failure_that_is_no_errno(tmp_path: Path) -> None:
    failed = frame(0, Kind.FAILED, struct.pack("<ii", -1, 1))
    async with says(tmp_path / "a", HELLO, failed, hangs=True) as agent, asyncio.timeout(HANGS):
        with pytest.raises(AgentLost):
            await run(agent, ["true"])


DONE = frame(0, Kind.DONE, bytes(4))


@pytest.mark.parametrize("renews", [False, True])
async def test_one_that_breaks_the_protocol_as_it_is_found_is_told_of(renews: bool, tmp_path: Path) -> None:
    """In one breath with its greeting, or its answers to a guest that is renewed: what was asked of it then had no end."""
    said = [HELLO, DONE + DONE + frame(0, Kind.DONE)] if renews else [HELLO + frame(0, Kind.DONE)]
    async with says(tmp_path / "a", *said, hangs=True) as agent, asyncio.timeout(HANGS):
        agent._renews = renews
        with pytest.raises(PeerError, match="kind 19 with 0 bytes"):
            await run(agent, ["true"])


async def test_channels_that_nobody_asked_for(tmp_path: Path) -> None:
    """Of connections that it says its listener took: few are taken, and no number twice."""
    accepted = b"".join(frame(0, Kind.ACCEPTED, struct.pack("<I", (1 << 31) | n % 1000)) for n in range(3000))
    zero = frame(0, Kind.ACCEPTED, struct.pack("<I", 0))
    async with says(tmp_path / "a", HELLO, STARTED + zero + accepted, hangs=True) as agent:
        server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
        await agent.forwards.to_host(80, server.sockets[0].getsockname()[1], "127.0.0.1")
        link = await agent.link()
        assert len(link.channels) <= 257
        server.close()


async def test_connections_take_no_more_descriptors_than_a_guests_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four ports that it was given: else a process with 1,024 of them has none left for a neighbour's reset."""
    pool = descriptors() + 40
    monkeypatch.setattr(PROCESS, "_limit", lambda: -(-pool * 4 // 3))
    accepted = b"".join(frame(n % 4, Kind.ACCEPTED, struct.pack("<I", (1 << 31) | n)) for n in range(1000))
    listens = b"".join(frame(n, Kind.STARTED, struct.pack("<I", 80 + n)) for n in range(4))
    async with says(tmp_path / "a", HELLO, listens + accepted, hangs=True) as agent:
        server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        await agent.ready()  # so that all four are asked for at once
        await asyncio.gather(*(agent.forwards.to_host(80 + n, port, "127.0.0.1") for n in range(4)))
        link, share = await agent.link(), agent.forwards._share
        while not share.held:  # noqa: ASYNC110 - the agent's frames are served in their turn
            await asyncio.sleep(0)
        assert len(link.channels) <= 4 + 40
        server.close()
    async with asyncio.timeout(HANGS):
        while share.held:  # noqa: ASYNC110 - they have ended, each in its turn
            await asyncio.sleep(0)


@pytest.mark.parametrize("then", ["cancelled", "failed", "no port"])
async def test_no_connection_is_left_of_a_port_that_came_to_nothing(then: str, tmp_path: Path) -> None:
    """The agent has said that it took one before it says anything of the port; nobody could end that."""
    accepted = frame(0, Kind.ACCEPTED, struct.pack("<I", 1 << 31))
    last = {
        "cancelled": b"",
        "failed": frame(0, Kind.FAILED, struct.pack("<ii", 98, 0)),
        "no port": frame(0, Kind.STARTED, struct.pack("<I", 0)),
    }[then]
    connected = asyncio.Event()
    server = await asyncio.start_server(lambda r, w: connected.set(), "127.0.0.1", 0)
    said = [HELLO, accepted + last]
    async with server, says(tmp_path / "a", *said, hangs=True) as agent, asyncio.timeout(HANGS):
        asking = asyncio.create_task(agent.forwards.to_host(0, server.sockets[0].getsockname()[1], "127.0.0.1"))
        if then == "cancelled":
            await connected.wait()
            asking.cancel()
        await asyncio.wait([asking])
        assert asking.cancelled() or isinstance(asking.exception(), AiovmmError | OSError)
        assert not (await agent.link()).channels
        assert not agent.forwards._share.held


anything = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 0, 1, 1 << 31]),
        st.integers(0, 22),
        st.integers(0, 3),
        st.one_of(st.binary(max_size=40), st.binary(min_size=4, max_size=4), st.binary(min_size=8, max_size=8)),
    ),
    max_size=30,
)


@settings(max_examples=40, deadline=None)
@given(anything, st.booleans())
async def test_a_command_ends_whatever_the_agent_says(said: list[tuple[int, int, int, bytes]], greets: bool) -> None:
    data = b"".join(frame(channel, kind, payload, stream) for channel, kind, stream, payload in said)  # type: ignore[arg-type]
    with TemporaryDirectory() as folder:
        async with says(Path(folder, "a"), HELLO if greets else data, data) as agent:
            agent.patience = 0.2
            with suppress(AgentError, PeerError, OSError):
                await run(agent, ["true"], input=b"x", timeout=HANGS)


@given(st.lists(st.tuples(st.integers(0, 22), st.integers(0, 3), st.binary(max_size=70000)), max_size=20))
def test_a_channel_takes_any_frame_or_refuses_it(said: list[tuple[int, int, bytes]]) -> None:
    sent: list[bytes] = []
    channel = Channel(0, sent.append, input_window=1000, window=1 << 17)
    kept = [0]

    class Keeps:
        def feed(self, data: bytes) -> bool:
            kept[0] += len(data)
            return False

        def end(self) -> None:
            pass

    channel.sinks = {1: Keeps(), 2: Keeps()}
    channel.write(b"x" * 5000)
    with suppress(PeerError):
        for kind, stream, payload in said:
            channel.received(Frame(0, kind, stream, payload))
    assert kept[0] <= 2 << 17


# -- trees


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_any_tree_stays_where_it_is_unpacked(pieces: list[bytes]) -> None:
    unpacked(pieces)


names = st.sampled_from([b"a", b"b", b"..", b".", b"", b"a/b", b"/etc", b"\xff", b"x\0y", b"c" * 256])
kinds = st.sampled_from([b"D", b"D", b"F", b"L", b"U", b"X", b"E", b"Q"])
targets = st.sampled_from([b"a", b"..", b"../..", b"../../outside", b"/etc", b"a/..", b"a/../../..", b"", b"../a/b"])


def encoded(kind: bytes, name: bytes, mode: int, target: bytes) -> bytes:
    data = record(kind, b"" if kind in b"UE" else name, mode)
    if kind == b"F":
        data += struct.pack("<I", 3) + b"abc" + bytes(8)
    if kind == b"L":
        data += struct.pack("<H", len(target)) + target
    return data


@settings(max_examples=150, deadline=None)
@given(st.lists(st.builds(encoded, kinds, names, st.integers(0, 0o7777), targets), max_size=12))
def test_trees_of_hostile_names_stay_where_they_are_unpacked(pieces: list[bytes]) -> None:
    unpacked([record(b"D"), *pieces])


def unpacked(pieces: list[bytes]) -> None:
    with TemporaryDirectory() as folder:
        outside = Path(folder, "outside")
        outside.write_bytes(b"as it was")
        Path(folder, "in").mkdir()
        before = descriptors()
        writer = TreeWriter(f"{folder}/in/tree")
        try:
            for piece in pieces:
                writer.feed(piece)
        except AiovmmError:
            pass
        finally:
            writer.close()
        assert descriptors() <= before
        assert outside.read_bytes() == b"as it was"
        assert sorted(os.listdir(folder)) == ["in", "outside"]
        top = os.path.realpath(f"{folder}/in/tree")
        for directory, directories, files in os.walk(top):
            for name in directories + files:
                path = os.path.join(directory, name)
                assert os.path.realpath(path).startswith(top)
                assert os.path.islink(path) or os.lstat(path).st_mode & 0o7000 == 0


@pytest.mark.parametrize(
    ("target", "depth", "inside"),
    [
        (b"a", 0, True),
        (b"../a", 0, False),
        (b"../a", 1, True),
        (b"a/../b", 1, False),  # `a` may be a link to a directory that is higher up
        (b"/a", 3, False),
        (b"", 0, False),
        (b"./a//b/.", 0, True),
        (b"..", 1, True),
        (b"a\0b", 0, False),
    ],
)
def test_links_that_stay_inside(target: bytes, depth: int, inside: bool) -> None:
    assert stays_inside(target, depth) is inside


def listed(name: bytes) -> bytes:
    return struct.pack("<IIIIQqHH", 0o100644, 0, 0, 0, 0, 0, len(name), 0) + name


@pytest.mark.parametrize("name", [b"", b".", b"..", b"/etc/passwd", b"../../.ssh/authorized_keys", b"a\0b"])
async def test_a_name_that_is_listed_is_one(tmp_path: Path, name: bytes) -> None:
    """Whoever puts what is listed into a directory of the host's by its name is led nowhere else."""
    said = frame(0, Kind.DATA, listed(b"a") + listed(name), 1)
    ends = frame(0, Kind.EXIT, bytes(4)) + frame(0, Kind.CLOSED)
    async with says(tmp_path / "a", HELLO, STARTED + said + ends, hangs=True) as agent:
        with pytest.raises(PeerError, match="which is no name of a file"):
            await Files(agent).list("/x")


async def test_a_stat_has_no_name(tmp_path: Path) -> None:
    said = STARTED + frame(0, Kind.DATA, listed(b"../a"), 1) + frame(0, Kind.EXIT, bytes(4)) + frame(0, Kind.CLOSED)
    async with says(tmp_path / "a", HELLO, said, hangs=True) as agent:
        with pytest.raises(PeerError, match="sent no stat"):
            await Files(agent).stat("/x")


async def test_a_stat_is_one(tmp_path: Path) -> None:
    """And not some megabytes of them, which the loop would take apart."""
    many = frame(0, Kind.DATA, listed(b"") * 1000, 1) * 5
    ends = frame(0, Kind.EXIT, bytes(4)) + frame(0, Kind.CLOSED)
    async with says(tmp_path / "a", HELLO, STARTED + many + ends, hangs=True) as agent:
        with pytest.raises(PeerError, match="without end"):
            await Files(agent).stat("/x")


def test_a_listing_has_no_more_entries_than_there_is_memory_for() -> None:
    """Each costs ten times its bytes as an object."""
    said = Gathered()
    said.add(listed(b"a") * _ENTRIES_MAX)
    assert len(_sorted(said)) == _ENTRIES_MAX
    said.add(listed(b"a") * 1_000_000)
    tracemalloc.start()
    with pytest.raises(PeerError, match="more than 262144 entries"):
        _sorted(said)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 160 << 20


@given(st.binary(max_size=600))
def test_any_listing_is_one_or_an_error(data: bytes) -> None:
    with suppress(PeerError):
        assert all(entry.name is not None for entry in _stats(data))


def long_file(size: int) -> bytes:
    return record(b"F", b"f") + content(bytes(size)) + content_end()


def long_link(size: int) -> bytes:
    return record(b"L", b"l") + struct.pack("<H", size) + b"t" * size


LONG = st.builds(long_file, st.integers(1, 30000)) | st.builds(long_link, st.integers(0, 0xFFFF))
RECORD_MAX = 16 + 255 + 2 + 4095  # head, name, and the target of a link


@settings(deadline=None)
@given(
    st.lists(LONG | st.builds(encoded, kinds, names, st.just(0o644), targets) | st.binary(max_size=100)),
    st.integers(1, 3000),
)
@example([long_file(30000)], 3000)
@example([long_link(0xFFFF)], 3000)
def test_a_tree_reader_keeps_less_than_a_record(pieces: list[bytes], cut: int) -> None:
    reader, data = TreeReader(), record(b"D") + b"".join(pieces)
    with suppress(PeerError):
        for at in range(0, len(data), cut):
            for _ in reader.feed(data[at : at + cut]):
                pass
            assert len(reader._data) < RECORD_MAX


TREE = b"".join(
    [
        record(b"D", mode=493),
        record(b"F", b"a"),
        content(b"x" * 9),
        content(b"y"),
        content_end(),
        record(b"F", b"b"),
        content_end(),
        record(b"L", b"l") + b"\x01\x00a",
        UP,
        END,
    ]
)


@given(st.lists(st.integers(0, len(TREE)), max_size=20))
def test_a_tree_is_the_same_however_it_is_cut(cuts: list[int]) -> None:
    reader, found, data = TreeReader(), list[object](), b""
    bounds = [0, *sorted(cuts), len(TREE)]
    for start, end in itertools.pairwise(bounds):
        for item in reader.feed(TREE[start:end]):
            if isinstance(item, Content):
                data += item.data
            else:
                found.append(item)
    assert reader.ended
    assert data == b"x" * 9 + b"y"
    names = [type(item).__name__ for item in found]
    assert names == ["Directory", "File", "ContentEnd", "File", "ContentEnd", "Link", "Up", "End"]


@given(st.lists(st.tuples(st.integers(1, 9000), st.integers(0, 20000)), max_size=30))
def test_input_goes_out_in_order_and_as_far_as_there_is_credit(steps: list[tuple[int, int]]) -> None:
    """Small pieces and large ones; of each step so much is written, and then so much credit given."""
    sent: list[bytes] = []
    channel = Channel(0, sent.append, input_window=1 << 20, window=1 << 17)
    channel._credit = 0
    written, credit = b"", 0
    for size, more in steps:
        piece = os.urandom(size)
        written += piece
        channel.write(piece)
        credit += more
        channel.received(Frame(0, Kind.CREDIT, 0, more.to_bytes(4, "little")))
        out = b"".join(data[12:] for data in sent)
        assert out == written[: min(credit, len(written))]
        assert channel.waiting == len(written) - len(out)


NO_ERRNO = struct.pack("<I", 0xFFFFFFFF)


@pytest.mark.parametrize(
    "piece", [b"X\0\1\0" + NO_ERRNO + bytes(8) + b"a", record(b"F", b"a") + bytes(4) + NO_ERRNO], ids=["X", "F"]
)
def test_what_cannot_be_read_for_no_reason_that_there_is(tmp_path: Path, piece: bytes) -> None:
    writer = TreeWriter(str(tmp_path / "tree"))
    with pytest.raises(PeerError, match="4294967295 where an errno should be"):
        writer.feed(record(b"D") + piece)
    writer.close()


def files_without_end() -> Iterator[bytes]:
    yield record(b"D", mode=0o700)
    for n in itertools.count():
        yield record(b"F", b"%d" % n) + content_end()


def a_sparse_file() -> Iterator[bytes]:
    yield record(b"F", b"f")
    yield from itertools.repeat(content(bytes(1 << 16)))


def devices_without_end() -> Iterator[bytes]:
    yield record(b"D", mode=0o700)
    yield from itertools.repeat(record(b"X", b"null"))


@pytest.mark.parametrize("tree", [files_without_end, a_sparse_file, devices_without_end])
def test_a_tree_without_end_has_one(tmp_path: Path, tree: Callable[[], Iterator[bytes]]) -> None:
    writer = TreeWriter(str(tmp_path / "tree"), 1 << 20)
    much = b"".join(itertools.islice(tree(), 600))
    with pytest.raises(UsageError, match=r"more than 1048576 bytes: `limit` says how many may be"):
        writer.feed(much)
    writer.close()
    there = list((tmp_path / "tree").rglob("*"))
    assert len(there) < 256
    assert (tmp_path / "tree").stat().st_size <= 1 << 20


def test_what_is_left_out_without_end_is_counted(tmp_path: Path) -> None:
    """Of each there is a text, which is the host's memory."""
    writer = TreeWriter(str(tmp_path / "tree"))
    names = [b"%0255d" % n for n in range(30_000)]
    writer.feed(record(b"D", mode=0o700) + b"".join(record(b"X", name) for name in names) + UP + END)
    told = writer.copied.left_out
    assert [name.encode() for name, _ in told] == names[: len(told)]
    assert sum(len(name) + len(why) for name, why in told) <= 4 << 20
    assert len(told) + writer.copied.untold == len(names)
    assert writer.copied.untold > 1000


async def test_half_a_tree_is_an_error(tmp_path: Path) -> None:
    tree = frame(0, Kind.DATA, record(b"D") + record(b"D", b"a"), 1)
    end = frame(0, Kind.EOF, b"", 1) + frame(0, Kind.EXIT, bytes(4)) + frame(0, Kind.CLOSED)
    async with says(tmp_path / "a", HELLO, STARTED + tree + end, hangs=True) as agent:
        with pytest.raises(PeerError, match="half a tree"):
            await Files(agent).copy_out("/x", tmp_path / "out")


async def test_what_is_said_to_an_agent_that_has_just_reset_its_connection_is_heard_by_nobody() -> None:
    async with reset_connection() as (_, writer):
        link = Link()  # which has not been told yet
        link._transport = cast(asyncio.Transport, writer.transport)
        link.send(b"said")
