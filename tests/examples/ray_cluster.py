"""The pool over machines, on a Ray cluster of two nodes on this one. test_ray_pool.py runs it in a process of its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.network import own_network
from tests.vm.guest import config, until

ray: Any = pytest.importorskip("ray", reason="ray is not installed here: pip install 'aiovmm[cluster]'")

pytestmark = [pytest.mark.kvm, pytest.mark.timeout(300)]
ROOT = Path(__file__).parent.parent.parent
NAME = f"r{os.getpid() % 10000}"  # of the guests, and of nobody else's


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes, which have nothing but the loopback; Ray tells nobody of them."""
    if os.geteuid():
        pytest.skip("a network with nothing but the loopback needs root")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    with own_network():
        yield from _two_nodes(Cluster)


def _two_nodes(make: Any) -> Iterator[Any]:
    node = {"num_cpus": 1, "object_store_memory": 80 << 20}
    made = make(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    made.add_node(**node)
    # a second path to the tree, for workers that do not start in it
    runtime = {"env_vars": {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}}
    ray.init(address=made.address, log_to_driver=False, runtime_env=runtime)
    yield made
    ray.shutdown()
    made.shutdown()


async def lives(guest: Any, word: bytes) -> None:
    await guest.write(word)
    assert await guest.expect(word, 60) == word


async def test_guests_are_on_both_nodes_and_those_of_a_lost_one_are_replaced(cluster: Any) -> None:
    from ray.exceptions import RayActorError

    from examples.ray_pool import Fleet

    async with Fleet(config("hl", name=NAME), max=4) as fleet:
        async with fleet.acquire() as one, fleet.acquire() as other:
            assert {one.node, other.node} == {node["NodeID"] for node in ray.nodes()}
            await asyncio.gather(one.expect(rb"hello\n"), other.expect(rb"hello\n"))
            await asyncio.gather(lives(one, b"abc;"), lives(other, b"xyz;"))

        async def use(number: int) -> str:
            async with fleet.acquire() as guest:
                await lives(guest, b"%d;" % number)
                return str(guest.node)

        nodes = await asyncio.gather(*map(use, range(100, 112)))  # more than there may be at once
        assert len(set(nodes)) == 2

        waiting = asyncio.create_task(use(1))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()

        lost: list[str] = []

        async def lose() -> None:
            async with fleet.acquire() as guest:
                lost.append(guest.node)
                ray.kill(guest._host)
                await lives(guest, b"lost;")

        with pytest.raises(RayActorError):
            await lose()
        left = await asyncio.gather(*map(use, range(200, 206)))
        assert len(set(left)) == 1
        assert lost[0] not in left
        hosts = tuple(fleet._in_use)
        assert set(fleet._in_use.values()) == {0}

    async def asked_until_it_is_gone() -> None:
        while True:  # Ray kills it in its own time
            await hosts[0].close.remote()

    with pytest.raises(RayActorError):
        await asyncio.wait_for(asked_until_it_is_gone(), 60)
    await until(lambda: not guests_of_workers())


def guests_of_workers() -> list[str]:
    """Threads of vCPUs in Ray's processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*/task/*/comm"):
        try:
            if path.read_text().startswith(f"{NAME}-") and "vcpu" in path.read_text():
                found.append(str(path))
        except OSError:
            continue
    return found


async def test_what_nobody_can_serve_is_said(cluster: Any) -> None:
    from aiovmm import StateError
    from examples.ray_pool import Fleet

    fleet = Fleet(config("hl", name=NAME))
    with pytest.raises(StateError, match="no machine of the cluster is left"):
        async with fleet.acquire():
            pass
