"""How soon a guest has a disk that comes while it runs: from the call to /dev/vdb, against QEMU's `device_add`.

Boots stock kernels.

Both by ACPI's hotplug of PCI slots. QEMU has opened the file before (`blockdev-add`); ours is opened within the call.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvloop

from aiovmm import VM, DiskConfig, MemoryConfig, PayloadConfig, VMConfig
from benchmarks.guest import AIOVMM, BOOT, CMDLINE, QEMU, Files, Guest, connect, qemu_command
from benchmarks.harness import Options, Result, Target, run_rounds

NESTED = True
MIB = 256
OURS, THEIRS = ("first", "second"), ("qemu-first", "qemu-second")
COMES = "echo benchmark: polls; until [ -b /dev/vdb ]; do usleep 1000; done"
POLLS = re.compile(rb"benchmark: polls\r?\n")
"""The guest has its command, which costs it an interrupt each 16 characters, before the time begins."""
GOES = "while [ -e /sys/block/vdb ]; do usleep 1000; done"


def run(options: Options) -> Iterator[Result]:
    """One row, in milliseconds."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        files = Files(Path(name), options.release)
        for disk in (*OURS, *THEIRS):  # a disk each: who has one open locks it
            (files.folder / disk).write_bytes(os.urandom(8 << 20))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, Theirs(files) as theirs:
            ours = Ours(files)
            runner.run(ours.up())
            row = Result("a disk comes to a running guest", "ms", AIOVMM, (QEMU,), Target(1.0))
            yield run_rounds(row, {QEMU: theirs.add, AIOVMM: lambda: runner.run(ours.add())}, options.rounds)
            runner.run(ours.aclose())


class Ours:
    """A guest in this process."""

    def __init__(self, files: Files) -> None:
        first, self._second = (DiskConfig(path=files.folder / disk, direct=False) for disk in OURS)
        payload = PayloadConfig(files.kernel, files.initramfs, CMDLINE)
        self._vm = VM(VMConfig(payload, memory=MemoryConfig(MIB << 20), disks=(first,)))
        self._stack = AsyncExitStack()

    async def up(self) -> None:
        await self._stack.enter_async_context(self._vm)
        await self._vm.start()
        await self._vm.serial.expect(rb"benchmark: ready\r?\n", timeout=BOOT)

    async def add(self) -> float:
        """Milliseconds; it is gone again afterwards."""
        await self._vm.serial.send(f"{COMES}\n".encode())
        await self._vm.serial.expect(POLLS, timeout=BOOT)
        began = time.perf_counter()
        id_ = await self._vm.add(self._second)
        await self._done()
        took = time.perf_counter() - began
        await self._vm.remove(id_)
        await self._vm.serial.send(f"{GOES}\n".encode())
        await self._done()
        return 1e3 * took

    async def _done(self) -> None:
        await self._vm.serial.expect(rb"benchmark: done 0\r?\n", timeout=BOOT)

    async def aclose(self) -> None:
        await self._stack.aclose()


class Theirs(Guest):
    """QEMU's, with a port that a device can come to."""

    def __init__(self, files: Files) -> None:
        self._qmp_place = files.folder / "qmp.sock"
        devices = ["-device", "pcie-root-port,id=root1,chassis=1", "-qmp", f"unix:{self._qmp_place},server=on,wait=off"]
        for disk in THEIRS:
            devices += ["-blockdev", f"driver=file,node-name={disk},filename={files.folder / disk}"]
        devices += ["-device", "virtio-blk-pci,drive=qemu-first"]
        place = files.folder / "qemu.sock"
        super().__init__(QEMU, qemu_command(files, f"unix:{place},server=on,wait=on", devices, mib=MIB), place)

    def add(self) -> float:
        """The same."""
        with connect(self._qmp_place) as stream, stream.makefile("rw") as lines:

            def tell(command: str, **arguments: Any) -> None:
                print(json.dumps({"execute": command, "arguments": arguments}), file=lines, flush=True)
                while "return" not in (said := json.loads(lines.readline())):
                    if "error" in said:
                        raise RuntimeError(f"QEMU: {command}: {said['error']}")

            tell("qmp_capabilities")
            self.begin(COMES)
            self.until(POLLS, BOOT)
            began = time.perf_counter()
            tell("device_add", driver="virtio-blk-pci", drive="qemu-second", id="late", bus="root1")
            self.end()
            took = time.perf_counter() - began
            tell("device_del", id="late")
            self.run(GOES)
            while json.loads(lines.readline()).get("event") != "DEVICE_DELETED":
                pass
        return 1e3 * took
