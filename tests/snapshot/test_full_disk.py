"""A disk that has no room for the next snapshot of a guest that runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiovmm import VM, HostError
from tests.snapshot.test_directory import fill
from tests.vm.guest import config, counts_on

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("kvm_there")]
BUFFER, PAGE = 0x200000, 4096  # nothing else is there


def files(path: Path) -> list[tuple[str, int]]:
    return sorted((file.name, file.stat().st_size) for file in path.iterdir())


def fill_up(place: Path) -> Path:
    with (place / "rest").open("wb", buffering=0) as rest:
        fill(rest.fileno())
    return place / "rest"


async def test_the_old_one_stays_the_error_says_where_and_the_guest_goes_on(small: Path) -> None:
    path = small / "s"
    async with VM(config("s")) as vm:
        await vm.start()
        await counts_on(vm)
        await vm.snapshot(path)
        before, rest = files(path), fill_up(small)
        for _ in range(2):
            with pytest.raises(HostError, match=rf"No space left on device \(free some space there.*: {path}$"):
                await vm.snapshot(path)
            await counts_on(vm)
        assert files(path) == before
        rest.unlink()
        await vm.snapshot(small / "next")
    for name in ("s", "next"):
        async with VM.restore(small / name, verify=True) as again:
            await again.resume()
            await counts_on(again)


@pytest.mark.usefixtures("writes_are_known")
async def test_so_it_is_with_an_increment_whose_base_stays_and_which_can_be_had_later(small: Path) -> None:
    base, path = small / "0", small / "1"
    async with VM(config("s")) as vm:
        await vm.start()
        await vm.snapshot(base, track=True)
        vm.machine.memory.write(BUFFER, b"written" * PAGE)
        before, rest = files(base), fill_up(small)
        with pytest.raises(HostError, match=rf"No space left on device \(free some space there.*: {path}$"):
            await vm.snapshot(path, base=base)
        await counts_on(vm)
        assert files(base) == before
        rest.unlink()
        await vm.snapshot(path, base=base)
    async with VM.restore(path, verify=True) as again:
        assert again.machine.memory.read(BUFFER, 7 * PAGE) == b"written" * PAGE
        await again.resume()
        await counts_on(again)
