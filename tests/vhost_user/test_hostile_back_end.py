"""A back end that does as it likes: the device says what is wrong, keeps running without it, and leaks nothing."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from aiovmm.devices.virtio.vhost_user import VhostUserBlk, VhostUserGeneric, VhostUserNet
from aiovmm.errors import HostError, PeerError
from aiovmm.memory import GuestMemory
from aiovmm.native import lib
from aiovmm.pci.capabilities import VirtioCapType
from aiovmm.vhost_user import Timing
from aiovmm.vhost_user.channel import Channel, ChannelClosed, close_fds
from aiovmm.vhost_user.connection import Connection, connect
from aiovmm.vhost_user.doorstep import Doorstep
from aiovmm.vhost_user.lines import EventReader
from aiovmm.vhost_user.memory_table import shared_regions
from aiovmm.vhost_user.messages import Message
from aiovmm.vhost_user.payloads import ConfigSpace, InflightArea, Payload, VringState, Word
from aiovmm.vhost_user.protocol import F_PROTOCOL_FEATURES, BackendRequest, Flag, FrontendRequest, ProtocolFeature
from aiovmm.vhost_user.sequences import Sequence, get_record, read_config, write_config
from aiovmm.virtqueue.features import VERSION_1
from tests.limits import HANGS
from tests.pci.echo import until
from tests.vhost_user.bench import Guest

F = FrontendRequest
P = ProtocolFeature
Answer = Callable[[Channel, Message, socket.socket], Awaitable[bool]]
OFFER = P.MQ | P.REPLY_ACK | P.CONFIG | P.BACKEND_REQ | P.INFLIGHT_SHMFD


class FakeBackEnd:
    """Answers as a good one does, unless `answer` has dealt with the message."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self.path = path
        self.answer = answer
        self.requests: socket.socket | None = None
        self.connections = 0

    async def __aenter__(self) -> FakeBackEnd:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.setblocking(False)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._task = asyncio.create_task(self._serve())
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        self._listener.close()

    async def _serve(self) -> None:
        while True:
            sock, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            self.connections += 1
            channel = Channel(sock, FrontendRequest)
            try:
                while True:
                    await self._one(channel, await channel.receive(), sock)
            except (ChannelClosed, OSError):
                continue
            finally:
                channel.close()
                if self.requests is not None:
                    self.requests.close()
                    self.requests = None

    async def _one(self, channel: Channel, message: Message, sock: socket.socket) -> None:
        if message.request is F.SET_BACKEND_REQ_FD:
            self.requests = socket.socket(fileno=os.dup(message.fds[0]))
        try:
            if await self.answer(channel, message, sock):
                return
        finally:
            close_fds(message.fds)
        ring = message.payload.index if isinstance(message.payload, VringState) else 0
        replies: dict[FrontendRequest, Payload] = {
            F.GET_FEATURES: Word(VERSION_1 | F_PROTOCOL_FEATURES),
            F.GET_PROTOCOL_FEATURES: Word(OFFER),
            F.GET_QUEUE_NUM: Word(1),
            F.GET_CONFIG: ConfigSpace(0, bytes(60)),
            F.GET_VRING_BASE: VringState(ring, 0),
        }
        assert isinstance(message.request, FrontendRequest)
        if message.request is F.GET_INFLIGHT_FD:
            fd = os.memfd_create("record")
            os.ftruncate(fd, 8192)
            await channel.send(Message(message.request, InflightArea(8192, 0, 1, 128), (fd,), Flag.REPLY))
            os.close(fd)
        elif message.request in replies:
            await channel.send(Message(message.request, replies[message.request], flags=Flag.REPLY))
        elif message.needs_reply:
            await channel.send(Message(message.request, Word(0), flags=Flag.REPLY))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vu.sock"


def disk(path: Path, answer: float = 1.0) -> VhostUserBlk:
    return VhostUserBlk(path, timing=Timing(connect=1, answer=answer, patience=0.3))


def on(request: FrontendRequest, act: Callable[[Channel, Message, socket.socket], Awaitable[None]]) -> Answer:
    """Do something else at one request."""

    async def answer(channel: Channel, message: Message, sock: socket.socket) -> bool:
        if message.request is not request:
            return False
        await act(channel, message, sock)
        return True

    return answer


def raw(data: bytes, fds: int = 0) -> Callable[[Channel, Message, socket.socket], Awaitable[None]]:
    """Send these bytes, with so many fds."""

    async def act(channel: Channel, message: Message, sock: socket.socket) -> None:
        opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(fds)]
        try:
            socket.send_fds(sock, [data], opened)
        finally:
            close_fds(opened)

    return act


async def hang_up(channel: Channel, message: Message, sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_RDWR)


def word(request: int, value: int = 0, flags: int = 5) -> bytes:
    return struct.pack("<IIIQ", request, flags, 8, value)


@pytest.mark.parametrize(
    ("request_", "act", "complaint"),
    [
        (F.GET_FEATURES, hang_up, "closed the connection"),
        (F.GET_FEATURES, raw(word(1)[:7]), "did not answer GET_FEATURES"),
        (F.GET_FEATURES, raw(word(1, flags=6)), "protocol version 2"),
        (F.GET_FEATURES, raw(struct.pack("<III", 1, 5, 1 << 31)), "announces 2147483648 bytes"),
        (F.GET_FEATURES, raw(struct.pack("<III", 1, 5, 4) + b"abcd"), "a number has 4 bytes"),
        (F.GET_FEATURES, raw(word(77)), "unknown request 77"),
        (F.GET_FEATURES, raw(word(15)), "GET_FEATURES is answered by GET_PROTOCOL_FEATURES"),
        (F.GET_FEATURES, raw(struct.pack("<III", 1, 1, 0)), "GET_FEATURES unasked"),
        (F.GET_FEATURES, raw(word(1), 1), "comes with 1 file descriptors"),
        (F.GET_FEATURES, raw(word(1), 8), "comes with 8 file descriptors"),
        (F.GET_FEATURES, raw(word(1), 200), "more than 8 file descriptors"),
        (F.GET_FEATURES, raw(word(1)), "does not offer VIRTIO_F_VERSION_1"),
        (F.SET_BACKEND_REQ_FD, raw(word(21, 9)), r"refuses SET_BACKEND_REQ_FD \(it says 9\)"),
        (F.GET_CONFIG, raw(struct.pack("<III", 24, 5, 0)), "no 60 bytes of configuration"),
        (F.GET_CONFIG, raw(struct.pack("<IIIIII", 24, 5, 12, 0, 300, 0)), "of 300 bytes at 0"),
    ],
)
async def test_while_connecting(
    path: Path, request_: FrontendRequest, act: Callable[..., Awaitable[None]], complaint: str
) -> None:
    async with FakeBackEnd(path, on(request_, act)):
        device = disk(path, answer=0.2)
        with pytest.raises(PeerError, match=complaint):
            await device.open()
        await device.close()


@pytest.mark.parametrize(
    ("request_", "act", "complaint"),
    [
        (F.SET_MEM_TABLE, raw(word(5, 1)), "refuses SET_MEM_TABLE"),
        (F.SET_FEATURES, raw(word(2, 0) + word(2, 0)), "unasked"),
        (F.SET_VRING_KICK, raw(word(13)), "SET_VRING_KICK is answered by SET_VRING_CALL"),
        (F.GET_INFLIGHT_FD, raw(struct.pack("<III", 31, 5, 20) + bytes(20), 2), "comes with 2"),
        (F.SET_VRING_NUM, hang_up, "did not come back within 0.3 s"),
    ],
)
async def test_while_starting(
    path: Path, request_: FrontendRequest, act: Callable[..., Awaitable[None]], complaint: str
) -> None:
    async with FakeBackEnd(path, on(request_, act)), Guest(disk(path)) as guest:
        await guest.driver.start()
        error = await guest.broken()
        assert isinstance(error, PeerError)
        assert complaint in str(error)
        assert guest.driver.status & 64
        await guest.driver.reset()


@pytest.mark.parametrize(
    ("request_", "act"),
    [
        (F.GET_VRING_BASE, hang_up),
        (F.GET_VRING_BASE, raw(struct.pack("<IIIII", 11, 5, 8, 5, 0))),
        (F.GET_VRING_BASE, raw(b"\xff" * 64)),
        (F.SET_VRING_ENABLE, raw(b"")),
    ],
)
async def test_while_stopping_the_reset_ends_and_the_next_start_is_on_a_new_connection(
    path: Path, request_: FrontendRequest, act: Callable[..., Awaitable[None]]
) -> None:
    armed = False

    async def only_once(channel: Channel, message: Message, sock: socket.socket) -> bool:
        nonlocal armed
        if not armed or message.request is not request_:
            return False
        armed = False
        await act(channel, message, sock)
        return True

    async with FakeBackEnd(path, only_once) as fake, Guest(disk(path, answer=0.3)) as guest:
        await guest.driver.start()
        armed = True
        async with asyncio.timeout(HANGS):
            await guest.driver.reset()
        await guest.driver.start()
        await until(lambda: guest.backend.connected)
        assert fake.connections == 2


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (word(1), "unasked"),
        (b"\xff" * 12, "protocol version 3"),
        (struct.pack("<III", 1, 1, 0), "unasked"),
    ],
)
async def test_while_idle(path: Path, data: bytes, complaint: str) -> None:
    sockets: list[socket.socket] = []

    async def remember(channel: Channel, message: Message, sock: socket.socket) -> bool:
        if sock not in sockets:
            sockets.append(sock)
        return False

    async with FakeBackEnd(path, remember), Guest(disk(path)) as guest:
        await guest.driver.start()
        sockets[0].send(data)
        assert complaint in str(await guest.broken())
        await guest.driver.reset()


@pytest.mark.parametrize(
    ("data", "fds", "complaint"),
    [
        (struct.pack("<III", 3, 1, 0), 0, "unknown request 3"),
        (struct.pack("<III", 2, 1, 0), 3, "comes with 3"),
        (struct.pack("<III", 2, 5, 8) + bytes(8), 0, "was not asked"),
        (struct.pack("<III", 2, 1, 1000), 0, "announces 1000 bytes"),
    ],
)
async def test_on_the_back_ends_own_channel(path: Path, data: bytes, fds: int, complaint: str) -> None:
    async def good(channel: Channel, message: Message, sock: socket.socket) -> bool:
        return False

    async with FakeBackEnd(path, good) as fake, Guest(disk(path)) as guest:
        await guest.driver.start()
        assert fake.requests is not None
        opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(fds)]
        socket.send_fds(fake.requests, [data], opened)
        close_fds(opened)
        assert complaint in str(await guest.broken())
        await guest.driver.reset()


async def test_a_flood_of_configuration_changes_is_read_one_at_a_time(path: Path) -> None:
    reads, told = 0, asyncio.Event()
    told.set()

    async def count(channel: Channel, message: Message, sock: socket.socket) -> bool:
        nonlocal reads
        if message.request is F.GET_CONFIG:
            reads += 1
            await told.wait()
        return False

    device = disk(path, answer=20)
    async with FakeBackEnd(path, count) as fake, Guest(device) as guest:
        await guest.driver.start()
        assert fake.requests is not None
        notice = struct.pack("<III", BackendRequest.CONFIG_CHANGE, 9, 0)
        before = reads
        told.clear()
        fake.requests.setblocking(True)
        fake.requests.sendall(notice * 100)
        got = 0
        fake.requests.setblocking(False)
        async with asyncio.timeout(HANGS):
            while got < 100 * 20:
                got += len(await asyncio.get_running_loop().sock_recv(fake.requests, 4096))
        await until(lambda: reads == before + 1)
        told.set()  # all are heard while the first reading is under way: one more is to come
        await until(lambda: not device.frontend._tasks)
        assert reads == before + 2
        assert guest.errors == []


@contextlib.asynccontextmanager
async def connection(path: Path, answer: Answer) -> AsyncIterator[tuple[Connection, list[PeerError]]]:
    lost: list[PeerError] = []
    async with FakeBackEnd(path, answer):
        sock = connect(path)
        opened = await Connection.open(
            sock, OFFER, on_lost=lambda c, error: lost.append(error), on_config_change=lambda: None, timeout=0.3
        )
        yield opened, lost
        await opened.close()


async def test_an_abandoned_request_ends_the_connection(path: Path) -> None:
    """Its answer would be taken for that of the next."""
    async with connection(path, on(F.GET_CONFIG, raw(b""))) as (opened, lost):
        task = asyncio.create_task(opened.carry_out(read_config(60)))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait([task])
        assert "abandoned" in str(lost[0])
        with pytest.raises(ChannelClosed):
            await opened.carry_out(read_config(60))


async def test_an_answer_with_an_fd_that_comes_too_late_is_closed(path: Path) -> None:
    async def late(channel: Channel, message: Message, sock: socket.socket) -> None:
        await asyncio.sleep(0.4)
        await raw(struct.pack("<III", 31, 5, 20) + bytes(20), 1)(channel, message, sock)

    async with connection(path, on(F.GET_INFLIGHT_FD, late)) as (opened, lost):
        with pytest.raises(PeerError, match="did not answer GET_INFLIGHT_FD"):
            await opened.carry_out(get_record(1, 64))
        await asyncio.sleep(0.3)
        assert len(lost) == 1


@pytest.mark.parametrize("cut", [1, 5, 12], ids=lambda cut: f"{cut} bytes a write")
async def test_a_flood_of_notices_leaves_the_loop_to_others(cut: int) -> None:
    """Whatever a peer sends, in whatever pieces, and however fast: a channel reads a bounded number of times in a row."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours, BackendRequest)
    theirs.setblocking(False)
    notice = struct.pack("<III", BackendRequest.CONFIG_CHANGE, 1, 0)
    others = reads = most = 0
    read = channel._read

    def topped_up() -> object:
        """There is always something to be read."""
        nonlocal reads, most
        reads += 1
        most = max(most, reads)
        assert reads < 1000, "nobody else had a turn"
        for at in range(0, len(notice), cut):
            with contextlib.suppress(BlockingIOError):
                theirs.send(notice[at : at + cut])
        return read()

    async def another() -> None:
        nonlocal others, reads
        while True:
            others += 1
            reads = 0
            await asyncio.sleep(0)

    channel._read = topped_up  # type: ignore[method-assign]
    task = asyncio.create_task(another())
    try:
        for _ in range(500):
            assert (await channel.receive()).request is BackendRequest.CONFIG_CHANGE
    finally:
        task.cancel()
        channel.close()
        theirs.close()
    assert others > 20
    assert most <= 32


async def test_all_answers_together_have_one_deadline(path: Path) -> None:
    """A back end that answers each request in time holds a reset up no longer than one that answers none."""
    slow = False

    async def answer(channel: Channel, message: Message, sock: socket.socket) -> bool:
        if slow:
            await asyncio.sleep(0.3)
        return await said_four_queues(channel, message)

    device = VhostUserBlk(path, num_queues=4, timing=Timing(connect=1, answer=1, patience=0.3))
    async with FakeBackEnd(path, answer), Guest(device) as guest:
        await guest.driver.start()
        assert guest.backend._live is not None
        assert len(guest.backend._live.rings) == 4
        slow = True
        await guest.driver.reset()  # eight requests with an answer each
        assert device.frontend.connection is None
        slow = False


async def test_an_endless_conversation_ends_at_its_deadline(path: Path) -> None:
    def endless() -> Sequence[None]:
        while True:
            yield Message(F.GET_FEATURES)

    async def good(channel: Channel, message: Message, sock: socket.socket) -> bool:
        return False

    async with connection(path, good) as (opened, lost), asyncio.timeout(HANGS):
        with pytest.raises(PeerError, match="did not answer GET_FEATURES within"):
            await opened.carry_out(endless())
        assert len(lost) == 1


async def test_a_back_end_that_reads_nothing_cannot_keep_a_reset(path: Path) -> None:
    """Also requests that have no answer are sent by the deadline: the peer's socket takes only so much."""
    ours, theirs = socket.socketpair()
    lost: list[PeerError] = []
    with theirs:
        opened = Connection(
            Channel(ours, F), on_lost=lambda c, error: lost.append(error), on_config_change=lambda: None, timeout=0.3
        )

        async def fill() -> None:
            while True:
                await opened.carry_out(write_config(0, bytes(200)))

        async with asyncio.timeout(HANGS):
            with pytest.raises(PeerError, match=r"did not answer SET_CONFIG within 0\.3 s"):
                await fill()
        assert len(lost) == 1
        await opened.close()


async def test_an_eventfd_that_the_back_end_has_filled_and_made_blocking_holds_nobody_up(path: Path) -> None:
    """Kicks are its own as well: O_NONBLOCK, and the counter, to which nothing can be added then."""
    kicks: list[int] = []

    async def keep(channel: Channel, message: Message, sock: socket.socket) -> bool:
        if message.request is F.SET_VRING_KICK:
            kicks.append(os.dup(message.fds[0]))
        return False

    device = VhostUserBlk(path, timing=Timing(connect=1, answer=1, patience=5))
    async with FakeBackEnd(path, keep) as fake, Guest(device) as guest:
        await guest.driver.start()
        os.eventfd_write(kicks[0], (1 << 64) - 2)
        os.set_blocking(kicks[0], True)
        guest.function._doorbells.write(0, b"\0\0")  # a notification that came as an exit
        connection = device.frontend.connection
        assert connection is not None
        connection._channel._sock.shutdown(socket.SHUT_RDWR)  # it goes, and comes back: it is kicked
        await until(lambda: fake.connections == 2 and guest.backend.connected)
        await guest.driver.reset()
        assert os.eventfd_read(kicks[0]) == (1 << 64) - 1  # signalled as often as it could be
        for fd in kicks:
            os.close(fd)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("blocking", [False, True])
def test_a_signal_is_never_waited_for(full: bool, blocking: bool) -> None:
    fd = os.eventfd((1 << 32) - 1, os.EFD_CLOEXEC)
    before = (1 << 64) - 2 if full else 0
    os.eventfd_read(fd)
    os.eventfd_write(fd, before)
    os.set_blocking(fd, blocking)
    for _ in range(20):
        assert lib.avmm_event_signal(fd) == 0
    assert os.eventfd_read(fd) == min(before + 20, (1 << 64) - 1)
    assert lib.avmm_event_take(fd) == 0
    os.close(fd)
    assert lib.avmm_event_signal(fd) < 0
    assert lib.avmm_event_take(fd) == -errno.EBADF


def test_a_child_that_was_forked_signals_too() -> None:
    fd = os.eventfd(0)
    assert lib.avmm_event_signal(fd) == 0  # the parent has its means
    child = os.fork()
    if not child:
        os._exit(-lib.avmm_event_signal(fd))
    assert os.waitpid(child, 0)[1] == 0
    assert os.eventfd_read(fd) == 2
    os.close(fd)


async def test_who_takes_a_signal_first_does_not_make_us_wait() -> None:
    """The loop says that an eventfd can be read; by then the other side has read it, and made it blocking."""
    heard: list[bool] = []
    reader = EventReader(lambda: heard.append(True))
    os.set_blocking(reader.fd, True)
    reader._readable()
    assert heard == []
    os.eventfd_write(reader.fd, 1)
    reader._readable()
    assert heard == [True]
    reader.close()


def test_a_back_end_gets_ram_and_no_image_of_a_device() -> None:
    with contextlib.closing(GuestMemory.create([(0, 1 << 20)])) as memory:
        image = os.memfd_create("pmem")
        os.ftruncate(image, 2 << 20)
        memory.map_fd(1 << 30, 2 << 20, image)
        assert [r.gpa for r in shared_regions(memory)] == [0]
        assert image not in {r.fd for r in shared_regions(memory)}
        os.close(image)


async def test_one_that_dies_is_told_at_once(path: Path) -> None:
    async def good(channel: Channel, message: Message, sock: socket.socket) -> bool:
        return False

    device, told = disk(path), list[Exception]()
    device._notify_error = told.append
    async with FakeBackEnd(path, good), Guest(device) as guest:
        await guest.driver.start()
        assert device.frontend.connection is not None
        device.frontend.connection._channel._sock.shutdown(socket.SHUT_RDWR)
        await until(lambda: bool(told))
        assert "its back end is gone" in str(told[0])
        await until(lambda: guest.backend.connected)
        await guest.driver.reset()


class GoesWithItsLastAnswer:
    """The last one while it is being found out about, as often as `times` says."""

    def __init__(self) -> None:
        self.times = 0

    async def __call__(self, channel: Channel, message: Message, sock: socket.socket) -> bool:
        if message.request is F.GET_PROTOCOL_FEATURES:
            await channel.send(Message(message.request, Word(P.MQ | P.CONFIG), flags=Flag.REPLY))
            return True
        if message.request is not F.GET_QUEUE_NUM:
            return False
        await channel.send(Message(message.request, Word(2), flags=Flag.REPLY))
        if self.times:
            self.times -= 1
            sock.shutdown(socket.SHUT_RDWR)
        return True


async def test_one_that_goes_with_its_last_answer_is_looked_for_again(path: Path) -> None:
    """Its end is known before anybody has the connection, so nobody would be told of it."""
    goes = GoesWithItsLastAnswer()
    timing = Timing(connect=1, answer=1, patience=HANGS)
    async with FakeBackEnd(path, goes) as fake, Guest(VhostUserBlk(path, timing=timing)) as guest:
        await guest.driver.start()
        goes.times = 3
        await guest.device.frontend.drop()  # type: ignore[attr-defined]
        guest.backend._lost(ChannelClosed("it went"))
        await until(lambda: fake.connections == 5)
        await until(lambda: guest.backend.connected)
        assert guest.errors == []


async def test_one_that_goes_with_its_first_last_answer(path: Path) -> None:
    """A device without anything more to ask would be there, its back end not, and its guest wait for ever."""
    goes = GoesWithItsLastAnswer()
    goes.times = 1
    timing = Timing(connect=HANGS, answer=1, patience=HANGS)
    async with FakeBackEnd(path, goes) as fake, Guest(VhostUserNet(path, timing=timing)) as guest:
        assert fake.connections == 2
        await guest.driver.start()
        await until(lambda: guest.backend.connected)
        assert guest.errors == []


async def test_one_that_has_not_agreed_to_hear_of_a_configuration_hears_of_none(path: Path) -> None:
    """It would end the connection of a guest that writes there."""
    asked = []

    async def answer(channel: Channel, message: Message, sock: socket.socket) -> bool:
        asked.append(message.request)
        if message.request is F.GET_PROTOCOL_FEATURES:
            await channel.send(Message(message.request, Word(P.MQ), flags=Flag.REPLY))
        elif message.request is F.SET_CONFIG:
            sock.shutdown(socket.SHUT_RDWR)
        return message.request in (F.GET_PROTOCOL_FEATURES, F.SET_CONFIG)

    device = VhostUserGeneric(path, 18, (64,), timing=Timing(connect=1, answer=1, patience=0.3))
    async with FakeBackEnd(path, answer), Guest(device) as guest:
        await guest.driver.start()
        await guest.driver.store(VirtioCapType.DEVICE, 0, 7, 1)
        await guest.driver.reset()
        await guest.driver.start()
        assert guest.backend.connected
    assert F.SET_CONFIG not in asked


async def test_no_descriptor_for_one_that_comes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doorstep = Doorstep(path, "net.socket")
    await doorstep.open()
    assert doorstep._listener is not None

    async def full(_sock: socket.socket) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_accept", full)
    with pytest.raises(HostError, match="accepting a vhost-user back end"):
        await doorstep.first("net0")
    await doorstep.close()


async def said_four_queues(channel: Channel, message: Message) -> bool:
    """Whether that was the question."""
    if message.request is not F.GET_QUEUE_NUM:
        return False
    await channel.send(Message(message.request, Word(4), flags=Flag.REPLY))
    return True


def two_pairs(path: Path) -> Guest:
    return Guest(VhostUserNet(path, pairs=2, timing=Timing(connect=1, answer=HANGS, patience=HANGS)))


def some_task_has_to_end() -> bool:
    """As a device's has, once its reset has begun."""
    return any(task.cancelling() for task in asyncio.all_tasks())


async def test_a_card_that_is_reset_while_its_rings_are_enabled_keeps_its_connection(path: Path) -> None:
    """There are back ends that end when it does, and a guest may do that as often as it likes."""
    asked, told = asyncio.Event(), asyncio.Event()

    async def answer(channel: Channel, message: Message, sock: socket.socket) -> bool:
        if await said_four_queues(channel, message):
            return True
        if message.request is F.SET_VRING_ENABLE and message.payload == VringState(2, 1):
            asked.set()
            await told.wait()
        return False

    async with FakeBackEnd(path, answer) as fake, two_pairs(path) as guest:
        await guest.driver.start()
        guest.driver.queues[4].add([b"\4\0\2\0"], [1])
        guest.driver.queues[4].kick()
        await asked.wait()
        reset = asyncio.create_task(guest.driver.reset())
        await until(some_task_has_to_end)
        told.set()
        await reset
        await guest.driver.start()
        assert guest.backend.connected
        assert guest.backend.losses == 0
        assert fake.connections == 1


async def test_rings_that_are_enabled_while_one_that_came_back_is_told_all_are_told_too(path: Path) -> None:
    """The driver was told that they are, and would wait for ever at those that are not."""
    enabled: dict[int, int] = {}
    asked = False

    async def answer(channel: Channel, message: Message, sock: socket.socket) -> bool:
        nonlocal asked
        if await said_four_queues(channel, message):
            return True
        if message.request is F.SET_VRING_ENABLE:
            assert isinstance(message.payload, VringState)
            enabled[message.payload.index] = message.payload.num
        elif message.request is F.SET_VRING_KICK and fake.connections == 2:
            asked = True
            await guest.backend.enable(frozenset(range(4)))
        return False

    async with FakeBackEnd(path, answer) as fake, two_pairs(path) as guest:
        await guest.driver.start()
        assert enabled == {0: 1, 1: 1, 2: 0, 3: 0}
        await guest.device.frontend.drop()  # type: ignore[attr-defined]
        guest.backend._lost(ChannelClosed("it went"))
        await until(lambda: guest.backend.connected)
        assert asked
        assert enabled == {0: 1, 1: 1, 2: 1, 3: 1}
