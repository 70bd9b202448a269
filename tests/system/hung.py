"""What is to be known of a guest that does not answer: how far it came, what its processors do, and what waits for whom."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from aiovmm import VM, Console
from aiovmm.snapshot.document import decode

_ISR, _IRR = 0x100, 0x200  # of a local APIC's page: eight words of 32 bits, 16 bytes apart


async def described(vm: VM, console: Console) -> str:
    """Some lines, what tells most first; takes some seconds, and types a newline: an interrupt that was lost comes again with the
    next."""
    before, threads = vm.stats(), _threads(vm)
    await asyncio.sleep(2)
    lines = ["", *threads, *_threads(vm), f"stats: {before}", f"2 s later: {vm.stats()}"]
    try:
        processors, board = await _state(vm)
        lines = ["", *processors, *(await _state(vm))[0], *lines[1:]]
        seen = len(console.history)
        await console.send(b"\n")
        await asyncio.sleep(5)
        lines += [f"5 s after a newline: {console.history[seen:]!r}", str(board)]
    except Exception as exc:  # it is told with what made us look, whose place it does not take
        lines.append(f"no more is known: {exc!r}")
    return "\n".join([*lines, f"its console's end: {console.history[-1500:]!r}"])


def _threads(vm: VM) -> list[str]:
    """What each processor's does: "running" is in the guest or on its way, 16 an ioctl(), 202 a wait for us; and how long it has
    run and waited for the host's, in nanoseconds."""
    return [f"thread of {vcpu.index}: {_of_thread(vcpu.thread_id)}" for vcpu in vm.machine.vcpus]


def _of_thread(thread: int | None) -> str:
    try:
        return ", ".join(
            Path(f"/proc/self/task/{thread}/{name}").read_text().strip() for name in ("syscall", "schedstat")
        )
    except OSError as exc:
        return str(exc)


async def _state(vm: VM) -> tuple[list[str], Any]:
    """As a snapshot has it: of each processor, and of all else on the board."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        await vm.snapshot(folder)
        board = decode((Path(folder) / "state.json").read_bytes())["machine"]["board"]
    vcpus = board.pop("processors")["vcpus"]
    return [f"processor {number}: {_processor(vcpu)}" for number, vcpu in enumerate(vcpus)], board


def _processor(vcpu: Any) -> dict[str, Any]:
    if "lapic" not in vcpu:
        return {key: value for key, value in vcpu.items() if isinstance(value, int | str)}
    names = {"rip": hex(vcpu["regs"]["rip"]), "rflags": hex(vcpu["regs"]["rflags"]), "mp_state": vcpu["mp_state"]}
    return {**names, "in service": _vectors(vcpu["lapic"], _ISR), "requested": _vectors(vcpu["lapic"], _IRR)}


def _vectors(page: bytes, start: int) -> list[int]:
    bits = int.from_bytes(b"".join(page[at : at + 4] for at in range(start, start + 128, 16)), "little")
    return [vector for vector in range(256) if bits >> vector & 1]
