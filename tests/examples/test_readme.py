"""The README's example does what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


def python_block() -> str:
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    return str(block)


def test_the_example_is_short() -> None:
    lines = [line for line in python_block().splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) <= 10


@pytest.mark.kvmhost
@pytest.mark.timeout(240)
def test_the_example_runs(images: tuple[Path, Path], tmp_path: Path) -> None:
    kernel, initramfs = images
    (tmp_path / "vmlinuz").symlink_to(kernel)
    (tmp_path / "initramfs.cpio").symlink_to(initramfs)
    done = subprocess.run(
        [sys.executable, "-c", python_block()], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "SHUTDOWN" in done.stdout
    assert re.search(r"Linux guest 6\.1\S* ", done.stdout)
