"""The nested host of arm64: both kinds of its KVM, and the project in it with an extension that was built elsewhere."""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
from collections.abc import Iterator

import pytest

from tests.kvmhost import Host

KVM_CREATE_VM, KVM_CHECK_EXTENSION, KVM_CREATE_VCPU, KVM_CREATE_DEVICE = 0xAE01, 0xAE03, 0xAE41, 0xC00CAEE0
KVM_CAP_ARM_VM_IPA_SIZE = 165
VGIC_V3, VGIC_ITS = 7, 8

pytestmark = pytest.mark.timeout(300)
both = pytest.mark.parametrize(
    "model",
    [
        pytest.param("max", marks=pytest.mark.kvmhost(arch="aarch64")),
        pytest.param("cortex-a72", marks=[pytest.mark.kvmhost(arch="aarch64", cpu="cortex-a72"), pytest.mark.thorough]),
    ],
)


@pytest.fixture
def kvm() -> Iterator[int]:
    fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    yield fd
    os.close(fd)


@both
def test_its_kvm_makes_a_virtual_machine_with_a_gic(kvm: int, model: str) -> None:
    assert platform.machine() == "aarch64"
    width = fcntl.ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_ARM_VM_IPA_SIZE)
    assert width == {"max": 48, "cortex-a72": 44}[model]
    vm = fcntl.ioctl(kvm, KVM_CREATE_VM, width)
    os.close(fcntl.ioctl(vm, KVM_CREATE_VCPU, 0))
    for kind in (VGIC_V3, VGIC_ITS):
        device = (ctypes.c_uint32 * 3)(kind, 0, 0)
        fcntl.ioctl(vm, KVM_CREATE_DEVICE, device)
        os.close(device[1])
    os.close(vm)


@both
def test_native_code_and_asyncio_work_there(model: str) -> None:
    from aiovmm.native import ffi, lib

    assert ffi.sizeof("void *") == 8
    assert lib


@both
def test_the_guests_kernels_and_programs_are_arm64s(model: str) -> None:
    for series in ("6.1", "6.12"):
        with open(f"/guest/{series}/vmlinuz", "rb") as kernel:
            assert kernel.read(64)[56:60] == b"ARMd"
        assert os.path.exists(f"/guest/{series}/modules/modules.dep")
    with open("/guest/bin/busybox", "rb") as busybox:
        assert int.from_bytes(busybox.read(20)[18:20], "little") == 183  # EM_AARCH64


NEAREST_TO_NATIVE_CODE = (
    *("tests/virtqueue", "tests/test_memory.py", "tests/test_bus.py"),
    *("tests/native/test_guard.py", "tests/native/test_owners.py", "tests/native/test_uring.py"),
)


@pytest.mark.thorough
@pytest.mark.timeout(1800)
def test_rings_memory_and_queues_are_the_same_there(kvmhost_aarch64: Host) -> None:
    """Tests that need no KVM, on native code of arm64."""
    command = ["python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "timeout=600", *NEAREST_TO_NATIVE_CODE]
    said = kvmhost_aarch64.run(command, env={"AIOVMM_LOOPS": "uvloop"}, timeout=1700).check().stdout.decode()
    assert " passed" in said.splitlines()[-1]
    assert " skipped" not in said.splitlines()[-1], said
