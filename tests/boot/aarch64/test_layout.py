"""Where things lie: nothing on top of anything else, for any size of machine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.boot.aarch64 import end_of_ram, gic_of, layout, ram_ranges
from aiovmm.errors import ConfigError, UsageError


@given(pages=st.integers(1024, 1 << 28))
def test_ram_of_any_size(pages: int) -> None:
    ranges = ram_ranges(pages * 4096)
    assert sum(size for _, size in ranges) == pages * 4096
    assert ranges[0][0] == 0x40000000
    assert ranges[0][0] + ranges[0][1] <= 0xFC000000
    assert [gpa for gpa, _ in ranges[1:]] in ([], [1 << 32])
    assert end_of_ram(ranges) >= max(gpa + size for gpa, size in ranges)
    assert end_of_ram(ranges) >= 1 << 32


@pytest.mark.parametrize("size", [0, 4096, (4 << 20) - 4096, (64 << 20) + 1])
def test_sizes_that_cannot_be(size: int) -> None:
    with pytest.raises(UsageError, match="at least 4 MiB and a multiple of 4 KiB"):
        ram_ranges(size)


@given(vcpus=st.integers(1, 1024))
def test_interrupt_controller_for_any_number_of_processors(vcpus: int) -> None:
    gic = gic_of(vcpus)
    assert gic.its >= layout.LOWEST
    assert gic.its + layout.GIC_ITS_SIZE == gic.redistributors
    assert gic.redistributors + gic.redistributors_size == gic.distributor
    assert gic.distributor + layout.GIC_DISTRIBUTOR_SIZE <= layout.UART
    assert not gic.redistributors % 0x10000


@pytest.mark.parametrize("vcpus", [0, 4096])
def test_more_processors_than_there_is_room_for(vcpus: int) -> None:
    with pytest.raises(ConfigError, match=r"cpus.boot: \d+ vCPUs are not in 1\.\.1118"):
        gic_of(vcpus)
