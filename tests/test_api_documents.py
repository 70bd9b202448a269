"""The Python in the documents for embedders passes mypy --strict, and the reference lists what there is."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import aiovmm
from tools.api_reference import reference

ROOT = Path(__file__).resolve().parent.parent
PREAMBLE = f"""
import asyncio, logging, random
from pathlib import Path
from aiovmm import {", ".join(sorted(aiovmm.__all__))}
from aiovmm.devices.virtio.blk import BlkDevice
from aiovmm.devices.virtio.net import NetDevice
from aiovmm.testing import Harness
from aiovmm.virtqueue import Queue
config: VMConfig
kernel: Path
initramfs: Path
class Dice(VirtioDevice):
    async def run(self, queues: list[Queue], features: int) -> None: ...
class Upper(Dice): ...
"""


def _program(document: Path) -> str:
    """The examples of `document`, each a function that is given a VM."""
    program = PREAMBLE
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL)):
        program += f"\n\nasync def example_{number}(vm: VM) -> None:\n{textwrap.indent(block, '    ')}"
    return program.replace("    config = VMConfig(", "    config: VMConfig = VMConfig(")


@pytest.mark.timeout(180)
def test_the_examples_pass_a_strict_type_checker(tmp_path: Path) -> None:
    documents = [one for one in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")) if "```python\n" in one.read_text()]
    assert len(documents) >= 12
    for document in documents:
        (tmp_path / f"{document.stem}.py").write_text(_program(document))
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "--no-error-summary"]
    done = subprocess.run(
        [*command, *map(str, tmp_path.glob("*.py"))], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_reference_lists_what_there_is() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    assert text == reference(), "run `python -m tools.api_reference > docs/api.md`"
    assert "(no words)" not in text
