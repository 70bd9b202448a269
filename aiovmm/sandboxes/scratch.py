"""The disk that takes what a sandbox writes: an empty ext4 file system, made once for each size, of which each guest gets a copy.

The copy has no name once the guest has it, so that it is gone with the process, however that ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from aiovmm.errors import HostError, ImageError
from aiovmm.runtime.flock import OF_FILE, flocked
from aiovmm.runtime.user_dirs import cache_directory

__all__ = ["LEAST", "Scratch", "make_scratch", "prepare_scratch"]

LEAST = 16 << 20
"""Bytes of the smallest that there is."""

_OPTIONS = (
    "-q",
    "-F",
    "-t",
    "ext4",
    "-m",
    "0",
    "-O",
    "^has_journal,^resize_inode",
    "-E",
    "lazy_itable_init=1,nodiscard",
)
_DISK, _LOCK = ".ext4", ".lock"  # a copy, and what is locked as long as that has its name
_PATHS = "/usr/sbin:/sbin"  # where mke2fs is, and a user's PATH need not be


class Scratch:
    """A file with a file system, at `path` until this is closed."""

    def __init__(self, path: Path, size: int, template: Path) -> None:
        self.path = path
        with ExitStack() as stack:
            lock = path.with_suffix(_LOCK)
            stack.callback(lock.unlink, missing_ok=True)
            stack.enter_context(flocked(lock, fcntl.LOCK_EX, OF_FILE))
            stack.callback(path.unlink, missing_ok=True)
            _copy(template, path, size)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """It has no name any more. Idempotent. Raises OSError."""
        self._stack.close()


def prepare_scratch(size: int) -> None:
    """Do all that can fail beforehand, but for the room that its copy takes. Blocking. Raises HostError, ImageError."""
    with _templates(size):
        pass


def make_scratch(size: int) -> Scratch:
    """One of `size` bytes, for its caller to close. Blocking, some milliseconds. Raises HostError, ImageError."""
    with _templates(size) as template:
        return Scratch(template.with_name(f"{secrets.token_hex(8)}{_DISK}"), size, template)


@contextmanager
def _templates(size: int) -> Iterator[Path]:
    """The one for `size`, while nobody sweeps beside it."""
    folder = cache_directory() / "scratch"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with flocked(folder / "lock", fcntl.LOCK_EX | fcntl.LOCK_NB, OF_FILE) as is_alone:
            if is_alone:
                _sweep(folder)
        with flocked(folder / "lock", fcntl.LOCK_SH, OF_FILE):  # or what is not locked yet might be swept
            yield _template(folder, size)
    except HostError:
        raise
    except OSError as exc:
        hint = "XDG_CACHE_HOME says where else it may be; disk=None takes memory instead"
        raise HostError("make a scratch disk", exc.errno or 0, hint, str(folder)) from exc


def _sweep(folder: Path) -> None:
    """While nobody makes one: a copy that has its name still, and no lock, is of a process that was killed, and so is a template
    that was never done."""
    for left in folder.iterdir():
        if left.suffix in (_DISK, _LOCK) or left.name.startswith("."):
            with suppress(OSError), flocked(left.with_suffix(_LOCK), fcntl.LOCK_EX | fcntl.LOCK_NB, OF_FILE) as is_left:
                if is_left:
                    left.unlink()
                    left.with_suffix(_LOCK).unlink()


def _template(folder: Path, size: int) -> Path:
    path = folder / f"empty-{size}"
    if path.exists():
        return path
    program = shutil.which("mke2fs") or shutil.which("mke2fs", path=_PATHS)
    if program is None:
        raise ImageError(
            "mke2fs", "there is none to make the scratch disk", "apt-get install e2fsprogs, or say disk=None"
        )
    new = folder / f".{secrets.token_hex(8)}"
    try:
        with open(new, "xb") as out:
            out.truncate(size)
        subprocess.run([program, *_OPTIONS, new], check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=60)
        os.replace(new, path)
    except subprocess.SubprocessError as exc:
        said = (getattr(exc, "stderr", None) or b"").decode(errors="replace").strip() or str(exc)
        raise ImageError("mke2fs", f"cannot make a file system of {size} bytes: {said.splitlines()[-1]}") from exc
    finally:
        new.unlink(missing_ok=True)
    return path


def _copy(source: Path, target: Path, size: int) -> None:
    """What there is of it, without its holes."""
    with (
        open(source, "rb") as old,
        open(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as new,
    ):
        new.truncate(size)
        for start, end in _data(old.fileno(), size):
            at = start
            while at < end:
                at += os.pwrite(new.fileno(), os.pread(old.fileno(), min(end - at, 1 << 20), at), at)


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        at = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, at
