"""The fixtures, as an embedder's own test suite has them: a pytest of its own, in a folder of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CONFTEST = 'pytest_plugins = ["aiovmm.testing.plugin"]\n'

DEVICE = """
import asyncio, pytest
from aiovmm.virtqueue import VirtioDevice

class Upper(VirtioDevice):
    device_id = 42
    queue_sizes = (8,)

    async def run(self, queues, features):
        async for chain in queues[0]:
            chain.write(chain.read_all().upper())
            queues[0].push(chain)

@pytest.mark.asyncio
async def test_it(virtio_harness):
    h = await virtio_harness(Upper(), memory_size=4 << 20)
    assert await h.request(0, [b"abc"], [3]) == b"ABC"

@pytest.mark.asyncio
async def test_an_error_nobody_looked_for(virtio_harness):
    h = await virtio_harness(Upper())
    h.queues[0].add([b"too long"], [1])
    h.queues[0].kick()
    await h.config_irq.wait()

def test_memory(guest_memory, recording_line):
    guest_memory.write(0x1000, b"x")
    recording_line.pulse()
    assert recording_line.pulses == 1
"""


def test_the_fixtures_serve_a_suite_of_an_embedder(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_device.py").write_text(DEVICE)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False)
    assert "3 passed, 1 error" in done.stdout, done.stdout
    assert "ChainError" in done.stdout
    assert done.returncode == 1
