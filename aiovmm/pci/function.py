"""A PCI function as a segment sees it, whatever stands behind it: virtio, or a device of the host.

A segment owns the addresses: it reads and writes configuration space through `read_config` and `write_config`, decides
where each BAR answers, puts its regions on the bus there and says so through `bar_moved`. A function whose BARs are
memory slots instead of registers declares no regions and does all in `bar_moved`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

from aiovmm.bus import BusDevice, FastPage
from aiovmm.pci.bar import Bar
from aiovmm.pci.config_space import ConfigSpace
from aiovmm.pci.services import Place
from aiovmm.runtime.dataclass import dataclass
from aiovmm.runtime.plain import Fields, State

__all__ = ["BarRegion", "PciFunction", "together"]


@dataclass(frozen=True)
class BarRegion:
    """`size` bytes of registers at `offset` in BAR `bar`. What no region covers reads as ones and ignores writes."""

    bar: int
    offset: int
    size: int
    device: BusDevice
    name: str
    fast: FastPage | None = None


class PciFunction:
    """A function with plain configuration space; others extend what they need."""

    def __init__(
        self,
        name: str,
        config: ConfigSpace,
        bars: Sequence[Bar] = (),
        regions: Sequence[BarRegion] = (),
        place: Place | None = None,
        *,
        laid_out: bool = False,
    ) -> None:
        """`laid_out`: the BARs' registers are in `config` already."""
        self.name = name
        self.place = Place() if place is None else place
        """Set by the segment that it is plugged into."""
        self.config = config
        self.bars = tuple(bars)
        self._regions = tuple(regions)
        self.live_registers: tuple[tuple[int, int], ...] = ()
        """(offset, size) of configuration registers whose reads have side effects: they are never shadowed."""
        self.still_registers: bytes | None = None
        """Of each byte of configuration space what `Policy` has of writes that change nothing and that nobody is to hear of."""
        self.interrupt_gsi: int | None = None
        """What its INTA is wired to, for the firmware's tables; None: it has no interrupt pin."""
        for bar in self.bars if not laid_out else ():
            bar.install(config)

    @property
    def regions(self) -> Sequence[BarRegion]:
        """The registers in its BARs."""
        return self._regions

    def read_config(self, offset: int, size: int) -> bytes | Awaitable[bytes]:
        """`size` bytes of configuration space. See BusDevice.read for the result."""
        return self.config.read(offset, size)

    def write_config(self, offset: int, data: bytes) -> Awaitable[None] | None:
        """A write of the guest. The segment looks at the BARs afterwards. See BusDevice.write for the result."""
        self.config.write(offset, data)
        return None

    def bar_moved(self, bar: Bar, address: int | None) -> Awaitable[None] | None:
        """`bar` answers at `address` from now on, or nowhere. Called while it answers; the guest's access waits for the result.

        What is wired to the address in the host's kernel had better stay where it is while decoding is off: to change it
        takes milliseconds. See `bar_displaced`. Never raises.
        """
        return None

    def bar_displaced(self, bar: Bar) -> Awaitable[None] | None:
        """`bar` answers nowhere, and another is about to where it last did: take away what is wired there. Never raises."""
        return None

    # -- for a snapshot: the guest stands still -------------------------------------------------------------------------------

    @property
    def suspended_last(self) -> bool:
        """Whether others need it until they are suspended, and before they go on."""
        return False

    @property
    def why_not_saved(self) -> str | None:
        """Why no snapshot can have it; None if one can."""
        return None

    async def suspend(self) -> None:
        """Stop what it does, so that `save` has all of it. May be cancelled. Raises SnapshotError."""

    def save(self) -> State:
        """Its state, while it is suspended. Raises SnapshotError."""
        return {"config": self.config.save()}

    async def load(self, state: State) -> None:
        """Become what `save` told of, and stay suspended. The segment looks at the BARs afterwards. Raises SnapshotError."""
        fields = Fields(state, self.name)
        self.config.load(fields.state("config"))
        fields.end()

    async def unsuspend(self) -> None:
        """Go on with what `suspend` stopped, or `load` told of."""

    async def close(self) -> None:
        """The function was taken from its segment for good: end what it does."""


def together(*waits: Awaitable[None] | None) -> Awaitable[None] | None:
    """What an access waits for that has several things done; None: nothing."""
    there = [wait for wait in waits if wait is not None]
    if len(there) < 2:
        return there[0] if there else None
    return _all(there)


async def _all(waits: Sequence[Awaitable[None]]) -> None:
    """What one raises does not undo the others."""
    errors: list[Exception] = []
    for wait in waits:
        try:
            await wait
        except Exception as exc:
            errors.append(exc)
    if errors:
        raise errors[0]
