"""Both pure halves joined without a socket, and the server's half against anything at all."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiovmm.errors import PeerError
from aiovmm.vhost_user import effects as e
from aiovmm.vhost_user.messages import Message
from aiovmm.vhost_user.payloads import InflightArea, MemoryTable, Region, VringAddr, VringState, Word
from aiovmm.vhost_user.protocol import F_PROTOCOL_FEATURES, NO_FD, Flag, FrontendRequest, ProtocolFeature
from aiovmm.vhost_user.sequences import Live, Offer, Record, Ring, negotiate, start, stop
from aiovmm.vhost_user.server_state import ServerState
from aiovmm.virtqueue.features import VERSION_1
from tests.vhost_user.messages_of import messages

T = TypeVar("T")
F = FrontendRequest
ALL = ProtocolFeature((1 << 17) - 1) & sum(ProtocolFeature)
MEMORY = Region(0, 1 << 20, 0x7000_0000, 0)
SIZES = (256, 64)


def converse(steps: Generator[Message, Message, T], server: ServerState) -> tuple[T, list[e.Effect]]:
    """Carry a sequence out on the server's state machine; its result, and the effects that were no answers."""
    effects: list[e.Effect] = []
    try:
        request = next(steps)
        while True:
            answer = Message(request.request)
            for effect in server.receive(request):
                if isinstance(effect, e.Reply):
                    answer = Message(request.request, effect.payload, flags=Flag.REPLY)
                elif isinstance(effect, e.ReportBase):
                    state = VringState(effect.index, server.rings[effect.index].base)
                    answer = Message(request.request, state, flags=Flag.REPLY)
                else:
                    effects.append(effect)
            request = steps.send(answer)
    except StopIteration as end:
        return end.value, effects


def ring(index: int, size: int = 64, base: int = 0) -> Ring:
    at = MEMORY.user + 0x10000 * (index + 1)
    return Ring(index, size, at, at + 0x2000, at + 0x4000, base, kick=1, call=2 if index else None, err=3)


@given(st.integers(0, ALL), st.integers(0, ALL), st.integers(0, (1 << 28) - 1), st.integers(0, 3), st.booleans())
def test_the_halves_understand_each_other_whatever_is_offered(
    offered: int, wanted: int, features: int, enabled: int, record: bool
) -> None:
    server = ServerState(features | VERSION_1, ProtocolFeature(offered), SIZES)
    offer, _ = converse(negotiate(ProtocolFeature(wanted)), server)
    assert offer.features == features | VERSION_1
    assert server.agreed == offer.protocol
    assert offer.protocol & ~(offered & wanted) == 0
    inflight = (
        Record(InflightArea(4096, 0, 2, 64), 9) if record and offer.protocol & ProtocolFeature.INFLIGHT_SHMFD else None
    )
    on = frozenset(i for i in range(2) if enabled >> i & 1)
    live = Live(features | VERSION_1, (MEMORY,), (5,), (ring(0), ring(1, base=77)), on, inflight)
    for _ in range(2):
        _, effects = converse(start(live, offer), server)
        assert [r.live for r in server.rings] == [0 in on, 1 in on]
        assert [r.base for r in server.rings] == [0, 77]
        assert server.features == live.features
        assert any(isinstance(effect, e.MapInflight) for effect in effects) == (inflight is not None)
        converse(stop(live, offer), server)
        assert not any(r.started for r in server.rings)


def test_an_old_back_end_without_protocol_features_has_its_rings_enabled() -> None:
    class Old(ServerState):
        def receive(self, message: Message) -> list[e.Effect]:
            if message.request is F.GET_FEATURES:
                return [e.Reply(Word(self.offered))]
            return super().receive(message)

    server = Old(VERSION_1, ProtocolFeature(0), SIZES)
    offer, _ = converse(negotiate(ALL), server)
    assert offer == Offer(VERSION_1, ProtocolFeature(0), None, has_protocol=False)
    converse(start(Live(VERSION_1, (MEMORY,), (5,), (ring(0),), frozenset({0})), offer), server)
    assert server.rings[0].live
    assert not server.rings[1].live


def test_a_back_end_of_virtio_0_9_is_refused() -> None:
    with pytest.raises(PeerError, match="VERSION_1"):
        converse(negotiate(ALL), ServerState(1, ProtocolFeature(0), SIZES))


@given(st.lists(messages(), max_size=40), st.booleans())
@settings(max_examples=300)
def test_a_hostile_front_end_meets_peer_errors_and_never_a_ring_outside_memory(
    said: list[Message], begun: bool
) -> None:
    server = ServerState(VERSION_1 | 0xFF, ALL, SIZES)
    if begun:
        offer, _ = converse(negotiate(ALL), server)
        converse(start(Live(VERSION_1, (MEMORY,), (5,), (ring(0), ring(1)), frozenset({0, 1})), offer), server)
    for message in said:
        with contextlib.suppress(PeerError):
            server.receive(message)
        for r in server.rings:
            if r.started:
                assert r.address is not None
                assert 0 < r.size <= 256
                for address, size in ((r.address.desc, 16), (r.address.avail, 2), (r.address.used, 8)):
                    server.translate(address, size * r.size)


def _ready(*, negotiated: bool = True) -> ServerState:
    server = ServerState(VERSION_1, ALL, SIZES)
    if negotiated:
        server.receive(Message(F.SET_PROTOCOL_FEATURES, Word(ALL)))
        server.receive(Message(F.SET_FEATURES, Word(VERSION_1 | F_PROTOCOL_FEATURES)))
    return server


def _running() -> ServerState:
    server = _ready()
    converse(start(Live(VERSION_1, (MEMORY,), (5,), (ring(0),), frozenset({0})), Offer(0, ALL)), server)
    return server


USER = MEMORY.user


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (Message(F.SET_VRING_KICK, Word(0), (1,)), "before it has an address"),
        (Message(F.SET_VRING_KICK, Word(0 | NO_FD)), "polled"),
        (Message(F.SET_VRING_KICK, Word(7), (1,)), "ring 7 does not exist"),
        (Message(F.SET_VRING_NUM, VringState(0, 512)), "512 entries"),
        (Message(F.SET_VRING_NUM, VringState(0, 63)), "63 entries"),
        (Message(F.SET_VRING_BASE, VringState(0, 1 << 16)), "stand at"),
        (Message(F.SET_VRING_ADDR, VringAddr(0, USER, USER, USER)), "no size yet"),
        (Message(F.SET_VRING_ENABLE, VringState(0, 2)), "neither 0 nor 1"),
        (Message(F.SET_FEATURES, Word(1 << 63)), "more than the offered"),
        (Message(F.SET_PROTOCOL_FEATURES, Word(1 << 40)), "more than the offered"),
        (Message(F.SET_INFLIGHT_FD, InflightArea(1, 0, 3, 64), (1,)), "of 3 queues"),
        (Message(F.SET_STATUS, Word(256)), "status"),
        (Message(F.GET_FEATURES, Word(1), flags=Flag.REPLY), "not asked"),
    ],
)
def test_what_is_said_too_early_or_wrongly_is_named(message: Message, complaint: str) -> None:
    with pytest.raises(PeerError, match=complaint):
        _ready().receive(message)


@pytest.mark.parametrize(
    "message",
    [
        Message(F.SET_VRING_NUM, VringState(0, 64)),
        Message(F.SET_VRING_BASE, VringState(0, 0)),
        Message(F.SET_VRING_ADDR, VringAddr(0, USER, USER, USER)),
        Message(F.SET_VRING_KICK, Word(0), (1,)),
        Message(F.SET_FEATURES, Word(VERSION_1)),
        Message(F.SET_INFLIGHT_FD, InflightArea(4096, 0, 1, 64), (1,)),
    ],
)
def test_a_running_ring_is_not_changed(message: Message) -> None:
    with pytest.raises(PeerError, match=r"running|twice"):
        _running().receive(message)


@pytest.mark.parametrize("request_", [F.GET_QUEUE_NUM, F.RESET_DEVICE, F.GET_STATUS], ids=lambda request: request.name)
def test_what_was_not_agreed_on_is_not_served(request_: FrontendRequest) -> None:
    with pytest.raises(PeerError, match="without the protocol feature"):
        _ready(negotiated=False).receive(Message(request_))


@pytest.mark.parametrize("size", [64, 1 << 16])
def test_a_ring_must_lie_in_the_memory_table(size: int) -> None:
    server = _ready()
    server.receive(Message(F.SET_VRING_NUM, VringState(0, 64)))
    with pytest.raises(PeerError, match="memory table"):
        server.receive(Message(F.SET_VRING_ADDR, VringAddr(0, USER, USER, USER)))
    server.receive(Message(F.SET_MEM_TABLE, MemoryTable((Region(0, size, USER, 0),)), (1,)))
    bad = VringAddr(0, USER, USER + size - 8, USER)
    with pytest.raises(PeerError, match="memory table"):
        server.receive(Message(F.SET_VRING_ADDR, bad))
