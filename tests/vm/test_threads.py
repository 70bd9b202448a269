"""Threads say whose they are, in Python and to the system's tools."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from aiovmm import VM
from tests.vm.guest import config, counts_on


@pytest.mark.parametrize(
    ("name", "seen"), [("web", "web vcpu-1"), ("a-very-long-name-of-a-guest", "a-very-l vcpu-1"), ("\u00fc" * 8, None)]
)
async def test_threads_of_vcpus_are_named_after_their_vm(name: str, seen: str | None) -> None:
    async with VM(config("x", 2, name=name)) as vm:
        await vm.start()
        await counts_on(vm)
        (thread,) = (t for t in threading.enumerate() if t.name == f"{name}: vcpu-1")
        comm = Path(f"/proc/self/task/{thread.native_id}/comm").read_text().rstrip("\n")  # noqa: ASYNC240
        assert comm.endswith(" vcpu-1")
        assert seen is None or comm == seen
