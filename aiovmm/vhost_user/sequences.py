"""The front end's side of the conversation, pure: each sequence is a generator that yields requests and is sent the answers.

    negotiate   GET_FEATURES .. SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_OWNER           once a connection
    start       SET_FEATURES, memory, in-flight record, rings, enable, DRIVER_OK          at DRIVER_OK, and on resuming
    stop        disable, GET_VRING_BASE for each ring, RESET_DEVICE or status 0           at reset
    read_config, write_config                                                             at any time between them

An answer arrives as the payload that the request's layout promises; a request without one is acknowledged, if the back end
can do that, by whoever carries the sequence out. Nothing here closes an fd: requests borrow them.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TypeVar

from aiovmm.errors import PeerError
from aiovmm.vhost_user.messages import Message
from aiovmm.vhost_user.payloads import (
    ConfigSpace,
    InflightArea,
    MemoryTable,
    Payload,
    Region,
    VringAddr,
    VringState,
    Word,
)
from aiovmm.vhost_user.protocol import F_PROTOCOL_FEATURES, NO_FD, FrontendRequest, ProtocolFeature
from aiovmm.virtqueue.features import VERSION_1
from aiovmm.virtqueue.status import Status

__all__ = [
    "Live",
    "Offer",
    "Record",
    "Ring",
    "Sequence",
    "get_record",
    "negotiate",
    "read_config",
    "set_mtu",
    "start",
    "stop",
    "write_config",
]

T = TypeVar("T")
Sequence = Generator[Message, Message, T]
_F = FrontendRequest
_STATUS_OK = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK


@dataclass(frozen=True)
class Offer:
    """What the back end can do: virtio feature bits (the protocol's own bit taken out), protocol features that were agreed
    on, and its number of queues (None if it does not say)."""

    features: int
    protocol: ProtocolFeature
    queues: int | None = None
    has_protocol: bool = True


@dataclass(frozen=True)
class Ring:
    """One ring as the back end is told it: addresses are the front end's own. `err` and `call` may be absent."""

    index: int
    size: int
    desc: int
    avail: int
    used: int
    base: int
    kick: int
    call: int | None
    err: int | None = None


@dataclass(frozen=True)
class Record:
    """The in-flight record: its description and the fd that we keep of it."""

    area: InflightArea
    fd: int


@dataclass(frozen=True)
class Live:
    """Everything that a back end has to be told for a device that is live, and again when it comes back."""

    features: int
    regions: tuple[Region, ...]
    region_fds: tuple[int, ...]
    rings: tuple[Ring, ...]
    enabled: frozenset[int] = field(default_factory=frozenset)
    record: Record | None = None


def negotiate(wanted: ProtocolFeature) -> Sequence[Offer]:
    """The first words on a connection. Raises PeerError if the back end is no virtio 1.x device."""
    features = _word((yield Message(_F.GET_FEATURES)))
    if not features & VERSION_1:
        raise PeerError("the back end does not offer VIRTIO_F_VERSION_1")
    protocol = ProtocolFeature(0)
    queues = None
    if features & F_PROTOCOL_FEATURES:
        protocol = ProtocolFeature(_word((yield Message(_F.GET_PROTOCOL_FEATURES))) & wanted)
        if not protocol & ProtocolFeature.CONFIG:
            protocol &= ~ProtocolFeature.BACKEND_REQ  # all that we would hear there is about the configuration
        yield Message(_F.SET_PROTOCOL_FEATURES, Word(protocol))
    yield Message(_F.SET_OWNER)
    if protocol & ProtocolFeature.MQ:
        queues = _word((yield Message(_F.GET_QUEUE_NUM)))
    return Offer(features & ~F_PROTOCOL_FEATURES, protocol, queues, bool(features & F_PROTOCOL_FEATURES))


def get_record(queues: int, queue_size: int) -> Sequence[Record | None]:
    """A new in-flight record. The fd in the answer becomes the caller's. None if the back end makes none after all."""
    answer = yield Message(_F.GET_INFLIGHT_FD, InflightArea(0, 0, queues, queue_size))
    area = answer.payload
    assert isinstance(area, InflightArea)
    if not answer.fds:
        return None
    return Record(InflightArea(area.size, area.offset, queues, queue_size), answer.fds[0])


def start(live: Live, offer: Offer) -> Sequence[None]:
    """Tell the back end everything and let it run."""
    with_status = offer.protocol & ProtocolFeature.STATUS
    own_bit = F_PROTOCOL_FEATURES if offer.has_protocol else 0
    if with_status:
        yield Message(_F.SET_STATUS, Word(Status.ACKNOWLEDGE | Status.DRIVER))
    yield Message(_F.SET_FEATURES, Word(live.features | own_bit))
    if with_status:
        yield Message(_F.SET_STATUS, Word(_STATUS_OK))
        if not _word((yield Message(_F.GET_STATUS))) & Status.FEATURES_OK:
            raise PeerError(f"the back end refuses the features {live.features:#x} that it offered")
    if live.record is not None:
        yield Message(_F.SET_INFLIGHT_FD, live.record.area, (live.record.fd,))
    yield Message(_F.SET_MEM_TABLE, MemoryTable(live.regions), live.region_fds)
    for ring in live.rings:
        yield from _start_ring(ring)
    if offer.has_protocol:  # without it rings are enabled from the start
        for ring in live.rings:
            yield Message(_F.SET_VRING_ENABLE, VringState(ring.index, int(ring.index in live.enabled)))
    if with_status:
        yield Message(_F.SET_STATUS, Word(_STATUS_OK | Status.DRIVER_OK))


def _start_ring(ring: Ring) -> Sequence[None]:
    """A ring starts when it is given its kick, so that comes last."""
    yield Message(_F.SET_VRING_NUM, VringState(ring.index, ring.size))
    yield Message(_F.SET_VRING_BASE, VringState(ring.index, ring.base))
    yield Message(_F.SET_VRING_ADDR, VringAddr(ring.index, ring.desc, ring.used, ring.avail))
    yield _ring_fd(_F.SET_VRING_CALL, ring.index, ring.call)
    if ring.err is not None:
        yield _ring_fd(_F.SET_VRING_ERR, ring.index, ring.err)
    yield _ring_fd(_F.SET_VRING_KICK, ring.index, ring.kick)


def stop(live: Live, offer: Offer) -> Sequence[None]:
    """Have the back end stop: its answer to GET_VRING_BASE says that it no longer touches the ring."""
    if offer.has_protocol:
        for ring in live.rings:
            yield Message(_F.SET_VRING_ENABLE, VringState(ring.index, 0))
    for ring in live.rings:
        answer = yield Message(_F.GET_VRING_BASE, VringState(ring.index))
        state = answer.payload
        if not isinstance(state, VringState) or state.index != ring.index:
            raise PeerError(f"asked for the base of ring {ring.index}, the back end tells another's")
    if offer.protocol & ProtocolFeature.STATUS:
        yield Message(_F.SET_STATUS, Word(0))
    elif offer.protocol & ProtocolFeature.RESET_DEVICE:
        yield Message(_F.RESET_DEVICE)


def read_config(size: int, offset: int = 0) -> Sequence[bytes]:
    """`size` bytes of the configuration space. Raises PeerError if the back end fails to give them."""
    answer = yield Message(_F.GET_CONFIG, ConfigSpace(offset, bytes(size)))
    config = answer.payload
    if not isinstance(config, ConfigSpace) or (config.offset, len(config.data)) != (offset, size):
        raise PeerError(f"the back end has no {size} bytes of configuration at {offset}")
    return config.data


def write_config(offset: int, data: bytes) -> Sequence[None]:
    """The driver has written to the configuration space."""
    yield Message(_F.SET_CONFIG, ConfigSpace(offset, data))


def set_mtu(mtu: int) -> Sequence[None]:
    """The MTU that the driver is told, in bytes."""
    yield Message(_F.NET_SET_MTU, Word(mtu))


def _ring_fd(request: FrontendRequest, index: int, fd: int | None) -> Message:
    return Message(request, Word(index | NO_FD)) if fd is None else Message(request, Word(index), (fd,))


def _word(answer: Message) -> int:
    payload: Payload = answer.payload
    if not isinstance(payload, Word):
        raise PeerError(f"{answer.request.name} is answered by {type(payload).__name__}")
    return payload.value
