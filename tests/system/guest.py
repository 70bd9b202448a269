"""Talking to a guest's shell."""

from __future__ import annotations

import asyncio
import itertools
import re

from aiovmm import VM, Console, architecture

PROMPT = rb"guest:\S+ ?[#$] "
BOOT = 120.0 if architecture.host() is architecture.X86_64 else 240.0  # what hangs; emulated EL2 is slower
_serials = itertools.count()


async def prompt(vm: VM, console: Console | None = None, timeout: float = BOOT) -> None:
    """Wait for the shell."""
    await (console or vm.serial).expect(PROMPT, timeout=timeout)


async def shell(vm: VM, command: str, *, timeout: float = 60.0, console: Console | None = None) -> str:
    """Run `command` in the guest's shell; its output. Fails the test if its status is not 0."""
    output, status = await shell_status(vm, command, timeout=timeout, console=console)
    assert status == 0, f"{command!r} ended with {status}: {output}"
    return output


async def shell_status(
    vm: VM, command: str, *, timeout: float = 60.0, console: Console | None = None
) -> tuple[str, int]:
    """Output and status of `command`. The markers are put together by the guest, so that its echo does not match."""
    mark = f"m{next(_serials)}"
    stream = console or vm.serial
    await stream.send(f"echo {mark[:1]}''{mark[1:]}-begin; {command}; echo {mark[:1]}''{mark[1:]}-end=$?\n".encode())
    async with asyncio.timeout(timeout):
        await stream.readuntil(f"{mark}-begin\r\n".encode())
        output = await stream.readuntil(f"{mark}-end=".encode())
        status = await stream.readuntil(b"\r\n")
    await prompt(vm, stream, timeout)
    text = re.sub(rb"\r+\n", b"\n", output.removesuffix(f"{mark}-end=".encode())).decode(errors="replace")
    return text, int(status)
