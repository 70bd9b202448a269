"""A sandbox is frozen, forked and restored as any guest is; its forks are sandboxes of its image."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aiovmm import VM, BuiltImage, StateError
from aiovmm.rootfs.image import ImageConfig
from aiovmm.sandboxes.guest import Sandbox
from tests.limits import HANGS
from tests.vm.guest import config, counts_on

pytestmark = pytest.mark.kvm
SAYS = ImageConfig({"A": "b"}, user="nobody", workdir="/srv")


@pytest.fixture
def image(tmp_path: Path) -> BuiltImage:
    (tmp_path / "image").touch()
    return BuiltImage(tmp_path / "image", "erofs", SAYS)


def said(vm: Any) -> tuple[Any, ...]:
    """What its commands have unless they are told otherwise."""
    return dict(vm._env), vm._cwd, vm._user


async def test_forks_are_sandboxes_of_the_same_image(image: BuiltImage) -> None:
    async with asyncio.timeout(HANGS):
        async with Sandbox(config("s"), image) as vm:
            await vm.start()
            await counts_on(vm)
            template = await vm.freeze()
        async with template, template.fork() as child:
            assert isinstance(child, Sandbox)
            assert child.image is image
            assert said(child) == ({"A": "b"}, "/srv", "nobody")
            await child.resume()
            await counts_on(child)
            async with await child.freeze() as again, again.fork() as grandchild:
                assert isinstance(grandchild, Sandbox)
                assert grandchild.image is image


@pytest.mark.parametrize("restore", [VM.restore, Sandbox.restore])
async def test_one_that_is_restored_goes_on_and_has_no_image(
    image: BuiltImage, restore: Callable[[Path], Any], tmp_path: Path
) -> None:
    async with asyncio.timeout(HANGS):
        async with Sandbox(config("s"), image) as vm:
            await vm.start()
            await counts_on(vm)
            await vm.snapshot(tmp_path / "s")
        async with restore(tmp_path / "s") as again:
            await again.resume()
            await counts_on(again)
            assert said(again) == ({}, None, None)
            if isinstance(again, Sandbox):
                with pytest.raises(StateError, match="snapshot, which does not know its image"):
                    _ = again.image
