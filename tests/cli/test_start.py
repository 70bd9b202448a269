"""What `aiovmm run` does not import before its guest runs: all that it imports is time in which there is no guest yet."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aiovmm import VM, ConsoleConfig, DiskConfig, RngConfig, VsockConfig
from tests.vm.guest import config, counts_on

NOT_IMPORTED = [
    "aiofiles",
    "aiovmm.boot.unpack",
    "aiovmm.cli.commands",
    "aiovmm.cli.attach",
    "aiovmm.console.backends",
    "aiovmm.console.client",
    "aiovmm.console.terminal",
    "aiovmm.console.view",
    "aiovmm.device_model",
    "aiovmm.devices.virtio",
    "aiovmm.doctor",
    "aiovmm.image",
    "aiovmm.machine.passthrough",
    "aiovmm.vfio",
    "aiovmm.vhost_user",
    "click",
    "dataclasses",
    "datetime",
    "importlib.metadata",
    "json",
    "lz4",
    "multiprocessing",
    "pkg_resources",
    "rich",
    "structlog",
    "tempfile",
    "uuid",
    "zstandard",
]

START = """
import sys
from aiovmm.cli import main
try:
    main()
except SystemExit as exc:
    assert exc.code == 2, exc.code
names = list(sys.modules)
import dataclasses, json
modules = [module for name, module in sys.modules.items() if name.startswith("aiovmm")]
classes = {c for m in modules for c in vars(m).values() if isinstance(c, type) and c.__module__.startswith("aiovmm")}
compiled = [c.__qualname__ for c in classes if dataclasses.is_dataclass(c) and "__signature__" not in vars(c)]
print(json.dumps({"modules": names, "compiled": compiled}))
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a start that went up to the kernel, which is not there."""
    kernel = tmp_path_factory.mktemp("start") / "none"
    arguments = ["run", "--kernel", str(kernel), "--initramfs", str(kernel), "--memory", "256M", "--serial", "tty"]
    root = Path(__file__).resolve().parent.parent.parent
    done = subprocess.run([sys.executable, "-c", START, *arguments], cwd=root, capture_output=True, timeout=60)
    assert b"no such kernel" in done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert "aiovmm.machine.assembly" in result["modules"]
    return result


@pytest.mark.parametrize("name", NOT_IMPORTED)
def test_it_does_not_import(name: str, start: dict[str, Any]) -> None:
    assert not [module for module in start["modules"] if f"{module}.".startswith(f"{name}.")]


def test_its_own_modules_are_not_more_than_they_need_to_be(start: dict[str, Any]) -> None:
    assert len([module for module in start["modules"] if module.startswith("aiovmm.")]) <= 154


RESTORED = """
import asyncio, sys
from pathlib import Path
from aiovmm import VM
async def main():
    async with VM.restore(sys.argv[1]):
        pass
asyncio.run(main())
print(*sys.modules)
"""


async def test_what_goes_on_from_a_snapshot_does_not_import_what_boots(tmp_path: Path) -> None:
    with (tmp_path / "disk").open("wb") as disk:
        disk.truncate(1 << 20)
    devices: dict[str, Any] = {"console": ConsoleConfig(), "rng": RngConfig(), "vsock": VsockConfig()}
    async with VM(config("s", disks=(DiskConfig(path=tmp_path / "disk"),), **devices)) as vm:
        await vm.start()
        await counts_on(vm)
        await vm.snapshot(tmp_path / "snapshot")
    command = [sys.executable, "-c", RESTORED, str(tmp_path / "snapshot")]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True, text=True, timeout=60)
    modules = done.stdout.split()
    assert "aiovmm.pci.virtio" in modules
    boots = tuple(f"aiovmm.boot.{part}" for part in ("acpi", "cache", "elf", "initrd", "unpack", "x86_64.kernel"))
    unwanted = ("secrets", "random", "aiovmm.cli", "aiovmm.boot.x86_64.linux", "aiovmm.boot.x86_64.mptable", *boots)
    assert [name for name in modules if name.startswith(unwanted)] == []
    assert len([name for name in modules if name.startswith("aiovmm.")]) <= 259


IMPORTED = (
    "import asyncio, sys; before = set(sys.modules); from aiovmm import VM; print(*sorted(set(sys.modules) - before))"
)


def test_to_import_a_vm_is_not_to_import_what_machines_are_made_of() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, check=True, text=True, timeout=60)
    modules = done.stdout.split()
    assert [name for name in modules if not name.startswith("aiovmm")] == []
    assert len(modules) <= 54
    parts = ("boot", "bus", "devices", "kvm", "machine.assembly", "memory", "native", "pci", "vfio")
    assert [name for name in modules if name.startswith(tuple(f"aiovmm.{part}" for part in parts))] == []


def test_its_dataclasses_are_of_the_kind_that_compiles_nothing(start: dict[str, Any]) -> None:
    assert start["compiled"] == []
