"""The exit code of what a guest ran: `aiovmm image initramfs --run`, or `aiovmm.run=` on the kernel's command line."""

from __future__ import annotations

import re

from aiovmm.config import ConsoleMode
from aiovmm.vm import VM

__all__ = ["command_status"]

_STATUS = re.compile(rb"^aiovmm: run end status=(\d{1,3})\r?$", re.MULTILINE)  # image/init.sh
_TAIL = 1 << 16  # bytes of output: the line comes just before the guest powers off


def command_status(vm: VM) -> int | None:
    """What our init said of it last, on whichever console; None if nothing was run."""
    found = None
    for config, console in ((vm.config.serial, vm.serial), (vm.config.console, vm.console)):
        if config.mode is not ConsoleMode.OFF:
            for match in _STATUS.finditer(console.history[-_TAIL:]):
                found = int(match[1])
    return found if found is None or found < 256 else 1
