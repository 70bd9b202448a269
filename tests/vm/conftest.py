"""VMs that boot a bare-metal kernel (tests/guests/kernel.S) on the machine's own /dev/kvm, by the ordinary path."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiovmm.errors import KvmError
from aiovmm.kvm import Kvm
from tests.vm.remains import own_temporary_directory

__all__ = ["own_temporary_directory"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.kvm)


@pytest.fixture(autouse=True, scope="session")
def emulated() -> bool:
    """Whether this KVM runs guest kernel code in its emulator. Skips everything here where there is no KVM."""
    try:
        with Kvm.open() as kvm:
            return kvm.emulates_guest_code()
    except KvmError as exc:
        pytest.skip(f"/dev/kvm cannot be used: {exc}")
