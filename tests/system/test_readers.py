"""What the machine says of itself, by the programs that are there to read it: systemd as process 1, cloud-init's ds-identify,
dmidecode, lscpu and numactl of Debian 12, in a guest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from aiovmm import VM, CpusConfig, MemoryConfig, PlatformConfig, VMConfig
from aiovmm.config import TopologyConfig
from aiovmm.config.options import parse_memory_zone, parse_numa
from aiovmm.image import build_initramfs
from tests.system.conftest import GUESTS, Guests
from tests.system.debian import debian_files
from tests.system.guest import BOOT, prompt, shell, shell_status

CREDENTIALS = (
    "io.systemd.credential:greeting=hello from the host",
    "io.systemd.credential.binary:blob=AAECAwQ=",
    "of somebody else",
)
TOLD = """/bin/systemd-creds --system list --no-legend
echo greeting: "$(cat $CREDENTIALS_DIRECTORY/greeting)"
echo blob: "$(od -An -tx1 $CREDENTIALS_DIRECTORY/blob)"
echo told: all
"""
UNITS = {
    "default.target": "[Unit]\nDefaultDependencies=no\nRequires=tell.service\n",
    "tell.service": "[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\nLoadCredential=greeting\nLoadCredential=blob\n"
    "ExecStart=/bin/sh -c '/bin/sh /etc/tell >/dev/console 2>&1'\n",
}


@pytest.fixture(scope="session")
def programs() -> dict[str, Path]:
    files = debian_files()
    if files is None:
        pytest.skip("Debian's archive could not be reached")
    return files


def with_programs(
    config: VMConfig, folder: Path, files: Mapping[str, Path | bytes], init: str | None = None
) -> VMConfig:
    """Its initramfs has these files besides."""
    path, modules = folder / "initramfs.cpio", GUESTS / "6.1/modules"
    data = build_initramfs(busybox=GUESTS / "bin/busybox", modules=modules, files=dict(files), init=init).data
    path.write_bytes(data)
    return replace(config, payload=replace(config.payload, initramfs=path))


async def test_systemd_takes_its_credentials_from_the_oem_strings(
    guests: Guests, folder: Path, programs: dict[str, Path]
) -> None:
    """As process 1, which gives them to the service that asks for them."""
    units = {f"/etc/systemd/system/{name}": text.encode() for name, text in UNITS.items()}
    files: dict[str, Path | bytes] = {**programs, **units, "/etc/tell": TOLD.encode()}
    config = guests.config(memory=512, platform=PlatformConfig(oem_strings=CREDENTIALS))
    config = with_programs(config, folder, files, init="#!/bin/sh\nexec /lib/systemd/systemd\n")
    async with VM(config) as vm:
        await vm.start()
        await vm.serial.expect(rb"told: all", timeout=BOOT)
        said = vm.serial.history.replace(b"\r", b"")
    assert re.search(rb"^blob +\S+ +5B", said, re.MULTILINE), said[-2000:]
    assert re.search(rb"^greeting +\S+ +19B", said, re.MULTILINE), said[-2000:]
    assert b"greeting: hello from the host\n" in said
    assert b"blob:  00 01 02 03 04\n" in said


@pytest.mark.parametrize(("serial", "found"), [("ds=nocloud;s=http://10.0.0.1/", True), ("another", False)])
async def test_cloud_init_finds_nocloud_by_the_serial_number(
    guests: Guests, folder: Path, programs: dict[str, Path], serial: str, found: bool
) -> None:
    config = guests.config(platform=PlatformConfig(system_serial_number=serial))
    async with VM(with_programs(config, folder, programs)) as vm:
        await vm.start()
        await prompt(vm)
        said, status = await shell_status(
            vm, "sh /usr/lib/cloud-init/ds-identify --force; s=$?; cat /run/cloud-init/*; (exit $s)"
        )
        assert (status == 0, "NoCloud" in (re.findall(r"^datasource_list:.*", said, re.MULTILINE) or [""])[0]) == (
            found,
            found,
        ), said
        table = await shell(vm, "/usr/sbin/dmidecode 2>&1")
    assert f"Serial Number: {serial}" in table
    for complaint in ("WARNING", "Invalid", "truncated", "<BAD", "Wrong DMI"):
        assert complaint not in table, table


async def test_lscpu_and_numactl_show_what_was_asked_for(
    guests: Guests, folder: Path, programs: dict[str, Path]
) -> None:
    """Eight processors: two threads, two cores, two packages, each a node with half of the memory."""
    config = replace(
        guests.config(),
        memory=MemoryConfig(0),
        memory_zones=(parse_memory_zone("id=a,size=128M"), parse_memory_zone("id=b,size=256M")),
        numa=(
            parse_numa("guest_numa_id=0,cpus=[0-3],memory_zones=a,distances=[1@30]"),
            parse_numa("guest_numa_id=1,cpus=[4-7],memory_zones=b"),
        ),
        cpus=CpusConfig(8, topology=TopologyConfig(threads=2, cores=2, dies=1, packages=2)),
    )
    async with VM(with_programs(config, folder, programs)) as vm:
        await vm.start()
        await prompt(vm)
        lines = (line.split(":", 1) for line in (await shell(vm, "/usr/bin/lscpu")).splitlines() if ":" in line)
        cpus = {key.strip(): value.strip() for key, value in lines}
        assert (cpus["CPU(s)"], cpus["On-line CPU(s) list"]) == ("8", "0-7")
        assert (cpus["Thread(s) per core"], cpus["Core(s) per socket"], cpus["Socket(s)"]) == ("2", "2", "2")
        assert (cpus["NUMA node0 CPU(s)"], cpus["NUMA node1 CPU(s)"]) == ("0-3", "4-7")
        nodes = await shell(vm, "/usr/bin/numactl -H")
    assert "available: 2 nodes (0-1)" in nodes
    assert "node 0 cpus: 0 1 2 3\n" in nodes
    assert "node 1 cpus: 4 5 6 7\n" in nodes
    assert [line.split() for line in nodes.splitlines()[-3:]] == [
        ["node", "0", "1"],
        ["0:", "10", "30"],
        ["1:", "30", "10"],
    ]
    sizes = [int(size) for size in re.findall(r"node . size: (\d+) MB", nodes)]
    assert 70 < sizes[0] <= 128
    assert 200 < sizes[1] <= 256
