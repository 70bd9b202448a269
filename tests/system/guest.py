"""Talking to a guest's shell."""

from __future__ import annotations

import asyncio
import itertools
import re

from aiovmm import VM, Console, EventKind, ExitStatus, architecture
from tests.system.hung import failure

SLOWER = 3.0
"""How much longer whatever hangs may take in the hosts of arm64: emulated EL2 is slower."""
PROMPT = rb"guest:\S+ ?[#$] "
_serials = itertools.count()


def limit(seconds: float) -> float:
    """After what time something hangs here, that does after `seconds` in the host of x86."""
    return seconds if architecture.host() is architecture.X86_64 else seconds * SLOWER


BOOT = limit(120.0)


async def ended(vm: VM) -> ExitStatus:
    """Wait for the guest to end by itself."""
    try:
        return await asyncio.wait_for(vm.wait(), limit(60))
    except TimeoutError as exc:
        raise await failure(vm, vm.serial, f"it does not end within {limit(60)} s") from exc


async def reboot(vm: VM, command: bytes = b"reboot -f") -> None:
    """Have the guest reboot by a line of shell, and wait until it has."""
    events = vm.events()
    vm.serial.write(command + b"\n")
    async with asyncio.timeout(BOOT):
        async for event in events:
            if event.kind is EventKind.REBOOTED:
                return
    raise AssertionError(f"the guest ended instead: {await vm.wait()}")


async def prompt(vm: VM, console: Console | None = None, timeout: float = BOOT) -> None:
    """Wait for the shell."""
    stream = console or vm.serial
    try:
        await stream.expect(PROMPT, timeout=timeout)
    except TimeoutError as exc:
        raise await failure(vm, stream, str(exc)) from exc


async def shell(vm: VM, command: str, *, timeout: float = 60.0, console: Console | None = None) -> str:
    """Run `command` in the guest's shell; its output. Fails the test if its status is not 0. `timeout`: see `limit`."""
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
    try:
        async with asyncio.timeout(limit(timeout)):
            await stream.readuntil(f"{mark}-begin\r\n".encode())
            output = await stream.readuntil(f"{mark}-end=".encode())
            status = await stream.readuntil(b"\r\n")
    except TimeoutError as exc:
        raise await failure(vm, stream, f"no end of {command!r} within {limit(timeout)} s") from exc
    except asyncio.IncompleteReadError as exc:
        raise AssertionError(
            f"the guest ended at {command!r}: {await vm.wait()}, {vm.serial.history[-2000:]!r}"
        ) from exc
    await prompt(vm, stream, limit(timeout))
    text = re.sub(rb"\r+\n", b"\n", output.removesuffix(f"{mark}-end=".encode())).decode(errors="replace")
    return text, int(status)


async def appears(vm: VM, path: str) -> None:
    """Wait until the guest has a file of that name, as a device that its drivers are still to find."""
    await shell(vm, f"for i in $(seq 600); do test -e {path} && break; sleep 0.05; done; test -e {path}")
