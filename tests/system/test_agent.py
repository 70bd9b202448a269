"""The agent in guests with stock kernels: what a program that embeds a VM does in its guest."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from aiovmm import VM, VMConfig, VsockConfig
from aiovmm.agent import agent_binary
from aiovmm.image import build_initramfs
from tests.system.conftest import GUESTS, RELEASES, Guests


@pytest.fixture(scope="module")
def with_agent(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for release in RELEASES:
        found[release] = tmp_path_factory.mktemp("initramfs") / f"{release}.cpio"
        image = build_initramfs(
            busybox=GUESTS / "bin/busybox", modules=GUESTS / release / "modules", agent=agent_binary()
        )
        found[release].write_bytes(image.data)
    return found


def configured(guests: Guests, initramfs: dict[str, Path], release: str, **changes: object) -> VMConfig:
    config = guests.config(release, vsock=VsockConfig(), **changes)  # type: ignore[arg-type]
    return replace(config, payload=replace(config.payload, initramfs=initramfs[release]))


async def commands(vm: VM) -> None:
    greeting = await vm.agent.ready(timeout=120)
    assert not greeting.is_init
    done = await asyncio.create_task(vm.run(["uname", "-s"], timeout=60))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"Linux\n", b"")


@pytest.mark.parametrize("release", RELEASES)
async def test_commands_run_in_a_guest(guests: Guests, with_agent: dict[str, Path], release: str) -> None:
    async with VM(configured(guests, with_agent, release)) as vm:
        await vm.start()
        await commands(vm)
