"""Network cards of the host in stock guests: traffic with checksums, reboot, the guest killed, the card usable again.

The host keeps another card on the same wire. One of those given away is driven by MSI-X, one has nothing but INTx.
"""

from __future__ import annotations

import asyncio
import random
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from aiovmm import VM, DeviceConfig, EventKind, MemoryConfig, PayloadConfig, RebootPolicy
from aiovmm.image import GUEST_MODULES, build_initramfs
from tests.system.conftest import GUESTS, Guests
from tests.system.guest import limit, prompt, reboot, shell
from tests.system.host_pci import give_to, interfaces, network_card
from tests.system.shown import CONSOLE, SHOWN
from tests.system.traffic import exchange, transfer

HOST, GUEST, AGAIN = "192.168.78.1", "192.168.78.2", "192.168.78.3"
KEPT, WITH_MSIX, WITH_INTX = (f"52:54:00:00:00:0{n}" for n in (1, 2, 3))
MB = 1 << 20


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@pytest.fixture
def wire() -> Iterator[None]:
    """The host's own card has an address."""
    (card,) = interfaces(network_card(KEPT))
    ip("address", "replace", f"{HOST}/24", "dev", card.name)
    ip("link", "set", card.name, "up")
    yield
    ip("address", "flush", "dev", card.name)


def given_away(mac: str) -> Iterator[Path]:
    device = network_card(mac)
    own = (device / "driver").resolve().name
    give_to(device, "vfio-pci")
    yield device
    give_to(device, own)


@pytest.fixture
def card(wire: None) -> Iterator[Path]:
    yield from given_away(WITH_MSIX)


@pytest.fixture
def old_card(wire: None) -> Iterator[Path]:
    yield from given_away(WITH_INTX)


@pytest.fixture
def hugepages() -> Iterator[MemoryConfig]:
    """Guest memory for QEMU's vmxnet3, which sends no frame of whose memory a piece crosses from one page of the IOMMU to another
    that does not lie behind it in the host (net_tx_pkt_add_raw_fragment): it takes a piece mapped at once or not at all."""
    setting = Path("/proc/sys/vm/nr_hugepages")
    setting.write_text("130")
    yield MemoryConfig(256 << 20, hugepages=True)
    setting.write_text("0")


@pytest.fixture(scope="session")
def payload(tmp_path_factory: pytest.TempPathFactory) -> PayloadConfig:
    """A kernel and an initramfs with the card's driver."""
    path = tmp_path_factory.mktemp("vmxnet3") / "initramfs.cpio"
    modules = GUESTS / "6.1/modules"
    wanted = (*GUEST_MODULES, "vmxnet3")
    path.write_bytes(build_initramfs(busybox=GUESTS / "bin/busybox", modules=modules, wanted=wanted).data)
    return PayloadConfig(GUESTS / "6.1/vmlinuz", path, f"console={CONSOLE} panic=-1 quiet")


async def plug_in(vm: VM, mac: str) -> None:
    """The guest's side of the wire."""
    assert (await shell(vm, "cat /sys/class/net/eth0/address")).strip() == mac
    await shell(vm, f"ip address add {GUEST}/24 dev eth0; ip link set eth0 up")


async def interrupts(vm: VM, name: str, how: str) -> int:
    """How many interrupts of these names the guest has taken, all of them by way of `how`."""
    lines = [line for line in (await shell(vm, "cat /proc/interrupts")).splitlines() if re.search(name, line)]
    assert lines
    assert all(how in line for line in lines), lines
    return sum(int(line.split()[1]) for line in lines)


async def killed_while_it_sends(vm: VM) -> None:
    """In the middle of a transfer that has no end."""
    enough = asyncio.Event()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(MB)
        enough.set()
        while await reader.read(1 << 16):
            pass
        writer.close()

    server = await asyncio.start_server(take, HOST, 0)
    vm.serial.write(f"nc {HOST} {server.sockets[0].getsockname()[1]} </dev/zero\n".encode())
    await asyncio.wait_for(enough.wait(), limit(60))
    await vm.kill()
    server.close()


async def used_by_the_host(device: Path, driver: str) -> None:
    """Its own driver has it again, in a network namespace, and carries a transfer over the same wire."""
    give_to(device, driver)
    (card,) = interfaces(device)
    ip("netns", "add", "given")
    try:
        ip("link", "set", card.name, "netns", "given")
        ip("-n", "given", "address", "add", f"{AGAIN}/24", "dev", card.name)
        ip("-n", "given", "link", "set", card.name, "up")
        await exchange(_run_there, HOST, random.Random(9).randbytes(MB))
    finally:
        ip("netns", "delete", "given")


async def _run_there(command: str) -> str:
    line = ["ip", "netns", "exec", "given", "sh", "-c", command.replace("nc ", "nc -N ")]
    process = await asyncio.create_subprocess_exec(*line, stdout=asyncio.subprocess.PIPE)
    output, _ = await asyncio.wait_for(process.communicate(), limit(60))
    assert process.returncode == 0, command
    return output.decode()


@pytest.mark.kvmhost(profile="vfio")
@pytest.mark.timeout(400)
async def test_a_guest_drives_a_network_card_of_the_host(
    guests: Guests, card: Path, payload: PayloadConfig, hugepages: MemoryConfig
) -> None:
    config = replace(guests.config(), payload=payload, memory=hugepages, devices=(DeviceConfig(path=card),))
    async with VM(replace(config, on_reboot=RebootPolicy.RESTART)) as vm:
        await vm.start()
        await prompt(vm)
        await plug_in(vm, WITH_MSIX)
        await transfer(vm, HOST, random.Random(1).randbytes(4 * MB))
        assert await interrupts(vm, "eth0", SHOWN.message) > 10

        await reboot(vm)
        await prompt(vm)
        await plug_in(vm, WITH_MSIX)
        await transfer(vm, HOST, random.Random(2).randbytes(4 * MB))
        await killed_while_it_sends(vm)
        assert EventKind.DEVICE_ERROR not in [e.kind async for e in vm.events(from_start=True)]
    await used_by_the_host(card, "vmxnet3")


@pytest.mark.kvmhost(profile="vfio")
async def test_a_network_card_that_has_intx_alone(guests: Guests, old_card: Path) -> None:
    config = guests.config(devices=(DeviceConfig(path=old_card),), rng=None)
    async with VM(config) as vm:
        await vm.start()
        await prompt(vm)
        await plug_in(vm, WITH_INTX)
        await transfer(vm, HOST, random.Random(3).randbytes(MB))
        taken = await interrupts(vm, "virtio", SHOWN.pin)
        assert taken > 10
        await shell(vm, "modprobe -r virtio_net; modprobe virtio_net")
        await plug_in(vm, WITH_INTX)
        await transfer(vm, HOST, random.Random(4).randbytes(MB // 4))
        assert await interrupts(vm, "virtio", SHOWN.pin) > taken
        await killed_while_it_sends(vm)
        assert EventKind.DEVICE_ERROR not in [e.kind async for e in vm.events(from_start=True)]
    await used_by_the_host(old_card, "virtio-pci")


@pytest.mark.kvmhost(profile="vfio")
@pytest.mark.timeout(400)
async def test_a_card_with_intx_alone_comes_to_a_guest_that_runs(guests: Guests, old_card: Path) -> None:
    """Into slots that were empty when the guest was told of interrupt pins."""
    async with VM(guests.config(rng=None)) as vm:
        await vm.start()
        await prompt(vm)
        await shell(vm, "modprobe -a virtio_pci virtio_net")  # there was no device to load them for
        for number, slot in enumerate((1, 12, 31)):
            id_ = await vm.add(DeviceConfig(path=old_card, pci_device_id=slot))
            await shell(vm, "for i in $(seq 600); do test -e /sys/class/net/eth0 && break; sleep 0.05; done")
            await plug_in(vm, WITH_INTX)
            await transfer(vm, HOST, random.Random(number).randbytes(MB))
            assert await interrupts(vm, "virtio", SHOWN.pin) > 10
            if slot == 31:
                break
            await vm.remove(id_, timeout=120)
            await shell(vm, "test ! -e /sys/class/net/eth0")
        await killed_while_it_sends(vm)
        assert EventKind.DEVICE_ERROR not in [e.kind async for e in vm.events(from_start=True)]
    await used_by_the_host(old_card, "virtio-pci")
