"""Files that every user can read, wherever this tree is."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def everybodys(path: Path) -> Iterator[Path]:
    """A copy of the file `path`. The tests' own temporary directory is nobody else's."""
    with tempfile.TemporaryDirectory(prefix="aiovmm-everybodys-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        copy = Path(shutil.copy(path, name))
        copy.chmod(0o644)
        yield copy
