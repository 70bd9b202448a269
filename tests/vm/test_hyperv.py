"""Hyper-V's interfaces, which KVM has: a bare-metal guest reads whose guest it is, and uses one of them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from aiovmm import VM, CpusConfig
from aiovmm.errors import KvmError
from aiovmm.kvm import Kvm
from tests.limits import HANGS
from tests.vm.guest import config

SYS_HYPERV_CPUID = 191
KVM, HYPERV = b"KVMKVMKVM\0\0\0", b"Linux KVM Hv"


async def read_line(vm: VM) -> bytes:
    async with asyncio.timeout(HANGS):
        return await vm.serial.readline()


async def test_a_guest_is_kvms_unless_it_is_asked_for() -> None:
    async with VM(config("H")) as vm:
        await vm.start()
        line = await read_line(vm)
    assert line.startswith(KVM)
    assert b"Hv#1" not in line


async def test_a_kvm_without_it_is_said() -> None:
    """Or the guest is built, where KVM has it: test_a_guest_of_hyperv says the rest."""
    with Kvm.open() as kvm:
        there = bool(kvm.capability(SYS_HYPERV_CPUID))
    vm = VM(replace(config("H"), cpus=CpusConfig(kvm_hyperv=True)))
    if there:
        async with vm:
            assert vm.machine.vcpus
    else:
        with pytest.raises(KvmError, match="leave kvm_hyperv= out"):
            await vm.__aenter__()


@pytest.mark.thorough
@pytest.mark.kvmhost
async def test_a_guest_of_hyperv(tmp_path: Path) -> None:
    """It finds KVM's own leaves too; its interrupt controller takes its registers, each of which makes an exit; and it goes on
    from a snapshot."""
    async with VM(replace(config("HVe"), cpus=CpusConfig(2, kvm_hyperv=True))) as vm:
        await vm.start()
        assert await read_line(vm) == HYPERV + b"Hv#1" + KVM + b"\n"
        assert await vm.serial.read(1) == b"0"
        await vm.snapshot(tmp_path / "s")
    async with VM.restore(tmp_path / "s") as again:
        await again.resume()
        again.serial.write(b"xq")
        assert await again.serial.readexactly(2) == b"xq"
