from __future__ import annotations

from pathlib import Path

import pytest

from tests.boot.acpi.acpica import Acpica, installed


@pytest.fixture
def acpica(tmp_path: Path) -> Acpica:
    if not installed():
        pytest.skip("iasl and acpiexec are not installed: apt-get install acpica-tools")
    return Acpica(tmp_path)
