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
    """Some lines; takes some seconds, and types a newline: an interrupt that was lost comes again with the next."""
    before = vm.stats()
    await asyncio.sleep(2)
    lines = [f"its console's end: {console.history[-1500:]!r}", f"stats: {before}", f"2 s later: {vm.stats()}"]
    try:
        lines += [str(line) for line in await _state(vm)]
        seen = len(console.history)
        await console.send(b"\n")
        await asyncio.sleep(5)
        lines.append(f"5 s after a newline: {console.history[seen:]!r}")
    except Exception as exc:  # it is told with what made us look, whose place it does not take
        lines.append(f"no more is known: {exc!r}")
    return "\n".join(lines)


async def _state(vm: VM) -> list[Any]:
    """As a snapshot has it: of each processor, and of all else on the board."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        await vm.snapshot(folder)
        board = decode((Path(folder) / "state.json").read_bytes())["machine"]["board"]
    vcpus = board.pop("processors")["vcpus"]
    return [*map(_processor, vcpus), board]


def _processor(vcpu: Any) -> dict[str, Any]:
    if "lapic" not in vcpu:
        return {key: value for key, value in vcpu.items() if isinstance(value, int | str)}
    names = {"rip": hex(vcpu["regs"]["rip"]), "rflags": hex(vcpu["regs"]["rflags"]), "mp_state": vcpu["mp_state"]}
    return {**names, "in service": _vectors(vcpu["lapic"], _ISR), "requested": _vectors(vcpu["lapic"], _IRR)}


def _vectors(page: bytes, start: int) -> list[int]:
    bits = int.from_bytes(b"".join(page[at : at + 4] for at in range(start, start + 128, 16)), "little")
    return [vector for vector in range(256) if bits >> vector & 1]
