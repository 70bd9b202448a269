"""A limit of memory that the host's administrator has set (cgroups(7)): who is over it is killed, and that is one worker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aiovmm import ExitReason, MemoryConfig, Pool, PoolEventKind
from aiovmm.pool.workers.plain import WorkerLost
from tests.vm.test_pool import guests, lives
from tests.vm.test_pool_workers import pid_of, remote

pytestmark = pytest.mark.kvm
LIMIT = 8 << 20
_VERSION_1, _VERSION_2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


@contextmanager
def limited() -> Iterator[Path]:
    """A group with room for LIMIT bytes. Skips where there can be none."""
    first = (_VERSION_1 / "memory.limit_in_bytes").exists()
    group = (_VERSION_1 if first else _VERSION_2) / f"aiovmm-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as exc:
        pytest.skip(f"needs a memory cgroup: {exc}")
    try:
        limit = group / ("memory.limit_in_bytes" if first else "memory.max")
        if not limit.exists():
            pytest.skip("needs a memory cgroup: the controller is not enabled below the root")
        limit.write_text(str(LIMIT))
        yield group
    finally:
        group.rmdir()


async def test_a_worker_that_is_over_it_takes_its_guests_with_it_and_another_comes() -> None:
    config = guests().with_changes({"memory": MemoryConfig(64 << 20, prefault=True)})
    with limited() as group:
        async with Pool(config, max=4, workers=2) as pool, pool.acquire() as one, pool.acquire() as two:
            events = pool.events()
            first = remote(one).worker
            assert first != remote(two).worker
            (group / "cgroup.procs").write_text(str(pid_of(one)))
            async with pool.acquire() as three:  # was to be made there, whose memory is not to be had
                status = await one.wait()
                assert status.reason is ExitReason.ERROR
                assert isinstance(status.error, WorkerLost)
                assert "killed by signal 9" in status.detail
                assert "memory" in status.detail
                await lives(two)
                await lives(three)
                async with pool.acquire() as four:
                    await lives(four)
                    assert first in {remote(three).worker, remote(four).worker}, "another took its place"
            async for seen in events:
                if seen.kind is PoolEventKind.WORKER_DIED:
                    assert seen.worker == first
                    break
