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
from aiovmm.testing import Harness
from aiovmm.virtqueue import Queue
config: VMConfig
class Dice(VirtioDevice):
    async def run(self, queues: list[Queue], features: int) -> None: ...
"""


@pytest.mark.timeout(180)
@pytest.mark.parametrize("document", ["embedding.md", "recipes.md"])
def test_the_examples_pass_a_strict_type_checker(document: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / document).read_text(), re.DOTALL)
    assert len(blocks) >= 4
    program = PREAMBLE
    for number, block in enumerate(blocks):
        program += f"\n\nasync def example_{number}() -> None:\n{textwrap.indent(block, '    ')}"
        program = program.replace("    config = VMConfig(", "    config: VMConfig = VMConfig(")
    file = tmp_path / f"{document.replace('.', '_')}.py"
    file.write_text(program)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), "--no-error-summary", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_reference_lists_what_there_is() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    assert text == reference(), "run `python -m tools.api_reference > docs/api.md`"
    assert "(no words)" not in text
