"""One command in a host with VT-x, from the making of its CD to what it said."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import termios
import threading
from dataclasses import dataclass
from pathlib import Path

from aiovmm.image.modules import ModuleTree
from tests.debian import ArchiveError, Unpacked
from tests.debian.stock import stock_kernel
from tests.kvmhost import KvmHostError, cpio, project
from tests.kvmhost.arch import X86_64
from tests.kvmhost.image import Image, ensure_image
from tests.kvmhost.settings import PROJECT, cache_directory

from .bochs import configuration, ensure_bochs, environment, make_cd

_HERE = Path(__file__).parent
_KERNEL = "6.1"  # the host's; its modules are in the disk image
# Bochs' HPET is of no frequency that Linux takes; its time stamp counter counts instructions, so it is as right as the rest.
_ARGUMENTS = "console=ttyS0 panic=-1 mitigations=off tsc=reliable hpet=disable quiet"
_DISK_MODULES = ["ata_piix", "sd_mod", "ext4"]


class CannotRun(Exception):
    """There can be no such host here."""


@dataclass(frozen=True)
class Ended:
    """What a command said, and its exit status; None if the host ended before. `console` is its kernel's, or Bochs' log."""

    status: int | None
    output: str
    console: str


def run(command: str, *, cpus: int = 1, parameters: str = "enable_apicv=0", timeout: float) -> Ended:
    """Run a command of the shell in a new host whose module kvm_intel has `parameters`. Blocking. CannotRun."""
    cache = cache_directory(os.environ)
    try:
        bochs = ensure_bochs(cache.parent / "bochs")
        kernel = stock_kernel(_KERNEL)
        image = ensure_image(cache, lambda text: None, X86_64)
    except (ArchiveError, KvmHostError) as error:
        raise CannotRun(f"no host with VT-x: {error}") from error
    assert kernel.modules is not None
    with tempfile.TemporaryDirectory(prefix="vtx-", dir="/var/tmp") as name:
        place = Path(name)
        (place / "b").symlink_to(bochs.root)
        bochs = Unpacked(place / "b")  # Bochs has no room for long paths
        make_cd(bochs, image.kernel, _initramfs(image, kernel.modules, command, parameters), _ARGUMENTS, place)
        (place / "bochsrc").write_text(configuration(bochs, image.disk, cpus))
        (place / "debugger").write_text("c\n")  # Debian's Bochs has one, which waits at the start
        _run_bochs(bochs, place, timeout)
        texts = [_text(place / name) for name in ("output", "console", "bochs.log")]
    found = re.search(r"^vtx: status (\d+)$", texts[0], re.MULTILINE)
    return Ended(int(found[1]) if found else None, texts[0][: found.start() if found else None], texts[1] or texts[2])


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _run_bochs(bochs: Unpacked, place: Path, timeout: float) -> None:
    """Until it ends or is ended. Its display is a terminal, of which nobody reads what is on it."""
    display, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (25, 80))
    command = [*bochs.command("usr/bin/bochs-bin"), "-q", "-f", "bochsrc", "-rc", "debugger"]
    env = {**os.environ, **environment(bochs)}
    with subprocess.Popen(command, cwd=place, env=env, stdin=terminal, stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        threading.Thread(target=_drain, args=(display,), daemon=True).start()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()


def _drain(display: int) -> None:
    try:
        while os.read(display, 65536):
            pass
    except OSError:  # it has ended
        os.close(display)


def _initramfs(image: Image, modules: Path, command: str, parameters: str) -> bytes:
    order = ModuleTree(modules).load_order(_DISK_MODULES)
    return cpio.archive(
        [
            *(cpio.directory(name) for name in ("bin", "dev", "proc", "modules", "root", "vtx")),
            cpio.file("bin/busybox", (image.boot / "busybox").read_bytes(), 0o755),
            cpio.file("init", (_HERE / "initramfs_init.sh").read_bytes(), 0o755),
            *(cpio.file(f"modules/{one.name}.ko", one.data) for one in order),
            cpio.file("modules/order", "".join(f"{one.name}.ko\n" for one in order).encode()),
            cpio.file("vtx/host_init.sh", (_HERE / "host_init.sh").read_bytes(), 0o755),
            cpio.file("vtx/command", f"{command}\n".encode()),
            cpio.file("vtx/parameters", f"{parameters}\n".encode()),
            cpio.file("project.tar", _project()),
        ]
    )


def _project() -> bytes:
    """The tree as the nested host gets it, with the assembled guests: there is no assembler."""
    tree = project.project_tree(PROJECT) | project.bare_metal_guests(PROJECT)
    return project.update_archive(tree, project.Update.between({}, project.manifest(tree)))
