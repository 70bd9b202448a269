"""The nested host's initramfs: finds the disk, brings along the host's init and the agent, and hands over.

Init and agent ride here and not in the disk image, so that a change of theirs needs no new image.
"""

from __future__ import annotations

import pathlib

from . import cpio
from .settings import Profile

_HERE = pathlib.Path(__file__).parent
_AGENT_MODULES = ("frames.py", "messages.py", "job.py", "agent.py")


def build(boot: pathlib.Path, profile: Profile) -> bytes:
    """The archive. `boot` is an image's boot directory: busybox, the modules of `order` beside it, and perhaps `drivers` that
    the disk does not have, with an `order` of insmod's arguments."""
    modules = (boot / "order").read_text().split()
    drivers = sorted((boot / "drivers").glob("*"))
    return cpio.archive(
        [
            *(cpio.directory(name) for name in ("bin", "dev", "proc", "modules", "root", "kvmhost", "kvmhost/kvmhost")),
            cpio.file("bin/busybox", (boot / "busybox").read_bytes(), 0o755),
            cpio.file("init", (_HERE / "initramfs_init.sh").read_bytes(), 0o755),
            *(cpio.file(f"modules/{name}", (boot / name).read_bytes()) for name in modules),
            cpio.file("modules/order", "".join(f"{name}\n" for name in modules).encode()),
            cpio.file("kvmhost/init.sh", (_HERE / "host_init.sh").read_bytes(), 0o755),
            cpio.file(
                "kvmhost/modules", "".join(f"{line}\n" for line in (*profile.arch.modules, *profile.modules)).encode()
            ),
            *([cpio.directory("kvmhost/drivers")] if drivers else []),
            *(cpio.file(f"kvmhost/drivers/{path.name}", path.read_bytes()) for path in drivers),
            cpio.file("kvmhost/kvmhost/__init__.py", b""),
            *(cpio.file(f"kvmhost/kvmhost/{name}", (_HERE / name).read_bytes()) for name in _AGENT_MODULES),
        ]
    )


def load_order(dependencies: str, wanted: list[str]) -> list[str]:
    """Paths of the modules `wanted` and all they need, in the order to load them, from the text of a modules.dep.

    A name that modules.dep does not list is built into the kernel and left out. (depmod(8): each line names a module
    and all it depends on, indirectly too, nearest first.)
    """
    needs: dict[str, list[str]] = {}
    paths: dict[str, str] = {}
    for line in dependencies.splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
        paths[path.rsplit("/", 1)[-1].split(".ko", 1)[0].replace("-", "_")] = path
    order: list[str] = []
    for name in wanted:
        found = paths.get(name.replace("-", "_"))
        if found:
            order += [one for one in (*reversed(needs[found]), found) if one not in order]
    return order
