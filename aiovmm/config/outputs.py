"""A file that a guest's output goes to must not be one that the same guest reads from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from aiovmm.config.console import ConsoleMode
from aiovmm.errors import ConfigError

if TYPE_CHECKING:
    from aiovmm.config.vm import VMConfig

__all__ = ["refuse_input", "refuse_inputs_as_outputs"]


def refuse_inputs_as_outputs(config: VMConfig) -> None:
    """Look at the files as they are now, through links and by whatever names. Raises ConfigError."""
    debug = config.debug_console.console
    for name, console in (("serial", config.serial), ("console", config.console), ("debug_console", debug)):
        if console.mode is ConsoleMode.FILE and console.path is not None:
            refuse_input(config, f"{name}.file", console.path)


def refuse_input(config: VMConfig, output: str, path: str | os.PathLike[str]) -> None:
    """The same for one file that is to be written; `output` names it in the ConfigError."""
    for option, used in _inputs(config):
        if _same(path, used):
            raise ConfigError(
                output, f"{path} is the guest's {option}", "it would be overwritten: give a file of its own"
            )


def _inputs(config: VMConfig) -> Iterator[tuple[str, str | os.PathLike[str]]]:
    yield "kernel", config.payload.kernel
    if config.payload.initramfs is not None:
        yield "initramfs", config.payload.initramfs
    for disk in config.disks:
        if disk.path is not None:
            yield "disk", disk.path
        if disk.overlay is not None:
            yield "disk's overlay", disk.overlay
    for pmem in config.pmems:
        yield "pmem file", pmem.file
    if config.rng is not None:
        yield "source of entropy", config.rng.src


def _same(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
