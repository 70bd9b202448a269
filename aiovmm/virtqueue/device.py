"""What every virtio device is: a kind, features, queues, a configuration space, and a coroutine that serves the queues."""

from __future__ import annotations

import abc
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, ClassVar

from aiovmm.errors import SnapshotError

if TYPE_CHECKING:
    from aiovmm.runtime.fair import Account
    from aiovmm.runtime.plain import State
    from aiovmm.virtqueue.queue import Queue

__all__ = ["VirtioDevice"]


class VirtioDevice(abc.ABC):
    """One virtio device, free of any transport. Subclasses set the attributes and write `run`.

    Its life: `open` once before the guest starts, then any number of times `run` (from DRIVER_OK until the driver resets
    the device) followed by `reset`, and at last `close`.
    """

    device_id: ClassVar[int]
    """VIRTIO 1.2 §5: 1 net, 2 block, 3 console, 4 entropy, 19 socket, ..."""

    name: str = "virtio"
    """For logs, errors and metrics."""

    features: int = 0
    """The feature bits of this kind of device that are offered; ring and transport bits are added by the transport."""

    queue_sizes: tuple[int, ...] = (256,)
    """The largest size of each queue, in descriptors: powers of two."""

    shares_memory: bool = False
    """Whether another process is to map the guest's memory, which then is a memfd."""

    own_kicks: bool = False
    """Whether each queue has a kick eventfd of its own, which can be handed on; else a few queues share one."""

    physical: bool = False
    """Whether its driver means physical addresses, also where the device is behind an IOMMU."""

    suspended_last: bool = False
    """Whether others need it until they are suspended, and before they go on (an IOMMU)."""

    lasting_config: tuple[tuple[int, int], ...] = ()
    """(offset, size) of the parts of its configuration that are the same from `open` on: reads of them wait for nobody."""

    suspending: bool = False
    """`run` is cancelled for a moment, or to go on elsewhere, while the guest stands still: it ends what is with the host
    and answers it, as if nothing were, returns or puts back what else it has taken, and forgets nothing that the driver
    has set. Set from outside."""

    resumed: bool = False
    """`run` goes on with a driver that was there before, here or in another process: its `load` was called before if there was
    one. Set from outside."""

    _opens_slowly: ClassVar[bool] = False  # `open` waits for threads or other processes: others go on meanwhile
    _awaits_peer: ClassVar[bool] = False  # `open` waits for a program that may not be there yet: it is opened last
    _notify_config: Callable[[], None] | None = None  # set by the transport
    _notify_error: Callable[[Exception], None] | None = None  # set by the VM
    _notify_driver: Callable[[bool], None] | None = None  # set by the VM: whether a driver has it now
    _label: str = ""  # set by the VM
    _account: Account | None = None  # of the VM's turns of the event loop; set by the VM
    _vm: str = ""  # the name of the VM that has it, if it is of the embedder's own

    @property
    def label(self) -> str:
        """Whose it is, for the names of its threads: the VM's name and its id there, once a VM has it."""
        return self._label or self.name

    @abc.abstractmethod
    async def run(self, queues: list[Queue], features: int) -> None:
        """Serve the queues until cancelled, which happens when the driver resets the device.

        `queues[i]` is queue i, disabled ones included (`queue.enabled` is false); `features` is what was negotiated.
        Before it returns or lets CancelledError pass, no host I/O on guest memory may be in flight any more. What it
        raises puts the device into NEEDS_RESET.
        """

    def accepts(self, features: int) -> bool:
        """Whether the device can work with this subset of its offer (VIRTIO 1.2 §2.2: else FEATURES_OK stays clear)."""
        return True

    def read_config(self, offset: int, size: int) -> bytes:
        """`size` bytes of the device-specific configuration at `offset`; zeros beyond its end."""
        return bytes(size)

    def write_config(self, offset: int, data: bytes) -> Awaitable[None] | None:
        """The driver writes its configuration. Read-only fields and everything beyond the end ignore it.

        What takes time is returned as an awaitable: the guest's instruction completes when it is done. Never start a task for a
        write and return, for a guest writes faster than anything else is done.
        """
        return None

    def save(self) -> State | Awaitable[State]:
        """For a snapshot: all that the driver has set and that is not in its rings, as plain data
        (`aiovmm.runtime.plain`). Called while the device is suspended, or has no driver. May be `async def`. A device that
        has none says so by `return {}`. Raises SnapshotError."""
        raise SnapshotError(f"{self.name} has no save() and load(), so no snapshot can have it")

    def load(self, state: State) -> Awaitable[None] | None:
        """Become what `save` told of, of a device that was made and opened anew. The state is input: read it by
        `aiovmm.runtime.plain.Fields`. May be `async def`. Raises SnapshotError, with nothing changed."""
        raise SnapshotError(f"{self.name} has no save() and load(), so no snapshot can have it")

    @property
    def why_not_on_disk(self) -> str | None:
        """Why no snapshot in a directory can have it, though a template could; None if one can."""
        return None

    async def sync(self) -> None:
        """All that the guest was told to be written is on stable storage. Raises HostError."""
        return

    @property
    def why_not_saved(self) -> str | None:
        """Why no snapshot can have it; None if one can."""
        if type(self).save is VirtioDevice.save or type(self).load is VirtioDevice.load:
            return "it has no save() and load()"
        return None

    def guest_ended(self, why: str) -> None:
        """The guest has ended, for good and as `why` says. What there is to be read of it can still be. Must not raise."""
        return

    def reset(self) -> None:
        """Put what the driver has set back to its defaults. Called when `run` has ended and the driver resets."""
        return

    async def open(self) -> None:
        """Acquire host resources. Raises HostError or ConfigError."""
        return

    async def close(self) -> None:
        """Release them. Idempotent; called when no queue is live."""
        return

    def config_changed(self) -> None:
        """To be called by the device when its configuration space changed: the driver gets an interrupt for it."""
        if self._notify_config is not None:
            self._notify_config()

    def report(self, error: Exception) -> None:
        """To be called by the device when something fails on the host's side and it goes on: the VM has a DEVICE_ERROR event
        of it. The error need not have been raised. How many are told is bounded. To be called on the event loop."""
        if self._notify_error is not None:
            self._notify_error(error)
