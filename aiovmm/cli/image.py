"""`aiovmm image`: a kernel and an initramfs for a guest to boot from."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from aiovmm import architecture
from aiovmm.architecture import Architecture
from aiovmm.cli.usage import NAMED, OneLineGroup, once
from aiovmm.errors import HostError, UsageError

__all__ = ["command"]

_CONTEXT = {"help_option_names": ["-h", "--help"]}
_WRITE = "write the initramfs"
_arch = once(
    "--arch",
    type=click.Choice([known.name for known in architecture.ALL]),
    help="For guests of this architecture (this machine's); Debian's are fetched for another.",
)


def _named(arch: str | None) -> Architecture | None:
    return next((known for known in architecture.ALL if known.name == arch), None)


@click.group("image", cls=OneLineGroup, context_settings=_CONTEXT)
def command() -> None:
    """Make or find what a guest boots from."""


@command.command("kernel", context_settings=_CONTEXT)
@click.option(
    "--debian", is_flag=True, help="Fetch Debian's cloud kernel even if this machine has a kernel of its own."
)
@_arch
@click.option("--json", "as_json", is_flag=True, help="Print JSON: kernel, modules, release.")
def kernel(debian: bool, arch: str | None, as_json: bool) -> None:
    """Print the path of a kernel: the newest of this machine that can be read, else Debian's cloud kernel, fetched."""
    from aiovmm.image import debian_kernel, find_kernel

    files = debian_kernel(arch=_named(arch)) if debian else find_kernel(arch=_named(arch))
    if as_json:
        click.echo(json.dumps({k: str(getattr(files, k)) for k in ("kernel", "modules", "release")}))
    else:
        click.echo(files.kernel)


def _files(specs: tuple[str, ...]) -> dict[str, str]:
    files = {}
    for spec in specs:
        guest, separator, host = spec.partition("=")
        if not separator or not guest.startswith("/") or not host:
            raise UsageError(f"--file {spec!r}: say GUEST_PATH=HOST_PATH, like /etc/motd=motd.txt")
        files[guest] = host
    return files


def _write(path: Path, data: bytes) -> None:
    """Whole, or not at all, also where it is killed. Not over what a running guest has locked."""
    from aiovmm.runtime.new_file import appearing

    target = Path(os.path.realpath(path))  # a link may lead there
    try:
        with _claimed(path) as there:
            if there is not None and not _is_replaceable(there, target):
                _overwrite(there, target, data)
                return
            with appearing(target, replacing=True) as fd:
                if there is not None:
                    os.fchmod(fd, stat.S_IMODE(os.fstat(there).st_mode))
                with open(fd, "wb", closefd=False) as file:
                    file.write(data)
    except HostError:
        raise
    except OSError as exc:
        raise HostError(_WRITE, exc.errno or 0, path=str(path)) from exc


@contextmanager
def _claimed(path: Path) -> Iterator[int | None]:
    """What is there."""
    from aiovmm.runtime.output_file import open_output_file

    if not os.path.exists(path):
        yield None
        return
    fd = open_output_file(path, "OUTPUT", _WRITE, append=True, follow=True, streams=False)
    try:
        yield fd
    finally:
        os.close(fd)


def _is_replaceable(fd: int, target: Path) -> bool:
    """By another file, and nobody could tell: not one that has other names or none, an owner to keep, or a closed directory."""
    there = os.fstat(fd)
    is_plain = stat.S_ISREG(there.st_mode) and there.st_nlink == 1 and there.st_uid == os.geteuid()
    return is_plain and os.path.exists(target) and os.access(target.parent, os.W_OK)


def _overwrite(fd: int, target: Path, data: bytes) -> None:
    """Whole, or not at all, also where a signal comes."""
    try:
        with open(fd, "wb", closefd=False) as file:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                os.ftruncate(fd, 0)
            file.write(data)
    except BaseException:
        if target.is_file():
            target.unlink()
        raise


@command.command("initramfs", context_settings=_CONTEXT)
@click.argument("output", type=NAMED)
@_arch
@once("--busybox", type=NAMED, help="Static busybox (default: this machine's or Debian's).")
@once("--modules", type=NAMED, help="Modules directory, as /lib/modules/RELEASE.")
@click.option("--module", "wanted", multiple=True, metavar="NAME", help="Add this module, and what it needs.")
@click.option("--file", "specs", multiple=True, metavar="GUEST=HOST", help="Add a file or a directory.")
@click.option("--agent", is_flag=True, help="Add the agent, for `aiovmm exec` and VM.run; the guest needs --vsock.")
@once("--run", metavar="SCRIPT", help="Shell script that the guest runs, instead of giving a shell.")
@once("--compression", type=click.Choice(["none", "gzip", "lz4", "zstd"]), default="none", help="Of the image (none).")
def initramfs(
    output: Path,
    arch: str | None,
    busybox: Path | None,
    modules: Path | None,
    wanted: tuple[str, ...],
    specs: tuple[str, ...],
    agent: bool,
    run: str | None,
    compression: str,
) -> None:
    """Write an initramfs to OUTPUT: busybox, the virtio drivers a guest needs, an init that loads them and gives a shell.

    Without --modules those that belong to the kernel of `aiovmm image kernel` are taken.
    """
    from aiovmm.agent import agent_binary
    from aiovmm.image import build_initramfs, debian_busybox, find_kernel

    image = build_initramfs(
        busybox=busybox or debian_busybox(arch=_named(arch)),
        modules=modules or find_kernel(arch=_named(arch)).modules,
        required=wanted,
        files=_files(specs),
        run=run,
        agent=agent_binary(_named(arch)) if agent else None,
        compression=compression,
    )
    _write(output, image.data)
    modules_of = f"{len(image.modules)} modules of {image.release}" if image.modules else "no modules"
    click.echo(f"{output}: {len(image.data)} bytes, {modules_of}", err=True)
