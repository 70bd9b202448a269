"""Tests that use the `kvm` fixture run bare-metal guests on /dev/kvm itself; skipped only where it cannot be opened."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aiovmm.errors import KvmError
from aiovmm.kvm import Kvm


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "kvm" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.kvm)


@pytest.fixture(scope="session")
def kvm() -> Iterator[Kvm]:
    """The machine's KVM."""
    try:
        opened = Kvm.open()
    except KvmError as exc:
        pytest.skip(f"/dev/kvm cannot be used: {exc}")
    yield opened
    opened.close()
