"""A network card served by a vhost-user back end (DPDK, Open vSwitch, VPP, ...). We are the front end, the socket is theirs."""

from __future__ import annotations

import os
from collections.abc import Callable

from aiovmm.config import NetConfig
from aiovmm.config.net import VhostMode
from aiovmm.devices.virtio.net import features as f
from aiovmm.devices.virtio.net.config_space import NetConfigSpace
from aiovmm.devices.virtio.net.mac import parse_mac, random_mac
from aiovmm.devices.virtio.vhost_user.device import VhostUserDevice
from aiovmm.devices.virtio.vhost_user.net_control import MultiqueueBackend
from aiovmm.memory import AddressSpace
from aiovmm.vhost_user import Resume, Timing
from aiovmm.vhost_user.protocol import ProtocolFeature
from aiovmm.virtqueue.backend import VirtioBackend
from aiovmm.virtqueue.runner import CreateTask

__all__ = ["VhostUserNet"]

_CONTROL_SIZE = 64
_OFFLOADS = f.CSUM | f.HOST_TSO4 | f.HOST_TSO6 | f.HOST_ECN | f.HOST_UFO | f.HOST_USO | f.OFFLOADS


class VhostUserNet(VhostUserDevice):
    """virtio-net: frames and offloads are the back end's; the MAC, the MTU and (with several pairs) the control queue ours.

    A back end that dies is waited for and goes on where the rings stand: frames that it had taken are lost as on a wire.
    """

    device_id = 1
    resume = Resume.IN_ORDER
    wanted = VhostUserDevice.wanted | ProtocolFeature.MTU
    known_features = _OFFLOADS | f.MRG_RXBUF

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        mac: bytes | None = None,
        mtu: int | None = None,
        pairs: int = 1,
        queue_size: int = 256,
        offloads: f.Offloads = f.ALL_OFFLOADS,
        name: str = "net",
        timing: Timing | None = None,
        listens: bool = False,
    ) -> None:
        """`listens`: at `path`, where the back end connects."""
        control = (_CONTROL_SIZE,) if pairs > 1 else ()
        super().__init__(path, (queue_size,) * (2 * pairs) + control, name=name, timing=timing)
        self.pairs = pairs
        self._withheld = f.withheld(offloads)
        self.space = NetConfigSpace(random_mac() if mac is None else mac, max_virtqueue_pairs=pairs, mtu=mtu or 0)
        self.frontend.mtu = mtu
        if listens:
            from aiovmm.vhost_user.doorstep import Doorstep

            self.frontend.doorstep = Doorstep(path, "net.socket")

    @classmethod
    def from_config(cls, config: NetConfig, name: str = "net") -> VhostUserNet:
        """The device of a `config` with vhost_user=on."""
        assert config.socket is not None
        return cls(
            config.socket,
            mac=None if config.mac is None else parse_mac(config.mac),
            mtu=config.mtu,
            pairs=config.num_queues // 2,
            queue_size=config.queue_size,
            offloads=f.Offloads(config.offload_csum, config.offload_tso, config.offload_ufo),
            name=name,
            listens=config.vhost_mode is VhostMode.SERVER,
        )

    @property
    def served_queues(self) -> int:
        """All but the control queue."""
        return 2 * self.pairs

    def accepts(self, features: int) -> bool:
        """§5.1.3.1."""
        return f.consistent(features)

    def select_features(self, offered: int) -> int:
        """What of the back end's can stand without the rest, and our own bits.

        DPDK without segmentation still offers HOST_ECN, which is nothing by itself: a driver that took it would be refused.
        """
        bits = f.supported(super().select_features(offered & ~self._withheld)) | f.MAC
        if self.pairs > 1:
            bits |= f.CTRL_VQ | f.MQ
        if self.space.mtu:
            bits |= f.MTU
        return bits

    def read_config(self, offset: int, size: int) -> bytes:
        """§5.1.4."""
        return self.space.read(offset, size)

    def make_backend(
        self, memory: AddressSpace, broken: Callable[[Exception], None], create_task: CreateTask
    ) -> VirtioBackend:
        """With several pairs the control queue is served here."""
        served = self.serve(memory, broken)
        return served if self.pairs == 1 else MultiqueueBackend(served, memory, self.pairs, broken, create_task)
