"""The model of VFIO, and a device of it on a PCI bus without KVM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vfio.kernel import FakeKernel

ADDRESS = "0000:01:00.0"


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[FakeKernel]:
    kernel = FakeKernel(tmp_path)
    yield kernel
    kernel.dispose()
