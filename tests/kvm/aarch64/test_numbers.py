"""Numbers that KVM takes on arm64, against its documentation (Documentation/virt/kvm/api.rst) and what one was seen to take."""

from __future__ import annotations

import pytest

from aiovmm.kvm.aarch64.features import VcpuFeatures
from aiovmm.kvm.aarch64.registers import MPIDR_EL1, PC, PSTATE, SP, system_register, x


@pytest.mark.parametrize(
    ("number", "documented"),
    [
        (x(0), 0x6030_0000_0010_0000),
        (x(1), 0x6030_0000_0010_0002),
        (x(30), 0x6030_0000_0010_003C),
        (SP, 0x6030_0000_0010_003E),
        (PC, 0x6030_0000_0010_0040),
        (PSTATE, 0x6030_0000_0010_0042),
        (MPIDR_EL1, 0x6030_0000_0013_C005),
        (system_register(3, 0, 1, 0, 0), 0x6030_0000_0013_C080),  # SCTLR_EL1
        (system_register(3, 3, 14, 3, 2), 0x6030_0000_0013_DF1A),  # CNTV_CVAL_EL0
    ],
)
def test_registers_have_the_numbers_that_kvm_documents(number: int, documented: int) -> None:
    assert number == documented


@pytest.mark.parametrize("number", [-1, 31])
def test_there_are_31_general_registers(number: int) -> None:
    with pytest.raises(ValueError, match=f"no x{number}"):
        x(number)


def test_features_are_asked_for_by_number() -> None:
    assert VcpuFeatures().bits() == [2], "PSCI, always"
    assert VcpuFeatures(pmu=True, sve=True, pointer_authentication=True).bits() == [2, 3, 4, 5, 6]
