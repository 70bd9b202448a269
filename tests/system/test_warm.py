"""Forks of a guest in which a CPython has started and waits for something to do."""

from __future__ import annotations

import asyncio
import hashlib
import statistics
import time
from dataclasses import replace
from pathlib import Path

import pytest

from aiovmm import VM, DiskConfig, Template, VMConfig, VsockConfig
from aiovmm.agent import agent_binary
from aiovmm.image import build_initramfs
from tests.system.conftest import GUESTS, Guests, with_libraries
from tests.system.guest import limit, prompt, shell

PORT = 3000
SERVER = """
import socket, sys, hashlib, json, asyncio, re, random, os
s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
s.bind((socket.VMADDR_CID_ANY, %d))
s.listen()
print("warm", flush=True)
while True:
    peer, _ = s.accept()
    with peer, peer.makefile("rwb") as stream:
        given = {}
        exec(stream.readline().decode(), {}, given)
        stream.write(str(given["answer"]).encode())
"""
"""Each connection brings a line of Python and takes back what that calls `answer`."""
COLD = "import socket, sys, hashlib, json, asyncio, re, random, os; print(6 * 7)"
LIBRARY = Path("/usr/lib/python3.11")
LEFT_OUT = (
    "test",
    "dist-packages",
    "idlelib",
    "lib2to3",
    "__pycache__",
    "pydoc_data",
    "distutils",
    "ensurepip",
    "unittest",
)
FORKS = 8


def configured(guests: Guests, release: str, folder: Path) -> VMConfig:
    """With the host's own Python."""
    files = {**with_libraries("/usr/bin/python3.11")}
    for path in LIBRARY.rglob("*"):
        if path.is_file() and not set(path.relative_to(LIBRARY).parts) & set(LEFT_OUT):
            files[str(path)] = path
    (folder / "server.py").write_text(SERVER % PORT)
    files["/server.py"] = folder / "server.py"
    modules = GUESTS / release / "modules"
    image = build_initramfs(busybox=GUESTS / "bin/busybox", modules=modules, files=files, agent=agent_binary())
    (folder / "initramfs").write_bytes(image.data)
    (folder / "disk").write_bytes(bytes(32 << 20))
    disk = DiskConfig(path=folder / "disk", direct=False)
    config = guests.config(release, cpus=2, memory=512, vsock=VsockConfig(), disks=(disk,))
    return replace(config, payload=replace(config.payload, initramfs=folder / "initramfs"))


async def asked(vm: VM, line: str) -> str:
    reader, writer = await vm.vsock.connect(PORT, timeout=limit(60), wait=True)
    writer.write(line.encode() + b"\n")
    answer = await asyncio.wait_for(reader.read(), limit(60))
    writer.close()
    return answer.decode()


async def warm(guests: Guests, release: str, folder: Path) -> tuple[Template, float]:
    """The template, and how long a further CPython takes to its answer in a guest that runs."""
    async with VM(configured(guests, release, folder)) as vm:
        await vm.start()
        await prompt(vm)
        await vm.agent.ready(timeout=limit(60))
        times = []
        for _ in range(3):
            began = time.monotonic()
            assert (await vm.run(["python3.11", "-c", COLD])).stdout == b"42\n"
            times.append(time.monotonic() - began)
        await shell(vm, "(python3.11 /server.py >/tmp/said 2>&1 &); until grep -q warm /tmp/said; do sleep 0.1; done")
        assert await asked(vm, "answer = 6 * 7") == "42"
        return await vm.freeze(), statistics.median(times)


async def works(vm: VM, number: int) -> None:
    """Writes to its disk, past the guest's memory, what nobody else does, and finds it there."""
    await vm.resume()
    data = hashlib.sha256(b"%d" % number).digest() * (1 << 15)
    line = (
        f"data = hashlib.sha256(b'{number}').digest() * (1 << 15); f = os.open('/dev/vda', os.O_RDWR);"
        " os.pwrite(f, data, 0); os.fsync(f); os.posix_fadvise(f, 0, 0, os.POSIX_FADV_DONTNEED);"
        " answer = hashlib.sha256(os.pread(f, len(data), 0)).hexdigest()"
    )
    assert await asked(vm, f"import hashlib, os; {line}") == hashlib.sha256(data).hexdigest()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("release", ["6.1", "newest"])
async def test_forks_of_a_warm_python(guests: Guests, release: str, folder: Path) -> None:
    template, cold = await warm(guests, release, folder)
    async with template:
        times = []
        for _ in range(3):
            began = time.monotonic()
            async with template.fork() as child:
                await child.resume()
                assert await asked(child, "answer = 6 * 7") == "42"
                times.append(time.monotonic() - began)
        fork = statistics.median(times)
        print(f"a fork of a warm Python answers after {fork:.3f} s, a Python of a running guest after {cold:.3f} s")
        before = (folder / "disk").read_bytes()
        async with asyncio.TaskGroup() as group:
            for number in range(FORKS):
                group.create_task(fork_works(template, number))
        assert (folder / "disk").read_bytes() == before, "each has written to an overlay of its own"


async def fork_works(template: Template, number: int) -> None:
    async with template.fork(vsock_cid=100 + number) as child:
        await works(child, number)
