"""Who may import whom, and which files are pure. The rules are those of docs/architecture.md; this test keeps them true."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "aiovmm"

EVERYWHERE = {"runtime", "architecture"}
BASE = {"errors", "config", "memory", "bus", "irq", "native"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "runtime": {"errors"},
    "architecture": {"errors"},
    "irq": set(),
    "native": set(),
    "bus": {"errors"},
    "config": {"errors"},
    "memory": {"errors", "native"},
    "lifecycle": {"errors"},
    "events": {"lifecycle"},
    "virtqueue": BASE,
    "vfio": {"errors", "memory", "irq", "native", "pci", "bus"},
    "pci": BASE | {"virtqueue"},
    "vhost_user": {"errors", "memory", "irq", "native", "virtqueue"},
    "devices": BASE | {"virtqueue", "vhost_user", "iouring", "net"},
    "kvm": {"errors", "memory", "irq", "native", "bus"},
    "boot": {"errors", "config", "memory"},
    "image": {"errors", "config", "boot"},
    "rootfs": {"errors"},
    "console": {"errors", "config"},
}
"""Units that are not listed compose others (vm, machine, cli, testing, ...) and may import anything but the command line."""

PURE = [
    "devices/serial/uart*.py",
    "devices/primecell.py",
    "devices/pl011/registers.py",
    "devices/pl011/receiver.py",
    "devices/pl011/modem.py",
    "devices/pl011/interrupts.py",
    "devices/pl011/state.py",
    "devices/pl011/uart.py",
    "devices/pl031/clock.py",
    "devices/pl061/lines.py",
    "devices/pl061/key.py",
    "devices/rtc/registers.py",
    "devices/rtc/calendar.py",
    "devices/ioapic/entry.py",
    "devices/ioapic/registers.py",
    "devices/ioapic/intx.py",
    "devices/i8042.py",
    "devices/acpi.py",
    "devices/virtio/blk/extents.py",
    "devices/virtio/blk/overlay/header.py",
    "devices/virtio/qcow2.py",
    "devices/virtio/blk/protocol.py",
    "devices/virtio/vsock/packet.py",
    "devices/virtio/vsock/connection.py",
    "devices/virtio/vsock/muxer.py",
    "devices/virtio/net/config_space.py",
    "devices/virtio/net/control.py",
    "devices/virtio/net/counters.py",
    "devices/virtio/net/features.py",
    "pci/config_space.py",
    "pci/bar.py",
    "pci/msix.py",
    "pci/capabilities.py",
    "pci/aperture.py",
    "pci/common_config.py",
    "pci/config_window.py",
    "pci/plan.py",
    "devices/virtio/iommu/domains.py",
    "devices/virtio/iommu/mappings.py",
    "devices/virtio/iommu/wire.py",
    "devices/virtio/pmem/protocol.py",
    "vfio/abi.py",
    "vfio/host_config.py",
    "vfio/layout.py",
    "vfio/msi.py",
    "vfio/virtual_config.py",
    "virtqueue/status.py",
    "virtqueue/config.py",
    "vhost_user/protocol.py",
    "vhost_user/payloads.py",
    "vhost_user/messages.py",
    "vhost_user/framing.py",
    "vhost_user/sequences.py",
    "vhost_user/server_state.py",
    "vhost_user/effects.py",
    "vhost_user/retry.py",
    "boot/aarch64/hardware.py",
    "boot/aarch64/image.py",
    "boot/aarch64/layout.py",
    "boot/aarch64/tree/*.py",
    "boot/acpi/*.py",
    "boot/checks.py",
    "boot/pci.py",
    "boot/x86_64/acpi/*.py",
    "boot/x86_64/cpuid.py",
    "boot/x86_64/cpuid_policy.py",
    "boot/elf.py",
    "boot/x86_64/elf_kernel.py",
    "boot/fdt/*.py",
    "boot/window.py",
    "boot/x86_64/mptable.py",
    "boot/x86_64/cpu.py",
    "console/automaton.py",
    "console/cost.py",
    "console/keys.py",
    "console/replay.py",
    "console/ring.py",
    "console/screen.py",
    "console/search.py",
    "lifecycle.py",
    "rootfs/documents.py",
    "rootfs/layer.py",
    "rootfs/streams.py",
    "rootfs/tar.py",
    "rootfs/tree.py",
    "runtime/quota.py",
    "runtime/undoing.py",
    "devices/hotplug/each.py",
    "irq.py",
    "bus.py",
]
PURE_RUNTIME = {"dataclass", "lazy", "patience", "plain", "prepared", "quota", "undoing"}
"""Of the mechanisms of process and loop, those that a pure file may use."""
IMPURE = {"asyncio", "os", "threading", "socket", "select", "selectors", "subprocess", "fcntl"}


def unit_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Names of modules that a file imports, `aiovmm.x.y` in full. Imports for type checking alone do not count."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    skip: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            skip |= {id(inner) for stmt in node.body for inner in ast.walk(stmt)}
        if id(node) in skip:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found.add(node.module)
            if node.module == "aiovmm":
                found |= {f"aiovmm.{alias.name}" for alias in node.names}
    return found


FILES = sorted(PACKAGE.rglob("*.py"))

ROOMS = {"x86_64", "aarch64"}
SELECTING = {"kvm/architecture.py", "boot/kernel.py", "machine/architecture.py", "device_model/architecture.py"}
"""Of each unit with rooms, the one place that asks which architecture the host is, and imports its room."""
NAMING = {"architecture.py": "has their names", "boot/detect.py": "says what a file is that is another one's kernel"}
"""Others that may name architectures, and why."""
ASKING = {"machine", "processor", "architecture"}  # of the module `platform`


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_layers(path: Path) -> None:
    unit = unit_of(path)
    used = {name.split(".")[1] for name in imports(path) if name.startswith("aiovmm.")} - {unit} - EVERYWHERE
    if unit not in ("cli", "__main__"):
        assert "cli" not in used, f"{path.name} imports the command line"
    if unit in ALLOWED:
        assert used <= ALLOWED[unit], f"{path.relative_to(PACKAGE)} may not import {sorted(used - ALLOWED[unit])}"


@pytest.mark.parametrize("pattern", PURE)
def test_pure_files_know_no_io(pattern: str) -> None:
    files = [p for p in FILES if fnmatch(str(p.relative_to(PACKAGE)), pattern)]
    assert files, f"no file matches {pattern}: mend the list"
    for path in files:
        roots = {name.split(".")[0] for name in imports(path)}
        assert not roots & IMPURE, f"{path.relative_to(PACKAGE)} is a pure state machine but imports {roots & IMPURE}"
        used = {name.split(".")[2] for name in imports(path) if name.startswith("aiovmm.runtime.")}
        assert used <= PURE_RUNTIME, (
            f"{path.relative_to(PACKAGE)} is a pure state machine but imports {used - PURE_RUNTIME}"
        )


def test_devices_and_kvm_do_not_know_each_other() -> None:
    for path in FILES:
        unit = unit_of(path)
        names = imports(path)
        if unit == "devices":
            assert not any(n.startswith("aiovmm.kvm") for n in names), path
        if unit == "kvm":
            assert not any(n.startswith("aiovmm.devices") for n in names), path


def room_of(parts: Iterable[str]) -> str | None:
    return next((part for part in parts if part in ROOMS), None)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_an_architecture_is_known_in_its_rooms_alone(path: Path) -> None:
    """Nobody outside asks for a room, but for one place a unit; and a room knows only those of its own architecture."""
    name = path.relative_to(PACKAGE)
    mine = room_of(name.parts)
    asked = {room for found in imports_with_members(path) if (room := room_of(found.split(".")))}
    if mine is not None:
        assert asked <= {mine}, f"{name} imports from a room of {asked - {mine}}"
    elif str(name) not in SELECTING:
        assert not asked, f"{name} is in no room and imports from one of {asked}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nobody_outside_the_rooms_asks_which_architecture_it_is(path: Path) -> None:
    name = path.relative_to(PACKAGE)
    if room_of(name.parts) or str(name) in SELECTING | NAMING.keys():
        return
    for node in ast.walk(ast.parse(path.read_text())):
        words = set()
        if isinstance(node, ast.Attribute):
            words = {node.attr.lower()}
            if isinstance(node.value, ast.Name) and node.value.id == "platform":
                assert node.attr not in ASKING, f"{name}:{node.lineno} asks for platform.{node.attr}"
            assert node.attr != "uname", f"{name}:{node.lineno} asks uname"
        elif isinstance(node, ast.Name):
            words = {node.id.lower()}
        elif isinstance(node, ast.alias):
            words = {node.name.lower()}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = {node.value.lower()}
        assert not words & ROOMS, f"{name}:{getattr(node, 'lineno', 0)} names {words & ROOMS}"


def imports_with_members(path: Path) -> set[str]:
    """What `imports` finds, for type checking too, and what is imported from there: `from aiovmm.kvm import x86_64`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.startswith("aiovmm.")}


DEFAULT_EXECUTOR = {"to_thread", "run_in_executor", "getaddrinfo", "getnameinfo"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nobody_uses_the_embedders_executor(path: Path) -> None:
    """The event loop's default one: it can be full, and no guest may fill it. See runtime.tasks.in_thread and runtime.worker."""
    used = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert not used & DEFAULT_EXECUTOR


def module_of(path: Path) -> str:
    return ".".join(("aiovmm", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Imports within functions count: a circle is one whenever it closes."""
    modules = {module_of(path): path for path in FILES}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                members = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= members & modules.keys() or {node.module}
        graph[name] = found & modules.keys() & imported_at_run_time(path, modules)
    while leaves := [name for name, needed in graph.items() if not needed & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph, f"circles of imports among {sorted(graph)}"


def imported_at_run_time(path: Path, modules: dict[str, Path]) -> set[str]:
    """What `imports` finds, as modules: `from aiovmm.kvm import cpuid` is of aiovmm.kvm.x86_64.cpuid."""
    names = imports(path)
    return {module for module in modules if module in names or module.rpartition(".")[0] in names}
