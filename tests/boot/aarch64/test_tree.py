"""The tree of any machine: dtc finds nothing wrong, and what a kernel looks up in it is what the machine has."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiovmm.boot.aarch64 import CpuTopology, Hardware, device_tree, gic_of, msi_device_id, ram_ranges
from aiovmm.boot.fdt import flatten
from aiovmm.boot.pci import EndpointRange, IntxWire, VirtioIommu
from aiovmm.errors import ConfigError
from tests.boot.aarch64.machines import SEEDS, any_hardware, hardware, mpidr, segments
from tests.boot.fdt.dtc import decompile
from tests.boot.fdt.reader import Read, read

SIZES = st.integers(1024, 1 << 22).map(lambda pages: pages * 4096)


def tree(machine: Hardware, size: int = 512 << 20, **more: object) -> Read:
    blob = flatten(device_tree(machine, ram_ranges(size), seeds=SEEDS, **more))  # type: ignore[arg-type]
    decompile(blob)
    return read(blob)


def phandles(node: Read) -> list[int]:
    own = node.cells("phandle") if "phandle" in node.properties else []
    return own + [handle for child in node.children for handle in phandles(child)]


@settings(deadline=None, max_examples=40)
@given(machine=any_hardware(), size=SIZES)
@example(machine=hardware(512, pci_segments=segments(96)), size=1 << 40)
def test_dtc_has_nothing_to_say_of_any_machine(machine: Hardware, size: int) -> None:
    root = tree(machine, size, cmdline=b"quiet", initrd=(0x50000000, 4096))
    memory = [node.quads("reg") for node in root.below("memory")]
    assert sum(length for _, length in memory) == size
    assert len(root.below("pcie")) == len(machine.pci_segments)
    assert len(root.at("/cpus").below("cpu")) == len(machine.mpidrs)
    handles = phandles(root)
    assert len(set(handles)) == len(handles)
    assert places_are_apart(root)


def places_are_apart(root: Read) -> bool:
    """What answers at any address: registers, windows, RAM."""
    spans = [tuple(pair) for node in root.below("memory") for pair in [node.quads("reg")]]
    for node in [
        *root.below("serial"),
        *root.below("rtc"),
        *root.below("gpio"),
        *root.below("rng"),
        *root.below("pcie"),
    ]:
        spans.append(tuple(node.quads("reg")))
    gic = root.below("interrupt-controller")[0]
    places = gic.quads("reg") + gic.children[0].quads("reg")
    spans += [(places[i], places[i + 1]) for i in range(0, len(places), 2)]
    for node in root.below("pcie"):
        words = node.cells("ranges")
        for i in range(0, len(words), 7):
            spans.append((words[i + 3] << 32 | words[i + 4], words[i + 5] << 32 | words[i + 6]))
    spans.sort()
    return all(base + size <= after for (base, size), (after, _) in pairwise(spans))


def test_chosen_says_what_to_boot_with() -> None:
    chosen = tree(hardware(), cmdline=b"console=ttyAMA0 x=\xff", initrd=(0x5F000000, 12345)).at("/chosen")
    assert chosen.properties["bootargs"] == b"console=ttyAMA0 x=\xff\0"
    assert chosen.quads("linux,initrd-start") == [0x5F000000]
    assert chosen.quads("linux,initrd-end") == [0x5F000000 + 12345]
    assert chosen.properties["rng-seed"] == bytes(range(64))
    assert chosen.quads("kaslr-seed") == [0x0123456789ABCDEF]
    assert chosen.strings("stdout-path") == ["/serial@9000000"]


def test_a_machine_without_its_optional_parts() -> None:
    root = tree(hardware(uart=None, rtc=None, gpio=None))
    assert not {"linux,initrd-start", "stdout-path"} & root.at("/chosen").properties.keys()
    assert not [
        n for n in root.children if n.name.split("@")[0] in ("serial", "rtc", "gpio", "gpio-keys", "pmu", "aliases")
    ]


@pytest.mark.parametrize(
    ("size", "pieces"),
    [
        (256 << 20, [(0x40000000, 256 << 20)]),
        (3008 << 20, [(0x40000000, 0xBC000000)]),
        ((3008 << 20) + 4096, [(0x40000000, 0xBC000000), (1 << 32, 4096)]),
        (5 << 30, [(0x40000000, 0xBC000000), (1 << 32, 0x84000000)]),
    ],
)
def test_memory_of_any_size(size: int, pieces: list[tuple[int, int]]) -> None:
    nodes = tree(hardware(), size).below("memory")
    assert [tuple(node.quads("reg")) for node in nodes] == pieces
    assert [node.name for node in nodes] == [f"memory@{base:x}" for base, _ in pieces]


def test_processors_have_their_affinity_and_not_their_number() -> None:
    root = tree(hardware(17))
    cpus = root.at("/cpus").below("cpu")
    assert [cpu.cells("reg") for cpu in cpus][-2:] == [[0xF], [0x100]]
    assert all(cpu.strings("enable-method") == ["psci"] for cpu in cpus)
    assert root.at("/psci").strings("method") == ["hvc"]


def test_the_highest_affinity_level_takes_a_cell_of_its_own() -> None:
    cpus = tree(Hardware((1 << 31, 3 << 32 | 1 << 31 | 5), gic_of(2))).at("/cpus")
    assert cpus.cells("#address-cells") == [2]
    assert [cpu.cells("reg") for cpu in cpus.below("cpu")] == [[0, 0], [3, 5]]


def test_topology() -> None:
    machine = hardware(16, topology=CpuTopology(threads=2, cores=2, clusters=2))
    root = tree(machine)
    places = {}
    for socket in root.at("/cpus/cpu-map").children:
        for cluster in socket.children:
            for core in cluster.children:
                for thread in core.children:
                    places[thread.cells("cpu")[0]] = "/".join(n.name for n in (socket, cluster, core, thread))
    handles = [cpu.cells("phandle")[0] for cpu in root.at("/cpus").below("cpu")]
    assert [places[handle] for handle in handles][:4] == [
        "socket0/cluster0/core0/thread0",
        "socket0/cluster0/core0/thread1",
        "socket0/cluster0/core1/thread0",
        "socket0/cluster0/core1/thread1",
    ]
    assert places[handles[-1]] == "socket1/cluster1/core1/thread1"


def test_one_package_of_cores_where_nothing_else_is_asked_for() -> None:
    sockets = tree(hardware(3)).at("/cpus/cpu-map").children
    assert [[len(cluster.children) for cluster in socket.children] for socket in sockets] == [[3]]


@pytest.mark.parametrize("vcpus", [1, 2, 4, 512])
def test_interrupt_controller(vcpus: int) -> None:
    gic = gic_of(vcpus)
    node = tree(hardware(vcpus)).at("/interrupt-controller@8ff0000")
    assert node.quads("reg") == [0x08FF0000, 0x10000, 0x08FF0000 - 0x20000 * vcpus, 0x20000 * vcpus]
    [its] = node.children
    assert its.quads("reg") == [0x08FF0000 - 0x20000 * (vcpus + 1), 0x20000]
    assert gic.doorbell == its.quads("reg")[0] + 0x10040


def test_interrupts_of_what_each_processor_has() -> None:
    root = tree(hardware(pmu=True))
    assert root.at("/timer").cells("interrupts") == [1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4]
    assert root.at("/pmu").cells("interrupts") == [1, 7, 4]


def test_devices_that_are_not_on_pci() -> None:
    root = tree(hardware())
    clock = root.at("/apb-pclk").cells("phandle")
    for path, kind, spi, clocks in (
        ("/serial@9000000", "arm,pl011", 3, ["uartclk", "apb_pclk"]),
        ("/rtc@9010000", "arm,pl031", 0, ["apb_pclk"]),
        ("/gpio@9020000", "arm,pl061", 1, ["apb_pclk"]),
    ):
        node = root.at(path)
        assert node.strings("compatible") == [kind, "arm,primecell"]
        assert node.cells("interrupts") == [0, spi, 4]
        assert node.strings("clock-names") == clocks
        assert node.cells("clocks") == clock * len(clocks)
    key = root.at("/gpio-keys/key-power")
    assert key.cells("linux,code") == [116]
    assert key.cells("gpios") == [*root.at("/gpio@9020000").cells("phandle"), 3, 0]


def test_which_machine_it_is() -> None:
    node = tree(hardware(generation=True)).at("/rng@9030000")
    assert node.strings("compatible") == ["microsoft,vmgenid"]
    assert node.quads("reg") == [0x09030000, 4096]
    assert node.cells("interrupts") == [0, 2, 1], "an edge"
    assert not tree(hardware()).below("rng")


def test_pci_segments_with_their_windows_wires_and_messages() -> None:
    machine = hardware(pci_segments=segments(3, wires=(IntxWire(3, 17), IntxWire(31, 23))))
    root = tree(machine)
    gic = root.at("/interrupt-controller@8ff0000")
    [its] = gic.children
    for number, node in enumerate(root.below("pcie")):
        plan = machine.pci_segments[number]
        assert node.cells("linux,pci-domain") == [number]
        assert node.quads("reg") == [0x30000000 + (number << 20), 1 << 20]
        assert node.cells("bus-range") == [0, 0]
        assert plan.mmio32 is not None
        assert plan.mmio64 is not None
        low, high = plan.mmio32.base, plan.mmio64.base
        assert node.cells("ranges") == [
            *(0x2000000, 0, low, 0, low, 0, plan.mmio32.size),
            *(0x3000000, high >> 32, high & 0xFFFFFFFF, high >> 32, high & 0xFFFFFFFF, 1, 0),
        ]
        assert node.cells("msi-map") == [0, *its.cells("phandle"), msi_device_id(number, 0), 0x100]
        assert node.cells("interrupt-map-mask") == [0xF800, 0, 0, 7]
        handle = gic.cells("phandle")[0]
        assert node.cells("interrupt-map") == [
            *(3 << 11, 0, 0, 1, handle, 0, 0, 0, 17, 4),
            *(31 << 11, 0, 0, 1, handle, 0, 0, 0, 23, 4),
        ]
        assert "dma-coherent" in node.properties


def test_iommu() -> None:
    behind = (EndpointRange(0, 5 << 3, 5 << 3), EndpointRange(2, 0, 0xFF))
    root = tree(hardware(pci_segments=segments(3), iommu=VirtioIommu(1, 2 << 3, behind)))
    first, home, last = root.below("pcie")
    [iommu] = home.children
    assert not first.children
    assert not last.children
    assert iommu.name == "iommu@2,0"
    assert iommu.cells("reg") == [2 << 11, 0, 0, 0, 0]
    assert iommu.strings("compatible") == ["virtio,pci-iommu", "pci1af4,1057"]
    handle = iommu.cells("phandle")[0]
    assert first.cells("iommu-map") == [5 << 3, handle, 5 << 3, 1]
    assert last.cells("iommu-map") == [0, handle, 0x20000, 0x100]
    assert "iommu-map" not in home.properties


def test_machines_that_no_tree_can_describe() -> None:
    two = segments(2)
    refused: dict[str, dict[str, Any]] = {
        "same number": {"pci_segments": (two[0], two[0])},
        "no PCI segment 1": {"iommu": VirtioIommu(1, 8)},
        "no SPI 988": {"pci_segments": segments(1, wires=(IntxWire(1, 988),))},
    }
    for what, settings_ in refused.items():
        with pytest.raises(ConfigError, match=what):
            hardware(**settings_)
    with pytest.raises(ConfigError, match="same affinity"):
        Hardware((mpidr(0), mpidr(0)), gic_of(2))
    with pytest.raises(ConfigError, match="redistributor for each"):
        Hardware((mpidr(0),), gic_of(2))
    with pytest.raises(ConfigError, match="at least one"):
        Hardware((), gic_of(1))
