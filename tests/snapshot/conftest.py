"""Snapshots and forks of bare-metal guests on the machine's own /dev/kvm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from aiovmm.errors import KvmError
from aiovmm.kvm import Kvm
from tests.tmpfs import tmpfs
from tests.vm.remains import own_temporary_directory

__all__ = ["own_temporary_directory"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name in (
            "test_vm.py",
            "test_fork.py",
            "test_trust.py",
        ):
            item.add_marker(pytest.mark.kvm)


@pytest.fixture(scope="session")
def kvm_there() -> None:
    """Skips where there is no KVM."""
    try:
        with Kvm.open():
            pass
    except KvmError as exc:
        pytest.skip(f"/dev/kvm cannot be used: {exc}")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    with tmpfs(tmp_path / "small", "256k") as place:
        yield place
