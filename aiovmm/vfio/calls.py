"""What a guest brings about at a host device: in the machine's thread, one after the other, and reported where the host refuses.

The host's kernel takes its time for them: an interrupt is set up in the interrupt controller and the IOMMU, a register of the
vital product data is waited for up to 125 ms, one of a device that sleeps until it has woken. Only the access waits that brought
them about.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol

from aiovmm.pci.services import IntxCircuit, LineChange, MsiLine, PciServices
from aiovmm.vfio.abi import Irq, Region

__all__ = ["DeviceCalls"]


class Device(Protocol):
    """See HostDevice."""

    def read(self, region: int, offset: int, size: int) -> bytes: ...
    def write(self, region: int, offset: int, data: bytes) -> None: ...
    def set_irqs(self, kind: Irq, start: int, fds: Sequence[int]) -> None: ...
    def irqs_off(self, kind: Irq) -> None: ...
    def unmask_irq(self, kind: Irq) -> None: ...
    def unmask_irq_by(self, kind: Irq, fd: int) -> None: ...


class DeviceCalls:
    """`failed` hears what the host refuses. A kind of interrupts that could not be turned on is off, and nothing more is asked of
    it."""

    def __init__(self, device: Device, services: PciServices, failed: Callable[[Exception], None]) -> None:
        self.failed = failed
        self._device = device
        self._services = services
        self._on: set[Irq] = set()  # touched off the loop only
        self._last: Awaitable[None] | None = None

    # -- what is asked for

    def turn_on(self, kind: Irq, fds: Sequence[int]) -> None:
        """Interrupts 0 on of this kind, which is off, signal these eventfds (-1: none)."""
        self._ask(partial(self._turn_on, kind, tuple(fds)))

    def connect(self, kind: Irq, index: int, fd: int) -> None:
        """One of a kind that is on signals `fd` from now on."""
        self._ask(partial(self._if_on, kind, partial(self._device.set_irqs, kind, index, [fd])))

    def unmask(self, kind: Irq) -> None:
        """The kernel has masked it when it signalled it: let it come again."""
        self._ask(partial(self._if_on, kind, partial(self._device.unmask_irq, kind)))

    def close_circuit(self, circuit: IntxCircuit, trigger: int, ended: int) -> None:
        """INTx, which is off, signals `trigger`, which asserts the guest's pin, and is unmasked by `ended`."""
        self._ask(partial(self._close_circuit, circuit, trigger, ended))

    def open_circuit(self, circuit: IntxCircuit) -> None:
        """No more, once INTx is off."""
        self._ask(circuit.disconnect)

    def turn_off(self, kind: Irq) -> None:
        """None of this kind any more. Idempotent."""
        self._ask(partial(self._turn_off, kind))

    def write_config(self, offset: int, data: bytes) -> None:
        """Store into the device's configuration space."""
        self.write(Region.CONFIG, offset, data)

    def write(self, region: int, offset: int, data: bytes) -> None:
        """Store into one of its regions."""
        self._ask(partial(self._device.write, region, offset, data))

    def read(self, region: int, offset: int, size: int) -> bytes | Awaitable[bytes]:
        """`size` bytes of a region, after all that was asked for before."""
        found: list[bytes] = []
        done = self._services.off_loop(lambda: found.append(self._device.read(region, offset, size)))
        return found[0] if done is None else _then(done, found)

    def set_lines(self, changes: Sequence[LineChange]) -> None:
        """Program lines of the guest's."""
        if changes:
            self._ask(partial(self._services.set_lines, changes))

    def close_lines(self, lines: Sequence[MsiLine]) -> None:
        """Give lines back that the device signals no more, once it has been told so."""
        for line in lines:
            self._ask(line.close)

    def close_fd(self, fd: int) -> None:
        """The same for an eventfd: its number must not be another file's while it is still to be given to the kernel."""
        self._ask(partial(os.close, fd))

    # -- when it is done

    def asked(self) -> Awaitable[None] | None:
        """What was asked for since this was last called is done when the result is; None: it is."""
        last, self._last = self._last, None
        return last

    async def settle(self) -> None:
        """Wait for all of it."""
        self._ask(_nothing)
        if (last := self.asked()) is not None:
            await last

    # -- off the loop

    def _ask(self, work: Callable[[], None]) -> None:
        refused: list[Exception] = []

        def attempt() -> None:
            try:
                work()
            except Exception as exc:
                refused.append(exc)

        def told(_: BaseException | None) -> None:
            for error in refused:
                self.failed(error)

        self._last = self._services.off_loop(attempt, told)

    def _turn_on(self, kind: Irq, fds: Sequence[int]) -> None:
        self._device.set_irqs(kind, 0, fds)
        self._on.add(kind)

    def _close_circuit(self, circuit: IntxCircuit, trigger: int, ended: int) -> None:
        circuit.connect(trigger, ended)
        self._turn_on(Irq.INTX, [trigger])
        self._device.unmask_irq_by(Irq.INTX, ended)

    def _turn_off(self, kind: Irq) -> None:
        if kind in self._on:
            self._on.discard(kind)
            self._device.irqs_off(kind)

    def _if_on(self, kind: Irq, work: Callable[[], None]) -> None:
        if kind in self._on:
            work()


async def _then(done: Awaitable[None], found: list[bytes]) -> bytes:
    await done
    return found[0]


def _nothing() -> None:
    return
