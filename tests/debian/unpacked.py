"""Programs of another Debian in a tree of its packages, run with their own libraries and their own C library's loader."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

_LOADER = "ld-linux-x86-64.so.2"
_DIRECTORIES = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")  # the second until Debian 13


@dataclass(frozen=True)
class Unpacked:
    """What Archive.unpack_with_dependencies() gave, in `root`."""

    root: Path

    def command(self, program: str) -> tuple[str, ...]:
        """The words that run `program`, a path in the tree, before its arguments."""
        libraries = [self.root / name for name in _DIRECTORIES if (self.root / name).is_dir()]
        loader = next(
            (place / _LOADER for place in libraries if (place / _LOADER).exists()), self.root / "lib64" / _LOADER
        )
        named = ("--argv0", Path(program).name)
        return (str(loader), "--library-path", ":".join(map(str, libraries)), *named, str(self.root / program))

    def call(self, program: str, *arguments: str) -> None:
        """Run a program that has to succeed; subprocess.CalledProcessError."""
        subprocess.run([*self.command(program), *arguments], check=True, capture_output=True)
