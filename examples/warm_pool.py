"""A pool of guests that are all forks of one that has booted: each is used once, and there in milliseconds.

    python examples/warm_pool.py /boot/vmlinuz initramfs.cpio        # a guest with a shell on its serial port

Each fork is asked for random numbers, by which one sees that no two are the same.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from aiovmm import VM, MemoryConfig, PayloadConfig, Pool, Template, VMConfig

PROMPT = rb"[#$] "
QUESTION = b"head -c 8 /dev/urandom | od -An -tx1; echo so''said\n"


async def boot(config: VMConfig) -> Template:
    """Boot once, up to the prompt; what is there then is what all forks begin with."""
    async with VM(config) as vm:
        await vm.start()
        await vm.serial.expect(PROMPT, timeout=120)
        return await vm.freeze()


async def ask(pool: Pool) -> str:
    """A guest of one's own, for one question."""
    began = time.monotonic()
    async with pool.acquire() as vm:
        await vm.serial.send(QUESTION)
        answer = await vm.serial.expect(rb"\n([ 0-9a-f]+)\r\n[^\n]*sosaid", timeout=60)
    return f"{answer[1].decode().strip()}   {vm.name}, after {time.monotonic() - began:.3f} s"


async def main(kernel: str, initramfs: str) -> None:
    """Eight questions at once, to a pool with four guests ready."""
    payload = PayloadConfig(Path(kernel), Path(initramfs))
    template = await boot(VMConfig(payload, memory=MemoryConfig(256 << 20), name="warm"))
    async with template, template.pool(warm=4, max=16) as pool:
        await pool.warmed(60)
        for line in await asyncio.gather(*(ask(pool) for _ in range(8))):
            print(line)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
