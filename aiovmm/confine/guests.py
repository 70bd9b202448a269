"""A process of ours that has guests of one configuration gives up what they do not need: the command, and a pool's workers."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from aiovmm.config import VMConfig
from aiovmm.config.ids import device_ids
from aiovmm.config.landlock import LandlockRuleConfig
from aiovmm.confine.landlock import confine_paths
from aiovmm.confine.paths import KEEP, READ, Grant, files_of, of_config, of_output, of_program, of_rule
from aiovmm.errors import AiovmmError, ConfigError, HostError
from aiovmm.runtime.user_dirs import find_cache_directory, runtime_directory

__all__ = ["check_programs", "confine_paths_to", "enter_namespaces_of", "families_of"]


def confine_paths_to(
    config: VMConfig, rules: Iterable[LandlockRuleConfig], outputs: Iterable[Path] = (), *, option: str
) -> None:
    """For good, and before there are threads: no path but those of this program, of `config`, of `rules`, and where `outputs` are
    made. Raises ConfigError, which names the `option` that asked for it, and HostError."""
    confine_paths(_grants(config, rules, outputs, option))


def enter_namespaces_of(
    config: VMConfig, rules: Iterable[LandlockRuleConfig], outputs: Iterable[Path] = (), *, option: str
) -> None:
    """The same, of paths that are not there at all (namespaces.py)."""
    from aiovmm.confine.namespaces import enter_namespaces

    enter_namespaces(_grants(config, rules, outputs, option), option)


def _grants(config: VMConfig, rules: Iterable[LandlockRuleConfig], outputs: Iterable[Path], option: str) -> list[Grant]:
    """Also what is to be done first, while it can be."""
    for name in _nets_of_passt(config)[:1]:
        reason = f"{name}'s passt needs namespaces of its own, which nobody who is confined may make"
        raise ConfigError(option, reason, "start passt by yourself: --net vhost_user=on,socket=PATH")
    cache = find_cache_directory()
    if cache is not None:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        _unpack_kernel(config)
    sockets = _keep_sockets(config)
    for path in files_of(config):
        _make(path)
    here = Path(__file__).parent.parent  # of an installation by link, which is in no directory of the path
    imported: tuple[str | Path, ...] = (here, *_looked_in(), sys.prefix, sys.base_prefix)
    bases = [Grant(base, READ) for base in _bases(config)]
    ours = [*of_program(imported, cache), *sockets]
    return [*ours, *of_config(config), *bases, *map(of_rule, rules), *map(of_output, outputs)]


def _unpack_kernel(config: VMConfig) -> None:
    """Into the cache, which is only read from then on: other guests of this user boot from it as well. What is wrong with the
    kernel is said by who boots it."""
    if config.payload.kernel is not None:
        from aiovmm.boot import load_kernel  # which who boots it takes anyway

        with suppress(AiovmmError, OSError):
            load_kernel(config.payload.kernel)


def _bases(config: VMConfig) -> Iterator[Path]:
    """What images name, and the configuration does not."""
    if any(disk.backing_files for disk in config.disks):
        from aiovmm.devices.virtio.bases import bases_of  # for who has some

        for disk in config.disks:
            yield from bases_of(disk)


def _looked_in() -> list[str]:
    """For modules, but for where `python -m` was called, which may be anybody's home: ours are granted wherever they are."""
    first = sys.path[:1]
    return sys.path[1:] if first and os.path.abspath(first[0]) == os.getcwd() else sys.path


def _make(path: Path) -> None:
    """As `open_output_file` does, which then finds it. Raises HostError."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    except FileExistsError:  # whatever it is
        return
    except OSError as exc:
        raise HostError("open the console's file", exc.errno or 0, path=str(path)) from exc


def _keep_sockets(config: VMConfig) -> list[Grant]:
    """QEMU's storage daemon has a socket in the directory of temporary files, which the rest of the system has as well: here in
    one of this user's. Raises UsageError, HostError."""
    if not any(_disks_of_qemu(config)):
        return []
    import tempfile

    try:
        sockets = runtime_directory() / "sockets"
        sockets.mkdir(mode=0o700, exist_ok=True)
    except OSError as exc:
        raise HostError("make a directory for sockets", exc.errno or 0, "set XDG_RUNTIME_DIR", exc.filename) from exc
    tempfile.tempdir = str(sockets)
    return [Grant(sockets, KEEP)]


def _disks_of_qemu(config: VMConfig) -> Iterator[str]:
    if config.disks:
        from aiovmm.devices.virtio.blk.opening import kind_of

        for name, disk in zip(device_ids(config)["disks"], config.disks, strict=True):
            if kind_of(disk) is not None:
                yield name


def _nets_of_passt(config: VMConfig) -> list[str]:
    ids = device_ids(config).get("nets", ())
    return [name for name, net in zip(ids, config.nets, strict=True) if net.passt]


def families_of(config: VMConfig) -> tuple[int, ...]:
    """Of the sockets that its devices are made with: whoever makes a TAP sets its addresses by sockets of the internet's."""
    taps = any(not (net.fd or net.vhost_user or net.passt) for net in config.nets)
    return (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6) if taps else (socket.AF_UNIX,)


def check_programs(config: VMConfig, option: str) -> None:
    """Whoever may start none cannot have devices that other programs serve for it. Raises ConfigError, which names the first.
    Blocks for as long as reading the head of each disk takes."""
    named = [(name, "passt") for name in _nets_of_passt(config)]
    named += [(name, "qemu-storage-daemon") for name in _disks_of_qemu(config)]
    for name, program in named[:1]:
        reason = f"{name} is served by {program}, and a process whose system calls are confined starts no program"
        raise ConfigError(option, reason, "start it yourself and say vhost_user=on,socket=PATH, or leave this off")
