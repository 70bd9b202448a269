"""Boot a kernel and run one command in it.

python -m examples.boot vmlinuz initramfs.cpio 'uname -a'
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from aiovmm import VM, PayloadConfig, VMConfig, architecture


async def run(config: VMConfig, command: str) -> str:
    """What `command` prints in a guest whose shell is on the serial port."""
    async with VM(config) as vm:
        await vm.start()
        await vm.serial.expect(rb"[#$] ", timeout=120)
        vm.serial.write(f"{command}; echo do''ne\n".encode())  # so that its echo is not taken for the end
        await vm.serial.readline()
        output = await vm.serial.readuntil(b"done\r\n")
        await vm.stop()
        return output.decode().removesuffix("done\r\n").replace("\r\n", "\n")


if __name__ == "__main__":
    kernel, initramfs, command = sys.argv[1:]
    payload = PayloadConfig(Path(kernel), Path(initramfs), f"console={architecture.host().serial} quiet panic=-1")
    print(asyncio.run(run(VMConfig(payload), command)), end="")
