"""Calls into a guest and out of it over vsock: no network, no file on the host, and asyncio streams at this end.

python -m examples.vsock_rpc vmlinuz modules/ busybox      # Debian's static busybox; socat is taken from this machine
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from aiovmm import VM, PayloadConfig, VMConfig, VsockConfig, architecture
from aiovmm.image import build_initramfs

GUEST_PORT, HOST_PORT = 1024, 2048
AGENT = f"exec socat -t 60 VSOCK-LISTEN:{GUEST_PORT},fork EXEC:/bin/sh"  # whoever connects talks to a shell


async def call(vm: VM, command: str) -> str:
    """What `command` prints in the guest. Waits for a guest that is still booting."""
    reader, writer = await vm.vsock.connect(GUEST_PORT, timeout=120, wait=True)
    writer.write(command.encode())
    writer.write_eof()
    output = await reader.read()
    writer.close()
    return output.decode()


async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The host's procedure, which the guest calls."""
    writer.write((await reader.readline()).upper())
    await writer.drain()
    writer.close()


async def main(kernel: Path, initramfs: Path) -> list[str]:
    """Ten calls at once into the guest, and one back."""
    payload = PayloadConfig(kernel, initramfs, f"console={architecture.host().serial} quiet panic=-1")
    async with VM(VMConfig(payload, vsock=VsockConfig(cid=3))) as vm, await vm.vsock.listen(HOST_PORT, shout):
        await vm.start()
        squares = await asyncio.gather(*(call(vm, f"echo $(({n} * {n}))") for n in range(10)))
        answer = await call(vm, f"echo 'from guest to host' | socat -t 60 - VSOCK-CONNECT:2:{HOST_PORT}")
        return [*squares, answer]


def image(modules: Path, busybox: Path) -> bytes:
    """An initramfs with socat, and the shared libraries that it needs, as the guest's agent."""
    socat = shutil.which("socat")
    if socat is None:
        raise SystemExit("socat is missing: apt-get install socat")
    needed = subprocess.run(["ldd", socat], capture_output=True, text=True, check=True).stdout
    libraries = {name: Path(name).resolve() for name in re.findall(r"(/\S+) \(", needed)}
    files = {"/bin/socat": Path(socat).resolve(), **libraries}
    return build_initramfs(busybox=busybox, modules=modules, files=files, run=AGENT).data


if __name__ == "__main__":
    with tempfile.NamedTemporaryFile(suffix=".cpio") as file:
        file.write(image(Path(sys.argv[2]), Path(sys.argv[3])))
        file.flush()
        print(*asyncio.run(main(Path(sys.argv[1]), Path(file.name))), sep="", end="")
