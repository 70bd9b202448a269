"""Where a machine's PCI segments lie, after RAM and pmem."""

from __future__ import annotations

import pytest

from aiovmm.errors import ConfigError
from aiovmm.machine.pci import start_of_bars
from aiovmm.pci.plan import Window, plan_segments
from aiovmm.testing.pci import ECAM_BASE, MMIO32


@pytest.mark.parametrize("end", [1 << 36, (1 << 36) - (1 << 30), 1 << 40])
def test_memory_that_leaves_no_room_for_bars_is_refused(end: int) -> None:
    with pytest.raises(ConfigError, match=r"memory\.size.*36 address bits"):
        start_of_bars(2, end, 36)


def test_the_last_that_fits() -> None:
    start = start_of_bars(2, (1 << 36) - (2 << 30) - 1, 36)
    plans = plan_segments(2, ECAM_BASE, MMIO32, Window(start, (1 << 36) - start))
    assert plans[-1].mmio64.end <= 1 << 36
    assert plans[0].mmio64.base >= (1 << 36) - (2 << 30)
