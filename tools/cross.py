"""Builds for another architecture than this machine's, by Debian's cross compiler: the native extension, and the wheel.

    python -m tools.cross aarch64 dist        # a wheel, in dist

It takes `gcc-aarch64-linux-gnu` and `libc6-dev-arm64-cross`. Of Python it takes the headers alone, of Debian's package for that
architecture, which is fetched once: an extension of the limited API (PEP 384) is linked with nothing of it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from aiovmm.runtime.user_dirs import cache_directory
from tests.debian import Archive, ArchiveError

ROOT = Path(__file__).resolve().parent.parent
DEBIAN = {"aarch64": "arm64", "x86_64": "amd64"}  # its names
_HEADERS = ("bookworm", "libpython3.11-dev")


class CrossBuildFailed(Exception):
    """What is needed is not there, or the compiler refuses; the message has its last words."""


def extension(machine: str) -> Path:
    """The extension built for `machine`, a name like `uname -m`, of the tree as it is now. Blocking."""
    place = ROOT / "build" / machine
    place.mkdir(parents=True, exist_ok=True)
    with open(place / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        target, stamp, digest = place / "_native.abi3.so", place / "digest", _digest()
        if not (target.exists() and stamp.exists() and stamp.read_text() == digest):
            command = [sys.executable, "-W", "ignore", "setup.py", "-q", "build_ext"]
            command += ["--build-lib", str(place / "lib"), "--build-temp", str(place / "tmp")]
            _run(command, environment(machine))
            shutil.copy(place / "lib/aiovmm/native/_native.abi3.so", target)
            stamp.write_text(digest)
    return target


def wheel(machine: str, directory: Path) -> Path:
    """A wheel for `machine` in `directory`. Blocking."""
    with tempfile.TemporaryDirectory(prefix="wheel-") as scratch:
        command = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            scratch,
            str(ROOT),
        ]
        _run(command, environment(machine))
        (built,) = Path(scratch).glob("*.whl")
        directory.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(built, directory / built.name))


def environment(machine: str) -> dict[str, str]:
    """What tells setuptools to build for `machine`."""
    compiler = f"{machine}-linux-gnu-gcc"
    if shutil.which(compiler) is None:
        packages = f"gcc-{machine.replace('_', '-')}-linux-gnu libc6-dev-{DEBIAN[machine]}-cross"
        raise CrossBuildFailed(f"no {compiler}; run: apt-get install --no-install-recommends {packages}")
    include = _headers(machine) / "usr/include"
    return {
        **os.environ,
        "_PYTHON_HOST_PLATFORM": f"linux-{machine}",
        "CC": compiler,
        "LDSHARED": f"{compiler} -shared",
        "CFLAGS": f"-I{include}/python3.11 -I{include}",  # before those of the Python that this runs in
    }


def _headers(machine: str) -> Path:
    suite, package = _HEADERS
    target = cache_directory() / "headers" / f"{package}-{machine}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=target.parent) as scratch:
            try:
                Archive(suite, Path(scratch, "apt"), DEBIAN[machine]).unpack([package], Path(scratch, "root"))
            except ArchiveError as error:
                raise CrossBuildFailed(f"no headers of Python for {machine}: {error}") from error
            shutil.rmtree(Path(scratch, "root/usr/lib"))
            try:
                os.rename(f"{scratch}/root", target)
            except OSError:
                if not target.exists():  # else another process was faster
                    raise
    return target


def _digest() -> str:
    """One name for all that decides what the extension is."""
    parts = hashlib.sha256()
    for path in sorted(_sources()):
        parts.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return parts.hexdigest()


def _sources() -> Iterator[Path]:
    native = ROOT / "aiovmm/native"
    yield from (ROOT / "setup.py", ROOT / "pyproject.toml", native / "build.py")
    for folder in ("src", "cdef"):
        yield from (path for path in (native / folder).rglob("*.[ch]"))


def _run(command: list[str], env: dict[str, str]) -> None:
    done = subprocess.run(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        words = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise CrossBuildFailed(f"{' '.join(command[:5])} ... failed for {env['_PYTHON_HOST_PLATFORM']}:\n{words}")


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0] not in DEBIAN:
        print(f"usage: python -m tools.cross {{{','.join(DEBIAN)}}} DIRECTORY", file=sys.stderr)
        return 2
    try:
        print(wheel(arguments[0], Path(arguments[1])))
    except CrossBuildFailed as error:
        print(f"tools.cross: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
