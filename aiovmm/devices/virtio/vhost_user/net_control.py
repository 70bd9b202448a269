"""The control queue of a network card whose other queues a vhost-user back end serves: it only chooses the number of pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aiovmm.devices.virtio.net import features as f
from aiovmm.devices.virtio.net.control import ACK_ERR, ACK_OK, COMMAND_LIMIT, SetPairs, parse_command
from aiovmm.errors import PeerError
from aiovmm.irq import IrqLine
from aiovmm.memory import AddressSpace
from aiovmm.runtime.tasks import finish
from aiovmm.vhost_user import VhostUserBackend
from aiovmm.virtqueue.config import QueueConfig
from aiovmm.virtqueue.device import VirtioDevice
from aiovmm.virtqueue.queue import Queue
from aiovmm.virtqueue.runner import CreateTask, DeviceRunner

__all__ = ["MultiqueueBackend"]


class _Control(VirtioDevice):
    """Serves queue `index` alone."""

    device_id = 1
    name = "net control"

    def __init__(self, queues: int, served: VhostUserBackend, most: int) -> None:
        self.queue_sizes = (1,) * queues
        self.index = 0
        self._served = served
        self._most = most

    async def run(self, queues: list[Queue], features: int) -> None:
        """VIRTIO 1.2 §5.1.6.5.5."""
        queue = queues[self.index]
        async for chain in queue:
            command = parse_command(chain.read_all(COMMAND_LIMIT))
            ok = isinstance(command, SetPairs) and bool(features & f.MQ) and 1 <= command.pairs <= self._most
            if ok and isinstance(command, SetPairs):
                ok = await self._use(command.pairs)
            chain.write(ACK_OK if ok else ACK_ERR)
            queue.push(chain)

    async def _use(self, pairs: int) -> bool:
        """To its end in any case: a connection on which an answer is not waited for is of no use any more."""
        try:
            await finish(self._served.enable(frozenset(range(2 * pairs))))
        except PeerError:
            return False
        return True


class MultiqueueBackend:
    """A virtqueue.backend.VirtioBackend of two: `served` for the pairs, and the control queue here."""

    def __init__(
        self,
        served: VhostUserBackend,
        memory: AddressSpace,
        pairs: int,
        broken: Callable[[Exception], None],
        create_task: CreateTask,
    ) -> None:
        self.served = served
        self._pairs = pairs
        self._control = _Control(2 * pairs + 1, served, pairs)
        self._runner = DeviceRunner(
            self._control, memory, create_task, needs_reset=lambda: False, on_error=lambda device, exc: broken(exc)
        )

    async def activate(
        self,
        configs: Sequence[QueueConfig],
        features: int,
        kick_fds: Sequence[int],
        queue_irqs: Sequence[IrqLine],
        config_irq: IrqLine,
    ) -> None:
        """The first pair is in use until the driver asks for more. §5.1.2: without MQ the control queue is queue 2."""
        control = 2 * self._pairs if features & f.MQ else 2
        self._control.index = control
        idle = [QueueConfig(config.max_size) for config in configs]
        pairs = [config if index < control else idle[index] for index, config in enumerate(configs)]
        await self.served.activate(pairs, features, kick_fds, queue_irqs, config_irq, frozenset({0, 1}))
        if features & f.CTRL_VQ:
            own = [config if index == control else idle[index] for index, config in enumerate(configs)]
            await self._runner.activate(own, features, kick_fds, queue_irqs, config_irq)

    async def reset(self) -> None:
        """Both. Idempotent."""
        await self._runner.reset()
        await self.served.reset()
