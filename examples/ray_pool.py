"""Guests on many machines: a Ray actor a machine with a Pool of guests, and one pool over them.

    pip install 'aiovmm[cluster]'
    ray start --head                        # and `ray start --address=...` on each other machine
    python -m examples.ray_pool vmlinuz initramfs.cpio --guests 100 --until 'guest:\\S+ '

The kernel, the initramfs and whatever else the configuration names have to be at the same paths on each machine. A guest is used
where it is, by what its host's actor can be asked; a machine that is lost takes its guests with it, and nobody else's.
"""

from __future__ import annotations

import argparse
import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray
from ray.exceptions import ActorUnavailableError, RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from aiovmm import VM, MemoryConfig, PayloadConfig, Pool, StateError, VMConfig

ATTEMPTS = 3


class Lease:
    """One guest of a host's, for as long as somebody has it."""

    def __init__(self, pool: Pool) -> None:
        self.vm: asyncio.Future[VM] = asyncio.get_running_loop().create_future()
        self._over = asyncio.Event()
        self.task = asyncio.create_task(self._hold(pool))

    async def _hold(self, pool: Pool) -> None:
        try:
            async with pool.acquire() as vm:
                self.vm.set_result(vm)
                await self._over.wait()
        except BaseException as exc:
            if not self.vm.done():
                self.vm.set_exception(exc)
            self.vm.exception()  # seen, whether or not somebody waits
            if not isinstance(exc, Exception):
                raise

    async def end(self) -> None:
        """Also of one that has no guest yet."""
        self._over.set()
        if not self.vm.done():
            self.task.cancel()
        await asyncio.wait([self.task])


class Host:
    """The actor of one machine. Guests are known by the name of their lease, which whoever wants one makes up: so he can give
    back what he has not heard of yet."""

    def __init__(self, config: VMConfig, options: dict[str, Any]) -> None:
        self._config, self._options = config, options
        self._leases: dict[str, Lease] = {}
        self._pool: Pool | None = None

    async def open(self) -> str:
        """The node's id, once the pool is open."""
        self._pool = await Pool(self._config, **self._options).__aenter__()
        return str(ray.get_runtime_context().get_node_id())

    async def acquire(self, lease: str) -> str:
        """The guest's name, when there is one."""
        assert self._pool is not None, "it is open"
        made = self._leases[lease] = Lease(self._pool)
        return (await made.vm).name

    async def release(self, lease: str) -> None:
        """The guest is gone. Idempotent."""
        if (held := self._leases.pop(lease, None)) is not None:
            await held.end()

    async def write(self, lease: str, data: bytes) -> None:
        """Type at its serial port."""
        await self._vm(lease).serial.send(data)

    async def expect(self, lease: str, pattern: bytes, timeout: float | None) -> bytes:
        """What matched on its serial port."""
        return bytes((await self._vm(lease).serial.expect(pattern, timeout)).group())

    async def run(self, lease: str, args: Sequence[str], timeout: float | None) -> tuple[int, bytes, bytes]:
        """Status and output of a command, by the guest's agent."""
        done = await self._vm(lease).run(args, timeout=timeout)
        return done.returncode, done.stdout, done.stderr

    async def close(self) -> None:
        """End all guests."""
        await asyncio.gather(*(self.release(lease) for lease in tuple(self._leases)))
        if self._pool is not None:
            await self._pool.aclose()

    def _vm(self, lease: str) -> VM:
        if lease not in self._leases:
            raise StateError("this guest has been given back")
        return self._leases[lease].vm.result()


class Guest:
    """A guest somewhere: `name`, `node` (Ray's id), and what its host can be asked."""

    def __init__(self, host: Any, lease: str, name: str, node: str) -> None:
        self._host, self._lease = host, lease
        self.name, self.node = name, node

    async def write(self, data: bytes) -> None:
        """Type at its serial port."""
        await self._host.write.remote(self._lease, data)

    async def expect(self, pattern: bytes, timeout: float | None = 60.0) -> bytes:
        """What matched on its serial port. Raises what Console.expect does, as Ray's RayTaskError."""
        return bytes(await self._host.expect.remote(self._lease, pattern, timeout))

    async def run(self, args: Sequence[str], timeout: float | None = None) -> tuple[int, bytes, bytes]:
        """Status, output and errors of a command in it."""
        status, out, err = await self._host.run.remote(self._lease, args, timeout)
        return status, out, err


class Fleet:
    """A pool over all machines of the cluster that `ray.init` has joined; `options` are those of each machine's Pool."""

    def __init__(self, config: VMConfig, **options: Any) -> None:
        self._config, self._options = config, options
        self._in_use: dict[Any, int] = {}
        self._nodes: dict[Any, str] = {}

    async def __aenter__(self) -> Self:
        actor = ray.remote(num_cpus=0, max_concurrency=10_000)(Host)
        here = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        hosts = [
            actor.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
                self._config, self._options
            )
            for node in here
        ]
        nodes = await asyncio.gather(*(host.open.remote() for host in hosts))
        self._nodes = dict(zip(hosts, nodes, strict=True))
        self._in_use = dict.fromkeys(hosts, 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for host in tuple(self._in_use):
            with suppress(RayActorError):
                await host.close.remote()
            ray.kill(host)
        self._in_use.clear()

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Guest]:
        """A guest on the machine that has the fewest in use; it is gone after the block. Raises RayActorError if machine after
        machine is lost meanwhile, StateError if there is none any more."""
        async with AsyncExitStack() as stack:
            for left in reversed(range(ATTEMPTS)):
                try:
                    guest = await stack.enter_async_context(self._on(self._least_used()))
                    break
                except RayActorError:
                    if not left:
                        raise
            yield guest

    def _least_used(self) -> Any:
        if not self._in_use:
            raise StateError("no machine of the cluster is left: is the fleet open, and does `ray status` show nodes?")
        return min(self._in_use, key=self._in_use.__getitem__)

    @asynccontextmanager
    async def _on(self, host: Any) -> AsyncIterator[Guest]:
        lease = uuid.uuid4().hex
        self._in_use[host] += 1
        try:
            try:
                name = await host.acquire.remote(lease)
                yield Guest(host, lease, name, self._nodes[host])
            finally:
                await host.release.remote(lease)
        except RayActorError as exc:
            if not isinstance(exc, ActorUnavailableError):  # it may be there again
                self._in_use.pop(host, None)
            raise
        finally:
            if host in self._in_use:
                self._in_use[host] -= 1


async def main(config: VMConfig, guests: int, until: bytes) -> None:
    """`guests` users, each of whom takes a guest that has printed `until`."""
    used: dict[str, int] = {}

    async def use(fleet: Fleet) -> None:
        async with fleet.acquire() as guest:
            await guest.expect(until, 120)
            used[guest.node] = used.get(guest.node, 0) + 1

    async with Fleet(config, warm=2, max=16) as fleet, asyncio.TaskGroup() as group:
        for _ in range(guests):
            group.create_task(use(fleet))
    for node, count in used.items():
        print(f"{node}: {count} guests")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernel", type=Path)
    parser.add_argument("initramfs", type=Path, nargs="?")
    parser.add_argument("--guests", type=int, default=100)
    parser.add_argument("--until", type=str.encode, default=rb"guest:\S+ ")
    args = parser.parse_args()
    payload = PayloadConfig(args.kernel, args.initramfs, "console=ttyS0 panic=-1 quiet")
    ray.init(address="auto", log_to_driver=False)
    asyncio.run(main(VMConfig(payload, memory=MemoryConfig(256 << 20), name="guest"), args.guests, args.until))
