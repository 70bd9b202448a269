"""The back end's side of the conversation, pure: a message in, effects out for the shell to carry out in order.

What a front end may say when (anything else is a PeerError, which ends the connection):

    always                    GET_FEATURES, SET_OWNER, SET_FEATURES (a subset of the offer), SET_VRING_CALL and _ERR
    F_PROTOCOL_FEATURES       GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES (a subset), SET_VRING_ENABLE
    a protocol feature        what belongs to it: MQ GET_QUEUE_NUM; CONFIG GET_ and SET_CONFIG; INFLIGHT_SHMFD GET_ and
                              SET_INFLIGHT_FD; BACKEND_REQ SET_BACKEND_REQ_FD; RESET_DEVICE; STATUS GET_ and SET_STATUS; MTU
    ring stopped              SET_VRING_NUM, SET_VRING_BASE, SET_VRING_ADDR (in the memory table), SET_MEM_TABLE (all rings)
    ring told size, address   SET_VRING_KICK, which starts it
    any ring                  GET_VRING_BASE, which stops it

A ring is served while it is started and enabled; without F_PROTOCOL_FEATURES it is enabled from the start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from aiovmm.errors import PeerError
from aiovmm.vhost_user.effects import (
    Acknowledge,
    Effect,
    GiveBackChannel,
    MakeInflight,
    MapInflight,
    MapMemory,
    ReadConfig,
    Reply,
    ReportBase,
    ResetDevice,
    RingFd,
    UpdateRings,
    WriteConfig,
)
from aiovmm.vhost_user.messages import Message, answer_layout
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
from aiovmm.vhost_user.protocol import F_PROTOCOL_FEATURES, FrontendRequest, ProtocolFeature

__all__ = ["RingState", "ServerState"]

_F = FrontendRequest
_P = ProtocolFeature
_NOTHING = ProtocolFeature(0)


@dataclass
class RingState:
    """What the front end has said about a ring. Addresses are its own."""

    size: int = 0
    base: int = 0
    address: VringAddr | None = None
    started: bool = False
    enabled: bool = False

    @property
    def live(self) -> bool:
        """To be served."""
        return self.started and self.enabled


@dataclass
class ServerState:
    """One connection. `offered` and `protocol` are all feature bits, `queue_sizes` the largest size of each ring."""

    offered: int
    protocol: ProtocolFeature
    queue_sizes: tuple[int, ...]
    features: int = 0
    agreed: ProtocolFeature = _NOTHING
    status: int = 0
    regions: tuple[Region, ...] = ()
    rings: list[RingState] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rings = [RingState() for _ in self.queue_sizes]

    def receive(self, message: Message) -> list[Effect]:
        """Take a request. Raises PeerError; the message's fds stay the caller's."""
        request = message.request
        if message.is_reply or not isinstance(request, FrontendRequest):
            raise PeerError(f"the front end sends a reply to {request.name}, which it was not asked")
        needed = _NEEDS.get(request)
        if needed is not None and not self.agreed & needed:
            raise PeerError(f"{request.name} without the protocol feature {needed.name}")
        effects = _HANDLERS[request](self, message.payload, bool(message.fds))
        answered = answer_layout(request) is not None
        if message.needs_reply and not answered and self.agreed & _P.REPLY_ACK:
            effects.append(Acknowledge())
        return effects

    def translate(self, address: int, size: int) -> int:
        """Guest-physical address of [address, address + size) of the front end. Raises PeerError."""
        for region in self.regions:
            if region.user <= address and address + size <= region.user + region.size:
                return address - region.user + region.gpa
        raise PeerError(f"a ring at {address:#x} + {size:#x} is not in the memory table")

    # -- features ------------------------------------------------------------------------------------------------------

    def _get_features(self, payload: Payload, fd: bool) -> list[Effect]:
        return [Reply(Word(self.offered | F_PROTOCOL_FEATURES))]

    def _set_features(self, payload: Payload, fd: bool) -> list[Effect]:
        assert isinstance(payload, Word)
        if payload.value & ~(self.offered | F_PROTOCOL_FEATURES):
            raise PeerError(f"features {payload.value:#x} are more than the offered {self.offered:#x}")
        if any(r.started for r in self.rings):
            raise PeerError("SET_FEATURES while a ring is running")
        self.features = payload.value & ~F_PROTOCOL_FEATURES
        if not payload.value & F_PROTOCOL_FEATURES:
            for ring in self.rings:
                ring.enabled = True
        return []

    def _get_protocol(self, payload: Payload, fd: bool) -> list[Effect]:
        return [Reply(Word(self.protocol))]

    def _set_protocol(self, payload: Payload, fd: bool) -> list[Effect]:
        assert isinstance(payload, Word)
        if payload.value & ~int(self.protocol):
            raise PeerError(f"protocol features {payload.value:#x} are more than the offered {int(self.protocol):#x}")
        self.agreed = _P(payload.value)
        return []

    def _get_queue_num(self, payload: Payload, fd: bool) -> list[Effect]:
        return [Reply(Word(len(self.rings)))]

    def _nothing(self, payload: Payload, fd: bool) -> list[Effect]:
        return []

    # -- memory --------------------------------------------------------------------------------------------------------

    def _set_mem_table(self, payload: Payload, fd: bool) -> list[Effect]:
        assert isinstance(payload, MemoryTable)
        if any(r.started for r in self.rings):
            raise PeerError("SET_MEM_TABLE while a ring is running")
        self.regions = payload.regions
        for ring in self.rings:
            ring.address = None
        return [MapMemory(payload.regions)]

    def _get_inflight(self, payload: Payload, fd: bool) -> list[Effect]:
        area = self._inflight(payload)
        return [MakeInflight(area.queues, area.queue_size)]

    def _set_inflight(self, payload: Payload, fd: bool) -> list[Effect]:
        if any(r.started for r in self.rings):
            raise PeerError("SET_INFLIGHT_FD while a ring is running")
        return [MapInflight(self._inflight(payload))]

    def _inflight(self, payload: Payload) -> InflightArea:
        assert isinstance(payload, InflightArea)
        if not 0 < payload.queues <= len(self.rings) or not 0 < payload.queue_size <= max(self.queue_sizes):
            raise PeerError(f"an in-flight record of {payload.queues} queues of {payload.queue_size} entries")
        return payload

    # -- rings ---------------------------------------------------------------------------------------------------------

    def _ring(self, index: int, *, stopped: bool = False) -> RingState:
        if not 0 <= index < len(self.rings):
            raise PeerError(f"ring {index} does not exist, there are {len(self.rings)}")
        ring = self.rings[index]
        if stopped and ring.started:
            raise PeerError(f"ring {index} is changed while it is running")
        return ring

    def _set_num(self, payload: Payload, fd: bool) -> list[Effect]:
        assert isinstance(payload, VringState)
        ring = self._ring(payload.index, stopped=True)
        if not 0 < payload.num <= self.queue_sizes[payload.index] or payload.num & (payload.num - 1):
            raise PeerError(f"ring {payload.index} cannot have {payload.num} entries")
        ring.size = payload.num
        ring.address = None
        return []

    def _set_base(self, payload: Payload, fd: bool) -> list[Effect]:
        assert isinstance(payload, VringState)
        if payload.num > 0xFFFF:
            raise PeerError(f"ring {payload.index} cannot stand at {payload.num}")
        self._ring(payload.index, stopped=True).base = payload.num
        return []

    def _set_addr(self, payload: Payload, fd: bool) -> list[Effect]:
        assert isinstance(payload, VringAddr)
        ring = self._ring(payload.index, stopped=True)
        if not ring.size:
            raise PeerError(f"ring {payload.index} has an address and no size yet")
        for address, size, align in (
            (payload.desc, 16 * ring.size, 16),
            (payload.avail, 6 + 2 * ring.size, 2),
            (payload.used, 6 + 8 * ring.size, 4),
        ):
            if self.translate(address, size) % align:
                raise PeerError(f"ring {payload.index} is not aligned")
        ring.address = payload
        return []

    def _set_kick(self, payload: Payload, fd: bool) -> list[Effect]:
        ring, effect = self._ring_fd(_F.SET_VRING_KICK, payload, fd)
        if not fd:
            raise PeerError("a ring without a kick would have to be polled")
        if ring.started:
            raise PeerError(f"ring {effect.index} is started twice")
        if ring.address is None:
            raise PeerError(f"ring {effect.index} is started before it has an address")
        ring.started = True
        return [effect, UpdateRings()]

    def _set_call(self, payload: Payload, fd: bool) -> list[Effect]:
        return [self._ring_fd(_F.SET_VRING_CALL, payload, fd)[1]]

    def _set_err(self, payload: Payload, fd: bool) -> list[Effect]:
        return [self._ring_fd(_F.SET_VRING_ERR, payload, fd)[1]]

    def _ring_fd(self, kind: FrontendRequest, payload: Payload, fd: bool) -> tuple[RingState, RingFd]:
        assert isinstance(payload, Word)
        index = payload.value & 0xFF
        return self._ring(index), RingFd(kind, index, fd)

    def _set_enable(self, payload: Payload, fd: bool) -> list[Effect]:
        assert isinstance(payload, VringState)
        ring = self._ring(payload.index)
        if payload.num > 1:
            raise PeerError(f"ring {payload.index} is enabled by {payload.num}, neither 0 nor 1")
        was, ring.enabled = ring.live, bool(payload.num)
        return [UpdateRings()] if was != ring.live else []

    def _get_base(self, payload: Payload, fd: bool) -> list[Effect]:
        assert isinstance(payload, VringState)
        ring = self._ring(payload.index)
        was, ring.started = ring.live, False
        effects: list[Effect] = [UpdateRings()] if was else []
        return [*effects, ReportBase(payload.index)]

    # -- the device ----------------------------------------------------------------------------------------------------

    def _get_config(self, payload: Payload, fd: bool) -> list[Effect]:
        assert isinstance(payload, ConfigSpace)
        return [ReadConfig(payload.offset, len(payload.data))]

    def _set_config(self, payload: Payload, fd: bool) -> list[Effect]:
        assert isinstance(payload, ConfigSpace)
        return [WriteConfig(payload.offset, payload.data)]

    def _set_channel(self, payload: Payload, fd: bool) -> list[Effect]:
        return [GiveBackChannel()]

    def _reset_device(self, payload: Payload, fd: bool) -> list[Effect]:
        for ring in self.rings:
            ring.started = ring.enabled = False
        self.status = 0
        return [UpdateRings(), ResetDevice()]

    def _set_status(self, payload: Payload, fd: bool) -> list[Effect]:
        assert isinstance(payload, Word)
        if payload.value > 0xFF:
            raise PeerError(f"a status of {payload.value:#x}")
        if payload.value == 0:
            return self._reset_device(payload, fd)
        self.status = payload.value
        return []

    def _get_status(self, payload: Payload, fd: bool) -> list[Effect]:
        return [Reply(Word(self.status))]


_NEEDS: dict[FrontendRequest, ProtocolFeature] = {
    _F.GET_QUEUE_NUM: _P.MQ,
    _F.GET_CONFIG: _P.CONFIG,
    _F.SET_CONFIG: _P.CONFIG,
    _F.GET_INFLIGHT_FD: _P.INFLIGHT_SHMFD,
    _F.SET_INFLIGHT_FD: _P.INFLIGHT_SHMFD,
    _F.SET_BACKEND_REQ_FD: _P.BACKEND_REQ,
    _F.RESET_DEVICE: _P.RESET_DEVICE,
    _F.GET_STATUS: _P.STATUS,
    _F.SET_STATUS: _P.STATUS,
    _F.NET_SET_MTU: _P.MTU,
}
_Handler = Callable[[ServerState, Payload, bool], list[Effect]]
_HANDLERS: dict[FrontendRequest, _Handler] = {
    _F.GET_FEATURES: ServerState._get_features,
    _F.SET_FEATURES: ServerState._set_features,
    _F.SET_OWNER: ServerState._nothing,
    _F.RESET_OWNER: ServerState._reset_device,
    _F.SET_MEM_TABLE: ServerState._set_mem_table,
    _F.SET_VRING_NUM: ServerState._set_num,
    _F.SET_VRING_ADDR: ServerState._set_addr,
    _F.SET_VRING_BASE: ServerState._set_base,
    _F.GET_VRING_BASE: ServerState._get_base,
    _F.SET_VRING_KICK: ServerState._set_kick,
    _F.SET_VRING_CALL: ServerState._set_call,
    _F.SET_VRING_ERR: ServerState._set_err,
    _F.GET_PROTOCOL_FEATURES: ServerState._get_protocol,
    _F.SET_PROTOCOL_FEATURES: ServerState._set_protocol,
    _F.GET_QUEUE_NUM: ServerState._get_queue_num,
    _F.SET_VRING_ENABLE: ServerState._set_enable,
    _F.NET_SET_MTU: ServerState._nothing,
    _F.SET_BACKEND_REQ_FD: ServerState._set_channel,
    _F.GET_CONFIG: ServerState._get_config,
    _F.SET_CONFIG: ServerState._set_config,
    _F.GET_INFLIGHT_FD: ServerState._get_inflight,
    _F.SET_INFLIGHT_FD: ServerState._set_inflight,
    _F.RESET_DEVICE: ServerState._reset_device,
    _F.SET_STATUS: ServerState._set_status,
    _F.GET_STATUS: ServerState._get_status,
}
