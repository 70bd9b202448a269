"""Stock Debian kernels under aiovmm, inside the nested host."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop

from aiovmm import CpusConfig, MemoryConfig, PayloadConfig, VMConfig
from aiovmm.boot import load_kernel
from aiovmm.image import build_initramfs
from tests.system.programs import compile_programs

GUESTS = Path("/guest")
RELEASES = ("6.1", "6.12")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """uvloop alone: a boot costs ten seconds, and which loop turns matters to the units, which run on both."""
    return {"uvloop": uvloop.new_event_loop}


CORE = {
    "test_boot.py": "",
    "test_blk.py": "four_queues or made_filled_and_trimmed_by_the_guest[6.1]",
    "test_custom_device.py": "[6.1]",
    "test_net.py": "test_traffic_both_ways[6.1]",
    "test_rng_console.py": "carries_bytes_both_ways[6.1] or hwrng_is_random[6.1]",
    "test_vsock.py": "test_linux_speaks_vsock[6.1]",
    "test_terminal.py": "attach_type_detach",
}
"""What `make test` runs of each file: all (""), or what holds one of these parts of names. The rest is `thorough`."""


def is_core(item: pytest.Item) -> bool:
    parts = CORE.get(item.path.name)
    return parts is not None and any(part in item.name for part in parts.split(" or "))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.kvmhost)
            item.add_marker(pytest.mark.timeout(240))
            if not is_core(item):
                item.add_marker(pytest.mark.thorough)
    compile_programs()  # before the nested host, which has no compiler, gets the tree


@pytest.fixture(scope="session")
def initramfs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An initramfs with a shell for each kernel release."""
    found = {}
    for release in RELEASES:
        path = tmp_path_factory.mktemp("initramfs") / f"{release}.cpio"
        path.write_bytes(build_initramfs(busybox=GUESTS / "bin/busybox", modules=GUESTS / release / "modules").data)
        found[release] = path
    return found


@pytest.fixture(scope="session")
def vmlinux(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The kernels of the bzImages, unpacked: ELF files."""
    found = {}
    for release in RELEASES:
        image = load_kernel(GUESTS / release / "vmlinuz")
        path = tmp_path_factory.mktemp("vmlinux") / f"{release}.elf"
        view = memoryview(bytearray(image.source.size))
        image.source.read_into([(0, view)])
        path.write_bytes(view)
        found[release] = path
    return found


class Guests:
    """Makes configurations of guests that boot to a shell on ttyS0."""

    def __init__(self, initramfs: dict[str, Path], vmlinux: dict[str, Path]) -> None:
        self._initramfs = initramfs
        self._vmlinux = vmlinux

    def config(
        self,
        release: str = "6.1",
        *,
        elf: bool = False,
        cpus: int = 1,
        memory: int = 256,
        cmdline: str = "console=ttyS0 panic=-1 quiet",
        **changes: object,
    ) -> VMConfig:
        """A VMConfig; `memory` in MiB."""
        kernel = self._vmlinux[release] if elf else GUESTS / release / "vmlinuz"
        config = VMConfig(
            PayloadConfig(kernel, self._initramfs[release], cmdline),
            cpus=CpusConfig(cpus),
            memory=MemoryConfig(memory << 20),
            name="guest",
        )
        return replace(config, **changes)  # type: ignore[arg-type]


@pytest.fixture
def guests(initramfs: dict[str, Path], vmlinux: dict[str, Path]) -> Guests:
    return Guests(initramfs, vmlinux)
