"""`python -m aiovmm.rootfs SOURCE FD`: make one image, in a process of its own, and say what came of it on standard output.

An image's maker may be hostile, and unpacking takes as long as it takes: here neither holds up the program's event loop, memory
has a limit, and whoever does not want it any more kills it. It ends with its parent, whose end of standard input it watches.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import resource
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aiovmm.errors import AiovmmError, ImageError
from aiovmm.rootfs.blocks import Blocks, TooLarge
from aiovmm.rootfs.erofs import FIRST_BLOCK, write_erofs
from aiovmm.rootfs.layer import LeftOut, leave_out_devices
from aiovmm.rootfs.limits import Limits
from aiovmm.rootfs.source import Source
from aiovmm.rootfs.tar import TarError
from aiovmm.rootfs.tree import Tree, TreeError
from aiovmm.runtime.threads import Thread

_MEMORY = 4 << 30
"""Bytes of addresses."""
_PART = 1 << 20
_GRACE = 30  # seconds for ending


def main() -> None:
    """Prints one line of JSON: `content`, `size`, `configuration` and `left_out`, or an `error`."""
    Thread(_end_with_parent, name="parent").start()
    _limit_memory()
    limits = Limits(**json.loads(sys.argv[3]))
    _limit_time(limits.seconds)
    source = Source(**json.loads(sys.argv[1]))
    try:
        said = make(source, int(sys.argv[2]), limits)
    except ImageError as exc:
        said = {"error": "image", "path": exc.path, "reason": exc.reason, "hint": exc.hint}
    except (TarError, TreeError, TooLarge) as exc:
        said = {"error": "image", "path": source.path, "reason": str(exc), "hint": ""}
    except _TooLong:
        reason = f"takes more than {limits.seconds:g} s of a processor to be unpacked"
        hint = "Limits(seconds=) allows for more"
        said = {"error": "image", "path": source.path, "reason": reason, "hint": hint}
    except MemoryError:
        reason = f"needs more than {_MEMORY >> 30} GiB of memory to be unpacked"
        said = {"error": "image", "path": source.path, "reason": reason, "hint": ""}
    except OSError as exc:
        if isinstance(exc, AiovmmError) or exc.errno is None:
            said = {"error": "image", "path": source.path, "reason": f"cannot be unpacked: {exc}", "hint": ""}
        else:
            said = {"error": "host", "errno": exc.errno, "path": exc.filename and os.fsdecode(exc.filename)}
    print(json.dumps(said))


class _TooLong(BaseException):
    """It has had the time that it may have; nobody on the way takes that for an error of a file."""


def _limit_time(seconds: float) -> None:
    """Of a processor, and from now on; then `_TooLong` is raised, and a little later, if that does not end it, it is killed."""

    def over(_signum: int, _frame: object) -> None:
        signal.signal(signal.SIGXCPU, signal.SIG_IGN)  # it comes again each second
        raise _TooLong

    signal.signal(signal.SIGXCPU, over)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    wanted = max(math.ceil(time.process_time() + seconds), 1)
    if most == resource.RLIM_INFINITY or most > wanted + _GRACE:
        most = wanted + _GRACE
    resource.setrlimit(resource.RLIMIT_CPU, (min(wanted, most), most))


def _limit_memory() -> None:
    """What it may take besides what it has, which under a sanitizer is terabytes of addresses; or less, where less is allowed."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    wanted = pages * resource.getpagesize() + _MEMORY
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def make(source: Source, fd: int, limits: Limits) -> dict[str, Any]:
    """The image of `source` into the empty file `fd`, and what is to be said of it."""
    left_out = LeftOut()
    blocks = Blocks(fd, FIRST_BLOCK, limits.size, limits.unpacked)
    tree = Tree(limits, blocks.free)
    folder = Path(os.readlink(f"/proc/self/fd/{fd}")).parent  # where there is to be room for the image
    configuration = source.fill(tree, blocks, left_out, folder, limits.size)
    leave_out_devices(tree, left_out)
    write_erofs(tree, blocks, fd)
    os.fsync(fd)
    content, size = _digest(fd)
    told = {"devices": left_out.devices, "xattrs": sorted(left_out.xattrs)[:100]}
    return {"content": content, "size": size, "configuration": asdict(configuration), "left_out": told}


def _digest(fd: int) -> tuple[str, int]:
    digest, at = hashlib.sha256(), 0
    while part := os.pread(fd, _PART, at):
        digest.update(part)
        at += len(part)
    return digest.hexdigest(), at


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
