"""`aiovmm disk`: disk images and copy-on-write overlays, while no guest uses them."""

from __future__ import annotations

import json
from pathlib import Path

import click

from aiovmm.cli.usage import NAMED, OneLineGroup, once
from aiovmm.errors import HostError, UsageError, printable

__all__ = ["command"]

_CONTEXT = {"help_option_names": ["-h", "--help"]}
_base = once("--base", type=NAMED, metavar="IMAGE", help="The image, device or overlay that it is over.")
_backing = click.option(
    "--backing-files", is_flag=True, help="A base may be an overlay: the bases that it names are opened."
)
_raw = click.option("--raw", is_flag=True, help="The base is raw, whatever it looks like, as image_type=raw has it.")


@click.group("disk", cls=OneLineGroup, context_settings=_CONTEXT)
def command() -> None:
    """Make, look at, copy and merge disk images and overlays. No guest may be using them; locks see to that."""


@command.command("create", context_settings=_CONTEXT)
@click.argument("new", type=NAMED)
@_base
@once("--size", metavar="SIZE", help="Bytes of the disk, with K, M, G or T (default: those of the base).")
@_raw
@_backing
def create(new: Path, base: Path | None, size: str | None, raw: bool, backing_files: bool) -> None:
    """Make NEW: an overlay over --base, or an empty raw image of --size."""
    from aiovmm.config.text import to_size

    wanted = None if size is None else to_size("--size", size)
    if base is None:
        if wanted is None:
            raise UsageError("say --base IMAGE for an overlay, or --size SIZE for an empty raw image")
        if not wanted:
            raise UsageError("--size: 0 bytes are no disk: say how many, like 10G")
        _create_raw(new, wanted)
    else:
        _create_overlay(new, base, wanted, raw=raw, backing_files=backing_files)


def _create_raw(new: Path, size: int) -> None:
    import os

    from aiovmm.devices.virtio.blk.overlay.copying import appearing

    with appearing(new) as fd:
        os.ftruncate(fd, size)


def _create_overlay(new: Path, base: Path, size: int | None, *, raw: bool, backing_files: bool) -> None:
    import os

    from aiovmm.devices.virtio.blk.overlay.chain import open_base
    from aiovmm.devices.virtio.blk.overlay.image import OverlayImage

    if os.path.lexists(new):
        raise HostError("making the overlay", 17, "remove that file, or choose another name", str(new))
    image = OverlayImage.open_over(open_base(base, raw=raw, backing_files=backing_files), new)
    try:
        if size is not None:
            image.resize(size)
    except BaseException:
        os.unlink(new)
        raise
    finally:
        image.close()


@command.command("info", context_settings=_CONTEXT)
@click.argument("image", type=NAMED)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(image: Path, as_json: bool) -> None:
    """Say what IMAGE is: format, bytes of the disk and the file, and of an overlay its base, which is not opened."""
    from aiovmm.devices.virtio.blk.overlay.describe import describe

    facts = describe(image)
    if as_json:
        click.echo(json.dumps(facts))
        return
    for name, value in facts.items():
        click.echo(printable(f"{name.replace('_', ' ')}: {value}"))  # the image's words are among them


@command.command("commit", context_settings=_CONTEXT)
@click.argument("overlay", type=NAMED)
@_base
@_raw
def commit(overlay: Path, base: Path | None, raw: bool) -> None:
    """Write what OVERLAY has into its --base, and empty it. Other overlays over that base fit no longer.

    It may be killed at any moment, and is to be repeated then.
    """
    from aiovmm.devices.virtio.blk.overlay import merging

    done = merging.commit(overlay, _given(base, overlay), raw=raw)
    click.echo(f"{done} bytes written to {base}", err=True)


@command.command("rebase", context_settings=_CONTEXT)
@click.argument("overlay", type=NAMED)
@_base
@once("--from", "old", type=NAMED, metavar="IMAGE", help="The base that it has now.")
@click.option("--same", is_flag=True, help="You know that the content is the same: only the header is changed.")
@_raw
@_backing
def rebase(overlay: Path, base: Path | None, old: Path | None, same: bool, raw: bool, backing_files: bool) -> None:
    """Put OVERLAY over another --base. What the two have different goes into the overlay, so its guest sees none of it."""
    from aiovmm.devices.virtio.blk.overlay import merging

    new = _given(base, overlay)
    if same == (old is not None):
        raise UsageError(
            "say either --from OLD, to have the bases compared, or --same, if you know that they are the same"
        )
    if old is None:
        merging.adopt(overlay, new, raw=raw, backing_files=backing_files)
        return
    done = merging.rebase(overlay, old, new, raw=raw, backing_files=backing_files)
    click.echo(f"{done} bytes were different", err=True)


@command.command("copy", context_settings=_CONTEXT)
@click.argument("image", type=NAMED)
@click.argument("new", type=NAMED)
@once("--overlay", type=NAMED, metavar="FILE", help="Copy what a guest of IMAGE with this overlay sees.")
@_raw
@_backing
def copy(image: Path, new: Path, overlay: Path | None, raw: bool, backing_files: bool) -> None:
    """Make NEW a raw copy of the disk IMAGE: by reflink, where the file system has that, else of what is not zeros."""
    from aiovmm.devices.virtio.blk.overlay.chain import open_base
    from aiovmm.devices.virtio.blk.overlay.copying import copy_image
    from aiovmm.devices.virtio.blk.overlay.image import OverlayImage

    base = open_base(image, raw=raw, backing_files=backing_files)
    if overlay is not None:
        top = OverlayImage.open_over(base, overlay, readonly=True)
        try:
            copy_image(top, new)
        finally:
            top.close()
        return
    try:
        shared = copy_image(base.image, new)
    finally:
        base.release()
    click.echo("shares its blocks with the image" if shared else "copied", err=True)


def _given(base: Path | None, overlay: Path) -> Path:
    """Not the one that the overlay's header names: whoever made the file chose that, and a commit would write to it."""
    if base is None:
        raise UsageError(f"say --base IMAGE: `aiovmm disk info {overlay}` says which one it was made for")
    return base
